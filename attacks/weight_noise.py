"""Add noise to the weights to leave a flat or masked region, and train the best of several copies.

Reference: Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks,
arXiv 1511.06807 (noise on gradients; here once on the weights).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt

from sophon_bench.api import AttackView, Model, attacks

from ._tuning import Tuning
from .finetune import FineTune


@attacks.register("weight-noise", mechanism="noise")
@dataclass(frozen=True, kw_only=True)
class WeightNoise(Tuning):
    """Add noise to every weight, then minimise the restricted loss from the best of several copies.

    Args:
        sigma: Standard deviation of the noise, relative to each tensor's root mean square.
        restarts: Number of noisy copies; each is tuned briefly, and training goes on
            from the best on validation data.
        race_steps: Updates of each copy before they are compared.
    """

    sigma: Annotated[float, Ge(0)] = 0.1
    restarts: Annotated[int, Gt(0)] = 3
    race_steps: Annotated[int, Gt(0)] = 10

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        race = FineTune(
            optimizer=self.optimizer, lr=self.lr, batch_size=self.batch_size, steps=self.race_steps
        )
        best, highest = model, -1.0
        for _ in range(self.restarts):
            candidate = copy.deepcopy(model)
            with torch.no_grad():
                for weight in candidate.parameters():
                    noise = torch.randn(weight.shape, generator=view.rng).to(weight)
                    weight.add_(self.sigma * weight.square().mean().sqrt() * noise)
            yield from race.run(candidate, view)
            with torch.no_grad():
                utility = view.task.utility(candidate.eval(), view.validation)
            if utility > highest:
                best, highest = candidate, utility
        yield from self.tune(best, view, head="kept")
