"""Low-rank updates, with rank allocated to the weights where it matters most.

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
    """Minimise loss plus an orthogonality penalty over pruned SVD-like updates and a fresh head.

    All linear layers and ungrouped convolutions are adapted; BatchNorm statistics are updated.

    Args:
        initial_rank: Initial rank of each update; more than ``rank``.
        rank: Mean rank of the updates after pruning.
        orthogonality: Weight of the penalty, the factors' mean distance from orthonormality.
        steps: Length of pruning in updates, counted from the first.
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
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
