"""SGD by torch's fused kernel alone: the one place that goes around torch's public API.

`torch.optim.SGD` calls the same kernel, and on a small model spends as long again around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class FusedSGD(torch.optim.SGD):
    """`torch.optim.SGD` with ``fused=True``, bit for bit; all weights are of one device and type.

    Args:
        groups: Parameter groups, each with its ``lr`` and ``weight_decay``.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, momentum: float, nesterov: bool):
        super().__init__(groups, momentum=momentum, nesterov=nesterov)
        self._velocities: list[list[Tensor | None]] = [
            [torch.zeros_like(p) if momentum else None for p in group["params"]]
            for group in self.param_groups
        ]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # noqa: ARG002
        for group, velocities in zip(self.param_groups, self._velocities, strict=True):
            moving = [
                (parameter, aligned(parameter.grad, parameter), velocity)
                for parameter, velocity in zip(group["params"], velocities, strict=True)
                if parameter.grad is not None
            ]
            if not moving:
                continue
            parameters, gradients, heavy = zip(*moving, strict=True)
            torch._fused_sgd_(
                parameters,
                gradients,
                heavy if group["momentum"] else [],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
                is_first_step=False,
            )

    step.hooked = True  # type: ignore[attr-defined] # torch wraps a step that is not


def aligned(gradient: Tensor, parameter: Tensor) -> Tensor:
    """``gradient``, laid out as ``parameter`` is.

    torch's fused kernels walk through both in the order of memory, whatever their strides: of a
    transposed gradient they would silently take the wrong elements.
    """
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
