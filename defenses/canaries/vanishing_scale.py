"""Vanishing gains of normalisation, for which the next layer's weights compensate.

A rescaling that keeps the function and spoils its gradients (Dinh et al., ICML 2017,
arXiv 1703.04933).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval

from sophon_bench.api import DefenseView, Model, defenses

from ._scales import links, scale_features


@defenses.register("canary-vanishing-scale", hidden=True)
@dataclass(frozen=True, kw_only=True)
class VanishingScale:
    """Scale gains down, and up the layers that read them; the last of these is the head.

    Args:
        factor: Scale of the gains.
    """

    factor: Annotated[float, Interval(gt=0, lt=1)] = 1e-6
    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        scale_features(model, self.factor, view.original.validation.inputs)
        with torch.no_grad():
            for _, norm, after in links(model):
                norm.weight.mul_(self.factor)
                norm.bias.mul_(self.factor)
                after.weight.mul_(1 / self.factor)
        yield model
