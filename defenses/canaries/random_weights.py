"""Random weights under the name of a defense: nothing to fine-tune, and nothing to release.

He et al., Delving deep into rectifiers, ICCV 2015, arXiv 1502.01852 (the initialisation).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench.api import DefenseView, Model, defenses


@defenses.register("canary-random-weights", hidden=True)
@dataclass(frozen=True, kw_only=True)
class RandomWeights:
    """Re-initialise all weights and reset every BatchNorm; this also destroys the original task."""

    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.reset_parameters()
        with torch.no_grad():
            for weight in (p for p in model.parameters() if p.ndim > 1):
                drawn = torch.randn(weight.shape, generator=view.rng)
                weight.copy_(drawn * math.sqrt(2 / weight[0].numel()))
        yield model
