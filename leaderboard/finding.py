"""The finding: what the paper's recipe and a tuned attacker reach against each defense.

As a picture, a dumbbell per defense between the lines of the undefended model and of scratch; and
as a table of six columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sophon_bench.analysis import series
from sophon_bench.analysis.verdict import verdict
from sophon_bench.leaderboard import columns, layout, vega
from sophon_bench.leaderboard.columns import Column, Row, percent, pick, records
from sophon_bench.leaderboard.recipe import paper_recipe
from sophon_bench.leaderboard.render import Place, Table
from sophon_bench.leaderboard.tables import Report
from sophon_bench.leaderboard.vega import CONTROLS, SCRATCH, UNDEFENDED, Figure
from sophon_bench.plugins.selectors import parse, scalar
from sophon_bench.results import Results
from sophon_bench.results.frames import PLACE
from sophon_bench.results.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame

RECIPE, TUNED = "the paper's recipe", "a tuned attacker"
LOOKS = {RECIPE: "#56B4E9", TUNED: "#0072B2"}
HEIGHT = 24
"""Pixels per defense."""

COLUMNS = (
    Column(key="defense"),
    *pick(columns.SCORES, "rank"),
    Column(key="original_after", header="original", unit="%", format=".1f"),
    Column(key="recipe_after", header="paper's recipe", unit="%", format=".1f"),
    Column(key="restricted_after", header="tuned attacker", unit="%", format=".1f"),
    *pick(columns.SCORES, "resistance"),
)


def with_recipe(report: Report, cells: Records) -> Report:
    """A report of these records, its scores with what the paper's recipe reaches."""
    return dataclasses.replace(report, scores=recipe_beside(report.scores, Results.of(cells)))


def recipe_beside(scores: DataFrame, results: Results) -> DataFrame:
    """Scores with ``recipe_after``, ``recipe_after_half_width`` and ``recipe_listed``.

    The recipe is the best trial and checkpoint of `paper_recipe`, picked on the selection split as
    the tuned attacker's are. Where none of its trials was run, it is that of the same attacks at
    the same step sizes, and ``recipe_listed`` is false.
    """
    import pandas as pd

    found, listed = _recipe(results)
    if found.empty:
        return scores.assign(recipe_after=None, recipe_after_half_width=None, recipe_listed=None)
    keys = [*PLACE, "defense"]
    found = found.set_index(keys).sort_index()
    means = {
        key: own["protected_after"].mean(skipna=False) for key, own in found.groupby(level=keys)
    }
    # a mean over several n has no interval here: they share seeds
    alone = found["protected_half_width"][~found.index.duplicated(keep=False)]
    reached = pd.DataFrame(
        {"recipe_after": pd.Series(means), "recipe_after_half_width": alone}
    ).rename_axis(keys)
    return scores.join(reached, on=keys).assign(recipe_listed=listed)


def _recipe(results: Results) -> tuple[DataFrame, bool]:
    """What it reaches, and whether its own trials were run."""
    paper = paper_recipe().trials
    cells = results.cells[["attack", "attack_name", "attack_parameters"]]
    tried = cells.drop_duplicates("attack")
    if ran := set(paper) & set(tried["attack"]):
        return series.recipe(results, ran), True
    known = [(parsed.name, scalar(parsed.parameters["lr"])) for parsed in map(parse, paper)]
    alike = [
        attack
        for attack, name, parameters in tried.itertuples(index=False, name=None)
        if (name, parameters.get("lr")) in known
    ]
    return series.recipe(results, alike), False


def places(report: Report) -> list[Place]:
    """The verdict and the table of every place, of a report `with_recipe`."""
    trials = layout.by_place(report.trials)
    return [
        _place(layout.heading(where, trials.get(where, df)), report.legend.rows(records(df)))
        for where, df in layout.by_place(report.scores).items()
    ]


def _place(title: str, rows: Sequence[Row]) -> Place:
    ordered = sorted(rows, key=layout.score_order)
    controls = [row for row in ordered if row["control"]]
    defenses = [row for row in ordered if not row["control"]]
    table = Table(
        title=f"{layout.plural(ordered[0]['utility']).capitalize()} in %{layout.over(ordered)}",
        columns=COLUMNS,
        quiet=[*controls, *layout.scratch_rows(controls, "defense")],
        body=defenses,
        notes=_notes(ordered),
    )
    return Place(title=title, verdict=verdict(ordered), tables=[table])


