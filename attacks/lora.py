"""Low-rank updates of frozen weights.

Reference: Hu et al., LoRA, ICLR 2022, arXiv 2106.09685.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import nn

from sophon_bench.api import AttackView, Model, attacks

from . import _peft


@attacks.register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Minimise the task's loss over a rank-r update of every weight matrix and a fresh head.

    All linear layers and ungrouped convolutions are adapted; BatchNorm statistics are updated.

    Args:
        rank: Rank r of each update.
        alpha: The updates are scaled by alpha / r.
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
    """

    rank: Annotated[int, Gt(0)] = 16
    alpha: Annotated[int, Gt(0)] = 32
    lr: Annotated[float, Gt(0)] = 3e-3
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.targets(model, _peft.is_dense, what="linear or ungrouped convolution layer")
        from peft import LoraConfig

        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=sites)
        yield from _peft.tune(model, view, config, lr=self.lr, batch_size=self.batch_size)
