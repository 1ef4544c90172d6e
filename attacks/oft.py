"""Rotate the inputs of frozen layers, block by block.

Reference: Qiu et al., Controlling text-to-image diffusion by orthogonal finetuning (OFT),
NeurIPS 2023, arXiv 2306.07280.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench.api import AttackView, Model, attacks

from . import _rotation


@attacks.register("oft")
@dataclass(frozen=True, kw_only=True)
class OFT:
    """Minimise the task's loss over a rotation of every layer's input and a fresh head.

    All linear and convolution layers of the body, grouped ones included, are adapted if ``block``
    divides their fan-in. BatchNorm statistics are updated.

    Args:
        block: Size of a rotation; layers whose fan-in it does not divide are left unchanged.
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
    """

    block: Annotated[int, Gt(1)] = 16
    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        yield from _rotation.tune(
            model,
            view,
            block=self.block,
            factors=1,
            gains=False,
            lr=self.lr,
            batch_size=self.batch_size,
        )
