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
from sophon_bench.leaderboard import layout
from sophon_bench.leaderboard.columns import (
    CHANGES,
    TENTATIVE,
    Row,
    change,
    frame,
    records,
    shown_in,
    span,
)
from sophon_bench.leaderboard.names import Legend
from sophon_bench.leaderboard.render import (
    Flat,
    Place,
    Table,
    markdown_text,
    to_console,
    to_json,
    to_markdown,
)
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
    def told(self) -> dict[str, Any]:
        """What it is of."""
        return self.model_dump(exclude_none=True, exclude={"reason"})

    @property
    def label(self) -> str:
        """What it is of, in words."""
        return ", ".join(f"{key} {value}" for key, value in self.told.items())

    def covers(self, row: Row) -> bool:
        """Whether the row is such a regression."""
        return row["verdict"] == "regression" and all(row[k] == v for k, v in self.told.items())


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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a run changed: rows of `analysis.compare`, and acceptances of nothing in them.

    What is accepted has that as its verdict, and the ``reason``.
    """

    rows: Sequence[Row]
    unused: Sequence[Acceptance]

    @cached_property
    def counts(self) -> Counter[str]:
        """How many rows there are of each verdict."""
        return Counter(row["verdict"] for row in self.rows)

    @property
    def failed(self) -> bool:
        """Whether there is a regression that nobody accepted."""
        return self.counts["regression"] > 0


def comparison(changes: DataFrame, accepted: Sequence[Acceptance]) -> Comparison:
    """Changes with what is accepted; the first that covers a row gives the reason."""
    rows: list[Row] = []
    used = set()
    for row in records(changes):
        covering = [number for number, each in enumerate(accepted) if each.covers(row)]
        used.update(covering)
        for number in covering[:1]:
            row |= {"verdict": "accepted", "reason": accepted[number].reason}
        rows.append(row)
    unused = [each for number, each in enumerate(accepted) if number not in used]
    return Comparison(rows=rows, unused=unused)


def verdict(result: Comparison) -> str:
    """What it comes to, in one line."""
    judged = sum(result.counts[name] for name in (*SHOWN, "unchanged"))
    where = f"in {_plural(judged, 'comparison')}"
    if result.failed:
        return f"REGRESSION: {result.counts['regression']} {where}"
    return f"fine: no regression {where}"


def summary(result: Comparison) -> str:
    """How many there are of each verdict, in one line."""
    count = result.counts
    listed = [_plural(count["regression"], "regression"), f"{count['accepted']} accepted"]
    listed += [_plural(count["improvement"], "improvement")]
    listed += [f"{count[name]} {name}" for name in ("unchanged", "not applied", "new")]
    return ", ".join(listed)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


SHOWN = {"regression": "Regressions", "accepted": "Accepted", "improvement": "Improvements"}
"""Verdicts that tables have, with their titles, in order."""


def _places(result: Comparison) -> list[Place]:
    """Tables of what matters, per scenario, backbone and budget."""
    changes = frame(result.rows)
    legends = {kind: Legend.of([changes], {}, kind) for kind in ("attack", "defense")}

    def tables(df: DataFrame) -> list[Table]:
        groups = {title: df[df["verdict"] == name] for name, title in SHOWN.items()}
        return [_table(title, own, legends) for title, own in groups.items() if len(own)]

    return layout.places(changes, tables)


def _table(title: str, df: DataFrame, legends: Mapping[str, Legend]) -> Table:
    rows = records(df)
    for kind, called in legends.items():
        rows = called.rows(rows, kind)
    rows = [{**row, "subject": _subject(row)} for row in rows]
    notes = [
        f"{row['subject']}, {row['metric']}: {row['reason']}"
        for row in rows
        if row["reason"] and change(row) != row["reason"]
    ]
    if any(row["tentative"] for row in rows):
        notes.append(f"{TENTATIVE} one seed in common: no interval, the threshold alone")
    for kind, called in legends.items():
        notes += called.notes(df[kind].dropna())
    counts = [row["seeds"] for row in rows if row["difference"] is not None]
    over = f", means and 95 % intervals over {span(counts)}" if counts else ""
    return Table(title=f"{title}{over}", columns=CHANGES, body=rows, notes=notes)


def _subject(row: Row) -> str:
    """What a row is of, in words."""
    if row["attack"] is None:
        return str(row["defense"])
    return f"{row['attack']} against {row['defense']} ({row['domain']}, n={row['samples']})"


def _remarks(result: Comparison) -> Iterator[str]:
    """What is neither better nor worse and has to be said, a line each."""
    by_verdict: dict[str, list[Row]] = {}
    for row in result.rows:
        by_verdict.setdefault(row["verdict"], []).append(row)
    if changed := by_verdict.get("changed"):
        plugins = (f"{row['defense'] or row['attack']} ({row['reason']})" for row in changed)
        yield f"changed plugins: {', '.join(dict.fromkeys(plugins))}"
    skipped: dict[tuple[str | None, str], dict[str, None]] = {}
    for row in by_verdict.get("not applied", []):
        skipped.setdefault((row["threshold"], row["reason"]), {})[row["defense"]] = None
    for (what, reason), defenses in skipped.items():
        where = f"{what} to {', '.join(defenses)}: " if what else ""
        yield f"not applied: {where}{reason}"
    if added := by_verdict.get("new"):
        told = (row["reason"] if row["attack"] is None else _subject(row) for row in added)
        yield f"new: {'; '.join(dict.fromkeys(told))}"


def text(result: Comparison) -> str:
    """For a console: the verdict, what matters, and how much there is of what."""
    tables = [f"{to_console(places)}\n"] if (places := _places(result)) else []
    remarks = [f"{line}\n" for line in _remarks(result)]
    return "".join([f"{verdict(result)}\n\n", *tables, *remarks, f"{summary(result)}\n"])


def markdown(result: Comparison) -> str:
    """In GitHub's Markdown."""
    tables = [to_markdown(places).rstrip()] if (places := _places(result)) else []
    remarks = [*map(markdown_text, _remarks(result)), f"{markdown_text(summary(result))}\n"]
    return "\n\n".join([f"## {markdown_text(verdict(result))}", *tables, *remarks])


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
    said = {column.key: column.text(row) for column in shown_in("console", CHANGES[1:])}
    sentence = f"{where}: {said['metric']} {said['base']} -> {said['new']}"
    if row["difference"] is not None:
        over = span([row["seeds"]])
        sentence += f", {said['difference']} over {over}, allowed {said['threshold']}"
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
    "json": lambda result: to_json(Flat(frames=[frame(result.rows)], columns=CHANGES)),
}
"""How to say it; json is all flat rows, with stable keys."""
