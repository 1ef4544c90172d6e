"""Probe the frozen model with nearest neighbours in the activations of several layers.

Reference: Wu et al., Unsupervised feature learning via non-parametric instance discrimination,
CVPR 2018, arXiv 1805.01978 (weighted kNN on features).
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from annotated_types import Gt

from sophon_bench.api import attacks

from ._probing import Candidate, Probing


@attacks.register("probe-knn", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class ProbeKNN(Probing):
    """Let the nearest examples vote, by cosine distance between activations of several layers.

    The model's weights and BatchNorm statistics stay as released. Activations are standardised and,
    if that helps, projected onto the directions that separate the classes (regularised discriminant
    analysis of at most 64 principal components). The attacker's validation split decides on this,
    on the layers and on the number of neighbours; then the run ends.

    Args:
        neighbours: Number that vote, at most the number of examples; None: one of 1, 3, 5, 9, 15.
    """

    together: ClassVar = ("neighbours",)
    neighbours: Annotated[int, Gt(0)] | None = None

    def candidates(self, outputs: int) -> list[Candidate]:
        from sklearn.decomposition import PCA
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline

        def make(rows: int, columns: int, *, k: int, project: bool) -> Any:
            nearest = KNeighborsClassifier(min(k, rows), weights="distance", metric="cosine")
            if not project or rows <= outputs:
                return nearest
            components = PCA(min(64, rows - 1, columns), svd_solver="full")
            directions = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
            return make_pipeline(components, directions, nearest)

        values = (9, 5, 15, 3, 1) if self.neighbours is None else (self.neighbours,)
        return [partial(make, k=k, project=project) for project in (True, False) for k in values]
