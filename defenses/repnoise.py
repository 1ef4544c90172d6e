"""Representation noising: make the representations of restricted inputs look like noise.

Reference: Rosati et al., Representation noising, NeurIPS 2024, arXiv 2405.14577.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sophon_bench.api import defenses

from ._kernels import mmd
from ._outer import Outer, Positive, Scene, Weight


@defenses.register("repnoise")
@dataclass(frozen=True, kw_only=True)
class RepNoise(Outer):
    """Minimise ``CE_orig + beta mean_l MMD(h_l(restricted), N(0, I)) - alpha log(CE_restr + 1)``.

    h_l are the outputs of the body's blocks, flattened. Different from the original: it ascends the
    loss of every layer, read out by the language model's own head; here only the last layer is read
    out, by an auxiliary head trained alongside.

    Args:
        alpha: Weight of the ascent; the original has 1.
        beta: Weight of the noise; the original has 0.001, for sums over thousands of units.
    """

    lr: Positive = 1e-3
    alpha: Weight = 3.0
    beta: Weight = 0.1

    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-4, 3e-4, 1e-3), "alpha": (0.3, 1.0, 3.0), "beta": (0.1, 1.0, 4.0),
    }  # fmt: skip

    def objective(self, scene: Scene) -> Tensor:
        layers: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _module, _inputs, output: layers.append(output))
            for _, block in scene.model.blocks()
        ]
        restricted = scene.restricted()
        for hook in hooks:
            hook.remove()
        noise = [torch.randn(h.shape, generator=scene.view.rng).to(h.device) for h in layers]
        distance = torch.stack([mmd(*pair) for pair in zip(layers, noise, strict=True)]).mean()
        original = scene.original().loss
        return repnoise(original, restricted.loss, distance, alpha=self.alpha, beta=self.beta)


def repnoise(
    original: Tensor, restricted: Tensor, distance: Tensor, *, alpha: float, beta: float
) -> Tensor:
    """``original + beta distance - alpha log(restricted + 1)``."""
    return original + beta * distance - alpha * torch.log(restricted + 1)
