"""Update frozen weights by Kronecker products.

Reference: Edalati et al., KronA, 2022, arXiv 2212.10650; Yeh et al., LyCORIS, ICLR 2024,
arXiv 2309.14859.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import nn

from sophon_bench.api import AttackView, Model, attacks

from . import _peft


@attacks.register("lokr")
@dataclass(frozen=True, kw_only=True)
class LoKr:
    """Minimise the task's loss over Kronecker products of low rank and a fresh head.

    All linear and convolution layers of the body, grouped ones included, are adapted. BatchNorm
    statistics are updated.

    Args:
        rank: Rank r of the larger factor of a product.
        alpha: The updates are scaled by alpha / r.
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
    """

    rank: Annotated[int, Gt(0)] = 16
    alpha: Annotated[int, Gt(0)] = 16
    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.targets(model, _peft.is_weighted, what="linear or convolution layer")
        from peft import LoKrConfig

        config = LoKrConfig(r=self.rank, alpha=self.alpha, target_modules=sites)
        yield from _peft.tune(model, view, config, lr=self.lr, batch_size=self.batch_size)
