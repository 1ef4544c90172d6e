"""The table of scores of one place, and what tables of scores have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sophon_bench.leaderboard import columns
from sophon_bench.leaderboard.columns import (
    PROVISIONAL,
    ROLLED_BACK,
    Row,
    frame,
    percent,
    records,
    span,
    superscript,
)
from sophon_bench.leaderboard.names import Legend
from sophon_bench.leaderboard.render import Table

if TYPE_CHECKING:
    from pandas import DataFrame

WHY_PROVISIONAL = "fewer than five seeds, or no frozen list of budgets and n that count"


def plural(utility: str) -> str:
    """Several of a utility: ``accuracies``."""
    return f"{utility.removesuffix('y')}ies" if utility.endswith("y") else f"{utility}s"


def footnotes(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows with the mark of why they have no score as ``footnote``, and the reasons in words."""
    listed = [*rows]
    reasons = list(dict.fromkeys(row["unscored"] for row in listed if row["unscored"]))
    marks = {reason: superscript(count) for count, reason in enumerate(reasons, 1)}
    marked = [{**row, "footnote": marks.get(row["unscored"])} for row in listed]
    return marked, [f"{mark} {reason}" for reason, mark in marks.items()]


def scratch_rows(rows: Iterable[Row], key: str) -> list[Row]:
    """What training from scratch reaches, once per level, under ``key`` as the name."""
    levels = dict.fromkeys(row["scratch_after"] for row in rows if row["scratch_after"] is not None)
    return [{key: "scratch", "restricted_after": level} for level in levels]


def score_notes(rows: Sequence[Row], reasons: Sequence[str]) -> list[str]:
    """Why rows have no score, and what provisional means where one is."""
    provisional = any(row["provisional"] for row in rows)
    return [*reasons, *[f"{PROVISIONAL} provisional: {WHY_PROVISIONAL}"] * provisional]


def flag_notes(rows: Iterable[Row], legend: Legend) -> list[str]:
    """The flags of every defense that has some."""
    return [f"{legend(row['defense'])}: {', '.join(row['flags'])}" for row in rows if row["flags"]]


def called_by(legend: Legend, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows in which defenses are called as in tables."""
    return [{**row, "defense": legend(row["defense"])} for row in rows]


def score_table(scores: DataFrame, legend: Legend) -> Table:
    """The scores of one place, controls first, with what has to be said about them.

    Two ranked defenses or more have a column of ranks.
    """
    ordered, reasons = footnotes(sorted(records(scores), key=score_order))
    controls = [row for row in ordered if row["control"]]
    others = [row for row in ordered if not row["control"]]
    notes = score_notes(ordered, reasons)
    notes += [
        f"{ROLLED_BACK} {legend(row['defense'])}: protection was rolled back on "
        f"{row['rolled_back']} of {span([row['released_seeds']])}"
        for row in ordered
        if row["rolled_back"]
    ]
    known = {(row["undefended_after"], row["scratch_after"]) for row in controls}
    against: dict[tuple[Any, ...], list[str]] = {}
    for row in others:
        reached = row["undefended_after"], row["scratch_after"]
        if reached not in known:
            against.setdefault(reached, []).append(legend(row["defense"]))
    notes += [
        f"{', '.join(names)}: on {'its' if len(names) == 1 else 'their'} seeds the undefended "
        f"model reaches {percent(undefended)}, scratch {percent(scratch)}"
        for (undefended, scratch), names in against.items()
    ]
    notes += flag_notes(ordered, legend)
    ranked = sum(row["rank"] is not None for row in others) > 1
    if ranked:
        notes.append("rank: one more than the defenses whose whole interval is above; ties overlap")
    return Table(
        title=f"Scores{over(ordered)}: 100 · resistance · intactness · trainability; "
        f"{plural(ordered[0]['utility'])} in % after the tuned attack, cost of protection as a "
        "multiple of pre-training",
        columns=[column for column in columns.SCORES if ranked or column.key != "rank"],
        quiet=frame([*called_by(legend, controls), *scratch_rows(controls, "defense")]),
        body=frame(called_by(legend, others)),
        notes=[*notes, *legend.notes(row["defense"] for row in ordered)],
    )


def over(scores: Sequence[Row]) -> str:
    """Over which n and how many seeds scores are."""
    samples = max((row["samples"] for row in scores), key=len).replace(",", ", ")
    return f", n = {samples}, {span(row['seeds'] for row in scores)}" if samples else ""


def score_order(row: Row) -> tuple[bool, bool, float, str]:
    """What rows of scores are sorted by: controls, then the highest."""
    unscored = row["score"] is None
    return (not row["control"], unscored, 0.0 if unscored else -row["score"], row["defense"])
