"""Probe the frozen model with logistic regression on the activations of several layers.

Reference: Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016,
arXiv 1610.01644.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from annotated_types import Gt

from sophon_bench.api import attacks

from ._probing import Candidate, Probing


@attacks.register("probe-logistic", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class ProbeLogistic(Probing):
    """Minimise cross-entropy plus an L2 penalty over linear probes of several layers' activations.

    The model's weights and BatchNorm statistics stay as released. Activations are standardised. The
    attacker's validation split decides on layers and strength; then the run ends.

    Args:
        strength: Inverse weight of the penalty, scikit-learn's C; None: one of 1e-3, 1e-2, …, 10.
    """

    together: ClassVar = ("strength",)
    strength: Annotated[float, Gt(0)] | None = None

    def candidates(self, outputs: int) -> list[Candidate]:
        from sklearn.linear_model import LogisticRegression

        def make(_rows: int, _columns: int, *, strength: float) -> Any:
            return LogisticRegression(C=strength, max_iter=1000)

        values = (0.1, 0.01, 1.0, 0.001, 10.0) if self.strength is None else (self.strength,)
        return [partial(make, strength=value) for value in values]
