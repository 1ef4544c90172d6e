"""What a page is made of: submissions, and what each says in every place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sophon_bench.analysis.cost import PRETRAINING
from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.images import Made, makers
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import gallery, tables
from sophon_bench.leaderboard.columns import Row, records
from sophon_bench.leaderboard.tables import Gaps, Key
from sophon_bench.results import Results
from sophon_bench.results.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame

Label = Literal["self-reported", "spot-checked", "reproduced"]


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

    cells: Records
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


KINDS: Mapping[str, Callable[[Results, Gaps], DataFrame]] = {
    "releases": lambda results, _: analysis.releases(results),
    "scores": analysis.scores,
    "attacks": lambda results, _: analysis.trials(results),
    "winners": lambda results, _: analysis.winners(results),
    "curves": analysis.curves,
    "sweeps": lambda results, _: analysis.sweeps(results),
    "protection": lambda results, _: analysis.protection(results),
    "half_costs": analysis.half_costs,
    "images": lambda results, _: analysis.images(results),
}
"""Frames that the page shows, by name."""

Rows = Mapping[str, Sequence[Row]]
"""Rows by their kind."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one submission says in one place.

    Args:
        submission: Whose it is.
        rows: Its rows there.
        cells: Its records there, by defense.
        made: Images that models made there, of one seed.
    """

    submission: Submission
    rows: Rows
    cells: Mapping[str, Records]
    made: Sequence[Made]

    @property
    def controls(self) -> set[str]:
        """Names of the undefended model, and of pre-training, which stands for it."""
        made = self.rows["releases"]
        return {PRETRAINING, *(row["defense"] for row in made if row["control"])}

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
    for cells in _by_place(submission.cells):
        results = Results.of(cells)
        rows = {kind: records(find(results, frozen)) for kind, find in KINDS.items()}
        key = tuple(rows["releases"][0][name] for name in tables.WHERE)
        made = gallery.of_one_seed(makers(results))
        by_defense = _by_defense(cells, results, [row["defense"] for row in rows["releases"]])
        yield key, Part(submission=submission, rows=rows, cells=by_defense, made=made)


def _by_place(cells: Records) -> list[Records]:
    """The records of every place, in the order of places."""
    found: dict[tuple[str, ...], set[str]] = {}
    for cell in cells.cells:
        model = cells.model(cell)
        where = model.scenario.label, model.scenario.revision, model.backbone, model.precision
        found.setdefault((*where, str(cell.budget), cell.protocol), set()).add(cell.key)
    return [cells.only(found[place]) for place in sorted(found)]


def _by_defense(cells: Records, results: Results, defenses: Iterable[str]) -> dict[str, Records]:
    """The records of one place by the name that frames give to their defense, in that order."""
    named = outcomes(results).cells
    keys = named["key"].groupby(named["defense_label"]).agg(set)
    return {defense: cells.only(keys[defense]) for defense in defenses}


def names(parts: Sequence[Part], home: Part) -> dict[tuple[int, str], str]:
    """Unique names of what is shown, by number of the part and its own name there."""
    shown = [
        (number, defense)
        for number, part in enumerate(parts)
        for defense in part.cells
        if part is home or defense not in part.controls
    ]
    often = Counter(defense for _, defense in shown)
    found: dict[tuple[int, str], str] = {}
    for number, defense in shown:
        whose = parts[number].submission.name or f"records {number + 1}"
        name = f"{defense} ({whose})" if often[defense] > 1 else defense
        taken = name in found.values()
        found[number, defense] = f"{name}, {number + 1}" if taken else name
    return found


def merged(parts: Sequence[Part], names: Mapping[tuple[int, str], str]) -> Rows:
    """Rows of what is shown, under the names there; pre-training's of the part with controls."""
    home = next((n for n, d in names if d in parts[n].controls), 0)
    known = {**names, (home, PRETRAINING): PRETRAINING}
    return {
        kind: [
            {**row, "defense": known[number, row["defense"]]}
            for number, part in enumerate(parts)
            for row in part.rows[kind]
            if (number, row["defense"]) in known
        ]
        for kind in KINDS
    }


def of_defense(name: str, rows: Rows) -> Rows:
    """A defense's own rows, and the undefended model's sweeps, to compare."""
    found = {kind: [row for row in own if row["defense"] == name] for kind, own in rows.items()}
    return {**found, "usual": [row for row in rows["sweeps"] if row["control"]]}
