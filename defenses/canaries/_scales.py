"""Where a network's weights can be scaled without changing what it computes."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench.api import Incompatible, Model

HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.MaxPool2d)
"""Modules that a positive factor passes through."""


class Link(NamedTuple):
    """A BatchNorm between two convolutions, with no other reader or writer in between."""

    before: nn.Conv2d
    norm: _BatchNorm
    after: nn.Conv2d


def normalised(model: Model) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """Convolutions and the BatchNorm that follows each, which cancels the convolution's scale.

    Raises:
        Incompatible: If there is none.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | _BatchNorm)]
    pairs = [
        (one, other)
        for one, other in itertools.pairwise(layers)
        if isinstance(one, nn.Conv2d)
        and isinstance(other, _BatchNorm)
        and _usable(other)
        and other.num_features == one.out_channels
    ]
    if not pairs:
        raise Incompatible("the model has no convolution with a BatchNorm after it")
    return pairs


def links(model: Model) -> list[Link]:
    """BatchNorms whose output only the next convolution reads.

    All three layers are children of one module: across modules, a shortcut may read the BatchNorm
    as well.

    Raises:
        Incompatible: If there is none.
    """
    found = []
    for parent in model.modules():
        layers = [m for m in parent.children() if not isinstance(m, HOMOGENEOUS)]
        for one, norm, other in zip(layers, layers[1:], layers[2:], strict=False):
            match one, norm, other:
                case nn.Conv2d(), _BatchNorm(), nn.Conv2d() if _usable(norm):
                    found.append(Link(one, norm, other))
    if not found:
        raise Incompatible("the model has no BatchNorm between two convolutions of one block")
    return found


def _usable(norm: _BatchNorm) -> bool:
    inner = all(isinstance(child, HOMOGENEOUS) for child in norm.children())
    return inner and norm.affine and norm.track_running_stats


@torch.no_grad()
def scale_convolution(conv: nn.Conv2d, norm: _BatchNorm, factor: Tensor) -> None:
    """Scale a convolution, or its channels, and compensate in the BatchNorm that follows."""
    conv.weight.mul_(factor.view(-1, 1, 1, 1))
    if conv.bias is not None:
        conv.bias.mul_(factor)
    absorb(norm, factor)


@torch.no_grad()
def absorb(norm: _BatchNorm, factor: Tensor) -> None:
    """Keep what a BatchNorm computes when its inputs are multiplied by ``factor``.

    The gain compensates for eps, which is added to the variance; this is exact in eval mode.
    """
    mean, variance = statistics(norm)
    before = (variance + norm.eps).sqrt()
    mean.mul_(factor)
    variance.mul_(factor**2)
    norm.weight.mul_((variance + norm.eps).sqrt() / (factor * before))


def statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


@torch.no_grad()
def scale_features(model: Model, factor: float, inputs: Tensor) -> None:
    """Scale the features by the gains at the end of the last block, and compensate in the head.

    Args:
        inputs: Images on which the scaling is verified.

    Raises:
        Incompatible: If the features do not scale, for instance if a shortcut bypasses the gains.
    """
    if not isinstance(model.head, nn.Linear):
        raise Incompatible("the model's head is not one linear layer")
    inner = {id(link.norm) for link in links(model)}
    last = model.blocks()[-1][1]
    ends = [m for m in last.modules() if isinstance(m, _BatchNorm) and id(m) not in inner]
    model.eval()
    before = model.features(inputs)
    for norm in ends:
        norm.weight.mul_(factor)
        norm.bias.mul_(factor)
    scaled = torch.allclose(model.features(inputs) / factor, before, rtol=1e-2, atol=1e-3)
    model.train()
    if not scaled:
        raise Incompatible("the features do not scale with the gains of the last block")
    model.head.weight.mul_(1 / factor)
