"""Probe the frozen model with logistic regression on the activations of several layers.

Reference: Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016,
arXiv 1610.01644.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks

from . import _probing


@attacks.register("probe-logistic", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class ProbeLogistic:
    """Minimise cross-entropy plus an L2 penalty on activations of several layers.

    No weight of the model moves and BatchNorm stays as released. Columns are standardised; layers
    and strength are chosen on the attacker's validation split, then the run is over.

    Args:
        strength: Inverse weight of the penalty, scikit-learn's C; None: one of 1e-3, 1e-2, …, 10.
        grid: Maps are averaged over each of grid x grid cells, tokens over all of them.
    """

    strength: Annotated[float, Gt(0)] | None = None
    grid: Annotated[int, Gt(0)] = 2

    def run(self, model: Model, view: AttackView) -> Iterator[_probing.Probe]:
        from sklearn.linear_model import LogisticRegression

        values = (0.1, 0.01, 1.0, 0.001, 10.0) if self.strength is None else (self.strength,)
        candidates = [
            lambda _rows, _columns, c=v: LogisticRegression(C=c, max_iter=1000) for v in values
        ]
        yield from _probing.probe(model, view, candidates, grid=self.grid)
