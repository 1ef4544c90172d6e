"""The record schema: what one cell of the benchmark says, versioned and self-contained.

Utilities are fractions in [0, 1] for accuracy; higher is better. Costs are counted in *units*:
one unit is one forward and backward pass of the undefended backbone on one example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Annotated, Any, Generic, Literal, TypeVar, get_type_hints

import msgspec

from sophon_bench import protocol as rules

SCHEMA = 2
"""Version of the layout of records; a store of another version is refused."""

Status = Literal["ok", "diverged", "skipped", "failed"]

Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A part of a record: `read` checks it against its types, `dump` writes it as JSON.

    It holds no reference cycle, so that the garbage collector need not look at 100 000 of them.
    """


class Cost(Record, frozen=True, kw_only=True):
    """What one stage took.

    Attributes:
        seconds: Time inside the plugin, without scoring and without warm-up.
        steps: Updates, that is yields.
        examples: Training examples drawn in batches.
        units: Forward+backward passes of the undefended backbone, one per example.
        flops: ``units`` times the FLOPs of one unit.
        peak_bytes: Peak memory of the stage: allocated on the GPU, or resident on the CPU.
            None where the platform does not tell.
        together: Trials that ran at once; ``seconds`` is the share of one, ``peak_bytes`` of all.
    """

    seconds: Amount
    steps: Count
    examples: Count
    units: Amount
    flops: Amount
    peak_bytes: Count | None = None
    together: Annotated[int, msgspec.Meta(ge=1)] = 1


class Point(Record, frozen=True, kw_only=True):
    """One scoring of an attack in progress.

    Attributes:
        units: Cost so far.
        fit: Utility on (up to 256 of) the attacker's own training samples.
        validation: Utility on the attacker's own validation samples.
        selection: Utility on the hidden split that trials and checkpoints are selected by.
        test: Utility on the test split.
        second_test: Utility on the test split in its second rendering, if the domain has one.
    """

    steps: int
    units: float
    seconds: float
    fit: float
    validation: float
    selection: float
    test: float
    second_test: float | None = None


class PluginId(Record, frozen=True, kw_only=True, gc=True, dict=True):
    """Which plugin with which hyperparameters; ``label`` is the shortest selector for it.

    ``mechanism`` is what an attack works by: ``gradient``, ``function``, ``repair`` or ``noise``.
    """

    name: str
    label: str
    parameters: dict[str, Any]
    source: str
    distribution: str
    control: bool
    mechanism: str = "gradient"

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the plugin's work what it is: all but the label, which follows from it."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        del plain["label"]
        return plain

    @cached_property
    def version(self) -> str:
        """A hash of all but the label."""
        return content_key(self.identity)

    @cached_property
    def family(self) -> str:
        """What trials of one learning-rate sweep have in common: all parameters but ``lr``."""
        rest = {key: value for key, value in self.parameters.items() if key != "lr"}
        return content_key({"name": self.name, "source": self.source, "parameters": rest})

    @cached_property
    def lr(self) -> float | None:
        """The trial's learning rate, if it has one."""
        value = self.parameters.get("lr")
        return float(value) if isinstance(value, int | float) else None


class DataId(Record, frozen=True, kw_only=True):
    """Which scenario and which data: ``revision`` is a hash of every pixel and label."""

    name: str
    label: str
    parameters: dict[str, Any]
    revision: str


class Provenance(Record, frozen=True, kw_only=True):
    """Where and with what a stage ran; ``compiled`` is the mode of `torch.compile`, or ``off``."""

    version: str
    commit: str | None
    dirty: bool | None
    python: str
    torch: str
    timm: str
    cuda: str | None
    device: str
    threads: int
    finished: str
    compiled: str = "off"


class Ratios(Record, frozen=True, kw_only=True):
    """The smallest and the largest ratio over a model's layers, and where they are.

    None as a ratio: not finite.
    """

    smallest: float | None
    smallest_at: str
    largest: float | None
    largest_at: str