def _notes(rows: Sequence[Row]) -> list[str]:
    listed = {row["recipe_listed"] for row in rows}
    found = ["paper's recipe: the best of the trials of @paper, picked on a hidden split"]
    if False in listed:
        found = [
            "paper's recipe: the best of @paper's attacks at its step size, picked on a hidden "
            "split; @paper itself was not run here"
        ]
    if any(row["resistance_half_width"] is not None for row in rows):
        found.append("±: half-width of a 95 % interval over seeds and test images")
    return found


def dumbbells(scores: DataFrame) -> Figure | None:
    """What each defense lets the paper's recipe and a tuned attacker reach, in one place.

    Args:
        scores: Rows of `with_recipe` of one place.

    Returns:
        None if no defense has a score.
    """
    rows = sorted(records(scores), key=layout.score_order)
    defenses = [row for row in rows if not row["control"] and row["restricted_after"] is not None]
    if not defenses:
        return None
    names = [vega.label(row["defense"]) for row in defenses]
    spans = [
        {
            "name": name,
            "low": reached(row, "recipe_after"),
            "high": reached(row, "restricted_after"),
        }
        for name, row in zip(names, defenses, strict=True)
    ]
    points = [
        {"name": each["name"], "x": each[end], "by": by, "tip": f"{by}: {each[end]:.1f} %"}
        for each in spans
        for end, by in (("low", RECIPE), ("high", TUNED))
        if each[end] is not None
    ]
    words = [
        {
            "name": name,
            "resistance": columns.number(row["resistance"], row["resistance_half_width"], ".2f"),
        }
        for name, row in zip(names, defenses, strict=True)
    ]
    bars = _bars(rows)
    axis = {"labelLimit": vega.LONGEST, "grid": True, "ticks": False, "domain": False}
    y = {"field": "name", "type": "nominal", "sort": names, "title": None, "axis": axis}
    title = f"restricted {defenses[0]['utility']} after the attack (%)"
    scale = {"domain": [0, 100], "nice": False}
    x = {"type": "quantitative", "scale": scale, "title": title}
    level = {
        "x": {"field": "x", **x},
        "color": {"field": "colour", "type": "nominal", "scale": None},
    }
    right = {"align": "left", "dx": 8, "fontSize": 11}

    def layer(values: list[dict[str, Any]], kind: str, mark: Figure, encoding: Figure) -> Figure:
        return {"data": {"values": values}, "mark": {"type": kind, **mark}, "encoding": encoding}

    figure = {
        "width": 420,
        "height": HEIGHT * len(defenses),
        "layer": [
            layer(bars, "rule", {"strokeDash": [5, 3], "strokeWidth": 1.5}, level),
            *(
                layer(
                    [bar],
                    "text",
                    {"baseline": "bottom", "dy": -3 - 13 * number, "fontSize": 11},
                    {**level, "y": {"value": 0}, "text": {"field": "name"}},
                )
                for number, bar in enumerate(reversed(bars))
            ),
            layer(
                spans,
                "rule",
                {"strokeWidth": 3, "color": LOOKS[RECIPE], "opacity": 0.7},
                {"y": y, "x": {"field": "low", **x}, "x2": {"field": "high"}},
            ),
            layer(
                points,
                "point",
                {"filled": True, "size": 90, "opacity": 1},
                {
                    "y": y,
                    "x": {"field": "x", **x},
                    "color": vega.nominal("by", LOOKS, LOOKS.values(), legend=vega.legend(LOOKS)),
                    "tooltip": {"field": "tip", "type": "nominal"},
                },
            ),
            layer(
                words,
                "text",
                right,
                {"y": y, "x": {"value": "width"}, "text": {"field": "resistance"}},
            ),
            layer(
                [{"name": "resistance"}],
                "text",
                {**right, "baseline": "bottom", "dy": -3},
                {"x": {"value": "width"}, "y": {"value": 0}, "text": {"field": "name"}},
            ),
        ],
        "resolve": {"scale": {"color": "independent"}},
    }  # fmt: skip
    return vega.titled(figure, _where(rows), vega.folded(verdict(rows) or "", 100))


def reached(row: Row, key: str) -> float | None:
    """In per cent."""
    return None if row[key] is None else round(100 * row[key], 2)


def _bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The levels of the controls, of the seeds of the undefended model's row."""
    controls = [row for row in rows if row["control"]] or rows
    levels = {UNDEFENDED: "undefended_after", SCRATCH: "scratch_after"}
    return [
        {
            "name": f"{name} {percent(controls[0][key])} %",
            "x": reached(controls[0], key),
            "colour": CONTROLS[name].colour,
        }
        for name, key in levels.items()
        if controls[0][key] is not None
    ]


def _where(rows: list[dict[str, Any]]) -> str:
    return f"{rows[0]['scenario']}, {rows[0]['backbone']}{layout.over(rows)}"
