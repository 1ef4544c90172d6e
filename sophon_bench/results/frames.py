"""Records as pandas frames: one row per model, per cell, and per scored checkpoint.

Utilities are fractions, higher is better; costs are counted in units, one forward and backward pass
of the undefended backbone on one example. Labels are selectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec

from sophon_bench.results.files import no_collector
from sophon_bench.results.records import OR, Asked, Cell, Cost, PluginId, Records

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

PLACE = ("scenario", "revision", "backbone", "precision", "budget", "protocol")
"""What two cells must have in common to stand in one score: all but defense, attack and n."""

COSTS = ("seconds", "steps", "examples", "units", "flops", "peak_bytes", "together")
MADE = (
    "status", "reason", "note", "original", "original_second", "original_validation",
    "restricted", "trivial_loss", "generated", "weights", "sigma_ratios", "gradient_ratios",
    "recipe",
)  # fmt: skip
PLUGIN = ("name", "parameters", "source", "distribution", "control", "mechanism", "version")
POINT = ("steps", "units", "seconds", "fit", "validation", "selection", "test", "second_test")
PROVENANCE = (
    "version", "commit", "dirty", "python", "torch", "timm", "cuda", "device", "threads",
    "compiled", "finished",
)  # fmt: skip
CELL = (
    "domain", "role", "suite", "derived", "samples", "seed", "stretch", "status", "reason",
    "test_examples", "utility", "trivial_loss", "nonfinite_step", "generated",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Results:
    """The records of one or several runs.

    Attributes:
        models: One row per pre-trained or released model, by its content key (the index).

            ``kind`` is ``pretrained`` or ``released``; ``defense`` the selector, null for a
            pre-trained model; `PLACE` without the budget, and ``seed``, say where it was made;
            `MADE` what came out, ``original`` and ``restricted`` being test utilities before any
            attack and ``recipe`` how a pre-trained model was trained, where there was a choice;
            `COSTS` what making it took; `PROVENANCE`, each with ``made_`` before it, by
            what.
        cells: One row per cell, by its content key, in the order of seeds and keys.

            `PLACE` and `CELL` say what was done and how it ended; ``defense`` and ``attack`` are
            selectors, and of each plugin there is `PLUGIN` (``attack_mechanism``); ``lr`` is the
            trial's learning rate and ``family`` a hash of all its other parameters; ``pretrained``
            and ``released`` are keys of `models`; `COSTS` is what the attack took; `PROVENANCE`,
            each with ``made_`` before it, by what.
        points: One row per scored checkpoint, in the order of `cells` and of cost: ``cell`` is the
            key, ``number`` counts from 0; `POINT` has costs so far and utilities by split.
        store: The store that has the models' weights, if it is known.
    """

    models: DataFrame
    cells: DataFrame
    points: DataFrame
    store: str | Path | None = None

    @classmethod
    @no_collector()
    def of(cls, records: Records, store: str | Path | None = None) -> Results:
        """The frames of records."""
        seeds = {key: model.seed for key, model in records.models.items()}
        ordered = sorted(records.cells, key=lambda cell: (seeds[cell.model], cell.key))
        frames = _models(records, ordered), _cells(records, ordered), _points(ordered)
        return cls(*frames, store)


NUMBERS = (
    "seconds", "units", "flops", "peak_bytes", "original", "original_second",
    "original_validation", "restricted", "trivial_loss", "lr", "nonfinite_step", "fit",
    "validation", "selection", "test", "second_test",
)  # fmt: skip
"""Columns of float64, NaN where there is none; ``steps``, ``examples`` and ``together`` too where a
cost may be missing."""

WHOLE = ("budget", "samples", "seed", "stretch", "test_examples", "number")
TRUTH = ("derived", "defense_control", "attack_control")
DTYPES: dict[str, Any] = {
    **dict.fromkeys((*NUMBERS, "steps", "examples", "together"), "float64"),
    **dict.fromkeys(WHOLE, "int64"),
    **dict.fromkeys(TRUTH, "bool"),
}


def _frame(columns: Mapping[str, Any]) -> DataFrame:
    """A frame of columns by name; what is no number is of objects, None where there is none."""
    return _as_frame({name: _array(v, DTYPES.get(name, object)) for name, v in columns.items()})


def _as_frame(arrays: Mapping[str, NDArray[Any]]) -> DataFrame:
    import pandas as pd

    series = {name: pd.Series(a, dtype=a.dtype) for name, a in arrays.items()}
    return pd.DataFrame(series, copy=False)


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    """(rows,) the values; of objects one each, whatever they hold."""
    import numpy as np

    if dtype is object and not isinstance(values, np.ndarray):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    return np.asarray(values, dtype=dtype)


def _parts(records: Sequence[Any], paths: Iterable[str]) -> Iterator[Iterable[tuple[Any, ...]]]:
    """Attributes by their dotted paths, a tuple each, of a part of the records after the other.

    What a part holds stays in the processor's cache until all its columns are read.
    """
    values = attrgetter(*paths)
    for start in range(0, len(records), 500):
        yield zip(*map(values, records[start : start + 500]), strict=True)


def _columns(records: Sequence[Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """Columns by name, each of an attribute of records by its dotted path."""
    columns: dict[str, list[Any]] = {name: [] for name in paths}
    for part in _parts(records, paths.values()):
        for column, values in zip(columns.values(), part, strict=True):
            column.extend(values)
    return columns


def _paths(names: Iterable[str], prefix: str = "", of: str = "") -> dict[str, str]:
    return {f"{prefix}{name}": f"{of}{name}" for name in names}


WHERE = {
    "scenario": "scenario.label", "revision": "scenario.revision", "backbone": "backbone",
    "precision": "precision",
}  # fmt: skip
MADE_BY = _paths(PROVENANCE, "made_", "provenance.")
ELSEWHERE = ("suite", "derived", "seed")
"""What the manifests of runs say of a cell, and its model."""

OWN = ("key", "budget", "protocol", *(name for name in CELL if name not in ELSEWHERE))
COLUMNS = (
    "key", *PLACE, "defense", *_paths(PLUGIN, "defense_"), "attack", *_paths(PLUGIN, "attack_"),
    "lr", "family", *CELL, "pretrained", "released", *COSTS, *MADE_BY,
)  # fmt: skip
"""Of `Results.cells`, in order."""


def _costs(costs: Iterable[Cost | None]) -> dict[str, Any]:
    """What stages took, None where that is not known."""
    unknown = SimpleNamespace(**dict.fromkeys(COSTS))
    return _columns([cost or unknown for cost in costs], _paths(COSTS))


def _plugins(kind: str, plugins: Sequence[PluginId]) -> dict[str, Any]:
    """Columns of plugins; few plugins are in many cells, and are hashed once each."""
    import numpy as np
    import pandas as pd

    encode = msgspec.msgpack.Encoder().encode
    encoded = {key: encode(plugin) for key, plugin in {id(each): each for each in plugins}.items()}
    rows = pd.factorize(_array([encoded[id(plugin)] for plugin in plugins], object))[0]
    _, first = np.unique(rows, return_index=True)
    paths = {kind: "label", **_paths(PLUGIN, f"{kind}_")}
    if kind == "attack":
        paths |= _paths(("lr", "family"))
    columns = _columns([plugins[index] for index in first], paths)
    return {name: _array(v, DTYPES.get(name, object))[rows] for name, v in columns.items()}


def _cells(records: Records, cells: Sequence[Cell]) -> DataFrame:
    own = _columns(cells, {**_paths(OWN), **MADE_BY, **_paths(("model", "attack", "cost"))})
    by_none = Asked(key="")
    asked = [records.asked.get(key, by_none) for key in own["key"]]
    suites = {each: OR.join(sorted(each)) or None for each in {each.suites for each in asked}}
    columns = {
        **_of_models(records, own["model"]),
        **_plugins("attack", own["attack"]),
        **{name: own[name] for name in (*OWN, *MADE_BY)},
        **_costs(own["cost"]),
        "suite": [suites[each.suites] for each in asked],
        "derived": [each.derived for each in asked],
        "released": own["model"],
    }
    return _frame({name: columns[name] for name in COLUMNS}).set_index("key", drop=False)


def _of_models(records: Records, keys: Sequence[str]) -> dict[str, Any]:
    """Columns that cells have of their released models, which few of them are."""
    import pandas as pd

    rows, found = pd.factorize(_array(keys, object))
    models = [records.models[key] for key in found]
    columns = {
        **_columns(models, {**WHERE, "seed": "seed", "pretrained": "pretrained"}),
        **_plugins("defense", [model.defense for model in models if model.defense is not None]),
    }
    return {name: _array(v, DTYPES.get(name, object))[rows] for name, v in columns.items()}


def _models(records: Records, cells: Sequence[Cell]) -> DataFrame:
    """Those that cells refer to, in the order of cells."""
    released = [records.models[key] for key in dict.fromkeys(cell.model for cell in cells)]
    keys = dict.fromkeys(key for model in released for key in (str(model.pretrained), model.key))
    models = [records.models[key] for key in keys]
    columns: dict[str, Any] = {
        "key": list(keys),
        "kind": ["pretrained" if model.defense is None else "released" for model in models],
        **_columns(models, {**WHERE, **_paths(("protocol", "seed"))}),
        "defense": [None if model.defense is None else model.defense.label for model in models],
        **_columns(models, _paths(MADE)),
        **_costs(model.cost for model in models),
        **_columns(models, MADE_BY),
    }
    return _frame(columns).set_index("key", drop=False)


def _points(cells: Sequence[Cell]) -> DataFrame:
    import numpy as np

    curves = [cell.curve for cell in cells]
    scored = np.array(list(map(len, curves)), dtype="int64")
    count, ends = int(scored.sum()), np.cumsum(scored)
    columns: dict[str, list[Any]] = {name: [np.empty(0)] for name in POINT}
    for part in _parts(curves, POINT):
        steps, *others, second = part
        if None in second:
            unknown = (repeat(math.nan, len(each)) for each in steps)
            second = tuple(v or nan for v, nan in zip(second, unknown, strict=True))
        for column, lists in zip(columns.values(), (steps, *others, second), strict=True):
            column.append(np.fromiter(chain.from_iterable(lists), "float64"))
    return _as_frame(
        {
            "cell": np.repeat(_array([cell.key for cell in cells], object), scored),
            "number": np.arange(count) - np.repeat(ends - scored, scored),
            **{name: np.concatenate(parts) for name, parts in columns.items()},
        }
    ).astype({"steps": "int64"})
