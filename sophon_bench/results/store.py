"""Models and records of finished work: written atomically, never overwritten, never unpickled.

Layout: ``store.json`` (schema version, identity), ``data/`` (built scenarios), ``models/`` (a
record and a safetensors file per pre-trained or released model), ``cells/`` (one record per cell),
``runs/`` (a manifest per run: which cells it requested). File names are content keys, so what is
there is finished and right. The root is a directory, or a URL of any kind that fsspec knows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec.structs import force_setattr

from sophon_bench.plugins.failures import BadInput
from sophon_bench.results.copies import Copies
from sophon_bench.results.files import (
    Folder,
    LocalFolder,
    Unreachable,
    folder,
    no_collector,
    remedy,
)
from sophon_bench.results.records import (
    SCHEMA,
    Asked,
    Cell,
    ModelRecord,
    PluginId,
    Records,
    Run,
    content_key,
    dump,
)
from sophon_bench.results.untrusted import harmless, printable, unescaped

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R", ModelRecord, Cell)


class StoreError(BadInput):
    """Records that cannot be used: unreadable, damaged, or of another schema version."""


class StoreLost(StoreError):
    """A store that does not answer any more; what is finished is in it."""

    exit_code = 1


def default_root() -> Path:
    """The store in the user's cache directory (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sophon-bench"


def is_store(root: str | Path) -> bool:
    """Whether there is a store."""
    files = folder(root)
    with _reading(files, MARKER):
        return files.exists(MARKER)


MARKER = "store.json"

PROBE = 1 << 16
"""Bytes that a store has to have room for before any work starts."""


