"""Linear probing, then fine-tuning: a trained head keeps early updates from distorting features.

Reference: Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution, ICLR 2022, arXiv 2202.10054.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model, Samples, attacks

from ._tuning import Tuning


@attacks.register("lp-ft")
@dataclass(frozen=True, kw_only=True)
class LPFT(Tuning):
    """Minimise the restricted task's loss over a fresh head, then over all weights.

    The head is trained on features that the frozen body computes once, in eval mode.

    Args:
        lp_lr: Step size of Adam for the head alone.
        lp_steps: Updates of the head alone.
    """

    lp_lr: Annotated[float, Gt(0)] = 1e-2
    lp_steps: Annotated[int, Ge(0)] = 100

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        model.fresh_head(view.task.num_outputs, view.rng)
        model.eval()
        parts = []
        for inputs in view.train.inputs.split(self.batch_size):
            with torch.no_grad():
                parts.append(model.features(inputs))
            yield model
        features = Samples(torch.cat(parts), view.train.targets)
        for _ in training.descend(
            lambda batch: view.task.loss(model.head, batch),
            features.batches(self.batch_size, view.rng), model.head.parameters(),
            optimizer="adam", lr=self.lp_lr, steps=self.lp_steps,
        ):  # fmt: skip
            yield model
        yield from self.tune(model, view, head="kept")
