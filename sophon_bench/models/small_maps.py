"""Depthwise convolutions of maps smaller than their kernel, whose gradient is slow on a CPU."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional


def speed_up(body: nn.Module) -> None:
    """Let depthwise convolutions of ``body`` pad small maps beforehand.

    oneDNN has no fast gradient of the weights for a map that is smaller than the kernel, as the
    last blocks of an EfficientNet have for small images (ONEDNN_VERBOSE=1 shows ``gemm:jit``).
    Over a map that was padded with the same zeros it has one. Outputs and gradients are the
    same up to rounding. A module keeps its type, for those who go by that.
    """
    for module in body.modules():
        if (
            type(module) is nn.Conv2d
            and 1 < module.groups == module.in_channels
            and module.padding_mode == "zeros"
        ):
            module._conv_forward = partial(_padding_small_maps, module)  # type: ignore[method-assign]


def _padding_small_maps(
    module: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    height, width = module.kernel_size
    fits = inputs.shape[-2] >= height and inputs.shape[-1] >= width
    if fits or not inputs.is_cpu or isinstance(module.padding, str):
        outputs: Tensor = nn.Conv2d._conv_forward(module, inputs, weight, bias)
        return outputs
    above, beside = module.padding
    padded = functional.pad(inputs, (beside, beside, above, above))
    return functional.conv2d(padded, weight, bias, module.stride, 0, module.dilation, module.groups)
