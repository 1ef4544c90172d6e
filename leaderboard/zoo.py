"""Released models of published entries, and where their weights lie.

What is published is in the records of entries. Weights lie in stores, under their SHA-256: the one
that comes with the package (`ZOO`), the user's own, or another that is named. They are data: hashed
when they are read, and never unpickled.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sophon_bench.api import Model
from sophon_bench.execution.runs import find_backbone
from sophon_bench.leaderboard.entries import Entry
from sophon_bench.leaderboard.entries import published as entries
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.weight_files import CheckpointError, Content, Weights
from sophon_bench.models.weight_names import fitted, head_width
from sophon_bench.plugins.registry import unknown
from sophon_bench.results.records import ModelRecord, misnamed
from sophon_bench.results.store import Store, StoreError, default_root, is_store

ZOO = Path(__file__).parent / "zoo"
"""The store that comes with the package."""

LARGEST = 2**33
"""Bytes of a file of weights at most."""

PLACE = ("scenario", "backbone", "precision", "seed", "protocol", "pretrained")
"""What two records of one key have in common, besides the defense."""


@dataclass(frozen=True, kw_only=True)
class Released:
    """A released model that entries have records of.

    Attributes:
        record: Its record.
        pretrained: The record of the model that the defense began with.
        entries: Names of the entries that have it.
    """

    record: ModelRecord
    pretrained: ModelRecord
    entries: tuple[str, ...]

    @property
    def defense(self) -> str:
        """The selector of what released it."""
        assert self.record.defense is not None, "a released model"
        return self.record.defense.label

    @property
    def name(self) -> str:
        """``DEFENSE@SCENARIO``."""
        return f"{self.defense}@{self.record.scenario.label}"

    @property
    def short(self) -> str:
        """The name without the parameters of defense and scenario."""
        assert self.record.defense is not None, "a released model"
        return f"{self.record.defense.name}@{self.record.scenario.name}"

    @property
    def title(self) -> str:
        """The name, and which of several."""
        return f"{self.name} ({self.record.backbone}, seed {self.record.seed})"

    @property
    def command(self) -> str:
        """What makes it, up to the rounding of another processor."""
        record = self.record
        options = {
            "--defense": self.defense,
            "--scenario": record.scenario.label,
            "--backbone": record.backbone,
            "--precision": record.precision,
            "--seeds": str(record.seed),
        }
        return shlex.join(["sophon-bench", "run", *(w for pair in options.items() for w in pair)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Copy:
    """A published model whose weights are in a store.

    Attributes:
        released: What is published.
        store: Where the weights are.
        record: Whose weights they are: the published record, or the store's own of the same key.
    """

    released: Released
    store: Store
    record: ModelRecord

    @property
    def as_published(self) -> bool:
        """Whether the weights are those that the published records describe."""
        return self.record.weights == self.released.record.weights

    @property
    def size(self) -> int:
        """Bytes of the file of weights."""
        return self.store.weights_size(self.record) or 0

    @property
    def difference(self) -> str:
        """How weights that were made again differ from the published ones, in words."""
        made, told = self.record, self.released.record
        return (
            f"{self.released.title}: these weights were made again, by the same plugin with the "
            f"same hyperparameters and seed on {made.provenance.device}; another processor rounds "
            f"otherwise, so they are not those of the published records (SHA-256 "
            f"{str(made.weights)[:12]}, published {str(told.weights)[:12]}; original utility "
            f"{_percent(made)}, published {_percent(told)})"
        )


def _percent(record: ModelRecord) -> str:
    return "unknown" if record.original is None else f"{100 * record.original:.1f} %"


def published(found: Iterable[Entry] | None = None) -> list[Released]:
    """Every released model that entries have weights' hashes of, in the order of names and seeds.

    Args:
        found: Entries; None: those that come with the package.
    """
    known: dict[tuple[str, str], Released] = {}
    for entry in entries() if found is None else found:
        models = entry.records.models
        for record in models.values():
            if record.defense is None or record.weights is None:
                continue
            new = Released(record=record, pretrained=models[str(record.pretrained)], entries=())
            each = known.get(key := (record.key, record.weights), new)
            known[key] = replace(each, entries=(*each.entries, entry.name))
    return sorted(
        known.values(), key=lambda m: (m.name, m.record.backbone, m.record.seed, m.entries)
    )


def named(
    name: str, known: Sequence[Released], *, seed: int | None = None, backbone: str | None = None
) -> Released:
    """The published model of a name.

    Args:
        name: ``DEFENSE@SCENARIO``, with ``ENTRY/`` before it where entries have several, and with
            ``:seed=K`` behind it, or without. Parameters may be left out where no published name
            is the same without them.
        known: What is published.
        seed: Of the model; None: what the name says, or 0.
        backbone: Which one, where there are several.

    Raises:
        StoreError: If there is none, or there are several.
    """
    label, told = name, None
    if match := re.fullmatch(r"(.*):seed=(\d{1,9})", name):
        label, told = match[1], int(match[2])
    if None not in (seed, told) and seed != told:
        raise StoreError(f"{name!r} is of another seed than {seed}")
    wanted = next((each for each in (seed, told) if each is not None), 0)
    found = _called(label, known, lambda each: each.name) or _called(
        label, known, lambda each: each.short
    )
    if not found:
        names = {each.name for each in known}
        hint = f"'sophon-bench models list' shows all {len(names)}"
        raise StoreError(unknown("published model", label, names, otherwise=hint))
    if backbone is not None:
        if backbone not in (backbones := {each.record.backbone for each in found}):
            raise StoreError(unknown("backbone", backbone, backbones))
        found = [each for each in found if each.record.backbone == backbone]
    seeds = sorted({each.record.seed for each in found})
    if wanted not in seeds:
        numbers = ", ".join(map(str, seeds))
        raise StoreError(f"{label} is not published with seed {wanted}; seeds are {numbers}")
    found = [each for each in found if each.record.seed == wanted]
    if len(names := {each.name for each in found}) > 1:
        raise StoreError(f"{label} can be any of {', '.join(sorted(names))}; name one of them")
    if len(found) > 1:
        ways = "; ".join(f"{'/'.join(e.entries)} with {e.record.backbone}" for e in found)
        raise StoreError(
            f"{label} is published {len(found)} times with seed {wanted} ({ways}); name the entry "
            f"before it, as in {found[0].entries[0]}/{label}, or the backbone"
        )
    return found[0]


def _called(
    name: str, known: Sequence[Released], naming: Callable[[Released], str]
) -> list[Released]:
    """Those that ``naming``, or an entry and ``naming``, calls so."""
    return [
        each
        for each in known
        if name in (naming(each), *(f"{entry}/{naming(each)}" for entry in each.entries))
    ]


def places(store: str | Path | None = None) -> list[Store]:
    """Where weights are looked for: a store, and the one that comes with the package.

    Args:
        store: A directory or a URL, which has to be there; None: the user's own, if it is there.
    """
    own = [store] if store is not None else [default_root()] if is_store(default_root()) else []
    return [Store(root, reading=True) for root in (*own, ZOO)]


def find(released: Released, stores: Sequence[Store]) -> Copy | None:
    """Where the weights of a published model are; those that were made again only if no others."""
    for store in stores:
        if store.weights_size(released.record) is not None:
            return Copy(released=released, store=store, record=released.record)
    for store in stores:
        made = _made_again(released.record, store)
        if made is not None:
            return Copy(released=released, store=store, record=made)
    return None


def needed(released: Released, stores: Sequence[Store]) -> Copy:
    """The same, where there has to be one.

    Raises:
        StoreError: If the weights are in none of the stores (says what makes them), or their file
            is larger than `LARGEST`.
    """
    found = find(released, stores)
    if found is None:
        where = ", ".join(repr(str(store.root)) for store in stores)
        raise StoreError(
            f"{released.title} is published in {' and '.join(released.entries)}, but its weights "
            f"(SHA-256 {released.record.weights}) are in none of {where}; name a store that has "
            f"them with --store, or make them again: {released.command}"
        )
    if found.size > LARGEST:
        raise StoreError(
            f"the weights of {released.title} in {str(found.store.root)!r} have {found.size} "
            f"bytes; at most {LARGEST} are read"
        )
    return found


def _made_again(record: ModelRecord, store: Store) -> ModelRecord | None:
    """A store's own record of the same key, if its weights are there."""
    if not store.has_model(record.key):
        return None
    made = store.model(record.key)
    same = all(getattr(made, name) == getattr(record, name) for name in PLACE)
    here = same and misnamed(made) is None and store.weights_size(made) is not None
    return made if here else None


