"""Consecutive layers, or their channels, at scales far apart, so that no one step size suits them.

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
    """Scale convolutions before a BatchNorm up and down in turn; the function stays.

    Args:
        factor: Of every other layer, and what the rest is divided by.
        channels: Whether to scale the channels of every layer instead, at random within these.
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
