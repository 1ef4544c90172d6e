"""SOPHON: suppress fine-tuning on a restricted domain, keep the original task."""

from .defense import Sophon
from .losses import (
    denial_of_service,
    inverse_cross_entropy,
    inverse_cross_entropy_released,
    kl_from_uniform,
)
from .variants import SophonIce, SophonKlu
from .wide import SophonWide

__all__ = [
    "Sophon",
    "SophonIce",
    "SophonKlu",
    "SophonWide",
    "denial_of_service",
    "inverse_cross_entropy",
    "inverse_cross_entropy_released",
    "kl_from_uniform",
]
