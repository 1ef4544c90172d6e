"""Make features that transfer less, by what pre-training minimises.

Reference: Kornblith et al., Why Do Better Loss Functions Lead to Less Transferable Features?,
NeurIPS 2021, arXiv 2010.16402.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch.nn.functional import cross_entropy

from sophon_bench.api import DefenseView, Model, defenses


@defenses.register("label-smoothing")
@dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """Minimise cross-entropy on the original domain to labels smoothed by ``smoothing``.

    No restricted example is looked at.

    Args:
        smoothing: Share of the label that is spread over all classes.
        lr: Step size of Adam.
        steps: Updates.
    """

    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.3
    lr: Annotated[float, Gt(0)] = 1e-3
    steps: Annotated[int, Ge(1)] = 100

    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {"smoothing": (0.1, 0.3, 0.6)}

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        batches = view.original.train.batches(64, view.rng)
        for _, batch in zip(range(self.steps), batches, strict=False):
            optimizer.zero_grad()
            outputs = view.original.task.predict(model, batch.inputs)
            cross_entropy(outputs, batch.targets, label_smoothing=self.smoothing).backward()
            optimizer.step()
            yield model
