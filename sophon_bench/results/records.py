"""The record schema: models, cells and runs, with a version.

Each model has one record, and cells refer to it by its key. Which run requested a cell is in the
manifests of runs, not in the cell. Utilities are fractions in [0, 1] for accuracy; higher is
better. Costs are counted in *units*: one unit is one forward and backward pass of the undefended
backbone on one example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec

from sophon_bench import protocol as rules
from sophon_bench.results.recipes import ChosenRecipe

SCHEMA = 3
"""Version of the layout of records; a store of another version is refused."""

Status = Literal["ok", "diverged", "skipped", "failed"]

LARGEST_COUNT = 2**63 - 1

Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_COUNT)]
"""Whole numbers that columns of a frame can hold."""

Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A content key or a SHA-256: they are names of files."""

Label = Annotated[str, msgspec.Meta(max_length=10_000)]
"""A selector or a name."""

Number = Annotated[float, msgspec.Meta(ge=-1e40, le=1e40)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e40)]
"""Numbers that single precision has, so that a sum of their squares is finite."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A part of a record: msgspec checks it against its types, `dump` writes it as JSON.

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
    together: Positive = 1


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

    steps: Count
    units: float
    seconds: float
    fit: float
    validation: float
    selection: float
    test: float
    second_test: float | None = None


class Curve(Record, frozen=True, kw_only=True):
    """The scorings of an attack in order of cost, a list for each field of `Point`.

    ``second_test`` is null where the domain has no second rendering.
    """

    steps: list[Count] = []
    units: list[Number] = []
    seconds: list[Number] = []
    fit: list[Number] = []
    validation: list[Number] = []
    selection: list[Number] = []
    test: list[Number] = []
    second_test: list[Number] | None = None

    @classmethod
    def of(cls, points: Sequence[Point]) -> Curve:
        """The same scorings by field."""
        columns: dict[str, Any] = {
            name: [getattr(point, name) for point in points] for name in cls.__struct_fields__
        }
        if None in columns["second_test"] or not points:
            columns["second_test"] = None
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def even(self) -> bool:
        """Whether all lists are of one length."""
        columns = [getattr(self, name) for name in self.__struct_fields__]
        return {len(column) for column in columns if column is not None} == {len(self)}


class PluginId(Record, frozen=True, kw_only=True, gc=True, dict=True):
    """Which plugin with which hyperparameters; ``label`` is the shortest selector for it.

    ``mechanism`` is what an attack works by: ``gradient``, ``function``, ``repair`` or ``noise``.
    """

    name: Label
    label: Label
    parameters: dict[str, Any]
    source: str
    distribution: Label
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

    name: Label
    label: Label
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
    threads: Count
    finished: str
    compiled: str = "off"


class Ratios(Record, frozen=True, kw_only=True):
    """The smallest and the largest ratio over a model's layers, and where they are.

    None as a ratio: not finite.
    """

    smallest: Number | None
    smallest_at: str
    largest: Number | None
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

    count: Positive
    frechet: Number
    frechet_real: Number
    classifier_score: Number
    picture: str
    fid: Number | None = None
    fid_real: Number | None = None


class ModelRecord(Record, frozen=True, kw_only=True):
    """A made model: pre-trained or released.

    Attributes:
        pretrained: Key of the model that the defense began with; null for a pre-trained one.
        defense: What released it; null for a pre-trained one.
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
        recipe: Of a pre-trained model: the step size and length that validation chose, and all that
            were tried, which ``cost`` includes. Null where the scenario leaves no choice, and in
            older records.
        note: What the plugin said about it, a roll-back for instance.
        contained: What the plugin did to the process around it and was undone, in sentences.
    """

    key: Hash
    protocol: str = rules.VERSION
    protocol_digest: str = msgspec.field(default_factory=rules.digest)
    scenario: DataId
    backbone: Label
    precision: str
    seed: Count
    pretrained: Hash | None = None
    defense: PluginId | None = None
    status: Status
    reason: str | None = None
    note: str | None = None
    cost: Cost | None = None
    original: Number | None = None
    original_second: Number | None = None
    original_validation: Number | None = None
    restricted: Number | None = None
    trivial_loss: Number | None = None
    generated: Generated | None = None
    sigma_ratios: Ratios | None = None
    gradient_ratios: Ratios | None = None
    weights: Hash | None = None
    contained: list[str] = []
    recipe: ChosenRecipe | None = None
    provenance: Provenance


class Cell(Record, frozen=True, kw_only=True):
    """One attack on one released model: scenario x backbone x defense x trial x n x seed.

    Attributes:
        model: Key of the released model, which says where and by which defense it was made.
        domain: Name of the domain that is attacked.
        role: Whether that is the ``restricted`` domain, or a ``benign`` one (trainability).
        status: ``ok``; ``diverged`` (a non-finite loss, weight or output; the curve ends there);
            ``skipped`` (the plugin does not apply); ``failed`` (an error).
        budget: The protocol's longest regular budget b_max, in units.
        stretch: The attack might spend this many times ``budget``.
        test_examples: Size of the test split.
        utility: What utility is.
        trivial_loss: As a model's, on the attacked domain's test split.
        generated: What the attacked model makes of noise at the end, judged against the attacked
            domain; null where models make no images.
        nonfinite_step: First update with a non-finite loss, weight or output, if any.
        contained: What the attack did to the process around it and was undone, in sentences.
    """

    key: Label
    protocol: str = rules.VERSION
    protocol_digest: str = msgspec.field(default_factory=rules.digest)
    model: Hash
    attack: PluginId
    domain: Label
    role: Literal["restricted", "benign"] = "restricted"
    samples: Count
    budget: Count
    stretch: Positive = 1
    test_examples: Positive
    status: Status
    reason: str | None = None
    utility: str = "accuracy"
    trivial_loss: Number | None = None
    generated: Generated | None = None
    nonfinite_step: Count | None = None
    curve: Curve = Curve()
    cost: Cost | None = None
    contained: list[str] = []
    provenance: Provenance


OR = " or "
"""Between the labels of several suites where they are shown; no label has it."""


class Asked(Record, frozen=True, kw_only=True):
    """Who asked for the cell of this key.

    Attributes:
        suites: Labels of the suites that list the trial; none for a single selector.
        derived: Whether a search added it, going by the results of listed trials.
    """

    key: Label
    suites: tuple[str, ...] = ()
    derived: bool = False

    def and_by(self, other: Asked) -> Asked:
        """The same cell as both asked for it; derived only if neither lists it."""
        suites = tuple(sorted({*self.suites, *other.suites}))
        return Asked(key=self.key, suites=suites, derived=self.derived and other.derived)


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


@dataclass(frozen=True)
class Records:
    """Cells with the models that they refer to, and who asked for them.

    Attributes:
        models: By key; released models, and the pre-trained ones that they are of.
        cells: In any order, each once.
        asked: By the cell's key; what is not there, a single selector asked for.
    """

    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    cells: Sequence[Cell] = ()
    asked: Mapping[str, Asked] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Of all models, in order."""
        return sorted({model.seed for model in self.models.values()})

    @property
    def defended(self) -> list[str]:
        """Labels of the defenses that are no controls, in order."""
        made = [model.defense for model in self.models.values() if model.defense is not None]
        return sorted({defense.label for defense in made if not defense.control})

    def model(self, cell: Cell) -> ModelRecord:
        """The released model that was attacked."""
        return self.models[cell.model]

    def pretrained(self, cell: Cell) -> ModelRecord:
        """What that model was before the defense."""
        return self.models[str(self.model(cell).pretrained)]

    def defense(self, cell: Cell) -> PluginId:
        """What released that model."""
        defense = self.model(cell).defense
        assert defense is not None, "a cell is of a released model"
        return defense

    def who(self, cell: Cell) -> Asked:
        """Who asked for a cell."""
        return self.asked.get(cell.key, Asked(key=cell.key))

    def only(self, keys: Collection[str]) -> Records:
        """The cells of these keys, with their models and who asked for them."""
        own = [cell for cell in self.cells if cell.key in keys]
        released = [self.models[key] for key in dict.fromkeys(cell.model for cell in own)]
        used = dict.fromkeys(key for m in released for key in (str(m.pretrained), m.key))
        asked = {cell.key: self.asked[cell.key] for cell in own if cell.key in self.asked}
        return Records({key: self.models[key] for key in used}, own, asked)

    def of_defenses(self, chosen: Callable[[PluginId], bool]) -> Records:
        """The cells of some defenses, and of the controls."""
        defenses = {key: model.defense for key, model in self.models.items()}
        fit = {key for key, made in defenses.items() if made and (made.control or chosen(made))}
        return self.only({cell.key for cell in self.cells if cell.model in fit})

    @classmethod
    def joined(cls, parts: Iterable[Records]) -> Records:
        """Several records as one; who asked is whoever did in any of them.

        What is there twice counts once: the last one that did not fail, as in a store.
        """
        models: dict[str, ModelRecord] = {}
        cells: dict[str, Cell] = {}
        asked: dict[str, Asked] = {}
        for part in parts:
            models |= {k: m for k, m in part.models.items() if k not in models or _counts(m)}
            cells |= {c.key: c for c in part.cells if c.key not in cells or _counts(c)}
            asked |= {k: who.and_by(asked.get(k, who)) for k, who in part.asked.items()}
        return cls(models, list(cells.values()), asked)


def _counts(record: ModelRecord | Cell) -> bool:
    return record.status != "failed"


def dump(record: Record) -> bytes:
    """One line of JSON; what UTF-8 cannot say, as in a file's name of other bytes, is escaped.

    Raises:
        ValueError: If a number is not finite: JSON has none of those.
    """
    return compact(msgspec.to_builtins(record)).encode(errors="backslashreplace")


def compact(plain: Any) -> str:
    """JSON on one line."""
    return json.dumps(plain, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_key(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of ``content``: same content, same work."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


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


def misnamed(record: ModelRecord | Cell) -> str | None:
    """What is wrong with a record's key, if it does not follow from its other fields.

    A pre-trained model's key is taken as it is: what it follows from is in no record.
    """
    if isinstance(record, ModelRecord):
        if (record.defense is None) != (record.pretrained is None):
            return "it names a defense or the model before it, but not both"
        if record.defense and record.key != protect_key(str(record.pretrained), record.defense):
            return "its key does not follow from its defense"
        return None
    given = {name: getattr(record, name) for name in ("samples", "budget", "domain", "stretch")}
    if record.key != attack_key(record.model, record.attack, **given):
        return "its key does not follow from its attack, n, budget and domain"
    return None
