"""Probe the frozen model with nearest neighbours in the activations of several layers.

Reference: Wu et al., Unsupervised feature learning via non-parametric instance discrimination,
CVPR 2018, arXiv 1805.01978 (weighted kNN on features).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from annotated_types import Gt

from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks

from . import _probing


@attacks.register("probe-knn", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class ProbeKNN:
    """Let the nearest examples vote, by cosine distance between activations of several layers.

    No weight of the model moves and BatchNorm stays as released. Columns are standardised, and
    projected on the directions that tell classes apart (regularised discriminant analysis of at
    most 64 principal components) where that helps: this, layers and neighbours are chosen on the
    attacker's validation split, then the run is over.

    Args:
        neighbours: How many vote, at most all examples; None: one of 1, 3, 5, 9, 15.
        grid: Maps are averaged over each of grid x grid cells, tokens over all of them.
    """

    neighbours: Annotated[int, Gt(0)] | None = None
    grid: Annotated[int, Gt(0)] = 2

    def run(self, model: Model, view: AttackView) -> Iterator[_probing.Probe]:
        from sklearn.decomposition import PCA
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline

        def plain(rows: int, _columns: int, *, k: int) -> Any:
            return KNeighborsClassifier(min(k, rows), weights="distance", metric="cosine")

        def projected(rows: int, columns: int, *, k: int) -> Any:
            if rows <= view.task.num_outputs:
                return plain(rows, columns, k=k)
            components = PCA(min(64, rows - 1, columns), svd_solver="full")
            directions = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
            return make_pipeline(components, directions, plain(rows, columns, k=k))

        values = (9, 5, 15, 3, 1) if self.neighbours is None else (self.neighbours,)
        candidates = [partial(how, k=k) for how in (projected, plain) for k in values]
        yield from _probing.probe(model, view, candidates, grid=self.grid)
