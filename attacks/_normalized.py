"""Optimizers whose updates do not depend on the size of the gradient."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

RuleName = Literal["lars", "sign", "muon"]

LR: dict[RuleName, float] = {"lars": 1e-3, "sign": 3e-4, "muon": 3e-3}
"""Step sizes that suit undefended models; each rule has a unit of its own."""

MIN_RMS = 1e-2
"""LARS moves a tensor as if its entries were at least this large, so that zeros can leave zero."""

ADAM_RMS = 0.2
"""Root mean square of an update of Adam in practice (Liu et al., arXiv 2502.16982), for Muon."""


def unit(gradient: Tensor) -> Tensor:
    """``gradient`` divided by its norm, without underflow; a zero gradient stays zero."""
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / gradient.abs().amax().clamp_min(tiny)
    unit_length: Tensor = scaled / scaled.norm().clamp_min(tiny)
    return unit_length


def orthogonal(matrix: Tensor) -> Tensor:
    """About ``U V^T`` of a matrix ``U S V^T``, by five Newton-Schulz steps of Jordan's quintic.

    The singular values end within (0.7, 1.2), not at 1: that works as well and converges faster.
    """
    x: Tensor = unit(matrix if len(matrix) <= matrix.shape[1] else matrix.T)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if len(matrix) <= matrix.shape[1] else x.T


def lars(weight: Tensor, gradient: Tensor) -> Tensor:
    """The unit gradient, scaled to the norm of the weight tensor."""
    length = weight.norm().clamp_min(MIN_RMS * weight.numel() ** 0.5)
    update: Tensor = unit(gradient) * length
    return update


def muon(gradient: Tensor) -> Tensor:
    """The orthogonalised gradient of a matrix or a flattened convolution; the sign for a vector."""
    if gradient.ndim < 2:
        return ADAM_RMS * gradient.sign()
    matrix = gradient.flatten(1)
    scale: float = ADAM_RMS * max(matrix.shape) ** 0.5
    return (orthogonal(matrix) * scale).view_as(gradient)


class Normalized(torch.optim.Optimizer):
    """Momentum 0.9 with normalised updates.

    LARS normalises each gradient before adding it to the momentum; ``sign`` and Muon normalise the
    momentum.

    Args:
        parameters: The parameters to train.
        rule: How updates are normalised.
        lr: Step size: relative to the weights for LARS, per entry for ``sign``, on Adam's scale for
            Muon.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rule: RuleName, *, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.rule = rule

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.sub_(self._update(weight), alpha=group["lr"])
        return None

    def _update(self, weight: nn.Parameter) -> Tensor:
        assert weight.grad is not None
        momentum: Tensor = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        if self.rule == "lars":
            return momentum.mul_(0.9).add_(lars(weight, weight.grad))
        momentum.mul_(0.9).add_(weight.grad)
        return momentum.sign() if self.rule == "sign" else muon(momentum)
