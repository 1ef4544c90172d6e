"""The regression gate: what a run changed, what of that is accepted, and how to say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sophon_bench.analysis.comparison import STATUS
from sophon_bench.analysis.thresholds import SHORT, UNITS
from sophon_bench.leaderboard.columns import (
    CHANGES,
    TENTATIVE,
    Row,
    change,
    frame,
    pick,
    records,
    span,
)
from sophon_bench.leaderboard.names import Legend
from sophon_bench.leaderboard.render import (
    Flat,
    Place,
    Table,
    to_console,
    to_json,
    to_markdown,
)
from sophon_bench.leaderboard.tables import by_place, heading
from sophon_bench.plugins.registry import unknown
from sophon_bench.plugins.suites import read_document

if TYPE_CHECKING:
    from pandas import DataFrame


class Acceptance(BaseModel):
    """A regression that is known and wanted.

    Attributes:
        scenario, backbone, defense, attack, domain, samples: What it is of, as in flat rows; left
            out: of any. A defense or an attack at least.
        metric: Of the threshold, or ``status`` for cells that vanished or fail.
        reason: Why; stands in the report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    scenario: str | None = None
    backbone: str | None = None
    defense: str | None = None
    attack: str | None = None
    domain: str | None = None
    samples: int | None = None
    metric: str
    reason: str = Field(min_length=1)

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [*SHORT, *UNITS, STATUS]
        if name not in known:
            raise ValueError(unknown("metric", name, known))
        return SHORT.get(name, name)

    @model_validator(mode="after")
    def _narrow(self) -> Acceptance:
        if self.defense is None and self.attack is None:
            raise ValueError("says neither which defense nor which attack it is of")
        return self

    @property
    def label(self) -> str:
        """What it is of, in words."""
        told = self.model_dump(exclude_none=True, exclude={"reason"})
        return ", ".join(f"{key} {value}" for key, value in told.items())

    def covers(self, row: Row) -> bool:
        """Whether the row is such a regression."""
        told = self.model_dump(exclude_none=True, exclude={"reason"})
        return row["verdict"] == "regression" and all(row[k] == v for k, v in told.items())


