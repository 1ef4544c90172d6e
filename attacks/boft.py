"""Rotate the inputs of frozen layers by several factors, and rescale their outputs.

Reference: Liu et al., BOFT, ICLR 2024, arXiv 2311.06243. Factors mix blocks by a stride instead of
a butterfly, which reaches as far in two factors.
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

    All linear and convolution layers of the body that ``block`` fits are adapted, grouped ones too;
    BatchNorm adapts.

    Args:
        block: Width of a rotation; layers whose input patch it does not divide are left alone.
        factors: Sparse rotations whose product turns a layer's input.
        lr: Step size of Adam.
        batch_size: Examples per update; at most all of them.
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
