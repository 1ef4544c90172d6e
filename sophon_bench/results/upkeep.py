"""Look after a store: verify what it holds, find what nothing refers to, copy it to another one."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from sophon_bench.plugins.failures import BadInput, first_line
from sophon_bench.results.files import TEMPORARY, Folder, folder
from sophon_bench.results.records import Asked, Cell, ModelRecord, Run, misnamed
from sophon_bench.results.store import Store, StoreError, StoreLost, weights_name

T = TypeVar("T")
Track = Callable[[Iterable[T], str], Iterable[T]]
"""Passes on what it is given, and shows how far that is; takes a title."""

HOUR = 3600.0
"""Seconds after which a file that nothing refers to belongs to no process that still runs."""

FOLDERS = ("models", "cells", "runs", "data")


def _silent(items: Iterable[Any], _title: str) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class Finding:
    """What is to be said of a file of a store.

    Attributes:
        state: ``damaged``; ``missing``, although a record refers to it; ``unused``, since nothing
            refers to it; ``open``, cells that a run asked for and that are not made yet.
        name: The file, relative to the store.
        words: More on it, or nothing.
    """

    state: Literal["damaged", "missing", "unused", "open"]
    name: str
    words: str = ""

    @property
    def bad(self) -> bool:
        """Whether the store does not hold what it says."""
        return self.state in ("damaged", "missing")

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.state, self.name, self.words)))


@dataclass
class Inventory:
    """What a store holds, and what is to be said of it."""

    models: int = 0
    cells: int = 0
    weights: int = 0
    runs: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged and nothing is missing."""
        return not any(finding.bad for finding in self.findings)


def verify(store: Store, track: Track[Any] = _silent) -> Inventory:
    """Read everything in a store, and compare it with its names and with each other.

    A record has to decode, and its key to follow from the rest; a file of weights has to have its
    SHA-256; what a record refers to has to be there.

    Raises:
        StoreError: If the store does not answer.
    """
    files, found = folder(store.root), Inventory()
    tried_cells = store.tried_cells()  # listed first: a run beside this makes models before cells
    models = {}
    for name, model in track(store.tried_models(), "models"):
        if damage := _damage(model):
            found.findings.append(Finding("damaged", name, damage))
        else:
            models[model.key] = model
    cells, attacked = set(), Counter[str]()
    for name, cell in track(tried_cells, "cells"):
        if damage := _damage(cell):
            found.findings.append(Finding("damaged", name, damage))
        else:
            cells.add(cell.key)
            attacked[cell.model] += 1
    for key, count in sorted(attacked.items()):
        if key not in models:
            found.findings.append(Finding("missing", f"models/{key}.json", f"of {count} cells"))
    kept = {f"models/{name}" for name in files.names("models", ".safetensors")}
    for name in track(sorted(kept), "weights"):
        content = files.tried(name)
        if isinstance(content, OSError):
            found.findings.append(_unreadable(name, content))
            continue
        found.bytes += len(content)
        if weights_name(hashlib.sha256(content).hexdigest()) != name:
            found.findings.append(Finding("damaged", name, "SHA-256 differs"))
    used = {weights_name(model.weights) for model in models.values() if model.weights}
    found.findings += [Finding("missing", name, "weights") for name in sorted(used - kept)]
    for model in models.values():
        if model.pretrained is not None and model.pretrained not in models:
            of = f"of models/{model.key}.json"
            found.findings.append(Finding("missing", f"models/{model.pretrained}.json", of))
    unused = [*sorted(kept - used), *_temporary(files)]
    found.findings += [Finding("unused", name) for name in unused]
    names = files.names("runs", ".jsonl")
    found.findings += [each for name in names for each in _manifest(files, f"runs/{name}", cells)]
    found.models, found.cells = len(models), len(cells)
    found.weights, found.runs = len(kept), len(names)
    return found


def _damage(record: ModelRecord | Cell | StoreError) -> str | None:
    return first_line(record) if isinstance(record, StoreError) else misnamed(record)


def _unreadable(name: str, error: OSError) -> Finding:
    return Finding("damaged", name, f"it cannot be read: {error.strerror or error}")


def _manifest(files: Folder, name: str, cells: Collection[str]) -> Iterator[Finding]:
    """What is to be said of a manifest; a line that a crash cut off is no damage."""
    content = files.tried(name)
    if isinstance(content, OSError):
        yield _unreadable(name, content)
        return
    first, *lines = content.split(b"\n")
    asked = set()
    try:
        msgspec.json.decode(first, type=Run)
        for line in lines:
            if line.endswith(b"}"):
                asked.add(msgspec.json.decode(line, type=Asked).key)
    except msgspec.DecodeError as error:
        yield Finding("damaged", name, first_line(error))
    if left := asked.difference(cells):
        yield Finding("open", name, f"{len(left)} of {len(asked)} cells are not made")


def _temporary(files: Folder) -> list[str]:
    return [
        f"{kind}/{name}"
        for kind in FOLDERS
        for name in files.names(kind, "")
        if name.startswith(TEMPORARY)
    ]


@dataclass(frozen=True)
class Waste:
    """A file that nothing refers to."""

    name: str
    bytes: int
    written: float


