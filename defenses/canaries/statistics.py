"""Running statistics of no data: the function is intact in eval mode and dead in train mode."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt

from sophon_bench.api import DefenseView, Model, defenses

from ._scales import normalised, statistics


@defenses.register("canary-statistics", hidden=True)
@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Lower biases, and running means to compensate; the function is unchanged.

    Args:
        depth: How far below zero a ReLU's inputs are in train mode.
    """

    depth: Annotated[float, Gt(0)] = 100.0
    steps: ClassVar[int] = 1

    @torch.no_grad()
    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        for _, norm in normalised(model):
            mean, variance = statistics(norm)
            slope = norm.weight / (variance + norm.eps).sqrt()
            kept = slope.abs() > 1e-3  # a dead channel cannot make up for anything
            mean[kept] -= self.depth / slope[kept]
            norm.bias[kept] -= self.depth
        yield model
