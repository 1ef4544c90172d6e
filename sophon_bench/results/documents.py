"""Records in one file: the document of ``run --json``, and the JSON lines of a published entry.

Either holds models, who asked for which cell, and cells, each with its SHA-256, so that an edit is
noticed; what is left out is missed by what refers to it. Nothing in a file is executed.

Entries are JSON lines: 1,270 cells are 2.6 MB (0.5 MB compressed, as git keeps them) and read and
checked in half a second, and a difference of two versions shows the records that differ. A
directory would be 1,300 files, and Parquet is binary and takes a further dependency to read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sophon_bench.results.files import read_bytes
from sophon_bench.results.pictures import pixels_of
from sophon_bench.results.records import (
    SCHEMA,
    Asked,
    Cell,
    Curve,
    ModelRecord,
    Records,
    compact,
    content_key,
    misnamed,
)
from sophon_bench.results.store import StoreError
from sophon_bench.results.untrusted import LARGEST, LONGEST_LINE, parsed, printable

KINDS: Mapping[str, type[Any]] = {"model": ModelRecord, "asked": Asked, "cell": Cell}
"""What a line may hold, by the name that it is under."""

PARTS = {"models": "model", "asked": "asked", "cells": "cell"}
"""What the parts of a document hold."""

ENTRY = b'{"entry":'
"""What an entry begins with."""

SHOWN = 100
"""Characters of a label that an error shows."""

Plain = Mapping[str, Any]
"""A record as JSON has it."""


class Line(NamedTuple):
    """What should be a record.

    Attributes:
        kind: One of `KINDS`.
        plain: Its content, as JSON has it.
        sha256: `content_key` of that, as it was when it was written.
        place: Where it stands in its file.
    """

    kind: str
    plain: Any
    sha256: Any
    place: str = "record"

    @property
    def key(self) -> str | None:
        """Its key, if it has one."""
        key = self.plain.get("key") if isinstance(self.plain, dict) else None
        return key if isinstance(key, str) else None


def lines(records: Records) -> Iterator[Line]:
    """All records: models, who asked, cells, each in order of key."""
    parts: dict[str, Iterable[Any]] = {
        "model": records.models.values(),
        "asked": map(records.who, records.cells),
        "cell": records.cells,
    }
    for kind, part in parts.items():
        for record in sorted(part, key=lambda each: each.key):
            plain = msgspec.to_builtins(record)
            yield Line(kind, plain, content_key(plain))


def document(records: Records, summary: Sequence[Plain]) -> str:
    """What ``run --json`` writes: records, the hash of each by part and key, and flat rows."""
    found = list(lines(records))
    own = {part: [line for line in found if line.kind == kind] for part, kind in PARTS.items()}
    content = {
        "schema": SCHEMA,
        **{part: [line.plain for line in each] for part, each in own.items()},
        "hashes": {part: {line.key: line.sha256 for line in each} for part, each in own.items()},
        "summary": summary,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def json_lines(head: Plain, records: Records) -> bytes:
    """An entry: its head on the first line, then a record per line; equal records, equal bytes."""
    whole: list[Plain] = [{"entry": {"schema": SCHEMA, **head}}]
    whole += [{line.kind: line.plain, "sha256": line.sha256} for line in lines(records)]
    return "".join(f"{compact(line)}\n" for line in whole).encode()


def read_file(source: str | Path, most: int = LARGEST) -> tuple[Plain | None, Records]:
    """The records in a file, each checked, and the head of an entry; None if it is of a run.

    Args:
        source: A path, or a URL that fsspec knows.
        most: Bytes of the largest file that is read.

    Raises:
        StoreError: As `read`, or if it cannot be read.
    """
    try:
        content = read_bytes(source, most)
    except OSError as error:
        raise StoreError(f"{str(source)!r} cannot be read: {error.strerror or error}") from error
    return read(content, str(source))


def read(content: bytes, name: str) -> tuple[Plain | None, Records]:
    """The records in a file of either form, each checked, and the head of an entry.

    Args:
        content: What the file holds.
        name: What errors call it.

    Raises:
        StoreError: If it is neither, is cut short, another schema version wrote it, or `checked`
            refuses a record.
    """
    try:
        if content.startswith(ENTRY):
            return _entry(content)
        return None, _run(content.decode())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{name!r}: {printable(str(error))}") from error


def _run(text: str) -> Records:
    try:
        found = parsed(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        begun, end = text.lstrip()[:1] in ("", "{"), len(text.rstrip())
        if begun and (error.pos >= end or text[end - 1] != "}"):
            raise ValueError(f"it is cut short at {where}; copy or make it again") from error
        raise ValueError(f"it is not JSON: {error.msg} at {where}") from error
    try:
        _of_this_schema(found["schema"])
        own = [
            Line(kind, plain, None, f"{kind} {number}")
            for part, kind in PARTS.items()
            for number, plain in enumerate(list(found[part]), 1)
        ]
        hashes = {kind: dict(found["hashes"][part]) for part, kind in PARTS.items()}
    except (KeyError, TypeError) as error:
        raise ValueError("it is not a file of 'sophon-bench run --json'") from error
    return checked([line._replace(sha256=hashes[line.kind].get(line.key)) for line in own])


def _entry(content: bytes) -> tuple[Plain, Records]:
    first, *others = content.splitlines()
    head = dict(_line(1, first, ["entry"]).plain)
    _of_this_schema(head.pop("schema", None))
    return head, checked([_line(n, text, KINDS) for n, text in enumerate(others, 2)])


def _line(number: int, text: bytes, kinds: Iterable[str]) -> Line:
    if len(text) > LONGEST_LINE:
        raise ValueError(f"line {number} has more than {LONGEST_LINE} bytes, and no more are read")
    try:
        plain = parsed(text)
        (kind,) = plain.keys() - {"sha256"}
        if kind not in kinds or not isinstance(plain[kind], dict):
            raise KeyError(kind)
        return Line(kind, plain[kind], plain.get("sha256"), f"line {number}")
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        known = " or ".join(kinds)
        told = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
        reason = f" ({error})" if told else ""
        raise ValueError(f"line {number} is damaged: it is no JSON of {known}{reason}") from error


def _of_this_schema(version: Any) -> None:
    if version != SCHEMA:
        raise ValueError(f"it has schema version {version}, this program reads {SCHEMA}")


def checked(found: Sequence[Line]) -> Records:
    """Records as JSON has them, checked: each valid, there once, as written, and rightly named.

    Every cell's model is there, and who asked for it; pictures are such as `pictures.pixels_of`
    reads.

    Raises:
        ValueError: Names the first record that is invalid, edited, there twice or missing, and
            says how many more there are.
    """
    there = {kind: Counter(line.key for line in found if line.kind == kind) for kind in KINDS}
    parts: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    drawn: set[str] = set()
    wrong: list[str] = []
    for line in found:
        try:
            record = msgspec.convert(line.plain, KINDS[line.kind])
            reason = _altered(record, line)
            if (plain := printable(line.plain)) != line.plain:
                record = msgspec.convert(plain, KINDS[line.kind])
            parts[line.kind][record.key] = record
            if there[line.kind][record.key] > 1:
                reason = "its key is there twice"
            made = getattr(record, "generated", None)
            if made is not None and made.picture not in drawn:
                pixels_of(made.picture)
                drawn.add(made.picture)
        except ValueError as error:
            reason = str(error)
        if reason:  # only the first is shown, and the words for each are looked for in all lines
            words = "" if wrong else _words(line, found)
            wrong.append(f"{line.place} ({words}) is damaged: {reason}")
    records = Records(parts["model"], list(parts["cell"].values()), parts["asked"])
    wrong += [
        f"{kind} {key} is missing, and other records refer to it"
        for kind, keys in _needed(records).items()
        for key in sorted(keys - there[kind].keys())
    ]
    wrong += _unfitting(records)
    if wrong:
        raise ValueError(f"{wrong[0]}{f' (and {len(wrong) - 1} more)' if wrong[1:] else ''}")
    return records


def _needed(records: Records) -> dict[str, set[str]]:
    """Keys that records refer to, by kind."""
    models = {model.pretrained for model in records.models.values() if model.pretrained}
    return {
        "model": models | {cell.model for cell in records.cells},
        "asked": {cell.key for cell in records.cells},
        "cell": set(records.asked),
    }


def _unfitting(records: Records) -> Iterator[str]:
    """What is wrong with records beside those that they refer to."""
    for model in records.models.values():
        before = records.models.get(str(model.pretrained))
        if before and (
            before.defense or any(getattr(before, n) != getattr(model, n) for n in PLACE)
        ):
            yield f"model {model.key} does not fit the pre-trained one that it refers to"
    for cell in records.cells:
        attacked = records.models.get(cell.model)
        if attacked and attacked.defense is None:
            yield f"cell {cell.key} does not refer to a released model"


PLACE = ("scenario", "backbone", "precision", "seed", "protocol")
"""What a released model has in common with the pre-trained one."""


def _altered(record: ModelRecord | Asked | Cell, line: Line) -> str | None:
    """How a record is not what was written, or cannot have been; None if it can."""
    if line.sha256 is None:
        return "its hash is missing; have 'sophon-bench run --json' write the file again"
    # Of what is there, not of `record`: fields that a later version adds have no value in it.
    if content_key(line.plain) != line.sha256:
        return "its hash does not match: it was edited"
    if isinstance(record, Cell) and not record.curve.even:
        return "the lists of its curve differ in length"
    if isinstance(record, Cell) and record.utility == "accuracy" and not _shares(record.curve):
        return "its curve has an accuracy that is not within 0 and 1"
    return None if isinstance(record, Asked) else misnamed(record)


def _shares(curve: Curve) -> bool:
    """Whether all utilities are within 0 and 1, as accuracies are."""
    splits = (curve.fit, curve.validation, curve.selection, curve.test, curve.second_test or [])
    return all(0 <= value <= 1 for split in splits for value in split)


def _words(line: Line, found: Sequence[Line]) -> str:
    """A record in words, as far as what should be one tells."""
    own = line.plain if isinstance(line.plain, dict) else {}
    of_it = (other.plain for other in found if other.key and other.key == own.get("model"))
    model = next(of_it, own)
    plugins = [p for p in (own.get("attack"), model.get("defense")) if isinstance(p, dict)]
    labels = [str(plain.get("label"))[:SHOWN] for plain in plugins]
    told = [" against ".join(labels)] if plugins else []
    told += [f"n={own['samples']}"] if "samples" in own else []
    told += [f"seed={model['seed']}"] if "seed" in model else []
    return ", ".join([*told, f"{line.kind} {line.key}"])
