"""A denoiser with a residual stream so large that no usual step changes what is written to it.

Whatever reads the stream normalises it first, so the function does not depend on its scale, and
effective step sizes fall with the square of the scale (van Laarhoven, 2017, arXiv 1706.05350).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt

from sophon_bench.api import DefenseView, Incompatible, Model, defenses
from sophon_bench.models.unets import UNetModel

WRITERS = ("conv_in", "conv1", "time_emb_proj", "conv2", "to_out.0")
"""Layers whose outputs are added to the stream, or to what a normalisation inside a block reads."""

CARRIERS = ("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
"""Layers that the stream goes through: their biases alone have its scale."""


@defenses.register("canary-residual-scale", hidden=True)
@dataclass(frozen=True, kw_only=True)
class ResidualScale:
    """Scale all that is written to the residual stream of a U-Net; the function is unchanged.

    Args:
        factor: Scale factor; gradients of scaled weights shrink by it, and relative steps by its
            square.
    """

    factor: Annotated[float, Gt(1)] = 100.0
    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        if not isinstance(model, UNetModel):
            raise Incompatible("the model is no denoising U-Net")
        with torch.no_grad():
            for name, parameter in model.body.named_parameters():
                layer, _, kind = name.rpartition(".")
                if layer.endswith(WRITERS) or (layer.endswith(CARRIERS) and kind == "bias"):
                    parameter.mul_(self.factor)
        yield model
