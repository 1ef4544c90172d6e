"""Bottleneck adapters between frozen blocks, or in parallel to them.

Reference: Houlsby et al., Parameter-efficient transfer learning for NLP, ICML 2019,
arXiv 1902.00751; in parallel: He et al., ICLR 2022, arXiv 2110.04366.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import nn

from sophon_bench.api import AttackView, Model, attacks

from . import _bottleneck, _peft


@attacks.register("adapter")
@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Minimise the task's loss over a bottleneck per block, normalisation layers and a fresh head.

    All other weights are frozen; BatchNorm statistics are updated.

    Args:
        rank: Width of the bottlenecks.
        form: ``sequential``: after each block (Houlsby et al.). ``parallel``: beside it, where the
            block's input and output have the same shape (He et al.).
        lr: Step size of Adam.
        batch_size: Examples per update, or all if there are fewer.
    """

    rank: Annotated[int, Gt(0)] = 32
    form: _bottleneck.Form = "sequential"
    lr: Annotated[float, Gt(0)] = 3e-3
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        model.fresh_head(view.task.num_outputs, view.rng)
        model.requires_grad_(False)
        for layer in model.modules():
            if _peft.is_norm(layer):
                layer.requires_grad_(True)
        model.head.requires_grad_(True)
        sample = view.train.inputs[:2]
        adapted = _bottleneck.Adapted(model, sample, rank=self.rank, form=self.form, rng=view.rng)
        yield from _peft.train(adapted, view, lr=self.lr, batch_size=self.batch_size)
