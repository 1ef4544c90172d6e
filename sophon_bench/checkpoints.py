"""A released model that is a file: read, checked against a backbone, and attacked like any other.

The file takes the place of a defense's work: `trial` makes it one, whose source is the file.
Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sophon_bench import __version__
from sophon_bench.api import DefenseView, Model
from sophon_bench.backbones import Backbone, resembling
from sophon_bench.plan import Setting
from sophon_bench.registry import Entry, unknown
from sophon_bench.selectors import Trial
from sophon_bench.stages import Bench, Weights
from sophon_bench.store import StoreError

NAMED = 3
"""How many names an error shows."""

PICKLES = (b"PK\x03\x04", b"\x80")
"""What files of `torch.save` begin with."""


class CheckpointError(StoreError):
    """A file that holds no released model of the backbone, or not the one that it did.

    It ends a run like a damaged store, and makes no record: the same command goes on once the file
    is back.
    """


@dataclass(frozen=True, kw_only=True)
class Content:
    """A safetensors file.

    Attributes:
        sha256: Of the whole file, in hexadecimal.
        tensors: Under the names of the file, on the CPU.
    """

    file: Path
    sha256: str
    tensors: Weights


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
    steps: ClassVar[int] = 1
    planned_units: ClassVar[float] = 1.0

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        content = read(self.file, sha256=self.sha256)
        model.load_state_dict(fitted(content, self.backbone, view.original.task.num_outputs))
        yield model


def trial(content: Content, backbone: Backbone) -> Trial:
    """The file as a defense: in keys and records stands its SHA-256, and not where it is."""
    entry = Entry(
        name=f"checkpoint-{content.sha256[:12]}",
        kind="defense",
        cls=Checkpoint,
        control=False,
        optional=False,
        mechanism="gradient",
        hidden=True,
        source=content.sha256,
        distribution=f"sophon-bench=={__version__}",
    )
    file = content.file.absolute()
    return Trial(entry, Checkpoint(file=file, sha256=content.sha256, backbone=backbone))


def read(file: Path, *, sha256: str | None = None) -> Content:
    """The tensors of a safetensors file.

    Args:
        sha256: What the file has to be, in hexadecimal; None: whatever it is.

    Raises:
        CheckpointError: If it cannot be read, is no whole safetensors file, or is another one.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise CheckpointError(
            f"a SHA-256 has 64 hexadecimal digits, as 'sha256sum {file}' prints; got {sha256!r}"
        )
    if file.exists() and not file.is_file():
        kind = "a directory" if file.is_dir() else "no regular file"
        raise CheckpointError(f"{str(file)!r} is {kind}; a released model is a safetensors file")
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        known = [other.name for other in file.parent.glob("*.safetensors")]
        words = unknown("file", file.name, known)
        raise CheckpointError(f"{words} (in {str(file.absolute().parent)!r})") from error
    except OSError as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise CheckpointError(
            f"{str(file)!r} is not the file that was asked for: its SHA-256 is {digest}, and "
            f"should be {sha256.lower()}"
        )
    return Content(file=file, sha256=digest, tensors=_tensors(file, content))


