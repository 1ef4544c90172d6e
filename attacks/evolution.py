"""Fine-tune head and normalisation layers without gradients, by an evolution strategy.

Reference: Salimans et al., Evolution strategies as a scalable alternative to reinforcement
learning, 2017, arXiv 1703.03864.

Not from a library: it takes a dozen lines, and libraries for black-box optimization would take over
the loop, which belongs to the harness.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from sophon_bench.api import AttackView, Model, attacks

from . import _zeroth


@attacks.register("evolution", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Minimise the expected rank of the task's loss over head, gains and biases.

    The head starts as ridge regression; all other weights and BatchNorm's statistics are frozen.
    The point with the lowest validation loss is kept.

    Args:
        lr: Step size of Adam, in units of each tensor's root mean square.
        sigma: Standard deviation of the offspring, in the same units.
        pairs: Antithetic pairs of offspring per generation.
        batch_size: Examples per generation, or all if there are fewer.
    """

    lr: Annotated[float, Gt(0)] = 3e-3
    sigma: Annotated[float, Gt(0)] = 3e-2
    pairs: Annotated[int, Gt(0)] = 8
    batch_size: Annotated[int, Gt(0)] = 32

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        def estimate(loss: _zeroth.Loss, point: Tensor) -> Tensor:
            return self.gradient(loss, point, view.rng)

        yield from _zeroth.descend(model, view, estimate, lr=self.lr, batch_size=self.batch_size)

    def gradient(self, loss: _zeroth.Loss, point: Tensor, rng: torch.Generator) -> Tensor:
        """Mean of noise / sigma over the offspring, weighted by loss ranks from -1/2 to 1/2."""
        half = torch.randn((self.pairs, len(point)), generator=rng).to(point)
        noise = torch.cat([half, -half])
        losses = torch.stack([loss(point + self.sigma * n) for n in noise])
        ranks = losses.argsort().argsort() / (len(noise) - 1) - 0.5
        return ranks.to(point) @ noise / (len(noise) * self.sigma)
