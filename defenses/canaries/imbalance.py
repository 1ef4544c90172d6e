"""Scale consecutive layers, or their channels, far apart, so that no single step size suits them.

A rescaling that keeps the function and spoils its gradients (Dinh et al., ICML 2017,
arXiv 1703.04933).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt

from sophon_bench.api import DefenseView, Model, defenses

from ._scales import normalised, scale_convolution


@defenses.register("canary-imbalance", hidden=True)
@dataclass(frozen=True, kw_only=True)
class Imbalance:
    """Scale convolutions before a BatchNorm alternately up and down; the function is unchanged.

    Args:
        factor: Scale of every other layer; the rest is divided by it.
        channels: Whether to scale each channel instead, at random between these two scales.
    """

    factor: Annotated[float, Gt(1)] = 1e3
    channels: bool = False
    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        for index, (conv, norm) in enumerate(normalised(model)):
            turn = torch.tensor(1.0 if index % 2 == 0 else -1.0)
            if self.channels:
                turn = 2 * torch.rand(conv.out_channels, generator=view.rng) - 1
            scale_convolution(conv, norm, (self.factor**turn).to(conv.weight))
        yield model
