"""The regression gate: what a run changed, what of that is accepted, and how to say it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sophon_bench.leaderboard.tables import (
    NOTHING,
    Place,
    Row,
    Table,
    by_place,
    heading,
    percent,
    span,
    to_console,
    to_json,
    to_markdown,
    with_half_width,
)
from sophon_bench.metrics.comparing import SHORT, STATUS, UNITS
from sophon_bench.registry import unknown
from sophon_bench.selectors import read_document

TENTATIVE = "~"
"""Marks a change that one seed tells, without an interval."""


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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a run changed.

    Args:
        rows: Flat rows of `metrics.compare`; what is accepted has that as its verdict, and the
            ``reason``.
        unused: Acceptances of nothing that is in them.
    """

    rows: Sequence[Row]
    unused: Sequence[Acceptance]

    @property
    def failed(self) -> bool:
        """Whether there is a regression that nobody accepted."""
        return any(row["verdict"] == "regression" for row in self.rows)


def comparison(rows: Iterable[Row], accepted: Sequence[Acceptance]) -> Comparison:
    """Rows with what is accepted; the first that covers a row gives the reason."""
    used = set()
    found = []
    for row in rows:
        covering = [number for number, each in enumerate(accepted) if each.covers(row)]
        used.update(covering)
        told = {"verdict": "accepted", "reason": accepted[covering[0]].reason} if covering else {}
        found.append({**row, **told})
    unused = [each for number, each in enumerate(accepted) if number not in used]
    return Comparison(rows=found, unused=unused)


def verdict(found: Comparison) -> str:
    """What it comes to, in one line."""
    counts = Counter(row["verdict"] for row in found.rows)
    judged = _plural(_judged(counts), "comparison")
    if found.failed:
        return f"REGRESSION: {counts['regression']} in {judged}"
    return f"fine: no regression in {judged}"


def summary(found: Comparison) -> str:
    """How many there are of each verdict, in one line."""
    counts = Counter(row["verdict"] for row in found.rows)
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


COLUMNS = ("metric", "base", "new", "change", "allowed")

SHOWN = {"regression": "Regressions", "accepted": "Accepted", "improvement": "Improvements"}
"""Verdicts that tables have, with their titles, in order."""


def _places(found: Comparison) -> list[Place]:
    """Tables of what matters, per scenario, backbone and budget."""
    places = []
    for where, rows in by_place(found.rows).items():
        tables = [
            _table(title, [row for row in rows if row["verdict"] == name])
            for name, title in SHOWN.items()
            if any(row["verdict"] == name for row in rows)
        ]
        if tables:
            places.append(Place(title=heading(where, rows), tables=tables))
    return places


def _table(title: str, rows: Sequence[Row]) -> Table:
    reasons = [row for row in rows if row["reason"] and _change(row) != row["reason"]]
    notes = [f"{_subject(row)}, {row['metric']}: {row['reason']}" for row in reasons]
    if any(row["tentative"] for row in rows):
        notes.append(f"{TENTATIVE} one seed in common: no interval, the threshold alone")
    counts = [row["seeds"] for row in rows if row["difference"] is not None]
    over = f", means and 95 % intervals over {span(counts)}" if counts else ""
    return Table(
        title=f"{title}{over}",
        columns=["", *COLUMNS],
        body=[[_subject(row), *_columns(row)] for row in rows],
        notes=notes,
    )


def _subject(row: Row) -> str:
    """What a row is of, in words."""
    if row["attack"] is None:
        return str(row["defense"])
    return f"{row['attack']} against {row['defense']} ({row['domain']}, n={row['samples']})"


def _columns(row: Row) -> list[str]:
    metric = row["metric"]
    values = [
        NOTHING if row[side] is None else _value(metric, row[side]) for side in ("base", "new")
    ]
    return [metric, *values, _change(row), _allowed(row)]


def _value(metric: str, value: object) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if metric.endswith("seconds"):
        return f"{value:.3g} s"
    if metric.endswith("peak_memory"):
        return f"{value / 1e6:.0f} MB"
    if metric == "protect_cost":
        return f"{value:.2f}×"
    return f"{value:.1f}" if metric == "score" else percent(value)


def _change(row: Row) -> str:
    if row["metric"] == STATUS and row["verdict"] != "accepted":
        return str(row["reason"])
    if row["difference"] is None:
        return NOTHING
    sign = "+" if row["difference"] >= 0 else ""
    text = sign + with_half_width(row["difference"], row["half_width"], 1)
    return f"{text}{TENTATIVE if row['tentative'] else ''} {row['unit']}"


def _allowed(row: Row) -> str:
    return NOTHING if row["threshold"] is None else row["threshold"].partition(":")[2]


def _remarks(found: Comparison) -> Iterator[str]:
    """What is neither better nor worse and has to be said, a line each."""
    changed: dict[str, None] = {}
    skipped: dict[tuple[str | None, str], dict[str, None]] = {}
    added: dict[str, None] = {}
    for row in found.rows:
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


def text(found: Comparison) -> str:
    """For a console: the verdict, what matters, and how much there is of what."""
    return "".join(
        [
            f"{verdict(found)}\n\n",
            *([to_console(places), "\n"] if (places := _places(found)) else []),
            *(f"{line}\n" for line in _remarks(found)),
            f"{summary(found)}\n",
        ]
    )


def markdown(found: Comparison) -> str:
    """In GitHub's Markdown."""
    places = [
        Place(title=place.title, tables=[_escaped(table) for table in place.tables])
        for place in _places(found)
    ]
    return "\n\n".join(
        [
            f"## {verdict(found)}",
            *([to_markdown(places).rstrip()] if places else []),
            *_remarks(found),
            f"{summary(found)}\n",
        ]
    )


def _escaped(table: Table) -> Table:
    """Reasons are anybody's words: a bar in one would end its column."""
    body = [[cell.replace("|", "\\|") for cell in line] for line in table.body]
    return dataclasses.replace(table, body=body)


def github(found: Comparison) -> str:
    """Workflow commands, which GitHub shows as annotations, and the verdict."""
    levels = {"regression": "error", "accepted": "notice", "improvement": "notice"}
    lines = [
        _command(levels[row["verdict"]], f"{row['verdict']} in {row['metric']}", _sentence(row))
        for name in SHOWN
        for row in found.rows
        if row["verdict"] == name
    ]
    lines += [_command("notice", "sophon-bench compare", line) for line in _remarks(found)]
    lines += [_command("warning", "unused acceptance", each.label) for each in found.unused]
    return "\n".join([*lines, verdict(found), summary(found)]) + "\n"


def _sentence(row: Row) -> str:
    where = f"{_subject(row)} ({row['scenario']}, {row['backbone']})"
    metric, base, new, change, allowed = _columns(row)
    told = f"{where}: {metric} {base} -> {new}"
    if row["difference"] is not None:
        told += f", {change} over {span([row['seeds']])}, allowed {allowed}"
    return f"{told}; {row['reason']}" if row["reason"] else told


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
    "json": lambda found: to_json(found.rows),
}
"""How to say it; json is all flat rows, with stable keys."""
