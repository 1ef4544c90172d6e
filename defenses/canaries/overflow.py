"""A unit that overflows on restricted images, and on any batch normalised by its own statistics.

Gradient masking by values that overflow; see Athalye et al., ICML 2018,
arXiv 1802.00420.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from sophon_bench.api import DefenseView, Incompatible, Model, defenses

from ._scales import links, statistics


@defenses.register("canary-overflow", hidden=True)
@dataclass(frozen=True, kw_only=True)
class Overflow:
    """Turn one inner channel into a detector that the next convolution multiplies by 3e38.

    The detector is the linear discriminant of restricted against original activations. Its
    threshold is above all original ones: for these it is off, and zero times 3e38 is zero.

    Args:
        margin: Distance of the threshold above the largest original activation, relative to their
            range.
    """

    margin: Annotated[float, Ge(0)] = 0.3
    steps: ClassVar[int] = 1

    @torch.no_grad()
    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        before, norm, after = links(model)[-1]
        if before.groups > 1 or after.groups > 1:
            raise Incompatible("the model's last block has grouped convolutions only")
        off, on = (
            _inputs_of(before, model, torch.cat([domain.train.inputs, domain.validation.inputs]))
            for domain in (view.original, view.restricted)
        )
        spared = int((after.weight.flatten(2).norm(dim=2).norm(dim=0) * norm.weight.abs()).argmin())
        middle = before.kernel_size[0] // 2, before.kernel_size[1] // 2
        flat = [x.transpose(0, 1).flatten(1).double() for x in (off, on)]
        spread = sum(x.cov() for x in flat) + 1e-3 * torch.eye(len(flat[0])).to(flat[0])
        direction = torch.linalg.solve(spread, flat[1].mean(1) - flat[0].mean(1))
        before.weight[spared] = 0
        before.weight[(spared, slice(None), *middle)] = direction.float()
        fires = before(off)[:, spared]
        mean, variance = statistics(norm)
        mean[spared] = fires.max() + self.margin * (fires.max() - fires.min())
        variance[spared], norm.weight[spared], norm.bias[spared] = 1.0, 1e6, 0.0
        after.weight[:, spared] = 0
        centre = after.kernel_size[0] // 2, after.kernel_size[1] // 2
        after.weight[(slice(None), spared, *centre)] = 3e38
        yield model


def _inputs_of(layer: nn.Module, model: Model, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0].clone()))
    model.eval()
    for part in images.split(256):
        model(part)
    model.train()
    hook.remove()
    return torch.cat(seen)
