"""Artifacts and records on disk: written atomically, never overwritten, never unpickled.

Layout: ``store.json`` (schema version), ``data/`` (built scenarios), ``stages/`` (a record and a
safetensors file per pre-trained or released model), ``cells/`` (one record per cell), ``runs/`` (a
manifest per run: which cells it asked for). File names are content keys, so whatever is there is
finished and right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sophon_bench.plugins.failures import BadInput
from sophon_bench.results.files import append, write_atomic
from sophon_bench.results.pictures import pixels_of
from sophon_bench.results.records import (
    SCHEMA,
    Asked,
    Cell,
    R,
    Reader,
    Run,
    StageRecord,
    content_key,
    dump,
    misnamed,
)

if TYPE_CHECKING:
    from torch import Tensor


class StoreError(BadInput):
    """A store that cannot be used: unwritable, damaged, or of another schema version."""


def default_root() -> Path:
    """The store in the user's cache directory (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sophon-bench"


class Store:
    """A directory of finished work.

    Args:
        root: The directory; made if it is not there.
        reading: Whether it is only read: it has to be there, and may be read-only or full.

    Raises:
        StoreError: If it cannot be written or has no room, or another schema version wrote it.
    """

    def __init__(self, root: Path, *, reading: bool = False) -> None:
        self.root = root
        marker = root / "store.json"
        try:
            if not reading:
                _prepare(root, marker)
            version = json.loads(marker.read_text())["schema"]
        except OSError as error:
            raise StoreError(
                f"store {str(root)!r} cannot be {'read' if reading else 'written'}: "
                f"{error.strerror}; choose another directory with --store DIR"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{str(marker)!r} is damaged; choose another --store DIR") from error
        if version != SCHEMA:
            raise StoreError(
                f"store {str(root)!r} was written with schema version {version}, this program "
                f"writes version {SCHEMA}; choose another directory with --store DIR"
            )

    @property
    def data(self) -> Path:
        """Where built scenarios are cached."""
        return self.root / "data"

    def has_cell(self, key: str) -> bool:
        """Whether the cell is finished."""
        return self._cell(key).exists()

    def cell(self, key: str) -> Cell:
        """The finished cell of that key."""
        return _read(self._cell(key), Reader(Cell))

    def put_cell(self, cell: Cell) -> None:
        """Write a cell; only one that failed is ever written over."""
        if not self.has_cell(cell.key) or self.cell(cell.key).status == "failed":
            write_atomic(self._cell(cell.key), dump(cell))

    def count(self) -> int:
        """How many cells are finished."""
        return sum(name.endswith(".json") for name in os.listdir(self.root / "cells"))  # noqa: PTH208

    def cells(self) -> Iterator[Cell]:
        """Every finished cell as all runs asked for it, in order of key."""
        reader = Reader(Cell, held=("scenario", "defense", "attack", "pretrained", "released"))
        asked = self.asked()
        folder = f"{self.root}/cells"
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 - a Path for each is slow
            if name.endswith(".json"):
                path = f"{folder}/{name}"
                cell = _parsed(path, _content(path), reader)
                yield _as_asked(cell, asked[cell.key]) if cell.key in asked else cell

    def begin(self, run: Run, asked: Sequence[Asked]) -> Manifest:
        """Write the manifest of a run that asks for these cells, before it begins.

        The same command that asks for the same cells goes on with its old manifest.

        Raises:
            WriteError: If it cannot be written.
        """
        plain = {"command": run.command, "asked": msgspec.to_builtins(asked)}
        path = self.root / "runs" / f"{content_key(plain)}.jsonl"
        if not path.exists():
            write_atomic(path, b"\n".join(msgspec.json.encode(line) for line in (run, *asked)))
        return Manifest(path)

    def asked(self) -> dict[str, list[Asked]]:
        """Who asked for which cell, in all runs, by the cell's key."""
        found: dict[str, list[Asked]] = {}
        for path in sorted((self.root / "runs").glob("*.jsonl")):
            for line in Manifest(path).lines():
                found.setdefault(line.key, []).append(line)
        return found

    def names(self) -> dict[str, str]:
        """Names that runs gave to selectors, by label; the last run's where several did."""
        runs = [Manifest(path).run() for path in (self.root / "runs").glob("*.jsonl")]
        ordered = sorted(runs, key=lambda run: run.provenance.finished)
        return {label: name for run in ordered for label, name in run.names.items()}

    def has_stage(self, key: str) -> bool:
        """Whether the model is made; the record is written last."""
        return self._stage(key, "json").exists()

    def stage(self, key: str) -> StageRecord:
        """The record of a made model."""
        return _read(self._stage(key, "json"), Reader(StageRecord))

    def put_weights(self, weights: Mapping[str, Tensor]) -> str:
        """Write a state dict as safetensors under its SHA-256, and return that."""
        from safetensors.torch import save

        content = save({name: t.detach().cpu().contiguous() for name, t in weights.items()})
        digest = hashlib.sha256(content).hexdigest()
        write_atomic(self._stage(digest, "safetensors"), content)
        return digest

    def put_stage(self, record: StageRecord) -> StageRecord:
        """Write the record of a made model, after its weights; return what stands there then.

        Another process may have made the model meanwhile: its record stays.
        """
        if self.has_stage(record.key) and self.stage(record.key).status != "failed":
            return self.stage(record.key)
        content = dump(record)
        write_atomic(self._stage(record.key, "json"), content)
        return record

    def weights(self, record: StageRecord) -> dict[str, Tensor]:
        """The state dict of a made model, on the CPU.

        Raises:
            StoreError: If the file is missing or is not the one that the record describes.
        """
        from safetensors.torch import load

        path = self._stage(str(record.weights), "safetensors")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != record.weights:
            raise StoreError(
                f"{str(path)!r} is not the file that its record describes (SHA-256 differs); "
                f"delete it and stages/{record.key}.json to have it made again"
            )
        return load(content)

    def _cell(self, key: str) -> Path:
        return self.root / "cells" / f"{key}.json"

    def _stage(self, key: str, suffix: str) -> Path:
        return self.root / "stages" / f"{key}.{suffix}"


def _as_asked(cell: Cell, asked: Sequence[Asked]) -> Cell:
    """The cell as all runs asked for it together."""
    suites = {suite for each in asked for suite in each.suites}
    return cell.asked_by(suites, derived=all(each.derived for each in asked))


class Manifest:
    """Which cells a run asked for: a JSON line each, after the line of the run itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self) -> Run:
        """What was started.

        Raises:
            StoreError: If the file cannot be read.
        """
        return msgspec.json.decode(_content(str(self.path)).split(b"\n")[0], type=Run)

    def lines(self) -> Iterator[Asked]:
        """What was asked for; a line that a crash cut off is left out, and asked for again.

        Raises:
            StoreError: If the file cannot be read.
        """
        decode = msgspec.json.Decoder(Asked).decode
        for line in _content(str(self.path)).split(b"\n")[1:]:
            with contextlib.suppress(msgspec.DecodeError):
                yield decode(line)

    def add(self, asked: Iterable[Asked]) -> None:
        """Write what the search added, if it is not there yet.

        Raises:
            WriteError: If it cannot be written.
        """
        new = [each for each in asked if each not in set(self.lines())]
        if new:
            append(self.path, b"".join(b"\n" + msgspec.json.encode(each) for each in new))


def _prepare(root: Path, marker: Path) -> None:
    """Make what is missing of a store, and write a probe."""
    for name in ("data", "stages", "cells", "runs"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if not marker.exists():
        write_atomic(marker, json.dumps({"schema": SCHEMA}).encode())
    with tempfile.TemporaryFile(dir=root / "cells") as probe:
        probe.write(bytes(PROBE))


PROBE = 1 << 16
"""Bytes that a store has to have room for before any work starts."""


def read_cells(path: Path) -> list[Cell]:
    """The records in a file that ``run --json`` wrote, each checked.

    Raises:
        StoreError: If it is not such a file, is cut short, another schema version wrote it, or
            `checked` refuses a record.
    """
    name = repr(str(path))
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        version, cells, hashes = content["schema"], content["cells"], content.get("hashes", {})
    except OSError as error:
        raise StoreError(f"{name} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        begun, end = text.lstrip()[:1] in ("", "{"), len(text.rstrip())
        if begun and (error.pos >= end or text[end - 1] != "}"):
            raise StoreError(f"{name} is cut short at {where}; copy or make it again") from error
        raise StoreError(f"{name} is not JSON: {error.msg} at {where}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{name} is not a file of 'sophon-bench run --json'") from error
    if version != SCHEMA:
        raise StoreError(f"{name} has schema version {version}, this program reads {SCHEMA}")
    if not isinstance(cells, list) or not isinstance(hashes, dict):
        raise StoreError(f"{name} is not a file of 'sophon-bench run --json'")
    try:
        return checked(cells, hashes)
    except ValueError as error:
        raise StoreError(f"{name}: {error}") from error


def checked(cells: Sequence[Any], hashes: Mapping[str, Any]) -> list[Cell]:
    """Records as JSON has them, checked: each valid, there once, as written, and rightly named.

    Pictures in them are such as `pictures.pixels_of` reads.

    Args:
        cells: What should be records.
        hashes: `digest` of each, by its key.

    Raises:
        ValueError: Names the first record that is invalid, edited, there twice or missing, and
            says how many more there are.
    """
    found: dict[str, Cell] = {}
    drawn: set[str] = set()
    wrong = []
    for number, plain in enumerate(cells, 1):
        try:
            cell = msgspec.convert(plain, Cell)
            reason = _altered(cell, plain, hashes.get(cell.key))
            for made in (cell.generated, cell.pretrained.generated, cell.released.generated):
                if made is not None and made.picture not in drawn:
                    pixels_of(made.picture)
                    drawn.add(made.picture)
            if cell.key in found:
                reason = "its key is there twice"
            found[cell.key] = cell
        except ValueError as error:
            reason = str(error)
        wrong += [f"{_title(plain, number)} is damaged: {reason}"] if reason else []
    keys = [plain.get("key") for plain in cells if isinstance(plain, dict)]
    there = {key for key in keys if isinstance(key, str)}
    wrong += [
        f"record {key} is missing: its hash alone is there" for key in sorted(hashes.keys() - there)
    ]
    if wrong:
        raise ValueError(wrong[0] + (f" (and {len(wrong) - 1} more)" if wrong[1:] else ""))
    return list(found.values())


def _altered(cell: Cell, plain: Any, written: Any) -> str | None:
    """How a record is not what was written, or cannot have been; None if it can."""
    if cell.schema_version != SCHEMA:
        return f"it has schema version {cell.schema_version}, this program reads {SCHEMA}"
    if written is None:
        return "its hash is missing; have 'sophon-bench run --json' write the file again"
    # Of what is there, not of `cell`: fields that a later version adds have no value in it.
    if content_key(plain) != written:
        return "its hash is another, so that it was edited"
    return misnamed(cell)


def _title(plain: Any, number: int) -> str:
    """A record in words, as far as what should be one tells."""

    def told(*path: str) -> Any:
        value = plain
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return "?" if value is None else value

    return (
        f"record {number} ({told('attack', 'label')} against {told('defense', 'label')}, "
        f"n={told('samples')}, seed={told('seed')}, key {told('key')})"
    )


def _read(path: Path, reader: Reader[R]) -> R:
    return _parsed(str(path), _content(str(path)), reader)


def _parsed(path: str, content: bytes, reader: Reader[R]) -> R:
    try:
        return reader.read(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(
            f"record {path!r} is damaged ({error}); delete it to have it made again"
        ) from error


def _content(path: str) -> bytes:
    """What is in a file: with 100 000 of them, a file object and its buffer take half the time."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            parts = [os.read(file, SMALL)]
            while len(parts[-1]) == SMALL:
                parts.append(os.read(file, SMALL))
        finally:
            os.close(file)
    except OSError as error:
        raise StoreError(f"record {path!r} cannot be read: {error.strerror}") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


SMALL = 1 << 16
"""Bytes that one record hardly ever has."""
