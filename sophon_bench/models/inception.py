"""Fréchet Inception distance by torchmetrics, where Inception's published weights are at hand."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sophon_bench.data.scenario import ScenarioError
from sophon_bench.seeding import forked

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's name for them, with the beginning of their SHA-256."""

PACKAGES = ("torchmetrics", "torch_fidelity")
"""Of the extra ``fid``."""

FEATURES = 2048
"""Of the last pooling layer, as in the paper."""

BATCH = 50
"""Images per forward pass."""


def weights() -> Path | None:
    """The file with Inception's weights, in torch.hub's folder; None without it or the extra.

    Nothing is ever downloaded.

    Raises:
        ScenarioError: If the file there is not the published one.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file() or None in map(importlib.util.find_spec, PACKAGES):
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = path.stem.rpartition("-")[2]
    if not found.startswith(expected):
        raise ScenarioError(
            f"{path} is not Inception's published weights: its SHA-256 begins with "
            f"{found[: len(expected)]}, not {expected}; fetch it again, or move it away to do "
            f"without"
        )
    return path


class Inception:
    """Fréchet Inception distances to one domain's test images.

    Heusel et al., *GANs trained by a two time-scale update rule…*, NeurIPS 2017, arXiv 1706.08500.

    Args:
        path: Of the weights.
        test: The images ``(N, 3, H, W)`` uint8 that distances are to.
        device: Where it works.
    """

    def __init__(self, path: Path, test: Tensor, device: torch.device) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        untyped: Any = FrechetInceptionDistance
        self._device = device
        with forked(torch.device("cpu")):  # layers are drawn before they are loaded
            self._metric = untyped(
                feature=FEATURES,
                reset_real_features=False,
                feature_extractor_weights_path=str(path),
            ).to(device)
        self._update(test, real=True)

    def distance(self, pixels: Tensor) -> float:
        """Of images ``(N, 3, H, W)`` uint8, N at least 2."""
        self._metric.reset()
        self._update(pixels, real=False)
        return float(self._metric.compute())

    @torch.no_grad()
    def _update(self, pixels: Tensor, *, real: bool) -> None:
        for part in pixels.split(BATCH):
            self._metric.update(part.to(self._device), real=real)