class Generated(Record, frozen=True, kw_only=True):
    """Images that a model made from noise that is the same for every model, and how good they are.

    Attributes:
        count: How many images were made and judged.
        frechet: Fréchet distance of their features to those of the domain's test images (Heusel et
            al., NeurIPS 2017), features being a small classifier's of that domain, or
            of the original one where that domain has one class alone.
        frechet_real: The same of as many training images: what a perfect generator gets.
        classifier_score: ``exp(mean KL(p(y|x) || p(y)))`` of the classifier's probabilities
            (Salimans et al., NeurIPS 2016), in [1, C].
        fid: The Fréchet distance with Inception's features, where its weights were at hand.
        fid_real: The same of as many training images.
        picture: The first of them in a row, a PNG in base64.
    """

    count: Annotated[int, msgspec.Meta(ge=1)]
    frechet: float
    frechet_real: float
    classifier_score: float
    picture: str
    fid: float | None = None
    fid_real: float | None = None


class StageRecord(Record, frozen=True, kw_only=True):
    """A made model: pre-trained or released.

    Attributes:
        original: Test utility on the original domain.
        original_second: The same on the second rendering of the test split.
        original_validation: Utility on the original domain's validation split, which the defense
            sees too: what its hyperparameters may be chosen by. Null in older records.
        restricted: Test utility on the restricted domain, with the model's own head.
        trivial_loss: The task's loss at utility 0 on the original test split, where utility is
            ``1 - loss / trivial_loss``; null where it is not, for accuracy.
        generated: What the model makes of noise, judged against the original domain; null where
            models make no images.
        weights: SHA-256 of the safetensors file.
        sigma_ratios: Largest singular value of each weight over that of the undefended model.
        gradient_ratios: Gradient norm of each weight, on the restricted task behind the same fresh
            head, over that of the undefended model.
        note: What the plugin said about it, a roll-back for instance.
        contained: What the plugin did to the process around it and was undone, in sentences.
    """

    schema_version: int = SCHEMA
    key: str
    status: Status
    reason: str | None = None
    note: str | None = None
    cost: Cost | None = None
    original: float | None = None
    original_second: float | None = None
    original_validation: float | None = None
    restricted: float | None = None
    trivial_loss: float | None = None
    generated: Generated | None = None
    sigma_ratios: Ratios | None = None
    gradient_ratios: Ratios | None = None
    weights: str | None = None
    contained: list[str] = []
    provenance: Provenance


class Cell(Record, frozen=True, kw_only=True):
    """One record: scenario x backbone x defense x trial x n x seed.

    Attributes:
        domain: Name of the domain that is attacked.
        role: Whether that is the ``restricted`` domain, or a ``benign`` one (trainability).
        suite: ``@NAME vVERSION`` of the suites that asked for it, joined by `OR`; null if only
            single selectors did. A store has it from the manifests of its runs.
        derived: Whether the search alone added the trial, going by the results of listed ones.
        status: ``ok``; ``diverged`` (a non-finite loss, weight or output; the curve ends there);
            ``skipped`` (the plugin does not apply); ``failed`` (an error).
        budget: The protocol's longest regular budget b_max, in units.
        stretch: The attack might spend this many times ``budget``.
        test_examples: Size of the test split.
        utility: What utility is.
        trivial_loss: As a stage's, on the attacked domain's test split.
        generated: What the attacked model makes of noise at the end, judged against the attacked
            domain; null where models make no images.
        nonfinite_step: First update with a non-finite loss, weight or output, if any.
        curve: The scorings, in order of cost.
        contained: What the attack did to the process around it and was undone, in sentences.
        pretrained: The undefended model's stage.
        released: The defended model's stage.
    """

    schema_version: int = SCHEMA
    protocol: str = rules.VERSION
    protocol_digest: str = msgspec.field(default_factory=rules.digest)
    key: str
    status: Status
    reason: str | None = None
    scenario: DataId
    backbone: str
    defense: PluginId
    attack: PluginId
    domain: str
    role: Literal["restricted", "benign"] = "restricted"
    suite: str | None = None
    derived: bool = False
    samples: int
    seed: int
    precision: str
    budget: int
    stretch: Annotated[int, msgspec.Meta(ge=1)] = 1
    test_examples: Annotated[int, msgspec.Meta(ge=1)]
    utility: str = "accuracy"
    trivial_loss: float | None = None
    generated: Generated | None = None
    nonfinite_step: int | None = None
    curve: list[Point] = []
    cost: Cost | None = None
    contained: list[str] = []
    pretrained: StageRecord
    released: StageRecord
    provenance: Provenance

    @property
    def suites(self) -> list[str]:
        """The suites that asked for it."""
        return self.suite.split(OR) if self.suite else []

    def asked_by(self, suites: Iterable[str], *, derived: bool) -> Cell:
        """The same work, as these suites asked for it."""
        suite = OR.join(sorted(suites)) or None
        return msgspec.structs.replace(self, suite=suite, derived=derived)


