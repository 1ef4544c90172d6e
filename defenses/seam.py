"""Couple the domains' gradients, so that restricted fine-tuning degrades the original task.

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

    g are the gradients of the two losses by the body's weights: if their cosine is negative, a
    fine-tuner that descends one loss ascends the other. Different from the original: the cosine is
    differentiated exactly, there by finite differences; the loss is ascended once, with an
    auxiliary head trained alongside, instead of at every layer.

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
    """The cosine similarity of two lists of tensors, each taken as one long vector."""
    first, second = (torch.cat([t.flatten() for t in tensors]) for tensors in (one, other))
    return torch.nn.functional.cosine_similarity(first, second, dim=0)
