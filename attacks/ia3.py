"""Rescale the inputs of frozen layers.

Reference: Liu et al., Few-shot parameter-efficient fine-tuning is better and cheaper than
in-context learning (IA3), NeurIPS 2022, arXiv 2205.05638.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import nn

from sophon_bench.api import AttackView, Model, attacks

from . import _peft


@attacks.register("ia3")
@dataclass(frozen=True, kw_only=True)
class IA3:
    """Minimise the task's loss over one factor per input channel and a fresh head.

    All linear and convolution layers of the body are adapted, grouped ones included. Inputs are
    rescaled because BatchNorm would cancel factors on outputs. BatchNorm statistics are updated.

    Args:
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
    """

    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.targets(model, _peft.is_weighted, what="linear or convolution layer")
        from peft import IA3Config

        config = IA3Config(target_modules=sites, feedforward_modules=sites)
        yield from _peft.tune(model, view, config, lr=self.lr, batch_size=self.batch_size)
