"""Probe the frozen model with ridge regression on the activations of several layers.

Reference: Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016,
arXiv 1610.01644; Hoerl and Kennard, Ridge regression, Technometrics 1970.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from annotated_types import Gt

from sophon_bench.api import attacks

from ._probing import Candidate, Probing


@attacks.register("probe-ridge", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class ProbeRidge(Probing):
    """Minimise squared error plus an L2 penalty over linear probes of several layers' activations.

    The model's weights and BatchNorm statistics stay as released. Activations are standardised. The
    attacker's validation split decides on layers and alpha; then the run ends.

    Args:
        alpha: Weight of the penalty; None: one of 1, 10, …, 10000.
    """

    together: ClassVar = ("alpha",)
    alpha: Annotated[float, Gt(0)] | None = None

    def candidates(self, outputs: int) -> list[Candidate]:
        from sklearn.linear_model import RidgeClassifier

        def make(_rows: int, _columns: int, *, alpha: float) -> Any:
            return RidgeClassifier(alpha=alpha)

        values = (100.0, 10.0, 1000.0, 1.0, 10000.0) if self.alpha is None else (self.alpha,)
        return [partial(make, alpha=value) for value in values]