class Store:
    """A folder of finished work.

    Args:
        root: A directory, or a URL that fsspec knows; made if it is not there.
        reading: Whether it is only read: it has to be there, and may be read-only or full.

    Raises:
        BadInput: If `folder` refuses the URL.
        StoreError: If it cannot be written or has no room, or another schema version wrote it.
    """

    def __init__(self, root: str | Path, *, reading: bool = False) -> None:
        self.root = root
        self._attacks: dict[str, PluginId] = {}
        name = repr(str(root))
        self._files = folder(root)
        if not reading and not self._files.writable:
            raise StoreError(
                f"store {name} can only be read; 'sophon-bench store pull {root}' copies it into a "
                "directory or a bucket (--store)"
            )
        try:
            version = SCHEMA
            if reading or self._files.exists(MARKER):
                version = json.loads(self._files.read(MARKER))["schema"]
            if not reading and version == SCHEMA:
                _prepare(self._files)
        except Unreachable as error:
            raise StoreLost(remedy(error)) from error
        except OSError as error:
            raise StoreError(
                f"store {name} cannot be {'read' if reading else 'written'}: "
                f"{error.strerror or error}; choose another directory with --store DIR"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            marker = self._files.place(MARKER)
            raise StoreError(f"{marker!r} is damaged; choose another --store DIR") from error
        if version != SCHEMA:
            raise StoreError(
                f"store {name} was written with schema version {version}, this program "
                f"writes version {SCHEMA}; choose another directory with --store DIR"
            )

    @cached_property
    def _copies(self) -> Copies | None:
        """Weights that this machine keeps of a store that is elsewhere."""
        local = isinstance(self._files, LocalFolder) or not self.shared
        return None if local else Copies.of(default_root() / "copies")

    @property
    def data(self) -> Path:
        """Where built scenarios are cached, always on this machine."""
        local = isinstance(self._files, LocalFolder)
        return (Path(self._files.root) if local else default_root()) / "data"

    @property
    def shared(self) -> bool:
        """Whether other processes see the same records."""
        return self._files.shared

    @property
    def identity(self) -> str:
        """What no other store has: the same wherever this one is seen from."""
        return str(json.loads(self._files.read(MARKER)).get("id", ""))

    def finished(self) -> set[str]:
        """Keys of all models and cells that are made, from one listing of each folder."""
        files = [name for kind in ("models", "cells") for name in self._names(kind, ".json")]
        return {name.removesuffix(".json") for name in files}

    def has_cell(self, key: str) -> bool:
        """Whether the cell is finished."""
        return self._files.exists(f"cells/{key}.json")

    def cell(self, key: str) -> Cell:
        """The finished cell of that key.

        Cells of one trial share what says which it is: a sixth of what a record takes.
        """
        return self._sharing(self._record(f"cells/{key}.json", CELLS))

    def made_cells(self, keys: Iterable[str]) -> Iterator[Cell]:
        """The finished cells of those keys, in their order, as `cell`; many are read at once."""
        return map(self._sharing, self._made("cells", keys, CELLS))

    def put_cell(self, cell: Cell) -> Cell:
        """Write a cell; return what stands there then: only one that failed is written over."""
        return self._put(f"cells/{cell.key}.json", cell, CELLS)

    def cells(self) -> Iterator[Cell]:
        """Every finished cell in order of key, as `cell` gives it."""
        for _, tried in self.tried_cells():
            yield self._sharing(_sound(tried))

    def models(self, keys: Iterable[str]) -> dict[str, ModelRecord]:
        """The records of made models by key, and of the pre-trained ones that they are of."""
        models = {model.key: model for model in self.made_models(sorted(keys))}
        upstream = sorted({str(model.pretrained) for model in models.values()})
        return models | {model.key: model for model in self.made_models(upstream)}

    @no_collector()
    def records(self) -> Records:
        """Every finished cell in order of key, its models, and who asked for it in all runs."""
        cells = list(self.cells())
        asked = self.asked()
        keys = [cell.key for cell in cells if cell.key in asked]
        models = self.models({cell.model for cell in cells})
        return Records(models, cells, {key: asked[key] for key in keys})

    def take(self, manifest: Manifest) -> bool:
        """Take over a manifest of another store, or what it adds; whether anything was new."""
        run, asked = manifest.run(), list(manifest.lines())
        if self._files.create(manifest.name, b"\n".join(map(dump, (run, *asked)))):
            return True
        return Manifest(self._files, manifest.name).add(asked)

    def begin(self, run: Run, asked: Sequence[Asked]) -> Manifest:
        """Write the manifest of a run that asks for these cells, before it begins.

        The same command that asks for the same cells goes on with its old manifest.

        Raises:
            WriteError: If it cannot be written.
        """
        plain = {"command": run.command, "asked": msgspec.to_builtins(asked)}
        name = f"runs/{content_key(plain)}.jsonl"
        self._files.create(name, b"\n".join(map(dump, (run, *asked))))
        return Manifest(self._files, name)

    def asked(self) -> dict[str, Asked]:
        """Who asked for which cell, in all runs together, by the cell's key."""
        found: dict[str, Asked] = {}
        for manifest in self.manifests():
            for line in manifest.lines():
                known = found.get(line.key)
                found[line.key] = line if known is None else line.and_by(known)
        return found

    def names(self) -> dict[str, str]:
        """Names that runs gave to selectors, by label; the last run's where several did."""
        runs = [manifest.run() for manifest in self.manifests()]
        ordered = sorted(runs, key=lambda run: run.provenance.finished)
        return {label: name for run in ordered for label, name in run.names.items()}

    def has_model(self, key: str) -> bool:
        """Whether the model is made; the record is written last."""
        return self._files.exists(f"models/{key}.json")

    def model(self, key: str) -> ModelRecord:
        """The record of a made model."""
        return self._record(f"models/{key}.json", MODELS)

    def made_models(self, keys: Iterable[str]) -> Iterator[ModelRecord]:
        """The records of made models of those keys, in their order; many are read at once."""
        return self._made("models", keys, MODELS)

    def put_model(self, record: ModelRecord) -> ModelRecord:
        """Write the record of a made model, after its weights; return what stands there then.

        Another process may have made the model meanwhile: its record stays.
        """
        return self._put(f"models/{record.key}.json", record, MODELS)

    def put_weights(self, weights: Mapping[str, Tensor]) -> str:
        """Write a state dict as safetensors under its SHA-256, and return that."""
        from safetensors.torch import save

        content = save({name: t.detach().cpu().contiguous() for name, t in weights.items()})
        return self.put_weights_file(content)

    def put_weights_file(self, content: bytes) -> str:
        """Write a file of safetensors under its SHA-256, and return that."""
        digest = hashlib.sha256(content).hexdigest()
        self._files.write(weights_name(digest), content)
        if self._copies is not None:
            self._copies.keep(digest, content)
        return digest

    def weights(self, record: ModelRecord) -> dict[str, Tensor]:
        """The state dict of a made model, on the CPU.

        Raises:
            StoreError: If the file is missing, is not the one that the record describes, or is no
                file of safetensors.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        content = self.weights_file(record)
        try:
            return load(content)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise StoreError(f"{self.weights_place(record)!r} is no file of safetensors") from error

    def weights_file(self, record: ModelRecord) -> bytes:
        """The content of the safetensors file of a made model.

        Raises:
            StoreError: If the file is missing or is not the one that the record describes.
        """
        digest = str(record.weights)
        content = None if self._copies is None else self._copies.read(digest)
        if content is None:
            content = _content(self._files, weights_name(digest))
            if hashlib.sha256(content).hexdigest() != digest:
                raise StoreError(
                    f"{self.weights_place(record)!r} is not the file that its record describes "
                    f"(SHA-256 differs); delete it and models/{record.key}.json to have it made "
                    "again"
                )
            if self._copies is not None:
                self._copies.keep(digest, content)
        return content

    def weights_size(self, record: ModelRecord) -> int | None:
        """Bytes of the safetensors file of a made model; None if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            return self._files.size(weights_name(record.weights))
        return None

    def weights_place(self, record: ModelRecord) -> str:
        """The path or URL of the safetensors file of a made model."""
        return self._files.place(weights_name(record.weights))

    def manifests(self) -> list[Manifest]:
        """The manifests of all runs, in order of their names."""
        return [Manifest(self._files, f"runs/{name}") for name in self._names("runs", ".jsonl")]

    def tried_models(self) -> Iterator[tuple[str, ModelRecord | StoreError]]:
        """Every model in order of key, or what is wrong with its record; by the file's name."""
        return self._tried_all("models", MODELS)

    def tried_cells(self) -> Iterator[tuple[str, Cell | StoreError]]:
        """Every cell in order of key, or what is wrong with its record; by the file's name."""
        return self._tried_all("cells", CELLS)

    def _names(self, kind: str, suffix: str) -> list[str]:
        with _reading(self._files, kind):
            return self._files.names(kind, suffix)

    def _tried_all(
        self, kind: str, decoder: msgspec.json.Decoder[R]
    ) -> Iterator[tuple[str, R | StoreError]]:
        names = [f"{kind}/{name}" for name in self._names(kind, ".json")]
        return zip(names, self._tried(names, decoder), strict=True)

    def _made(
        self, kind: str, keys: Iterable[str], decoder: msgspec.json.Decoder[R]
    ) -> Iterator[R]:
        return map(_sound, self._tried([f"{kind}/{key}.json" for key in keys], decoder))

    def _put(self, name: str, record: R, decoder: msgspec.json.Decoder[R]) -> R:
        content = dump(record)
        if self._files.create(name, content):
            return record
        stands = self._record(name, decoder)
        if stands.status == "failed":
            self._files.write(name, content)
            return record
        return stands

    def _sharing(self, cell: Cell) -> Cell:
        attack = self._attacks.setdefault(cell.attack.label, cell.attack)
        if attack == cell.attack:
            force_setattr(cell, "attack", attack)
        return cell

    def _record(self, name: str, decoder: msgspec.json.Decoder[R]) -> R:
        return self._decoded(name, _content(self._files, name), decoder)

    def _tried(
        self, names: Sequence[str], decoder: msgspec.json.Decoder[R]
    ) -> Iterator[R | StoreError]:
        """Records in order of their names, or what is wrong with them."""
        for name, content in zip(names, self._files.contents(names), strict=True):
            try:
                if isinstance(content, OSError):
                    with _reading(self._files, name):
                        raise content
                yield self._decoded(name, content, decoder)
            except StoreError as error:
                yield error

    def _decoded(self, name: str, content: bytes, decoder: msgspec.json.Decoder[R]) -> R:
        try:
            record = decoder.decode(harmless(content))
            if name.rpartition("/")[2] != f"{record.key}.json":
                raise ValueError(f"it is the record of {record.key}")
        except (ValueError, RecursionError) as error:
            place, reason = self._files.place(name), printable(str(error))
            raise StoreError(
                f"record {place!r} is damaged ({reason}); delete it to have it made again"
            ) from error
        return record


def _sound(record: R | StoreError) -> R:
    if isinstance(record, StoreError):
        raise record
    return record


def weights_name(digest: str | None) -> str:
    """The file of weights with that SHA-256."""
    return f"models/{digest}.safetensors"


CELLS = msgspec.json.Decoder(Cell)
MODELS = msgspec.json.Decoder(ModelRecord)


def _prepare(files: Folder) -> None:
    """Make what is missing of a store, and write a probe."""
    for name in ("data", "models", "cells", "runs"):
        files.make(name)
    if not files.exists(MARKER):
        files.create(MARKER, json.dumps({"schema": SCHEMA, "id": uuid.uuid4().hex}).encode())
    files.probe("cells", PROBE)


def _content(files: Folder, name: str) -> bytes:
    with _reading(files, name):
        return files.read(name)


@contextlib.contextmanager
def _reading(files: Folder, name: str) -> Iterator[None]:
    try:
        yield
    except Unreachable as error:
        raise StoreLost(remedy(error)) from error
    except OSError as error:
        place, reason = files.place(name), error.strerror or error
        raise StoreError(f"{place!r} cannot be read: {reason}") from error


class Manifest:
    """Which cells a run asked for: a JSON line each, after the line of the run itself."""

    def __init__(self, files: Folder, name: str) -> None:
        self._files = files
        self.name = name
        self._known: set[Asked] | None = None

    def run(self) -> Run:
        """What was started.

        Raises:
            StoreError: If the file cannot be read, or is damaged.
        """
        first, _, _ = self._content().partition(b"\n")
        try:
            return msgspec.json.decode(_harmless(first), type=Run)
        except msgspec.DecodeError as error:
            place = self._files.place(self.name)
            raise StoreError(f"manifest {place!r} is damaged ({error}); delete it") from error

    def lines(self) -> Iterator[Asked]:
        """What was asked for; a line that a crash cut off is left out, and asked for again.

        Raises:
            StoreError: If the file cannot be read.
        """
        decoder = msgspec.json.Decoder(Asked)
        _, _, content = self._content().partition(b"\n")
        if unescaped(content):
            with contextlib.suppress(msgspec.DecodeError):
                yield from decoder.decode_lines(content)
                return
        for line in map(_harmless, content.split(b"\n")):
            with contextlib.suppress(msgspec.DecodeError):
                yield decoder.decode(line)

    def add(self, asked: Iterable[Asked]) -> bool:
        """Write what the search added, if it is not there yet; whether anything was new.

        Raises:
            WriteError: If it cannot be written.
        """
        known = self._known = set(self.lines()) if self._known is None else self._known
        new = [each for each in asked if each not in known]
        if new:
            self._files.append(self.name, b"".join(b"\n" + dump(each) for each in new))
            known.update(new)
        return bool(new)

    def _content(self) -> bytes:
        return _content(self._files, self.name)


def _harmless(line: bytes) -> bytes:
    """The line of a manifest with text that does nothing; none if that cannot be told."""
    try:
        return harmless(line)
    except (ValueError, RecursionError):
        return b""
