"""Rotate the inputs of frozen layers by products of sparse rotations, and rescale the outputs.

Reference: Liu et al., BOFT, ICLR 2024, arXiv 2311.06243.

Blocks are mixed by a stride instead of a butterfly; with two factors, both reach equally far.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench.api import AttackView, Model, attacks

from . import _rotation


@attacks.register("boft")
@dataclass(frozen=True, kw_only=True)
class BOFT:
    """Minimise the task's loss over products of rotations, output gains and a fresh head.

    All linear and convolution layers of the body, grouped ones included, are adapted if ``block``
    divides their fan-in. BatchNorm statistics are updated.

    Args:
        block: Size of a rotation; layers whose fan-in it does not divide are left unchanged.
        factors: Number of sparse rotations in each product.
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
    """

    block: Annotated[int, Gt(1)] = 8
    factors: Annotated[int, Gt(0)] = 2
    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        yield from _rotation.tune(
            model,
            view,
            block=self.block,
            factors=self.factors,
            gains=True,
            lr=self.lr,
            batch_size=self.batch_size,
        )
