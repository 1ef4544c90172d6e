"""A plateau: weights so large under normalisation that no usual step changes the function.

Under BatchNorm, the effective step size falls with the square of the weights' norm (van Laarhoven,
2017, arXiv 1706.05350), so progress takes many or large steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt

from sophon_bench.api import DefenseView, Model, defenses

from ._scales import absorb, links, normalised, scale_convolution


@defenses.register("canary-plateau", hidden=True)
@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Scale up each convolution before a BatchNorm, and each inner gain; the function is unchanged.

    Args:
        factor: Scale factor; gradients shrink by it, and relative steps by its square.
    """

    factor: Annotated[float, Gt(1)] = 100.0
    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        pairs, factor = normalised(model), torch.tensor(self.factor, device=view.device)
        following = {id(conv): norm for conv, norm in pairs}
        for conv, norm in pairs:
            scale_convolution(conv, norm, factor)
        for _, norm, after in links(model):
            if id(after) in following:
                with torch.no_grad():
                    norm.weight.mul_(self.factor)
                    norm.bias.mul_(self.factor)
                absorb(following[id(after)], factor)
        yield model
