"""Fine-tune head and normalisation layers without gradients, by simultaneous perturbation.

Reference: Spall, Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation, IEEE Trans. Automatic Control 1992.

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


@attacks.register("spsa", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class SPSA:
    """Minimise the task's loss over head, gains and biases from differences of losses.

    The head starts as ridge regression; all other weights and BatchNorm's statistics are frozen.
    The point with the lowest validation loss is kept.

    Args:
        lr: Step size of Adam, in units of each tensor's root mean square.
        radius: Length of a perturbation in each coordinate, in the same units.
        pairs: Antithetic pairs per estimate.
        batch_size: Examples per estimate, or all if there are fewer.
    """

    lr: Annotated[float, Gt(0)] = 1e-2
    radius: Annotated[float, Gt(0)] = 1e-2
    pairs: Annotated[int, Gt(0)] = 8
    batch_size: Annotated[int, Gt(0)] = 32

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        def estimate(loss: _zeroth.Loss, point: Tensor) -> Tensor:
            return self.gradient(loss, point, view.rng)

        yield from _zeroth.descend(model, view, estimate, lr=self.lr, batch_size=self.batch_size)

    def gradient(self, loss: _zeroth.Loss, point: Tensor, rng: torch.Generator) -> Tensor:
        """Mean over random sign vectors v of v times the slope along v; bias O(radius²)."""
        total = torch.zeros_like(point)
        for _ in range(self.pairs):
            signs = 2.0 * torch.randint(2, point.shape, generator=rng).to(point) - 1
            step = self.radius * signs
            total += signs * (loss(point + step) - loss(point - step)) / (2 * self.radius)
        return total / self.pairs
