"""Low-rank updates whose ranks go where they matter most.

Reference: Zhang et al., AdaLoRA, ICLR 2023, arXiv 2303.10512.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from annotated_types import Ge, Gt
from torch import nn

from sophon_bench.api import AttackView, Model, attacks

from . import _peft


@attacks.register("adalora")
@dataclass(frozen=True, kw_only=True)
class AdaLoRA:
    """Minimise loss and non-orthogonality over SVD-like updates, pruned, and a fresh head.

    All linear and ungrouped convolution layers of the body are adapted; BatchNorm adapts.

    Args:
        initial_rank: Rank of each update at first; more than ``rank``.
        rank: Mean rank of the updates after pruning.
        orthogonality: Weight of the mean distance of the factors from orthonormal ones.
        steps: Updates by which pruning is over; it begins with the first.
        lr: Step size of Adam.
        batch_size: Examples per update; at most all of them.
    """

    initial_rank: Annotated[int, Gt(1)] = 16
    rank: Annotated[int, Gt(0)] = 8
    orthogonality: Annotated[float, Ge(0)] = 0.1
    steps: Annotated[int, Gt(1)] = 100
    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def __post_init__(self) -> None:
        if self.rank >= self.initial_rank:
            raise ValueError(f"rank={self.rank} must be below initial_rank={self.initial_rank}")

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.targets(model, _peft.is_dense, what="linear or ungrouped convolution layer")
        from peft import AdaLoraConfig

        config = AdaLoraConfig(
            init_r=self.initial_rank,
            target_r=self.rank,
            lora_alpha=2 * self.initial_rank,
            total_step=self.steps,
            target_modules=sites,
        )
        wrapped = _peft.wrap(model, view, config)
        penalty = partial(_peft.skewness, wrapped, weight=self.orthogonality)
        run = _peft.train(wrapped, view, lr=self.lr, batch_size=self.batch_size, penalty=penalty)
        for step, _ in enumerate(run, 1):
            wrapped.base_model.update_and_allocate(step)
            yield wrapped
