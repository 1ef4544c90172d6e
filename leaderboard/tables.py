"""What records say, as tables: frames of an analysis, prepared, and their columns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.analysis.frozen import Frozen
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import columns
from sophon_bench.leaderboard.attack_tables import (
    by_samples,
    image_table,
    loss_tables,
    matrices,
    winner_table,
)
from sophon_bench.leaderboard.columns import Row, frame, number, percent, records
from sophon_bench.leaderboard.names import Attacks, Legend, is_envelope, with_names
from sophon_bench.leaderboard.render import Flat, Place, Table, flat_rows, printed
from sophon_bench.leaderboard.score_tables import called_by, footnotes, score_order, score_table
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results import Results, documents
from sophon_bench.results.frames import PLACE
from sophon_bench.results.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame

Key = tuple[Any, ...]
Gaps = Frozen | Sequence[Frozen] | None

WHERE = PLACE
"""What two rows must have in common to stand under one heading."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything a table is made of, derived from records and never stored.

    Args:
        trials: Restricted utility by attack and defense, envelopes included.
        scores: One row per defense.
        winners: Which attack the envelope picked, by defense, n and budget.
        images: How good the images are that models make of noise.
        names: Names that the user gave to defenses and attacks, by label.
    """

    trials: DataFrame
    scores: DataFrame
    winners: DataFrame
    images: DataFrame
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def legend(self) -> Legend:
        """What tables call defenses."""
        return Legend.of([self.scores, self.trials], self.names, "defense")

    @property
    def flat(self) -> Flat:
        """Score rows, which have no ``attack``, and then the rows of attacks and envelopes."""
        frames = [with_names(df, self.names) for df in (self.scores, self.trials)]
        return Flat(frames=frames, columns=columns.TRIALS, first=1)

    def map(self, change: Callable[[DataFrame], DataFrame]) -> Report:
        """The report with every frame changed."""
        return dataclasses.replace(self, **{key: change(getattr(self, key)) for key in FRAMES})


FRAMES = ("trials", "scores", "winners", "images")


def report(cells: Records, frozen: Gaps = None, names: Mapping[str, str] | None = None) -> Report:
    """What ``cells`` say.

    Args:
        cells: Records of any places.
        frozen: Which budgets and n count for scores.
        names: Names that the user gave to defenses and attacks, by label.
    """
    results = Results.of(cells)
    return Report(
        trials=analysis.trials(results),
        scores=analysis.scores(results, frozen),
        winners=analysis.winners(results),
        images=analysis.images(results),
        names=names or {},
    )


def _joined(reports: Sequence[Report]) -> Report:
    """All rows of several reports."""
    import pandas as pd

    whole = {
        key: pd.concat([getattr(report, key) for report in reports], ignore_index=True)
        for key in FRAMES
    }
    names = {label: name for report in reports for label, name in report.names.items()}
    return Report(**whole, names=names)


def united(reports: Iterable[Report]) -> Report:
    """Several reports as one: a control of more than one is listed once, and ranks are of all.

    Of reports that have the same defense or control of a place, the first counts.
    """
    parts: list[Report] = []
    listed: set[Key] = set()
    for report in reports:
        new = {key for part in (report.trials, report.scores) for key in _subjects(part)} - listed
        parts.append(report.map(functools.partial(_only, new)))
        listed |= new
    whole = _joined(parts)
    return dataclasses.replace(whole, scores=analysis.ranked(whole.scores))


def _only(subjects: set[Key], df: DataFrame) -> DataFrame:
    return df[[key in subjects for key in _subjects(df)]]


def _subjects(df: DataFrame) -> list[Key]:
    """The place and the defense of every row."""
    if not len(df):
        return []
    return [*zip(*(df[key].astype(str) for key in (*WHERE, "defense")), strict=True)]


def renamed(report: Report, names: Mapping[str, str]) -> Report:
    """The report with other labels for some defenses."""

    def change(df: DataFrame) -> DataFrame:
        if not len(df):
            return df
        return df.assign(defense=[names.get(label, label) for label in df["defense"]])

    return report.map(change)


def places(report: Report) -> list[Place]:
    """Per place: the scores, who won, and one matrix per sample count.

    Where utility follows from a loss, that in matrices of its own; and where models make images,
    how good they are.
    """
    legend = report.legend
    by_kind = {key: by_place(getattr(report, key)) for key in FRAMES}
    listed = []
    for where in dict.fromkeys([*by_kind["trials"], *by_kind["scores"]]):
        own = {key: known.get(where, frame([])) for key, known in by_kind.items()}
        called = Attacks(own["trials"], report.names)
        tables = [score_table(own["scores"], legend)] if len(own["scores"]) else []
        tables += [winner_table(own["winners"], called, legend)] if len(own["winners"]) else []
        tables += matrices(own["trials"], own["scores"], called, legend)
        tables += loss_tables(own["trials"], called, legend)
        tables += [image_table(own["images"], called, legend)] if len(own["images"]) else []
        listed.append(Place(title=heading(where, own["trials"]), tables=tables))
    return listed


def by_place(df: DataFrame) -> dict[Key, DataFrame]:
    """A frame by its values of `WHERE`, in order."""
    return dict(iter(df.groupby([*WHERE], sort=False))) if len(df) else {}


def heading(where: Key, df: DataFrame) -> str:
    """The place with these values of `WHERE`, and the suites that its rows are of."""
    at = dict(zip(WHERE, where, strict=True))
    suites = sorted({*df["suite"].dropna()}) if len(df) else []
    return ", ".join(
        [
            f"{at['scenario']} (data {at['revision'][:8]})",
            at["backbone"],
            at["precision"],
            f"protocol {at['protocol']}",
            f"{at['budget'] / REFERENCE_BATCH:g} steps",
            *suites,
        ]
    )


def differences(rows: DataFrame, names: Mapping[str, str] | None = None) -> list[Place]:
    """How much more each defense has than one of them, one table per place."""
    legend = Legend.of([rows], names or {}, "defense")
    return [
        Place(title=heading(where, df), tables=[_difference_table(df, legend)])
        for where, df in by_place(rows).items()
    ]


def _difference_table(df: DataFrame, legend: Legend) -> Table:
    rows, reasons = footnotes(records(df))
    other = rows[0]["other"]
    return Table(
        title=f"More than {legend(other)} has, paired by seed, with 95 % intervals; resistance "
        "not clipped",
        columns=columns.DIFFERENCES,
        body=frame(called_by(legend, rows)),
        notes=[*reasons, *legend.notes([other, *df["defense"]])],
    )


def agreements(name: str, df: DataFrame) -> Place:
    """What an entry reports beside what came out now.

    Args:
        name: The entry's.
        df: Rows of `analysis.agreements`, at least one.
    """
    legends = {kind: Legend.of([df], {}, kind) for kind in ("attack", "defense")}
    rows = records(df)
    sampled = any(row[f"{key}_low"] is not None for row in rows for key in ("reported", "again"))
    called = [
        {**row, **{kind: known(row[kind]) for kind, known in legends.items()}} for row in rows
    ]
    table = Table(
        title="Records made again",
        columns=columns.AGREEMENTS,
        body=frame(called),
        notes=[note for kind, known in legends.items() for note in known.notes(df[kind])],
    )
    return Place(
        title=f"{name}: test {' or '.join(sorted({row['utility'] for row in rows}))} in %"
        + (", with 95 % intervals over test images" if sampled else ""),
        tables=[table],
    )


def show(form: str, report: Report) -> str:
    """A report in one of `render.FORMATS`."""
    return printed(form, lambda: places(report), report.flat)


def document(cells: Records, report: Report) -> str:
    """What ``run --json`` writes: every record, its hash by its key, and the summary."""
    return documents.document(cells, flat_rows(report.flat))


def meaning(report: Report) -> str:
    """What the scores say, in two sentences per place; without a score, what the envelopes say."""
    legend = report.legend
    scores, trials = by_place(report.scores), by_place(report.trials)
    said = []
    for where in dict.fromkeys([*trials, *scores]):
        rows = records(scores[where]) if where in scores else []
        scored = [row for row in rows if row["score"] is not None and not row["control"]]
        if scored:
            said.append(_scored(called_by(legend, sorted(scored, key=score_order))))
        elif where in trials:
            groups = by_samples(trials[where])
            said += [_reached(called_by(legend, records(df))) for _, df in groups]
    return "\n".join(said)


def _scored(defenses: Sequence[Row]) -> str:
    listed = _listed(
        f"{row['defense']} scores {number(row['score'], row['score_half_width'], '.1f')} "
        f"of 100 ({'provisional; ' if row['provisional'] else ''}"
        f"{percent(row['restricted_after'])} % reached)"
        for row in defenses
    )
    first = defenses[0]
    return (
        f"Against a tuned attacker, who reaches {percent(first['undefended_after'])} % from the "
        f"undefended model and {percent(first['scratch_after'])} % from fresh weights, {listed}. "
        "0 protects like no defense; 100 gives the attacker nothing over fresh weights at any "
        f"budget, keeps the original {first['utility']} and stays trainable on other tasks."
    )


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _reached(rows: Sequence[Row]) -> str:
    reached = [
        f"{percent(row['restricted_after'])} % against {row['defense']} (best of {row['trials']} "
        f"trials: {row['best']})"
        for row in rows
        if row["attack"] == ENVELOPE and row["restricted_after"] is not None
    ]
    if not reached:
        return "No attack produced a predictor, so nothing can be said about any defense."
    fresh = [
        row["restricted_after"]
        for row in rows
        if row["control"] and not is_envelope(row) and row["restricted_after"] is not None
    ]
    bar = f"the {percent(max(fresh))} % of fresh weights" if fresh else "that of fresh weights"
    return (
        "An attacker who chooses trial and checkpoint on a hidden split reaches "
        f"{_listed(reached)}. A defense keeps its word if that falls to {bar} while the original "
        f"{rows[0]['utility']} stays: judge it by this envelope, not by one recipe."
    )