OR = " or "
"""Between the labels of suites; no label has it."""


class Asked(Record, frozen=True, kw_only=True):
    """A line of a run's manifest: the cell of this key was asked for.

    Attributes:
        suites: Labels of the suites that list the trial; none for a single selector.
        derived: Whether the search added it.
    """

    key: str
    suites: tuple[str, ...] = ()
    derived: bool = False


class Run(Record, frozen=True, kw_only=True):
    """The first line of a run's manifest.

    Attributes:
        command: What gives the same numbers again; empty where no command line did.
        names: Names that the command gave to selectors, by label.
        provenance: Where the run began, with what, and when (``finished``).
    """

    schema_version: int = SCHEMA
    command: str
    names: dict[str, str] = {}
    provenance: Provenance


R = TypeVar("R", bound=Record)


def dump(record: Record) -> bytes:
    """Indented JSON.

    Raises:
        ValueError: If a number is not finite: JSON has none of those.
    """
    plain = msgspec.to_builtins(record)
    return json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False).encode()


class Reader(Generic[R]):
    """Reads records of one kind; parts that many have in common are read and held once.

    Args:
        kind: What is read.
        held: Names of the fields that many records have in common.
    """

    def __init__(self, kind: type[R], held: Sequence[str] = ()) -> None:
        hints = get_type_hints(kind, include_extras=True)
        raw = [(name, msgspec.Raw) for name in held]
        outer = msgspec.defstruct(kind.__name__, raw, bases=(kind,), frozen=True, kw_only=True)
        self._kind = kind
        self._decode = msgspec.json.Decoder(outer).decode
        self._parts = {name: msgspec.json.Decoder(hints[name]).decode for name in held}
        self._own = [name for name in outer.__struct_fields__ if name not in held]
        self._values = attrgetter(*self._own)
        self._seen: dict[str, dict[bytes, Record]] = {name: {} for name in held}

    def read(self, content: bytes) -> R:
        """The record in ``content``.

        Raises:
            msgspec.DecodeError: If it is not JSON, or not of this kind; says what and where.
        """
        outer = self._decode(content)
        values = dict(zip(self._own, self._values(outer), strict=True))
        for name, seen in self._seen.items():
            part = bytes(getattr(outer, name))
            found = seen.get(part)
            if found is None:
                found = seen[part] = self._parts[name](part)
            values[name] = found
        return self._kind(**values)


def content_key(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of ``content``: same content, same work."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest(record: Record) -> str:
    """SHA-256 of the canonical JSON of a record: equal for equal records, and for no others."""
    return content_key(msgspec.to_builtins(record))


def protect_key(upstream: str, defense: PluginId) -> str:
    """The key of a released model: the pre-trained one's, and the defense."""
    return content_key({"stage": "protect", "upstream": upstream, "plugin": defense.identity})


def attack_key(
    upstream: str, attack: PluginId, *, samples: int, budget: int, domain: str, stretch: int
) -> str:
    """The key of a cell: the released model's, the trial, and what it was given."""
    return content_key(
        {
            "stage": "attack",
            "upstream": upstream,
            "plugin": attack.identity,
            "samples": samples,
            "budget": budget,
            "domain": domain,
            "stretch": stretch,
        }
    )


def misnamed(cell: Cell) -> str | None:
    """What is wrong with the cell's keys, if they do not follow from its other fields.

    The pre-trained model's key is taken as it is: what it follows from is in no record.
    """
    if cell.released.key != protect_key(cell.pretrained.key, cell.defense):
        return "the released model's key does not follow from its defense"
    key = attack_key(
        cell.released.key,
        cell.attack,
        samples=cell.samples,
        budget=cell.budget,
        domain=cell.domain,
        stretch=cell.stretch,
    )
    if cell.key != key:
        return "its key does not follow from its attack, n, budget and domain"
    return None
