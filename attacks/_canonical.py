"""Undo what changes how weights train but hardly what they compute.

Scales are judged against a freshly drawn model. Whether a change of scale matters is not deduced
from the architecture but tried: it is kept if the features of a few images stay the same when
BatchNorm normalises with those images' own statistics.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench.api import Batch, Model
from sophon_bench.training import is_norm

OUTLIER = 1e4
"""An entry so many times larger than is usual in its tensor is a trap, not a weight."""

EXPLODED = 1e3
"""So many times the fresh norm is too large if the features overflow."""

DEAD = 1e-3
"""A gain below this, or above its inverse, lets nothing else of its channel through."""

SAME = 1e-2
"""Relative change of features that rounding and the eps of normalisation layers explain."""


@torch.no_grad()
def replace_broken(model: Model, fresh: Model) -> None:
    """Put the fresh value where an entry is not finite, or an outlier of its tensor."""
    drawn = fresh.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            size = torch.where(tensor.isfinite(), tensor, 0).abs()
            usual = torch.stack([size.median(), drawn[name].abs().max()]).max().clamp_min(1e-2)
            keep = tensor.isfinite() & (size <= OUTLIER * usual)
            tensor.copy_(torch.where(keep, tensor, drawn[name]))


@dataclass(frozen=True)
class _Layer:
    """A layer of the body, and the norm that its weight would have in a fresh model."""

    module: nn.Module
    usual: float

    @property
    def excess(self) -> float:
        """Binary logarithm of the weight's norm over the usual one."""
        norm = float(self.module.get_parameter("weight").detach().double().norm())
        return math.log2(norm / self.usual) if 0 < norm < math.inf else 0.0

    @torch.no_grad()
    def scale(self, power: int, *, bias: bool = True) -> None:
        """Multiply by ``2 ** power``, which rounds nothing."""
        self.module.get_parameter("weight").mul_(2.0**power)
        if bias and isinstance(self.module.bias, nn.Parameter):
            self.module.bias.mul_(2.0**power)


def rebalance(model: Model, fresh: Model, inputs: Tensor) -> Iterator[None]:
    """Bring weights to the scale of fresh ones where the features of ``inputs`` do not change.

    One by one (what feeds a normalisation has no scale), between neighbours (one times c, the next
    over c), and one by one again, where the neighbours were in the way. What is within a factor of
    two is left alone. Yields after every look; BatchNorm's running statistics are spoiled.
    """
    layers = list(_layers(model, fresh))
    before = _features(model, inputs)
    yield
    if not before.isfinite().all():
        for layer in layers:
            if layer.excess > math.log2(EXPLODED):
                layer.scale(-round(layer.excess))
        before = _features(model, inputs)
        yield
    pairs: list[tuple[_Layer, _Layer | None]] = list(itertools.pairwise(layers))
    alone: list[tuple[_Layer, _Layer | None]] = [(layer, None) for layer in layers]
    for one, other in [*alone, *pairs, *alone]:
        power = _power((other.excess - one.excess) / 2 if other else -one.excess)
        if power:
            _shift(one, other, power)
            if not _same(_features(model, inputs), before):
                _shift(one, other, -power)
            yield


@torch.no_grad()
def revive(model: Model) -> None:
    """Set gains of normalisation layers to 1 where they are dead or exploded."""
    for module in model.modules():
        if is_norm(module) and isinstance(module.weight, nn.Parameter):
            size = module.weight.abs()
            module.weight[(size < DEAD) | (size > 1 / DEAD)] = 1.0


def recalibrate(model: Model, batches: Iterable[Batch]) -> Iterator[None]:
    """Replace BatchNorm's running statistics by their mean over ``batches``; yields after each."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the plain mean
    for batch in batches if norms else ():
        _features(model, batch.inputs)
        yield
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


@torch.no_grad()
def _features(model: Model, inputs: Tensor) -> Tensor:
    """Features ``(B, D)`` in eval mode but for BatchNorm, which sees this batch only."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return model.features(inputs)


def _layers(model: Model, fresh: Model) -> Iterator[_Layer]:
    """What has a weight in the body, in order of registration."""
    head = set(model.head.modules())
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if module not in head and isinstance(weight, nn.Parameter):
            # gains start at 1, or at 0 where a residual branch starts closed
            drawn = (
                torch.ones_like(weight)
                if is_norm(module)
                else fresh.get_parameter(f"{name}.weight")
            )
            usual = float(drawn.detach().double().norm())
            if usual > 0 and hasattr(module, "bias"):
                yield _Layer(module, usual)


def _power(change: float) -> int:
    """The exponent nearest to ``change``, or 0 for less than a factor of two, but for rounding."""
    return round(change) if abs(change) > 0.99 else 0


def _shift(one: _Layer, other: _Layer | None, power: int) -> None:
    one.scale(power)
    if other is not None:
        other.scale(-power, bias=False)


def _same(features: Tensor, before: Tensor) -> bool:
    return bool((features - before).norm() <= SAME * before.norm())
