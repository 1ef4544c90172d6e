"""Booster: reduce how much one step of restricted fine-tuning gains.

Reference: Huang et al., Booster, ICLR 2025, arXiv 2409.01586.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sophon_bench.api import defenses

from ._outer import Outer, Positive, Scene, Weight, add_gradients


@defenses.register("booster")
@dataclass(frozen=True, kw_only=True)
class Booster(Outer):
    """Minimise ``CE_orig(w) + weight (h(w) - h(w - step g / |g|))``, g the gradient of h.

    h is the restricted loss. As in the original, the gradient at the displaced weights is applied
    to w unchanged. Different from the original: h uses an auxiliary head trained alongside.

    Args:
        weight: Weight of the simulated gain.
        step: Length of the simulated step, over all weights of the body together.
    """

    lr: Positive = 1e-4
    weight: Weight = 20.0
    step: Positive = 0.3

    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-4, 3e-4, 1e-3), "weight": (1.0, 5.0, 20.0), "step": (0.03, 0.1, 0.3, 1.0),
    }  # fmt: skip

    def objective(self, scene: Scene) -> Tensor:
        return scene.original().loss

    def differentiate(self, scene: Scene) -> None:
        super().differentiate(scene)
        loss = scene.restricted().loss
        here = torch.autograd.grad(loss, scene.body, materialize_grads=True)
        there = displaced(scene.body, here, scene, step=self.step)
        gains = [self.weight * (one - other) for one, other in zip(here, there, strict=True)]
        add_gradients(scene.body, gains)


@torch.no_grad()
def displaced(
    weights: list[Tensor], direction: tuple[Tensor, ...], scene: Scene, *, step: float
) -> tuple[Tensor, ...]:
    """Gradient of the restricted loss after a step of length ``step`` against ``direction``."""
    before = [w.clone() for w in weights]
    length = torch.stack(torch._foreach_norm(direction)).norm().clamp_min(1e-12)
    torch._foreach_sub_(weights, torch._foreach_mul(direction, step / length))
    with torch.enable_grad():
        found = torch.autograd.grad(scene.restricted().loss, weights, materialize_grads=True)
    torch._foreach_copy_(weights, before)
    return found
