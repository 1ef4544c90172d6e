"""Sharpness-aware minimisation: update with the gradient at the worst point nearby.

Reference: Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization,
ICLR 2021, arXiv 2010.01412.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model, attacks

from ._tuning import Tuning


@attacks.register("sam")
@dataclass(frozen=True, kw_only=True)
class SAM(Tuning):
    """Minimise the largest restricted loss within ``rho`` of the weights, to first order.

    Every update makes two passes over its batch; both update BatchNorm's running statistics.

    Args:
        rho: Length of the step up the gradient, over all weights together.
    """

    rho: Annotated[float, Gt(0)] = 0.05

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        model.fresh_head(view.task.num_outputs, view.rng)
        weights = list(model.parameters())
        optimizer = training.make_optimizer(self.optimizer, weights, lr=self.lr)
        schedule = training.make_schedule(self.schedule, optimizer, steps=self.steps)
        for batch in itertools.islice(view.batches(self.batch_size), self.steps):
            loss = view.task.loss(model, batch)
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            pairs = zip(weights, found, strict=True)
            uphill = [(p, g, p.detach().clone()) for p, g in pairs if g is not None]
            length = torch.stack([g.norm() for _, g, _ in uphill]).norm().clamp_min(1e-12)
            with torch.no_grad():
                for parameter, gradient, _ in uphill:
                    parameter.add_(gradient * (self.rho / length))
            optimizer.zero_grad()
            view.task.loss(model, batch).backward()
            with torch.no_grad():
                for parameter, _, before in uphill:
                    parameter.copy_(before)
            optimizer.step()
            schedule.step()
            yield model
