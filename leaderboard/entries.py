"""Published results: the records of a run, and who stands for them, one JSON file per entry.

An entry holds records, not scores: every table is derived from them. What records have in common is
written once, so that several hundred fit into a repository. Nothing in a file is executed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from sophon_bench.analysis.frozen import Frozen
from sophon_bench.leaderboard import tables
from sophon_bench.leaderboard.columns import records
from sophon_bench.plugins.failures import BadInput
from sophon_bench.plugins.registry import NAME, NAME_LENGTH
from sophon_bench.results.files import write_atomic
from sophon_bench.results.records import SCHEMA, Cell, Point, Record, digest
from sophon_bench.results.store import checked

PUBLISHED = Path(__file__).parent / "results"

LAYOUT = 1
"""Version of the layout of entries."""

Label = Literal["self-reported", "spot-checked", "reproduced"]

Line = Annotated[str, msgspec.Meta(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line of text."""


class EntryError(BadInput, ValueError):
    """A file that is no entry, or one whose records are not what they were; says what and where."""


class Entry(Record, frozen=True, kw_only=True, gc=True):
    """Records of a run, published.

    Attributes:
        name: Of the file, in lower case with hyphens.
        title: Of what is submitted, for people.
        authors: Who stands for it.
        link: Where the method is described, an ``https`` address.
        label: ``self-reported``; ``spot-checked`` (some cells were made again by a reviewer and
            agreed); ``reproduced`` (all of them).
        submitted: The day, as ``2026-01-31``.
        cells: The records: defenses and their controls.
    """

    name: Annotated[str, msgspec.Meta(pattern=NAME, max_length=NAME_LENGTH)]
    title: Line
    authors: Annotated[list[Line], msgspec.Meta(min_length=1, max_length=50)]
    link: Annotated[str, msgspec.Meta(pattern=r"^https://[^\s<>\"'\\]+$", max_length=300)]
    label: Label = "self-reported"
    submitted: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\d$")]
    cells: list[Cell]


ABOUT = tuple(name for name in Entry.__struct_fields__ if name != "cells")

SHARED = ("scenario", "defense", "attack", "pretrained", "released", "provenance")
"""Parts of records that many have in common."""


class _Packed(Record, frozen=True, kw_only=True, gc=True):
    layout: int
    schema: int
    about: dict[str, Any]
    points: list[str]
    parts: dict[str, list[Any]]
    cells: list[dict[str, Any]]
    hashes: dict[str, str]


def pack(entry: Entry) -> bytes:
    """An entry as JSON, a line per record: the same for the same records."""
    about = {key: getattr(entry, key) for key in ABOUT}
    parts: dict[str, dict[str, int]] = {key: {} for key in SHARED}
    points = [field.name for field in msgspec.structs.fields(Point)]
    ordered = sorted(entry.cells, key=lambda cell: cell.key)
    lines = []
    for cell in ordered:
        plain = msgspec.to_builtins(cell)
        plain["finished"] = plain["provenance"].pop("finished")
        plain["curve"] = [[point[name] for name in points] for point in plain["curve"]]
        for key in SHARED:
            plain[key] = parts[key].setdefault(_compact(plain[key]), len(parts[key]))
        lines.append(_compact(plain))
    head = {"layout": LAYOUT, "schema": SCHEMA, "about": about, "points": points}
    written = ",\n".join(f'"{key}":[\n' + ",\n".join(parts[key]) + "\n]" for key in SHARED)
    hashes = {cell.key: digest(cell) for cell in ordered}
    return (
        json.dumps(head, indent=1, ensure_ascii=False)[:-2]
        + f',\n "parts": {{\n{written}\n}},\n "cells": [\n'
        + ",\n".join(lines)
        + f'\n],\n "hashes": {json.dumps(hashes, indent=1)}\n}}\n'
    ).encode()


def _compact(plain: Any) -> str:
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def unpack(content: bytes, source: str) -> Entry:
    """The entry in ``content``, each record checked against its types, its hash and its key.

    Args:
        content: What a file holds.
        source: What errors call it.

    Raises:
        EntryError: If it is no entry or not whole; names the record that is not.
    """
    try:
        packed = msgspec.json.decode(content, type=_Packed)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EntryError(f"{source!r} is not an entry of 'sophon-bench submit': {error}") from error
    if (packed.layout, packed.schema) != (LAYOUT, SCHEMA):
        raise EntryError(
            f"{source!r} has layout {packed.layout} and schema {packed.schema}; this program reads "
            f"layout {LAYOUT} and schema {SCHEMA}"
        )
    try:
        cells = checked([_unfolded(plain, packed) for plain in packed.cells], packed.hashes)
        return msgspec.convert({**packed.about, "cells": cells}, Entry, from_attributes=True)
    except ValueError as error:
        raise EntryError(f"{source!r}: {error}") from error


def _unfolded(plain: Mapping[str, Any], packed: _Packed) -> dict[str, Any]:
    """A record in full; what cannot be is left as it is, for the check of the record to name."""
    found = dict(plain)
    for key in SHARED:
        known = packed.parts.get(key, [])
        index = found.get(key)
        if isinstance(index, int) and 0 <= index < len(known):
            found[key] = known[index]
    if isinstance(found.get("provenance"), dict):
        finished = {"finished": found.pop("finished", None)}
        found["provenance"] = {**found["provenance"], **finished}
    if isinstance(found.get("curve"), list):
        found["curve"] = [
            dict(zip(packed.points, row, strict=False)) if isinstance(row, list) else row
            for row in found["curve"]
        ]
    return found


def read(file: Path) -> Entry:
    """The entry in a file.

    Raises:
        EntryError: If it cannot be read, is no entry, or is not called as it says.
    """
    try:
        entry = unpack(file.read_bytes(), str(file))
    except OSError as error:
        raise EntryError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    if file.name != f"{entry.name}.json":
        raise EntryError(f"{str(file)!r} says that its name is {entry.name!r}; call it so")
    return entry


def is_entry(file: Path) -> bool:
    """Whether a file begins as an entry does; `read` says what is wrong with one that does not."""
    with file.open("rb") as content:
        return b'"layout"' in content.read(40)


def read_all(files: Iterable[Path]) -> list[Entry]:
    """Entries in the order of their names."""
    return [read(file) for file in sorted(files)]


def published() -> list[Entry]:
    """Every entry that comes with the package."""
    return read_all(PUBLISHED.glob("*.json"))


def report(entries: Sequence[Entry], frozen: Sequence[Frozen]) -> tables.Report:
    """One report of all entries: each is judged by its own controls, ranks are of all.

    The entry with most seeds tells the controls. Defenses of one name in several entries are told
    apart by the entry's.
    """
    most = sorted(entries, key=lambda entry: (-len({c.seed for c in entry.cells}), entry.name))
    reports = [(entry, tables.report(entry.cells, frozen)) for entry in most]
    owners = Counter(
        label
        for _, found in reports
        for label in {row["defense"] for row in records(found.scores) if not row["control"]}
    )
    return tables.united(
        tables.renamed(found, {n: f"{n} ({entry.name})" for n in owners if owners[n] > 1})
        for entry, found in reports
    )


def write(entry: Entry, folder: Path) -> Path:
    """Write an entry under its name.

    Raises:
        EntryError: If another is there.
        OSError: If it cannot be written.
    """
    file = folder / f"{entry.name}.json"
    content = pack(entry)
    if file.exists() and file.read_bytes() != content:
        raise EntryError(f"{str(file)!r} is there; choose another name, or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file.absolute(), content)
    return file