def load(copy: Copy) -> Model:
    """The model of a copy, in train mode on the CPU.

    Raises:
        StoreError: If its file is not the one that the record describes, or holds another model.
    """
    return model(copy.released.record.backbone, copy.store.weights(copy.record))


def model(backbone: str, weights: Weights) -> Model:
    """A model of these weights, in train mode on the CPU.

    Args:
        backbone: Its selector.
        weights: A whole state dict; its head tells the number of outputs.

    Raises:
        CheckpointError: If it is of another architecture.
    """
    architecture = find_backbone(backbone)
    if isinstance(architecture, Backbone):
        architecture = architecture.bare  # what it started from is not needed any more
        file = Content(file=Path("weights"), sha256="", tensors=weights)
        weights = fitted(file, architecture, None).weights
        outputs = head_width(file, architecture)
    else:
        outputs = _channels(weights)
    if outputs is None:
        raise CheckpointError(f"these weights are of no {backbone}")
    found = architecture.build(outputs, torch.Generator(), fresh=True)
    try:
        found.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"these weights are of no {backbone}") from error
    return found


def _channels(weights: Weights) -> int | None:
    """Channels of the images that a U-Net takes."""
    first = weights.get("body.conv_in.weight")
    return first.shape[1] if first is not None and first.ndim == 4 else None


def fetch(copy: Copy, into: Store) -> list[str]:
    """Copy a model, and the pre-trained one before it, into a store; what was done, in lines.

    A later run in that store goes on from them. What is there already stays.

    Raises:
        StoreError: If a file is damaged, or the pre-trained model is not beside the released one.
        WriteError: If it cannot be written.
    """
    before = _before(copy)
    return [_copied(record, copy.store, into) for record in (before, copy.record)]


def _before(copy: Copy) -> ModelRecord:
    told = copy.released.pretrained
    if copy.as_published and copy.store.weights_size(told) is not None:
        return told
    made = None if copy.as_published else _made_again(told, copy.store)
    if made is None:
        raise StoreError(
            f"the pre-trained model of {copy.released.title} is not in {str(copy.store.root)!r}, "
            f"and a run cannot go on without it; load_model needs the released one alone"
        )
    return made


def _copied(record: ModelRecord, source: Store, into: Store) -> str:
    kind = "pre-trained" if record.defense is None else record.defense.label
    if into.has_model(record.key) and (there := into.model(record.key)).weights is not None:
        return f"{kind}: is there with SHA-256 {there.weights}"
    into.put_weights_file(source.weights_file(record))
    into.put_model(record)
    return f"{kind}: {into.weights_place(record)}"
