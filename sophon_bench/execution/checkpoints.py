"""A released model that is a file: checked against a setting, and attacked like any other.

The file takes the place of a defense's work: `trial` makes it one, whose source is the file.
Nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sophon_bench import __version__
from sophon_bench.api import DefenseView, Model
from sophon_bench.data.scenario import DomainData
from sophon_bench.execution.plan import Setting
from sophon_bench.harness.bench import Bench
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.weight_files import CheckpointError, Content, few, read
from sophon_bench.models.weight_names import Fitted, dotted, first_outputs, fitted, head_width
from sophon_bench.plugins.registry import Entry, unknown
from sophon_bench.plugins.selectors import Trial


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Release what a file holds.

    Args:
        file: Where it is.
        sha256: What it has to be, in hexadecimal; it is the source of the trial as well.
        backbone: The architecture of the model.
        width: Outputs of the head in the file.
        answers_original: Whether the head is for the original domain's classes.
    """

    file: Path = field(compare=False)
    sha256: str = field(compare=False)
    backbone: Backbone = field(compare=False)
    width: int = field(compare=False)
    answers_original: bool = field(compare=False, default=True)
    prefix: str | None = field(compare=False, default=None)
    outputs: tuple[int, ...] | None = field(compare=False, default=None)
    steps: ClassVar[int] = 1
    planned_units: ClassVar[float] = 1.0

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:  # noqa: ARG002
        model.load_state_dict(self.model(read(self.file, sha256=self.sha256)).weights)
        yield model

    def model(self, content: Content) -> Fitted:
        """The model that is released, of the content of the file.

        Raises:
            CheckpointError: As `fitted`.
        """
        found = fitted(content, self.backbone, self.width, prefix=self.prefix)
        if self.outputs is None:
            return found
        weights = first_outputs(found.weights, self.backbone, self.width, self.outputs)
        return Fitted(weights=weights, notes=found.notes)


@dataclass(frozen=True, kw_only=True)
class PartOfCheckpoint(Checkpoint):
    """Release one model of a file that holds more, or one whose head has other classes.

    Args:
        prefix: What the model's names begin with; a hyperparameter, so that it is in keys.
        outputs: Outputs of the head that are the original domain's classes, which come first in
            what is released; a hyperparameter, too.
    """

    prefix: str | None = None
    outputs: tuple[int, ...] | None = None


def trial(
    content: Content,
    backbone: Backbone,
    width: int,
    *,
    prefix: str | None = None,
    outputs: tuple[int, ...] | None = None,
    answers_original: bool = True,
) -> Trial:
    """The file as a defense: in keys and records stands its SHA-256, and not where it is.

    Args:
        width: Outputs of the head in the file.
        prefix: Which model of the file is meant, as `fitted` takes it; it is in the keys as well.
        outputs: Which outputs of the head are the original domain's classes; in the keys as well.
            None: the first ones.
        answers_original: Whether they are any; if not, original utility is not scored.
    """
    cls = Checkpoint if prefix is None and outputs is None else PartOfCheckpoint
    plugin = cls(
        file=content.file.absolute(),
        sha256=content.sha256,
        backbone=backbone,
        width=width,
        answers_original=answers_original,
        prefix=prefix and dotted(prefix),
        outputs=outputs,
    )
    entry = Entry(
        name=f"checkpoint-{content.sha256[:12]}",
        kind="defense",
        cls=cls,
        control=False,
        optional=False,
        mechanism="gradient",
        hidden=True,
        source=content.sha256,
        distribution=f"sophon-bench=={__version__}",
    )
    return Trial(entry, plugin)


def audited(
    content: Content,
    backbone: Backbone,
    original: DomainData,
    *,
    prefix: str | None = None,
    classes: Sequence[str] | None = None,
) -> Trial:
    """The file as a defense, with the head that it comes with.

    Args:
        original: Domain that the model is released for.
        prefix: As of `trial`.
        classes: What the outputs of the head stand for, in their order; None: the original domain's
            classes, or if there are more outputs than those, nothing that is known.

    Raises:
        CheckpointError: As `fitted`; or if the head has fewer outputs than the original domain has
            classes, or ``classes`` do not name them.
    """
    own = len(original.classes)
    width = head_width(content, backbone, prefix=prefix) or own
    fitted(content, backbone, width, prefix=prefix)
    if width < own:
        raise CheckpointError(
            f"{str(content.file)!r} has a head for {width} classes, fewer than the {own} of "
            f"{original.name}, which the undefended model is trained on behind the same head; "
            f"choose an original domain of at most {width}"
        )
    outputs = None if classes is None else _outputs_of(original, classes, width)
    if width == own and outputs == (*range(own),):
        outputs = None
    return trial(
        content,
        backbone,
        width,
        prefix=prefix,
        outputs=outputs,
        answers_original=width == own or outputs is not None,
    )


def _outputs_of(original: DomainData, classes: Sequence[str], width: int) -> tuple[int, ...]:
    """Which outputs of a head are the classes of the original domain, in its order."""
    if len(classes) != width:
        raise CheckpointError(
            f"--classes names {len(classes)} classes, and the head of the file is for {width}; it "
            f"needs a line for each"
        )
    counts = Counter(classes)
    for name in original.classes:
        if counts[name] != 1:
            missing = unknown("class", name, counts, otherwise=f"there are {width} others")
            words = f"class {name!r} {counts[name]} times" if counts[name] else missing
            raise CheckpointError(
                f"--classes has {words}; each class of the original domain, {original.name}, is "
                f"expected once"
            )
    index = {name: number for number, name in enumerate(classes)}
    return tuple(index[name] for name in original.classes)


def inspect(
    content: Content, checkpoint: Checkpoint, setting: Setting, device: torch.device
) -> list[str]:
    """Check the file against a setting, before any work; what an auditor has to know of it.

    Raises:
        CheckpointError: As `fitted`.
    """
    original, backbone = setting.data.original, setting.backbone
    assert isinstance(backbone, Backbone)
    classes = len(original.classes)
    model = checkpoint.model(content)
    weights, told = model.weights, list(model.notes)
    broken = _nonfinite(weights)
    if broken:
        count = sum(broken.values())
        told.append(
            f"{count} of its values are not finite (in {few(broken)}): where that ends a "
            f"trial at its first update, the trial counts as it does against the undefended model"
        )
    if not checkpoint.answers_original:
        told.append(
            f"its head is for {checkpoint.width} classes, and which of them are the {classes} of "
            f"{original.name} is not said (--classes FILE does): its original accuracy is not "
            f"scored, and so it can be shown to be fine-tunable and not the opposite"
        )
        return told
    bench = Bench(setting.data, backbone, device=device, precision=setting.precision)
    utility = bench.utility(weights, original, "test")
    if utility <= guessing(classes, len(original.splits["test"])):
        mean, deviation = ("(" + ", ".join(map(str, v)) + ")" for v in backbone.scale)
        size = setting.data.image_size
        told.append(
            f"its original accuracy is {100 * utility:.1f} %, no better than guessing: its classes "
            f"are probably in another order, which --classes FILE tells, or its inputs in another "
            f"scale; {original.name} has {classes} classes in the order "
            f"{', '.join(original.classes)}, and images are RGB, {size}x{size}, in [0, 1], less "
            f"{mean}, over {deviation}, as timm's config of {backbone.name} says"
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
