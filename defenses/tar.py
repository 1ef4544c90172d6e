"""Tampering attack resistance: maximise entropy after simulated attacks, keep the original task.

Reference: Tamirisa et al., Tamper-resistant safeguards for open-weight LLMs, ICLR 2025,
arXiv 2408.00761.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from sophon_bench.api import defenses

from ._outer import Weight
from ._simulated import Simulated
from .sophon.strategies import Strategy


@defenses.register("tar")
@dataclass(frozen=True, kw_only=True)
class TAR(Simulated):
    """Minimise ``CE_orig - weight mean_k H(p(theta_k))``, H the entropy after k attack steps.

    Every update draws one attack from ``strategies``, with a fresh head. Different from the
    original: no term keeps the representations of original data close to the old ones.

    Args:
        weight: Weight of the entropy.
        strategies: ``optimizer@lr``, drawn uniformly.
    """

    weight: Weight = 16.0
    strategies: Annotated[tuple[str, ...], MinLen(1)] = ("adam@1e-3", "momentum@1e-2", "sgd@3e-2")

    followed: ClassVar[bool] = False
    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-3, 3e-3, 8e-3), "weight": (1.0, 4.0, 16.0), "inner_steps": (8, 16, 32),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.strategies:
            self._parsed(text)

    def strategy(self, rng: torch.Generator) -> Strategy:
        drawn = int(torch.randint(len(self.strategies), (), generator=rng))
        return self._parsed(self.strategies[drawn])

    def _parsed(self, text: str) -> Strategy:
        return Strategy.parse(text, batch_size=self.batch_size - self.judge, head="fresh")

    def judged(self, logits: Tensor, targets: Tensor) -> Tensor:
        return negative_entropy(logits)


def negative_entropy(logits: Tensor) -> Tensor:
    """``sum_i p_i log p_i`` of logits ``(B, C)``, averaged over the batch."""
    return (logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