def _tensors(file: Path, content: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    if content.startswith(PICKLES):
        raise CheckpointError(
            f"{str(file)!r} is no safetensors file but one of torch.save, a pickle: opening that "
            f"could run anything, so it is never done here; whoever trusts it can convert it with "
            f"safetensors.torch.save_file(torch.load({file.name!r}, weights_only=True), "
            f"{file.with_suffix('.safetensors').name!r})"
        )
    problem = _damage(content)
    if problem is None:
        try:
            return load(content)
        except Exception as error:  # whatever a file can make the library do
            problem = " ".join(str(error).split()) or type(error).__name__
    raise CheckpointError(f"{str(file)!r} is no whole safetensors file: {problem}")


def _damage(content: bytes) -> str | None:
    """What is cut off, as far as the header tells; None leaves it to the library."""
    if len(content) < 8 or content[8:9] not in (b"{", b""):
        return "it does not begin with the length of a header and '{'"
    begin = 8 + int.from_bytes(content[:8], "little")
    if begin > len(content):
        return f"it is cut off in its header, which takes {begin} bytes; there are {len(content)}"
    try:
        header = json.loads(content[8:begin])
        ends = [entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"]
        end = begin + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None
    if end > len(content):
        return f"it is cut off: its header tells of {end} bytes, there are {len(content)}"
    return None


def fitted(content: Content, backbone: Backbone, num_outputs: int) -> dict[str, Tensor]:
    """The state dict of a model of the backbone, as this benchmark releases it.

    Names may be this benchmark's own (``body.…``, ``head.…``) or timm's. Floating-point values of
    another precision are converted.

    Args:
        num_outputs: Classes of the original domain.

    Raises:
        CheckpointError: If names, shapes or kinds of numbers are not those of the backbone.
        BackboneError: If there is no such backbone.
    """
    own, plain = _layouts(backbone, num_outputs)
    tensors = content.tensors
    as_timm = len(tensors.keys() & plain.keys()) > len(tensors.keys() & own.keys())
    expected = plain if as_timm else own
    problem = _difference(tensors, expected)
    if problem:
        hint = _hint(tensors, backbone, num_outputs)
        raise CheckpointError(
            f"{str(content.file)!r} is no {backbone.label} of {num_outputs} classes: {problem}"
            + (f"; {hint}" if hint else "")
        )
    converted = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    return backbone.adopt(converted, num_outputs) if as_timm else converted


def _layouts(backbone: Backbone, num_outputs: int) -> tuple[Weights, Weights]:
    """Names and shapes that a state dict may have: this benchmark's own, and timm's."""
    own = backbone.build(num_outputs, torch.Generator(), fresh=True).state_dict()
    return own, backbone.timm_state(num_outputs)


def _difference(found: Weights, expected: Weights) -> str:
    """What keeps tensors from being those that are expected, or nothing."""
    shared = [name for name in expected if name in found]
    shapes = [
        f"{name} is {tuple(found[name].shape)} where {tuple(expected[name].shape)} is expected"
        for name in shared
        if found[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} holds {_kind(found[name])} where {_kind(expected[name])} is expected"
        for name in shared
        if found[name].is_floating_point() != expected[name].is_floating_point()
    ]
    parts = (
        (f"names of {len(expected)} missing", [name for name in expected if name not in found]),
        ("unexpected", sorted(name for name in found if name not in expected)),
        ("of another shape", shapes),
        ("of another kind", kinds),
    )
    return "; ".join(f"{len(some)} {words} ({_few(some)})" for words, some in parts if some)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _few(words: Sequence[str]) -> str:
    return ", ".join([*words[:NAMED], *(["…"] if len(words) > NAMED else [])])


def _hint(found: Weights, backbone: Backbone, num_outputs: int) -> str:
    """What the file probably is, if that can be told."""
    layouts = _layouts(backbone, num_outputs)
    known = {name for layout in layouts for name in layout}
    for prefix in dict.fromkeys(f"{name.split('.')[0]}." for name in found):
        if len(known & {name.removeprefix(prefix) for name in found}) > len(known & found.keys()):
            count = sum(name.startswith(prefix) for name in found)
            return f"{count} of its names begin with {prefix!r}: save it without that"
    shapes = {name.removeprefix("body."): tensor.shape for name, tensor in found.items()}
    likely = resembling(shapes, backbone.name)
    if backbone.name.split(".")[0] not in likely:
        if likely:
            return f"it looks like --backbone {' or '.join(likely)}"
        return "timm's names and this benchmark's own (body.…, head.…) are understood"
    wider = _layouts(backbone, num_outputs + 1)
    widths = {
        len(found[name])
        for layout, other in zip(layouts, wider, strict=True)
        for name in layout.keys() & found.keys()
        if layout[name].shape != other[name].shape and found[name].ndim
    }
    if widths == {num_outputs}:
        return ""
    counts = " or ".join(map(str, sorted(widths)))
    head = f"its head is for {counts} classes" if widths else "it has no head"
    return f"{head}: what is audited is the model with its head for the original domain"


def inspect(content: Content, setting: Setting, device: torch.device) -> list[str]:
    """Check the file against a setting, before any work; what an auditor has to know of it.

    Raises:
        CheckpointError: As `fitted`.
    """
    original, backbone = setting.data.original, setting.backbone
    assert isinstance(backbone, Backbone)
    classes = original.task.num_outputs
    weights = fitted(content, backbone, classes)
    told = []
    broken = _nonfinite(weights)
    if broken:
        count = sum(broken.values())
        told.append(
            f"{count} of its values are not finite (in {_few(list(broken))}): where that ends a "
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
