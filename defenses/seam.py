"""Couple the domains' gradients: fine-tuning to the restricted one then undoes the original one.

Reference: Wang et al., Self-destructive language models (SEAM), ICLR 2026, arXiv 2505.12186.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sophon_bench.api import defenses

from ._outer import Outer, Scene, Weight


@defenses.register("seam")
@dataclass(frozen=True, kw_only=True)
class Seam(Outer):
    """Minimise ``CE_orig + coupling cos(g_restr, g_orig) - ascent log(CE_restr + 1)``.

    g are the gradients of the two losses by the body's weights: where they point apart, a
    fine-tuner who follows one climbs the other. Different from the original: the cosine is
    differentiated exactly, there by finite differences; one ascent of the loss behind a head that
    follows the body stands for an ascent at every layer.

    Args:
        coupling: Weight of the cosine.
        ascent: Weight of the ascent.
    """

    coupling: Weight = 1.0
    ascent: Weight = 0.3

    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-4, 3e-4, 1e-3), "coupling": (0.3, 1.0, 3.0, 10.0), "ascent": (0.0, 0.3, 1.0),
    }  # fmt: skip

    def objective(self, scene: Scene) -> Tensor:
        original, restricted = scene.original(), scene.restricted()
        one, other = (
            torch.autograd.grad(s.loss, scene.body, create_graph=True, materialize_grads=True)
            for s in (restricted, original)
        )
        ascended = torch.log(restricted.loss + 1)
        return original.loss + self.coupling * cosine(one, other) - self.ascent * ascended


def cosine(one: Iterable[Tensor], other: Iterable[Tensor]) -> Tensor:
    """Of two lists of tensors, each as one long vector."""
    first, second = (torch.cat([t.flatten() for t in tensors]) for tensors in (one, other))
    return torch.nn.functional.cosine_similarity(first, second, dim=0)
