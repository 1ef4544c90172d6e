"""Shrink the weights and add random ones: keep what was learnt, leave a point that trains badly.

Reference: Ash and Adams, On Warm-Starting Neural Network Training, NeurIPS 2020, arXiv 1910.08475.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le

from sophon_bench.api import AttackView, Model, attacks

from ._tuning import Tuning


@attacks.register("shrink-perturb", mechanism="noise")
@dataclass(frozen=True, kw_only=True)
class ShrinkPerturb(Tuning):
    """Set every weight to ``shrink * w + perturb * fresh``, then minimise the restricted loss.

    Args:
        shrink: Factor of the released weights.
        perturb: Factor of freshly initialised weights.
    """

    shrink: Annotated[float, Ge(0), Le(1)] = 0.3
    perturb: Annotated[float, Ge(0), Le(1)] = 0.1

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        with torch.no_grad():
            pairs = zip(model.parameters(), view.new_model().parameters(), strict=True)
            for weight, fresh in pairs:
                weight.mul_(self.shrink).add_(fresh, alpha=self.perturb)
        yield from self.tune(model, view)
