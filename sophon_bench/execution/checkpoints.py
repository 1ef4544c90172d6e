"""A released model that is a file: checked against a setting, and attacked like any other.

The file takes the place of a defense's work: `trial` makes it one, whose source is the file.
Nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sophon_bench import __version__
from sophon_bench.api import DefenseView, Model
from sophon_bench.execution.plan import Setting
from sophon_bench.harness.bench import Bench
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.weight_files import Content, few, read
from sophon_bench.models.weight_names import dotted, fitted
from sophon_bench.plugins.registry import Entry
from sophon_bench.plugins.selectors import Trial


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Release what a file holds.

    Args:
        file: Where it is.
        sha256: What it has to be, in hexadecimal; it is the source of the trial as well.
        backbone: The architecture of the model.
    """

    file: Path = field(compare=False)
    sha256: str = field(compare=False)
    backbone: Backbone = field(compare=False)
    prefix: str | None = field(compare=False, default=None)
    steps: ClassVar[int] = 1
    planned_units: ClassVar[float] = 1.0

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        content = read(self.file, sha256=self.sha256)
        classes = view.original.task.num_outputs
        model.load_state_dict(fitted(content, self.backbone, classes, prefix=self.prefix).weights)
        yield model


@dataclass(frozen=True, kw_only=True)
class PartOfCheckpoint(Checkpoint):
    """Release one model of a file that holds more.

    Args:
        prefix: What the model's names begin with; a hyperparameter, so that it is in keys.
    """

    prefix: str


def trial(content: Content, backbone: Backbone, *, prefix: str | None = None) -> Trial:
    """The file as a defense: in keys and records stands its SHA-256, and not where it is.

    Args:
        prefix: Which model of the file is meant, as `fitted` takes it; it is in the keys as well.
    """
    file = content.file.absolute()
    plugin = (
        Checkpoint(file=file, sha256=content.sha256, backbone=backbone)
        if prefix is None
        else PartOfCheckpoint(
            file=file, sha256=content.sha256, backbone=backbone, prefix=dotted(prefix)
        )
    )
    entry = Entry(
        name=f"checkpoint-{content.sha256[:12]}",
        kind="defense",
        cls=type(plugin),
        control=False,
        optional=False,
        mechanism="gradient",
        hidden=True,
        source=content.sha256,
        distribution=f"sophon-bench=={__version__}",
    )
    return Trial(entry, plugin)


def inspect(
    content: Content, setting: Setting, device: torch.device, *, prefix: str | None = None
) -> list[str]:
    """Check the file against a setting, before any work; what an auditor has to know of it.

    Args:
        prefix: Which model of the file is meant, as `fitted` takes it.

    Raises:
        CheckpointError: As `fitted`.
    """
    original, backbone = setting.data.original, setting.backbone
    assert isinstance(backbone, Backbone)
    classes = original.task.num_outputs
    model = fitted(content, backbone, classes, prefix=prefix)
    weights, told = model.weights, list(model.notes)
    broken = _nonfinite(weights)
    if broken:
        count = sum(broken.values())
        told.append(
            f"{count} of its values are not finite (in {few(broken)}): where that ends a "
            f"trial at its first update, the trial counts as it does against the undefended model"
        )
    bench = Bench(setting.data, backbone, device=device, precision=setting.precision)
    utility = bench.utility(weights, original, "test")
    if utility <= guessing(classes, len(original.splits["test"])):
        mean, deviation = ("(" + ", ".join(map(str, v)) + ")" for v in backbone.scale)
        size = setting.data.image_size
        told.append(
            f"its original accuracy is {100 * utility:.1f} %, no better than guessing: its classes "
            f"are probably in another order, or its inputs in another scale; {original.name} has "
            f"{classes} classes in the order {', '.join(original.classes)}, and images are RGB, "
            f"{size}x{size}, in [0, 1], less {mean}, over {deviation}, as timm's config of "
            f"{backbone.name} says"
        )
    return told


def _nonfinite(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """How many values of each tensor are not finite, where any is not."""
    counts = {name: int((~tensor.isfinite()).sum()) for name, tensor in weights.items()}
    return {name: count for name, count in counts.items() if count}


def guessing(classes: int, examples: int) -> float:
    """The accuracy that guessing stays below on about 39 of 40 draws of so many examples."""
    chance = 1 / classes
    return chance + 1.96 * math.sqrt(chance * (1 - chance) / examples)
