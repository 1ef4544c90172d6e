"""Train the gains and biases of normalisation layers.

Reference: Zhao et al., Tuning LayerNorm in attention, ICLR 2024, arXiv 2312.11420; for BatchNorm
Frankle et al., ICLR 2021, arXiv 2003.00152.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import nn

from sophon_bench.api import AttackView, Model, attacks

from . import _peft


@attacks.register("ln-tuning")
@dataclass(frozen=True, kw_only=True)
class LNTuning:
    """Minimise the task's loss over a copy of every normalisation layer and a fresh head.

    These are layer, group, batch and RMS normalisation with gains or biases. BatchNorm statistics
    are updated.

    Args:
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
    """

    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.targets(model, _peft.is_norm, what="normalisation layer with gains or biases")
        from peft import LNTuningConfig

        config = LNTuningConfig(target_modules=sites)
        yield from _peft.tune(model, view, config, lr=self.lr, batch_size=self.batch_size)
