"""timm -> `Model`: any classifier of timm as a body with a detachable head.

The classifier is taken out of timm's module and stands beside what is left, so that
``forward(x) == head(features(x))`` and "body or head" is a matter of ``.parameters()``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from sophon_bench.models import small_maps
from sophon_bench.models.architecture import BackboneError, DetachedModel, Precision
from sophon_bench.seeding import seeded_from


class TimmModel(DetachedModel):
    """A timm classifier, which is taken apart; the head works on features ``(B, D)``."""

    def __init__(self, body: nn.Module, num_outputs: int, *, precision: Precision = "fp32") -> None:
        # feature_info names timm's stages; a container that holds one, or the head, is no block
        stages = [info["module"] for info in getattr(body, "feature_info", [])]
        paths = {id(module): name for name, module in body.named_modules()}
        stages += [paths[id(classifier)] for classifier in classifiers(body)]
        small_maps.speed_up(body)
        super().__init__(body, _detach_head(body), num_outputs, precision)
        self._inner = tuple(stages)

    def forward(self, inputs: Tensor) -> Tensor:
        with self._autocast(inputs):
            return self._cast(self.head(self.features(inputs)))

    def features(self, inputs: Tensor) -> Tensor:
        with self._autocast(inputs):
            features: Tensor = self.body(inputs)
            passed: Tensor = self.passed(features.flatten(1))
            return self._cast(passed)

    def fresh_head(self, num_outputs: int, rng: torch.Generator) -> None:
        """Replace the head by the one that timm gives a new task, drawn from ``rng``.

        The draw is made on the CPU, so that every device gets the same head.
        """
        if num_outputs < 1:
            raise BackboneError(f"a head needs at least 1 output, got {num_outputs}")
        tensors = [*self.body.parameters(), *self.body.buffers()]
        skeleton: Any = copy.deepcopy(self.body, {id(t): _on_cpu(t) for t in tensors})
        with seeded_from(rng):
            skeleton.reset_classifier(num_outputs)
        like = next(self.body.parameters())
        self._set_head(_detach_head(skeleton).to(like.device, like.dtype).train(), num_outputs)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """The body's stages in forward order as ``(path in the model, module)``.

        The order is timm's of registration, which is not the order of running where an
        architecture alternates between lists (CoaT, EfficientViM, Twins). Parameters that belong to
        no stage (class token, position embedding) are in no block.
        """
        return list(_stages(self.body, "", self._inner))


class _Slot(nn.Module):
    """Stands for one of several heads whose outputs timm averages; the average is all features.

    It pads ``(B, D_i)`` to ``(B, D)``, its own place among the features of all heads.
    """

    def __init__(self, index: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.padding = (sum(widths[:index]), sum(widths[index + 1 :]))
        self.heads = len(widths)

    def forward(self, features: Tensor) -> Tensor:
        return functional.pad(features, self.padding) * self.heads


class _AveragedHeads(nn.Module):
    """The heads of a distilled model: the mean of what each makes of its own features."""

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.widths = list(widths)

    def forward(self, features: Tensor) -> Tensor:
        parts = torch.split(features, self.widths, dim=1)
        outputs = [head(part) for head, part in zip(self.heads, parts, strict=True)]
        return torch.stack(outputs).mean(dim=0)


def classifiers(body: Any) -> list[nn.Module]:
    """The classifiers of timm; several where their outputs are averaged."""
    found = body.get_classifier() if hasattr(body, "get_classifier") else None
    parts = found if isinstance(found, tuple | nn.ModuleList) else (found,)
    return [p for p in parts if p is not None and any(True for _ in p.parameters())]


def _detach_head(body: nn.Module) -> nn.Module:
    """Take the classifier out of ``body`` and let the features through in its place."""
    heads = classifiers(body)
    paths = {id(module): name for name, module in body.named_modules()}
    if len(heads) == 1:
        body.set_submodule(paths[id(heads[0])], nn.Identity())
        return _linear(heads[0])
    widths = [
        next(m.in_features for m in head.modules() if isinstance(m, nn.Linear)) for head in heads
    ]
    for index, head in enumerate(heads):
        body.set_submodule(paths[id(head)], _Slot(index, widths))
    return _AveragedHeads(heads, widths)


def _linear(head: nn.Module) -> nn.Module:
    """A 1x1 convolution on pooled features as the linear layer that it is; others unchanged."""
    if not isinstance(head, nn.Conv2d):
        return head
    linear: nn.Linear = skip_init(  # draws nothing
        nn.Linear, head.in_channels, head.out_channels, bias=head.bias is not None
    )
    linear.weight = nn.Parameter(head.weight.detach().flatten(1))
    if head.bias is not None:
        linear.bias = nn.Parameter(head.bias.detach())
    return linear


def _stages(
    module: nn.Module, prefix: str, inner: Sequence[str]
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        holds = isinstance(child, nn.Sequential) and any(i.startswith(f"{path}.") for i in inner)
        if holds or isinstance(child, nn.ModuleList):
            yield from _stages(child, f"{path}.", inner)
        elif any(True for _ in child.parameters()):
            yield f"body.{path}", child


def _on_cpu(tensor: Tensor) -> Tensor:
    """A stand-in of the same type, shape and dtype; its values are never read."""
    empty = torch.empty_like(tensor, device="cpu", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