def waste(store: Store, now: float | None = None) -> list[Waste]:
    """Weights that no record refers to, and temporary files, that are older than an hour.

    Args:
        store: Where to look; built scenarios are left alone.
        now: In seconds since 1970.

    Raises:
        StoreError: If a model's record is damaged: which weights are its own is not known then.
    """
    files, used = folder(store.root), set()
    for _, model in store.tried_models():
        if isinstance(model, StoreError):
            raise StoreError(f"{model}. Until then it is not known which weights are its own")
        used.add(weights_name(model.weights))
    kept = (f"models/{name}" for name in files.names("models", ".safetensors"))
    names = [*(name for name in kept if name not in used), *_temporary(files)]
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # it is written by now, or deleted
            found.append(Waste(name, files.size(name), files.modified(name)))
    before = (time.time() if now is None else now) - HOUR
    return [each for each in found if each.written < before]


def delete(store: Store, found: Sequence[Waste]) -> int:
    """Delete what `waste` found, unless it was written again meanwhile; the bytes freed."""
    files, freed = folder(store.root), 0
    for each in found:
        with contextlib.suppress(FileNotFoundError):  # another one deleted it
            if files.modified(each.name) == each.written:
                files.remove(each.name)
                freed += each.bytes
    return freed


@dataclass
class Copied:
    """What `copy` did: how many of each, and what it left out, with why."""

    models: int = 0
    weights: int = 0
    cells: int = 0
    runs: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)


def copy(source: Store, target: Store, track: Track[Any] = _silent) -> Copied:
    """Copy models, weights, cells and manifests that another store lacks, each verified.

    Weights go before their record, models before cells and these before manifests, so that the
    target is valid at any moment, and the same copy goes on with what is missing. What is ok in
    the target stays. Cells of a model that the target made differently are left out.

    Raises:
        BadInput: If both are one store.
        StoreError: If one does not answer.
        WriteError: If the target cannot be written.
    """
    if source.identity == target.identity:
        raise BadInput(f"{str(source.root)!r} and {str(target.root)!r} are one store")
    done = Copied()
    tried = source.tried_cells()  # listed first: a run beside this makes models before cells
    has = _copy_models(source, target, done, track)
    _copy_cells(tried, target, has, done, track)
    for manifest in track(source.manifests(), "runs"):
        try:
            done.runs += target.take(manifest)
        except StoreLost:
            raise
        except StoreError as error:
            done.left_out.append(str(error))
    return done


def _copy_models(source: Store, target: Store, done: Copied, track: Track[Any]) -> set[str]:
    """Copy models; the keys of those that are now the same on both sides."""
    ours: dict[str, ModelRecord] = {}
    for name, model in track(source.tried_models(), "models"):
        if damage := _damage(model):
            done.left_out.append(f"{name}: {damage}")
        else:
            ours[model.key] = model
    theirs = {m.key: m for _, m in target.tried_models() if isinstance(m, ModelRecord)}
    files = folder(target.root)
    there = {name.removesuffix(".safetensors") for name in files.names("models", ".safetensors")}
    sound = there & {str(model.weights) for model in theirs.values()}
    same: set[str] = set()
    first_pretrained = sorted(ours.values(), key=lambda model: model.pretrained is not None)
    for model in track(first_pretrained, "weights"):
        name = f"models/{model.key}.json"
        if model.pretrained is not None and model.pretrained not in same:
            done.left_out.append(f"{name}: the model that it was made from is not copied")
            continue
        stands = theirs.get(model.key)
        lacking = stands is None or (stands.status == "failed" and model.status != "failed")
        needed = lacking or (stands is not None and stands.weights == model.weights)
        if needed and model.weights is not None and model.weights not in sound:
            try:
                content = _verified(source, model)
            except StoreError as error:
                done.left_out.append(f"{name}: {error}")
                continue
            files.write(weights_name(model.weights), content)
            sound.add(model.weights)
            done.weights += 1
            done.bytes += len(content)
        if stands is None or lacking:
            stands = target.put_model(model)
            done.models += 1
        if stands.weights == model.weights:
            same.add(model.key)
        else:
            done.left_out.append(f"{name}: the other store made it with other weights")
    return same


def _verified(source: Store, model: ModelRecord) -> bytes:
    name = weights_name(model.weights)
    content = folder(source.root).tried(name)
    if isinstance(content, OSError):
        raise StoreError(f"{name} cannot be read: {content.strerror or content}")
    if hashlib.sha256(content).hexdigest() != model.weights:
        raise StoreError(f"{name} is damaged: SHA-256 differs")
    return content


def _copy_cells(
    tried: Iterable[tuple[str, Cell | StoreError]],
    target: Store,
    models: Collection[str],
    done: Copied,
    track: Track[Any],
) -> None:
    failed = {cell.key for _, cell in target.tried_cells()
              if isinstance(cell, Cell) and cell.status == "failed"}  # fmt: skip
    there = {name.removesuffix(".json") for name in folder(target.root).names("cells", ".json")}
    for name, cell in track(tried, "cells"):
        if damage := _damage(cell):
            done.left_out.append(f"{name}: {damage}")
        elif cell.model not in models:
            done.left_out.append(f"{name}: its model is not copied")
        elif cell.key not in there or (cell.key in failed and cell.status != "failed"):
            target.put_cell(cell)
            done.cells += 1
