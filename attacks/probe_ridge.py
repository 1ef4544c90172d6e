"""Probe the frozen model with ridge regression on the activations of several layers.

Reference: Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016,
arXiv 1610.01644; Hoerl and Kennard, Ridge regression, Technometrics 1970.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks

from . import _probing


@attacks.register("probe-ridge", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class ProbeRidge:
    """Minimise penalised squared error to the targets on activations of several layers.

    No weight of the model moves and BatchNorm stays as released. Columns are standardised; layers
    and alpha are chosen on the attacker's validation split, then the run is over.

    Args:
        alpha: Weight of the penalty; None: chosen among 1, 10, …, 10000.
        grid: Maps are averaged over each of grid x grid cells, tokens over all of them.
    """

    alpha: Annotated[float, Gt(0)] | None = None
    grid: Annotated[int, Gt(0)] = 2

    def run(self, model: Model, view: AttackView) -> Iterator[_probing.Probe]:
        from sklearn.linear_model import RidgeClassifier

        values = (100.0, 10.0, 1000.0, 1.0, 10000.0) if self.alpha is None else (self.alpha,)
        candidates = [lambda _rows, _columns, alpha=v: RidgeClassifier(alpha=alpha) for v in values]
        yield from _probing.probe(model, view, candidates, grid=self.grid)
