"""Rotate the inputs of frozen linear and convolution layers, and rescale their outputs.

Reference: Liu et al., BOFT, ICLR 2024, arXiv 2311.06243; with one butterfly factor, which is a
block-diagonal rotation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import nn

from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks

from . import _peft


@attacks.register("boft")
@dataclass(frozen=True, kw_only=True)
class BOFT:
    """Minimise the task's loss over block rotations, output scales and a fresh head.

    All linear and ungrouped convolution layers of the body that ``block`` fits are adapted;
    BatchNorm adapts. The rotation is a dense product as wide as a layer's input patch.

    Args:
        block: Width of a rotation; layers whose input patch it does not divide are left alone.
        lr: Step size of Adam.
        batch_size: Examples per update; at most all of them.
    """

    block: Annotated[int, Gt(1)] = 8
    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.targets(
            model,
            lambda layer: _peft.is_dense(layer) and _peft.fan_in(layer) % self.block == 0,
            what=f"linear or ungrouped convolution layer whose input is a multiple of {self.block}",
        )
        from peft import BOFTConfig

        config = BOFTConfig(boft_block_size=self.block, target_modules=sites)
        model.to(memory_format=torch.contiguous_format)  # peft views weights as matrices
        yield from _peft.tune(model, view, config, lr=self.lr, batch_size=self.batch_size)
