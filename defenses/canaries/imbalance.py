"""Consecutive layers at scales far apart, so that no one step size suits them.

A rescaling that keeps the function and spoils its gradients (Dinh et al., ICML 2017,
arXiv 1703.04933).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

from sophon_bench.api import DefenseView, Model
from sophon_bench.registry import defenses

from ._scales import normalised, scale_convolution


@defenses.register("canary-imbalance", hidden=True)
@dataclass(frozen=True, kw_only=True)
class Imbalance:
    """Scale convolutions before a BatchNorm up and down in turn; the function stays.

    Args:
        factor: Of every other layer, and what the rest is divided by.
    """

    factor: Annotated[float, Gt(1)] = 1e3
    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        for index, (conv, norm) in enumerate(normalised(model)):
            scale_convolution(conv, norm, self.factor if index % 2 == 0 else 1 / self.factor)
        yield model
