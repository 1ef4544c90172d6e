"""The record schema: what one cell of the benchmark says, versioned and self-contained.

Utilities are fractions in [0, 1] for accuracy; higher is better. Costs are counted in *units*:
one unit is one forward and backward pass of the undefended backbone on one example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 2
"""Version of the layout of records; a store of another version is refused."""

PROTOCOL = "1"
"""Version of how things are measured; records of different protocols are never compared."""

Status = Literal["ok", "diverged", "skipped", "failed"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cost(_Frozen):
    """What one stage took.

    Attributes:
        seconds: Time inside the plugin, without scoring and without warm-up.
        steps: Updates, that is yields.
        examples: Training examples drawn in batches.
        units: Forward+backward passes of the undefended backbone, one per example.
        flops: ``units`` times the FLOPs of one unit.
        peak_bytes: Peak memory of the stage: allocated on the GPU, or resident on the CPU.
            None where the platform does not tell.
    """

    seconds: float = Field(ge=0)
    steps: int = Field(ge=0)
    examples: int = Field(ge=0)
    units: float = Field(ge=0)
    flops: float = Field(ge=0)
    peak_bytes: int | None = Field(default=None, ge=0)


class Point(_Frozen):
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


class PluginId(_Frozen):
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


class DataId(_Frozen):
    """Which scenario and which data: ``revision`` is a hash of every pixel and label."""

    name: str
    label: str
    parameters: dict[str, Any]
    revision: str


class Provenance(_Frozen):
    """Where and with what a stage ran."""

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


class Ratios(_Frozen):
    """The smallest and the largest ratio over a model's layers, and where they are.

    None as a ratio: not finite.
    """

    smallest: float | None
    smallest_at: str
    largest: float | None
    largest_at: str


class StageRecord(_Frozen):
    """A made model: pre-trained or released.

    Attributes:
        original: Test utility on the original domain.
        original_second: The same on the second rendering of the test split.
        restricted: Test utility on the restricted domain, with the model's own head.
        weights: SHA-256 of the safetensors file.
        sigma_ratios: Largest singular value of each weight over that of the undefended model.
        gradient_ratios: Gradient norm of each weight, on the restricted task behind the same fresh
            head, over that of the undefended model.
        note: What the plugin said about it, a roll-back for instance.
    """

    schema_version: int = SCHEMA
    key: str
    status: Status
    reason: str | None = None
    note: str | None = None
    cost: Cost | None = None
    original: float | None = None
    original_second: float | None = None
    restricted: float | None = None
    sigma_ratios: Ratios | None = None
    gradient_ratios: Ratios | None = None
    weights: str | None = None
    provenance: Provenance


class Cell(_Frozen):
    """One record: scenario x backbone x defense x trial x n x seed.

    Attributes:
        domain: Name of the domain that is attacked.
        role: Whether that is the ``restricted`` domain, or a ``benign`` one (trainability).
        suite: ``@NAME vVERSION`` of the suite that asked for it, if one did.
        derived: Whether the suite's search added the trial, going by the results of its own.
        status: ``ok``; ``diverged`` (a non-finite loss, weight or output; the curve ends there);
            ``skipped`` (the plugin does not apply); ``failed`` (an error).
        budget: The protocol's longest regular budget b_max, in units.
        stretch: The attack might spend this many times ``budget``.
        test_examples: Size of the test split.
        nonfinite_step: First update with a non-finite loss, weight or output, if any.
        curve: The scorings, in order of cost.
        pretrained: The undefended model's stage.
        released: The defended model's stage.
    """

    schema_version: int = SCHEMA
    protocol: str = PROTOCOL
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
    stretch: int = Field(default=1, ge=1)
    test_examples: int = Field(ge=1)
    utility: str = "accuracy"
    nonfinite_step: int | None = None
    curve: list[Point] = []
    cost: Cost | None = None
    pretrained: StageRecord
    released: StageRecord
    provenance: Provenance


def content_key(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of ``content``: same content, same work."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2^63) that depends on nothing but ``parts``."""
    return int(content_key({"seed": list(parts)})[:16], 16) >> 1