class Acceptances(BaseModel):
    """A file of ``--accept``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    accepted: list[Acceptance]


def load_accepted(path: Path) -> list[Acceptance]:
    """The acceptances in a YAML or JSON file.

    Raises:
        SelectorError: If it is not one, with what is wrong and where.
    """
    return read_document("acceptance", path, Acceptances).accepted


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What a run changed.

    Args:
        changes: Rows of `analysis.compare`; what is accepted has that as its verdict, and the
            ``reason``.
        unused: Acceptances of nothing that is in them.
    """

    changes: DataFrame
    unused: Sequence[Acceptance]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The changes row by row."""
        return records(self.changes)

    @property
    def failed(self) -> bool:
        """Whether there is a regression that nobody accepted."""
        return any(row["verdict"] == "regression" for row in self.rows)


def comparison(changes: DataFrame, accepted: Sequence[Acceptance]) -> Comparison:
    """Changes with what is accepted; the first that covers a row gives the reason."""
    used = set()
    rows = []
    for row in records(changes):
        covering = [number for number, each in enumerate(accepted) if each.covers(row)]
        used.update(covering)
        acceptance = (
            {"verdict": "accepted", "reason": accepted[covering[0]].reason} if covering else {}
        )
        rows.append({**row, **acceptance})
    unused = [each for number, each in enumerate(accepted) if number not in used]
    return Comparison(changes=frame(rows), unused=unused)


def verdict(result: Comparison) -> str:
    """What it comes to, in one line."""
    counts = Counter(row["verdict"] for row in result.rows)
    judged = _plural(_judged(counts), "comparison")
    if result.failed:
        return f"REGRESSION: {counts['regression']} in {judged}"
    return f"fine: no regression in {judged}"


def summary(result: Comparison) -> str:
    """How many there are of each verdict, in one line."""
    counts = Counter(row["verdict"] for row in result.rows)
    shown = [
        _plural(counts["regression"], "regression"),
        f"{counts['accepted']} accepted",
        _plural(counts["improvement"], "improvement"),
        f"{counts['unchanged']} unchanged",
        f"{counts['not applied']} not applied",
        f"{counts['new']} new",
    ]
    return ", ".join(shown)


def _judged(counts: Mapping[str, int]) -> int:
    return sum(counts[name] for name in ("regression", "accepted", "improvement", "unchanged"))


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


SHOWN = {"regression": "Regressions", "accepted": "Accepted", "improvement": "Improvements"}
"""Verdicts that tables have, with their titles, in order."""


def _places(result: Comparison) -> list[Place]:
    """Tables of what matters, per scenario, backbone and budget."""
    legends = {kind: Legend.of([result.changes], {}, kind) for kind in ("attack", "defense")}
    places = []
    for where, changes in by_place(result.changes).items():
        rows = records(changes)
        judged = {name: [row for row in rows if row["verdict"] == name] for name in SHOWN}
        tables = [_table(SHOWN[name], own, legends) for name, own in judged.items() if own]
        if tables:
            places.append(Place(title=heading(where, changes), tables=tables))
    return places


def _table(title: str, rows: Sequence[Row], legends: Mapping[str, Legend]) -> Table:
    short = [
        {**row, **{kind: called(row[kind]) for kind, called in legends.items() if row[kind]}}
        for row in rows
    ]
    named = [{**row, "subject": _subject(row)} for row in short]
    reasons = [row for row in named if row["reason"] and change(row) != row["reason"]]
    notes = [f"{row['subject']}, {row['metric']}: {row['reason']}" for row in reasons]
    if any(row["tentative"] for row in rows):
        notes.append(f"{TENTATIVE} one seed in common: no interval, the threshold alone")
    for kind, called in legends.items():
        notes += called.notes(row[kind] for row in rows if row[kind])
    counts = [row["seeds"] for row in rows if row["difference"] is not None]
    over = f", means and 95 % intervals over {span(counts)}" if counts else ""
    return Table(title=f"{title}{over}", columns=CHANGES, body=frame(named), notes=notes)


def _subject(row: Row) -> str:
    """What a row is of, in words."""
    if row["attack"] is None:
        return str(row["defense"])
    return f"{row['attack']} against {row['defense']} ({row['domain']}, n={row['samples']})"


def _remarks(result: Comparison) -> Iterator[str]:
    """What is neither better nor worse and has to be said, a line each."""
    changed: dict[str, None] = {}
    skipped: dict[tuple[str | None, str], dict[str, None]] = {}
    added: dict[str, None] = {}
    for row in result.rows:
        if row["verdict"] == "changed":
            changed[f"{row['defense'] or row['attack']} ({row['reason']})"] = None
        elif row["verdict"] == "not applied":
            skipped.setdefault((row["threshold"], row["reason"]), {})[row["defense"]] = None
        elif row["verdict"] == "new":
            added[row["reason"] if row["attack"] is None else _subject(row)] = None
    if changed:
        yield f"changed plugins: {', '.join(changed)}"
    for (what, reason), defenses in skipped.items():
        where = f"{what} to {', '.join(defenses)}: " if what else ""
        yield f"not applied: {where}{reason}"
    if added:
        yield f"new: {'; '.join(added)}"


def text(result: Comparison) -> str:
    """For a console: the verdict, what matters, and how much there is of what."""
    return "".join(
        [
            f"{verdict(result)}\n\n",
            *([to_console(places), "\n"] if (places := _places(result)) else []),
            *(f"{line}\n" for line in _remarks(result)),
            f"{summary(result)}\n",
        ]
    )


def markdown(result: Comparison) -> str:
    """In GitHub's Markdown."""
    places = _places(result)
    return "\n\n".join(
        [
            f"## {verdict(result)}",
            *([to_markdown(places).rstrip()] if places else []),
            *_remarks(result),
            f"{summary(result)}\n",
        ]
    )


def github(result: Comparison) -> str:
    """Workflow commands, which GitHub shows as annotations, and the verdict."""
    levels = {"regression": "error", "accepted": "notice", "improvement": "notice"}
    lines = [
        _command(levels[row["verdict"]], f"{row['verdict']} in {row['metric']}", _sentence(row))
        for name in SHOWN
        for row in result.rows
        if row["verdict"] == name
    ]
    lines += [_command("notice", "sophon-bench compare", line) for line in _remarks(result)]
    lines += [_command("warning", "unused acceptance", each.label) for each in result.unused]
    return "\n".join([*lines, verdict(result), summary(result)]) + "\n"


def _sentence(row: Row) -> str:
    where = f"{_subject(row)} ({row['scenario']}, {row['backbone']})"
    columns = pick(CHANGES, "metric", "base", "new", "difference", "threshold")
    metric, base, new, changed, allowed = (column.text(row) for column in columns)
    sentence = f"{where}: {metric} {base} -> {new}"
    if row["difference"] is not None:
        sentence += f", {changed} over {span([row['seeds']])}, allowed {allowed}"
    return f"{sentence}; {row['reason']}" if row["reason"] else sentence


def _command(level: str, title: str, message: str) -> str:
    """A workflow command, its values escaped as GitHub's own toolkit does."""
    name = _quoted(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{_quoted(message)}"


def _quoted(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": text,
    "md": markdown,
    "github": github,
    "json": lambda result: to_json(Flat(frames=[result.changes], columns=CHANGES)),
}
"""How to say it; json is all flat rows, with stable keys."""
