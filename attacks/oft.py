"""Rotate the inputs of frozen linear layers by block-diagonal orthogonal matrices.

Reference: Qiu et al., Controlling text-to-image diffusion by orthogonal finetuning (OFT),
NeurIPS 2023, arXiv 2306.07280.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import nn

from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks

from . import _peft


@attacks.register("oft")
@dataclass(frozen=True, kw_only=True)
class OFT:
    """Minimise the task's loss over rotations of every linear layer's input and a fresh head.

    Convolutions are left alone (see ``boft``): peft's rotation of one is none at the start.
    BatchNorm adapts.

    Args:
        block: Width of a rotation; layers whose input it does not divide are left alone.
        lr: Step size of Adam.
        batch_size: Examples per update; at most all of them.
    """

    block: Annotated[int, Gt(1)] = 16
    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.targets(
            model,
            lambda layer: _peft.is_linear(layer) and _peft.fan_in(layer) % self.block == 0,
            what=f"linear layer whose input is a multiple of block={self.block}",
        )
        from peft import OFTConfig

        config = OFTConfig(r=0, oft_block_size=self.block, target_modules=sites)
        yield from _peft.tune(model, view, config, lr=self.lr, batch_size=self.batch_size)
