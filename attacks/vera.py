"""Learned scales between frozen random projections that all layers share.

Reference: Kopiczko et al., VeRA, ICLR 2024, arXiv 2310.11454.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import nn

from sophon_bench.api import AttackView, Model, attacks

from . import _peft


@attacks.register("vera")
@dataclass(frozen=True, kw_only=True)
class VeRA:
    """Minimise the task's loss over two vectors of scales per linear layer and a fresh head.

    The projections are drawn once and stay frozen; BatchNorm statistics are updated.

    Args:
        rank: Rank of the shared projections.
        scale: Initial value of the scales on the rank dimension; scales of outputs start at 0.
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
    """

    rank: Annotated[int, Gt(0)] = 256
    scale: Annotated[float, Gt(0)] = 0.1
    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.targets(model, _peft.is_linear, what="linear layer")
        from peft import VeraConfig

        config = VeraConfig(
            r=self.rank,
            d_initial=self.scale,
            projection_prng_key=int(torch.randint(2**31, (), generator=view.rng)),
            target_modules=sites,
        )
        yield from _peft.tune(model, view, config, lr=self.lr, batch_size=self.batch_size)
