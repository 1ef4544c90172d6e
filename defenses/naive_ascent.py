"""Raise the restricted loss directly, without simulating a fine-tuner.

Reference: the baseline "naive" of Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sophon_bench.api import defenses

from ._outer import Outer, Positive, Scene, Weight


@defenses.register("naive-ascent")
@dataclass(frozen=True, kw_only=True)
class NaiveAscent(Outer):
    """Minimise ``CE(original) - weight min(CE(restricted), cap)``.

    As in the paper's naive baseline, there is one combined loss and no simulated fine-tuning.
    Different from the original: the restricted loss uses an auxiliary head trained alongside (no
    head of the released model fits the restricted classes), and it is capped: without a cap, its
    gradient would dominate.

    Args:
        weight: Weight of the restricted loss.
        cap: Largest restricted loss that counts; at chance, the loss is the log of the
            number of classes.
    """

    weight: Weight = 0.3
    cap: Positive = 8.0

    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-4, 3e-4, 1e-3), "weight": (0.03, 0.1, 0.3, 1.0), "cap": (3.0, 4.0, 8.0),
    }  # fmt: skip

    def objective(self, scene: Scene) -> Tensor:
        restricted = scene.restricted()
        return naive(scene.original().loss, restricted.loss, weight=self.weight, cap=self.cap)


def naive(original: Tensor, restricted: Tensor, *, weight: float, cap: float) -> Tensor:
    """``original - weight min(restricted, cap)`` of two losses."""
    return original - weight * restricted.clamp_max(cap)
