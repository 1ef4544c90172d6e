"""Non-transferable learning: push the two domains' features apart and the restricted loss up.

Reference: Wang et al., Non-transferable learning, ICLR 2022, arXiv 2106.06916.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sophon_bench.api import defenses

from ._kernels import mmd
from ._outer import Outer, Positive, Scene


@defenses.register("ntl")
@dataclass(frozen=True, kw_only=True)
class NTL(Outer):
    """Minimise ``L_S - min(1, alpha L_T min(1, beta MMD(h_S, h_T)))``, h the features.

    Different from the original: there both domains share classes and head, here the restricted
    loss L_T uses an auxiliary head trained alongside; cross-entropy replaces the KL divergence
    from one-hot labels, which is the same number.

    Args:
        alpha: Factor on the restricted loss; the original has 0.1.
        beta: Factor on the distance of the domains; the original has 0.1.
    """

    alpha: Positive = 1.0
    beta: Positive = 0.1

    claim: ClassVar[str] = (
        "In SOPHON's paper, by third-party notes on it, CAFormer → CIFAR-10, 20 epochs: NTL 84.4 % "
        "at 90.2 % original accuracy, undefended 84.8 % at 99.6 %, scratch 62.7 %."
    )
    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-4, 3e-4, 1e-3), "alpha": (0.1, 0.3, 1.0), "beta": (0.1, 0.3, 1.0),
    }  # fmt: skip

    def objective(self, scene: Scene) -> Tensor:
        source, target = scene.original(), scene.restricted()
        size = min(len(source.features), len(target.features))
        distance = mmd(source.features[:size], target.features[:size])
        return ntl(source.loss, target.loss, distance, alpha=self.alpha, beta=self.beta)


def ntl(source: Tensor, target: Tensor, distance: Tensor, *, alpha: float, beta: float) -> Tensor:
    """``source - min(1, alpha target min(1, beta distance))`` of two losses and a distance."""
    return source - (alpha * target * (beta * distance).clamp_max(1)).clamp_max(1)
