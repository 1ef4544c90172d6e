"""What records say, as tables: frames of an analysis, prepared, and their columns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.analysis.frozen import Frozen
from sophon_bench.analysis.verdict import enumerated, verdict
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import columns, layout
from sophon_bench.leaderboard.columns import Row, frame, number, percent, records
from sophon_bench.leaderboard.layout import Key
from sophon_bench.leaderboard.names import Attacks, Legend, is_envelope, with_names
from sophon_bench.leaderboard.render import Flat, Place, Table, flat_rows, printed
from sophon_bench.plugins.failures import BadInput
from sophon_bench.plugins.registry import unknown
from sophon_bench.results import Results, documents
from sophon_bench.results.frames import PLACE
from sophon_bench.results.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Gaps = Frozen | Sequence[Frozen] | None

FRAMES = ("trials", "scores", "winners", "images")


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

    @classmethod
    def of(cls, results: Results, frozen: Gaps, names: Mapping[str, str] | None = None) -> Report:
        """What results of any places say; ``frozen`` is which budgets and n count for scores."""
        return cls(
            trials=analysis.trials(results),
            scores=analysis.scores(results, frozen),
            winners=analysis.winners(results),
            images=analysis.images(results),
            names=names or {},
        )

    @property
    def legend(self) -> Legend:
        """What tables call defenses."""
        return Legend.of([self.scores, self.trials], self.names, "defense")

    @property
    def flat(self) -> Flat:
        """Score rows, which have no ``attack``, and then the rows of attacks and envelopes."""
        frames = [with_names(df, self.names) for df in (self.scores, self.trials)]
        return Flat(frames=frames, columns=columns.SCORES, first=1)

    def map(self, change: Callable[[DataFrame], DataFrame]) -> Report:
        """The report with every frame changed that has rows."""
        frames = {key: df for key in FRAMES if len(df := getattr(self, key))}
        return dataclasses.replace(self, **{key: change(df) for key, df in frames.items()})


def report(cells: Records, frozen: Gaps = None, names: Mapping[str, str] | None = None) -> Report:
    """The same of records (`Report.of`)."""
    return Report.of(Results.of(cells), frozen, names)


def united(reports: Iterable[Report]) -> Report:
    """Several reports as one: a control of more than one is listed once, and ranks are of all.

    Of reports that have the same defense or control of a place, the first counts.
    """
    import pandas as pd

    parts: list[Report] = []
    listed: set[Key] = set()
    for report in reports:
        parts.append(report.map(functools.partial(_without, frozenset(listed))))
        listed |= {key for df in (report.trials, report.scores) for key in _subjects(df)}
    whole = {key: pd.concat([getattr(p, key) for p in parts], ignore_index=True) for key in FRAMES}
    names = {label: name for part in parts for label, name in part.names.items()}
    return Report(**{**whole, "scores": analysis.ranked(whole["scores"])}, names=names)


def _without(subjects: frozenset[Key], df: DataFrame) -> DataFrame:
    return df[~_subjects(df).isin(subjects)]


def _subjects(df: DataFrame) -> Series:
    """The place and the defense of every row."""
    import pandas as pd

    keys = df.reindex(columns=[*PLACE, "defense"]).astype(str)
    return pd.Series([*keys.itertuples(index=False, name=None)], index=df.index, dtype=object)


def renamed(report: Report, names: Mapping[str, str]) -> Report:
    """The report with other labels for some defenses."""
    return report.map(lambda df: df.assign(defense=df["defense"].map(lambda k: names.get(k, k))))


def places(report: Report) -> list[Place]:
    """Per place: the scores, who won, and one matrix per sample count.

    Where utility follows from a loss, that in matrices of its own; and where models make images,
    how good they are.
    """
    legend = report.legend
    by_kind = {key: layout.by_place(getattr(report, key)) for key in FRAMES}
    listed = []
    for where in dict.fromkeys([*by_kind["trials"], *by_kind["scores"]]):
        own = {key: known.get(where, frame([])) for key, known in by_kind.items()}
        called = Attacks(own["trials"], report.names)
        winners = records(own["winners"])
        tables = [layout.score_table(own["scores"], legend)] if len(own["scores"]) else []
        tables += [layout.winner_table(winners, called, legend)] if winners else []
        tables += layout.matrices(own["trials"], own["scores"], called, legend)
        tables += layout.loss_tables(own["trials"], called, legend)
        tables += [layout.image_table(own["images"], called, legend)] if len(own["images"]) else []
        listed.append(
            Place(
                title=layout.heading(where, own["trials"]),
                tables=tables,
                verdict=verdict(legend.rows(records(own["scores"]))),
            )
        )
    return listed


def differences(rows: DataFrame, names: Mapping[str, str] | None = None) -> list[Place]:
    """How much more each defense has than one of them, one table per place."""
    legend = Legend.of([rows], names or {}, "defense")

    def table(df: DataFrame) -> Table:
        rows, reasons = layout.footnotes(records(df))
        other = rows[0]["other"]
        return Table(
            title=f"More than {legend(other)} has, paired by seed, with 95 % intervals; resistance "
            "not clipped",
            columns=columns.DIFFERENCES,
            body=legend.rows(rows),
            notes=[*reasons, *legend.notes([other, *df["defense"]])],
        )

    return layout.places(rows, lambda df: [table(df)])


def show_differences(form: str, cells: Records, against: str, frozen: Gaps) -> str:
    """What every defense has more than ``against``, in one of `render.FORMATS`.

    Raises:
        BadInput: If there is no such defense, or no other one beside it.
    """
    if against not in (known := {cells.defense(cell).label for cell in cells.cells}):
        raise BadInput(unknown("defense", against, known))
    found = analysis.differences(Results.of(cells), against, frozen)
    if found.empty:
        raise BadInput(f"no other defense was attacked beside {against!r}")
    return printed(
        form, lambda: differences(found), Flat(frames=[found], columns=columns.DIFFERENCES)
    )


def agreements(name: str, df: DataFrame) -> Place:
    """What the entry ``name`` reports beside what came out now (rows of `analysis.agreements`)."""
    rows = records(df)
    utilities = sorted({row["utility"] for row in rows})
    sampled = any(row[f"{key}_low"] is not None for row in rows for key in columns.AGREEING)
    notes: list[str] = []
    for kind in ("attack", "defense"):
        legend = Legend.of([df], {}, kind)
        rows = legend.rows(rows, kind)
        notes += legend.notes(df[kind])
    table = Table(title="Records made again", columns=columns.AGREEMENTS, body=rows, notes=notes)
    return Place(
        title=f"{name}: test {' or '.join(utilities)} in %"
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
    scores, trials = layout.by_place(report.scores), layout.by_place(report.trials)
    said = []
    for where in dict.fromkeys([*trials, *scores]):
        rows = records(scores[where]) if where in scores else []
        scored = [row for row in rows if row["score"] is not None and not row["control"]]
        if scored:
            said.append(_scored(legend.rows(sorted(scored, key=layout.score_order))))
        elif where in trials:
            groups = layout.by_samples(trials[where])
            said += [_reached(legend.rows(records(df))) for _, df in groups]
    return "\n".join(said)


def _scored(defenses: Sequence[Row]) -> str:
    listed = enumerated(
        f"{row['defense']} scores {number(row['score'], row['score_half_width'], '.1f')} "
        f"of 100 ({'provisional; ' if row['provisional'] else ''}"
        f"{percent(row['restricted_after'])} % reached)"
        for row in defenses
    )
    first = defenses[0]
    return (
        f"Against a tuned attacker, who reaches {percent(first['undefended_after'])} % from the "
        f"undefended model and {percent(first['scratch_after'])} % from random initialisation, "
        f"{listed}. 0 protects like no defense; 100 gives the attacker nothing over random "
        f"initialisation at any budget, keeps the original {first['utility']} and stays trainable "
        "on other tasks."
    )


def _reached(rows: Sequence[Row]) -> str:
    known = [row for row in rows if row["restricted_after"] is not None]
    reached = [
        f"{percent(row['restricted_after'])} % against {row['defense']} (best of {row['trials']} "
        f"trials: {row['best']})"
        for row in known
        if row["attack"] == ENVELOPE
    ]
    if not reached:
        return "No attack produced a predictor, so nothing can be said about any defense."
    fresh = [row["restricted_after"] for row in known if row["control"] and not is_envelope(row)]
    scratch = "random initialisation"
    bar = f"the {percent(max(fresh))} % of {scratch}" if fresh else f"that of {scratch}"
    return (
        "An attacker who chooses trial and checkpoint on a hidden split reaches "
        f"{enumerated(reached)}. A defense holds up if that falls to {bar} while the original "
        f"{rows[0]['utility']} stays: judge it by this envelope, not by one recipe."
    )
