"""Self-destructing models: meta-learned adversarial censoring.

Reference: Henderson et al., Self-destructing models, AIES 2023, arXiv 2211.14946.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sophon_bench.api import defenses

from ._outer import Count, Positive, Weight
from ._simulated import Simulated
from .sophon.strategies import Strategy


@defenses.register("mlac")
@dataclass(frozen=True, kw_only=True)
class MLAC(Simulated):
    """Minimise ``CE_orig - weight mean_k min_a CE(a z(theta_k))`` over K steps of an adversary.

    z are the adversary's logits. The best factor a, of either sign, calibrates them, so that
    deliberate confusion of classes is not rewarded. The adversary (momentum) starts from an
    auxiliary head trained alongside. Different from the original: step sizes are drawn
    log-uniformly, there they are learnt by gradient; and its calibration is for two classes.

    Args:
        lowest: Smallest step size of the adversary.
        highest: Largest step size of the adversary.
    """

    weight: Weight = 2.0
    inner_steps: Count = 32
    lowest: Positive = 1e-3
    highest: Positive = 1e-1

    followed: ClassVar[bool] = True
    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-3, 3e-3, 8e-3), "weight": (0.5, 2.0, 8.0), "inner_steps": (8, 16, 32),
    }  # fmt: skip

    def strategy(self, rng: torch.Generator) -> Strategy:
        adapt, lrs = self.batch_size - self.judge, {"lr": self.lowest, "highest": self.highest}
        return Strategy(optimizer="momentum", batch_size=adapt, head="fresh", **lrs).drawn(rng)

    def judged(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -cross_entropy(calibration(logits.detach(), targets) * logits, targets)


def calibration(logits: Tensor, targets: Tensor) -> Tensor:
    """The factor a in [-20, 20] that minimises ``CE(a logits)``: 20 Newton steps of at most 1."""
    true, factor = logits.gather(1, targets[:, None]).mean(), logits.new_zeros(())
    for _ in range(20):
        p = (factor * logits).softmax(1)
        mean = (p * logits).sum(1)
        slope = mean.mean() - true
        curvature = ((p * logits.square()).sum(1) - mean.square()).mean()
        factor -= (slope / curvature.clamp_min(1e-6)).clamp(-1, 1)
    return factor
