"""Where tables get their frames from: `metrics`, row by row, under the names of `analysis`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sophon_bench import metrics
from sophon_bench.leaderboard.columns import frame, records
from sophon_bench.records import Cell, PluginId

if TYPE_CHECKING:
    from pandas import DataFrame

Cells = Sequence[Cell] | metrics.Places


def _frames(find: Callable[..., Iterable[Any]]) -> Callable[..., DataFrame]:
    def analysed(cells: Cells, *arguments: Any) -> DataFrame:
        places = metrics.places(cells)
        return _with_plugins(frame(find(places, *arguments)), places)

    return analysed


def _with_plugins(df: DataFrame, places: metrics.Places) -> DataFrame:
    """The frame with the names of its plugins, and the attack's own label."""
    known: dict[str, dict[str, PluginId]] = {"defense": {}, "attack": {}}
    for sides in places:
        for cell in sides.cells:
            known["defense"][sides.names.defense(cell)] = cell.defense
            known["attack"][sides.names.attack(cell)] = cell.attack
    for kind, plugins in known.items():
        if kind in df:
            for part in ("name", "label"):
                values = {label: getattr(plugin, part) for label, plugin in plugins.items()}
                df[f"{kind}_{part}"] = df[kind].map(values).astype(object)
    return df


trials = _frames(metrics.rows)
scores = _frames(metrics.scores)
winners = _frames(metrics.winners)
images = _frames(metrics.images)
protection = _frames(metrics.protection)
half_costs = _frames(metrics.half_costs)
differences = _frames(metrics.differences)
ablation = _frames(metrics.ablation)
releases = _frames(metrics.releases)
recipe = _frames(metrics.recipe)
curves = _frames(metrics.curves)
sweeps = _frames(metrics.sweeps)


def criteria(cells: Sequence[Cell]) -> DataFrame:
    """`metrics.criteria`."""
    return _with_plugins(frame(metrics.criteria(cells)), metrics.places(cells))


def compare(base: Sequence[Cell], new: Sequence[Cell], *arguments: Any) -> DataFrame:
    """`metrics.compare`."""
    df = frame(metrics.compare(base, new, *arguments))
    return _with_plugins(df, metrics.places([*base, *new]))


def agreements(pairs: Sequence[tuple[Cell, Cell]]) -> DataFrame:
    """`metrics.agreements`."""
    df = frame(metrics.agreements(pairs))
    return _with_plugins(df, metrics.places([cell for cell, _ in pairs]))


def ranked(scores: DataFrame) -> DataFrame:
    """`metrics.ranked`."""
    return frame(metrics.ranked(records(scores)))
