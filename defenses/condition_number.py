"""Immunise by condition numbers: ill-conditioned restricted, well-conditioned original features.

Reference: Zheng et al., Model immunization from a condition number perspective, ICML 2025,
arXiv 2505.23760.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sophon_bench.api import defenses

from ._outer import Outer, Positive, Scene, Weight


@defenses.register("condition-number")
@dataclass(frozen=True, kw_only=True)
class ConditionNumber(Outer):
    """Minimise ``CE_orig + ill R_ill(K_restr) + well R_well(K_orig)``, K the features' covariance.

    With s the k singular values of K: ``R_ill = 1 / (sum s^2 / 2k - min s^2 / 2)`` and
    ``R_well = max s^2 / 2 - sum s^2 / 2k``; K is uncentred, over the batch. Different from the
    original: it preconditions both gradients for a linear extractor, here Adam takes their sum.

    Args:
        ill: Weight of the restricted domain's term.
        well: Weight of the original domain's term.
    """

    lr: Positive = 1e-3
    ill: Weight = 10.0
    well: Weight = 1e-4

    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-4, 3e-4, 1e-3), "ill": (0.1, 1.0, 10.0), "well": (1e-4, 1e-3, 1e-2),
    }  # fmt: skip

    def objective(self, scene: Scene) -> Tensor:
        original = scene.original()
        ill = ill_conditioned(spectrum(scene.restricted().features))
        well = well_conditioned(spectrum(original.features))
        return original.loss + self.ill * ill + self.well * well


def spectrum(features: Tensor) -> Tensor:
    """Singular values of ``F^T F / B`` of features ``(B, D)``, without the D - min(B, D) zeros."""
    return Tensor.square(torch.linalg.svdvals(features)) / len(features)


def ill_conditioned(values: Tensor) -> Tensor:
    """R_ill: small where the smallest singular value is far below the others."""
    squares = values.square()
    return 1 / (squares.mean() / 2 - squares.min() / 2 + torch.finfo(values.dtype).eps)


def well_conditioned(values: Tensor) -> Tensor:
    """R_well: zero where all singular values are equal."""
    squares = values.square()
    return squares.max() / 2 - squares.mean() / 2
