"""Probe the frozen model with nearest neighbours in the activations of several layers.

Reference: Wu et al., Unsupervised feature learning via non-parametric instance discrimination,
CVPR 2018, arXiv 1805.01978 (weighted kNN on features).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks

from . import _probing


@attacks.register("probe-knn")
@dataclass(frozen=True, kw_only=True)
class ProbeKNN:
    """Let the nearest examples vote, by cosine distance between activations of several layers.

    No weight of the model moves and BatchNorm stays as released. Columns are standardised; layers
    and neighbours are chosen on the attacker's validation split, then the run is over.

    Args:
        neighbours: How many vote, at most all examples; None: chosen among 1, 3, 5, 9, 15.
        grid: Maps are averaged over each of grid x grid cells, tokens over all of them.
    """

    neighbours: Annotated[int, Gt(0)] | None = None
    grid: Annotated[int, Gt(0)] = 2

    def run(self, model: Model, view: AttackView) -> Iterator[_probing.Probe]:
        from sklearn.neighbors import KNeighborsClassifier

        values = (5, 3, 9, 1, 15) if self.neighbours is None else (self.neighbours,)
        candidates = [
            lambda rows, k=v: KNeighborsClassifier(
                min(k, rows), weights="distance", metric="cosine"
            )
            for v in values
        ]
        yield from _probing.probe(model, view, candidates, grid=self.grid)
