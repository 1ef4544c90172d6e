"""What a page is made of: submissions, and what each says in every place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sophon_bench.analysis.cost import PRETRAINING
from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.images import Made, makers
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import gallery, layout
from sophon_bench.leaderboard.columns import Row, records
from sophon_bench.leaderboard.layout import Key
from sophon_bench.leaderboard.tables import Gaps
from sophon_bench.results import Results
from sophon_bench.results.frames import PLACE
from sophon_bench.results.records import Cell

if TYPE_CHECKING:
    from pandas import DataFrame

Label = Literal["self-reported", "spot-checked", "reproduced"]

Rows = Mapping[str, Sequence[Row]]
"""Rows by their kind."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Records, and who stands for them.

    Args:
        cells: Records of any places: defenses and their controls.
        name: Tells submissions apart; empty: nobody submitted these.
        title: Of what is submitted, for people.
        authors: Who stands for it.
        link: Where it is described.
        label: Who has seen that the records can be made again.
        submitted: The day, as ``2026-01-31``.
    """

    cells: Sequence[Cell]
    name: str = ""
    title: str = ""
    authors: Sequence[str] = ()
    link: str = ""
    label: Label | None = None
    submitted: str = ""

    @property
    def safe_link(self) -> str | None:
        """The link if a browser may follow it: what runs in the page instead is none."""
        return self.link if re.match(r"https?://", self.link) else None


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one submission says in one place: rows, `Outcomes.cells`, and images of one seed."""

    submission: Submission
    rows: Rows
    cells: DataFrame
    made: Sequence[Made]

    @property
    def control_seeds(self) -> int:
        """Seeds on which the undefended model was attacked."""
        return max((row["seeds"] for row in self.rows["scores"] if row["control"]), default=-1)


def by_place(submissions: Iterable[Submission], frozen: Gaps) -> list[tuple[Key, list[Part]]]:
    """What there is to show in every place, in the order of places."""
    found: dict[Key, list[Part]] = {}
    for submission in submissions:
        for key, part in _parts(submission, frozen):
            found.setdefault(key, []).append(part)
    return sorted(found.items(), key=lambda pair: tuple(map(str, pair[0])))


def _parts(submission: Submission, frozen: Gaps) -> Iterator[tuple[Key, Part]]:
    results = Results.of(submission.cells)
    found = {
        "releases": analysis.releases(results),
        "scores": analysis.scores(results, frozen),
        "attacks": analysis.trials(results),
        "winners": analysis.winners(results),
        "curves": analysis.curves(results, frozen),
        "sweeps": analysis.sweeps(results),
        "protection": analysis.protection(results),
        "half_costs": analysis.half_costs(results, frozen),
        "images": analysis.images(results),
    }
    rows = {kind: layout.by_place(df) for kind, df in found.items()}
    made: dict[Key, list[Made]] = {}
    for one in makers(results):
        made.setdefault(tuple(one.place[name] for name in PLACE), []).append(one)
    for key, cells in layout.by_place(outcomes(results).cells).items():
        here = {kind: records(of[key]) if key in of else [] for kind, of in rows.items()}
        images = gallery.of_one_seed(made.get(key, []))
        yield key, Part(submission=submission, rows=here, cells=cells, made=images)


def names(parts: Sequence[Part], home: Part) -> dict[tuple[int, str], str]:
    """Unique names of what is shown, by number of the part and its own name there.

    Controls, and pre-training, are shown of the part ``home`` alone.
    """
    shown = [
        (number, row["defense"])
        for number, part in enumerate(parts)
        for row in part.rows["releases"]
        if part is home or not (row["control"] or row["defense"] == PRETRAINING)
    ]
    often = Counter(defense for _, defense in shown)
    found: dict[tuple[int, str], str] = {}
    for number, defense in shown:
        whose = parts[number].submission.name or f"records {number + 1}"
        name = f"{defense} ({whose})" if often[defense] > 1 else defense
        taken = name in found.values()
        found[number, defense] = f"{name}, {number + 1}" if taken else name
    return found


def merged(parts: Sequence[Part], names: Mapping[tuple[int, str], str], home: Part) -> Rows:
    """Rows of what is shown, under the names there."""
    known = {**names, (parts.index(home), PRETRAINING): PRETRAINING}
    return {
        kind: [
            {**row, "defense": known[number, row["defense"]]}
            for number, part in enumerate(parts)
            for row in part.rows[kind]
            if (number, row["defense"]) in known
        ]
        for kind in home.rows
    }


def of_defense(name: str, rows: Rows) -> dict[str, list[Row]]:
    """A defense's own rows."""
    return {kind: [row for row in own if row["defense"] == name] for kind, own in rows.items()}
