"""A model that cannot be fine-tuned to any task, benign ones included: dead, not protected.

Dying ReLUs: Lu et al., 2019, arXiv 1903.06733.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench.api import DefenseView, Incompatible, Model, defenses


@defenses.register("canary-untrainable", hidden=True)
@dataclass(frozen=True, kw_only=True)
class Untrainable:
    """Set gains to zero and biases below it: each ReLU after a BatchNorm is dead, on any input."""

    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]
        if not norms:
            raise Incompatible("the model has no BatchNorm with a bias")
        with torch.no_grad():
            for norm in norms:
                norm.weight.zero_()
                norm.bias.fill_(-1.0)
        yield model
