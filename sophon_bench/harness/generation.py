"""How good the images are that a model makes, next to a domain's real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sophon_bench import training
from sophon_bench.api import Domain, Samples
from sophon_bench.data.samples import Pixels
from sophon_bench.data.scenario import DomainData, Images
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.inception import Inception
from sophon_bench.results.pictures import picture_of
from sophon_bench.results.records import Generated

SHOWN = 10
"""Images in a record's picture."""

CLASSIFIER = Backbone("test_resnet")
STEPS = 600
LR = 2e-3
BATCH = 64


class Critic:
    """A small classifier, and its features of one domain's test images.

    It is trained on labelled training images, once and always alike, and sees no model that is
    judged.

    Args:
        data: The domain.
        labelled: Whose labels the classifier learns; another domain where ``data`` has one class
            alone, of which no features could be learnt.
        device: Where it works.
        count: Real images that are judged for comparison: as many as are made of a model.
        inception: Of Inception's weights, for the Fréchet Inception distance too.
    """

    def __init__(
        self,
        data: DomainData,
        labelled: DomainData,
        device: torch.device,
        *,
        count: int,
        inception: Path | None = None,
    ) -> None:
        self.device = device
        rng = torch.Generator().manual_seed(0)
        self.model = CLASSIFIER.build(len(labelled.classes), rng).to(device)
        task = Classification(len(labelled.classes))
        learnt = self._samples(_learnt(labelled))
        domain = Domain(task, learnt, learnt)
        for _ in training.train(self.model, domain, steps=STEPS, batch_size=BATCH, lr=LR, rng=rng):
            pass
        self.model.eval()
        self.accuracy = task.utility(self.model, self._samples([labelled.splits["test"]]))
        self._test = gaussian(self._seen(self._samples([data.splits["test"]]).inputs)[0])
        real = self._samples(_learnt(data))[:count].inputs
        self._real = frechet(gaussian(self._seen(real)[0]), self._test)
        self._inception: Inception | None = None
        self._fid_real: float | None = None
        if inception is not None:
            test = torch.from_numpy(data.splits["test"].pixels)
            self._inception = Inception(inception, test, device)
            self._fid_real = self._inception.distance(_mixed(_learnt(data))[0][:count])

    def judge(self, pixels: Tensor) -> Generated:
        """What it makes of images ``(N, 3, H, W)`` uint8."""
        inception = self._inception
        features, probabilities = self._seen(CLASSIFIER.normalize(pixels.to(self.device)))
        return Generated(
            count=len(pixels),
            frechet=frechet(gaussian(features), self._test),
            frechet_real=self._real,
            classifier_score=classifier_score(probabilities),
            fid=None if inception is None else inception.distance(pixels),
            fid_real=self._fid_real,
            picture=picture(pixels[:SHOWN]),
        )

    def _samples(self, parts: Sequence[Images]) -> Samples:
        return Pixels(*_mixed(parts), CLASSIFIER.normalize, device=self.device)

    @torch.no_grad()
    def _seen(self, inputs: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Features ``(N, D)`` and probabilities ``(N, C)``."""
        features = torch.cat([self.model.features(part) for part in inputs.split(BATCH)])
        probabilities = self.model.head(features).double().softmax(dim=1)
        return features.double().cpu().numpy(), probabilities.cpu().numpy()


def _learnt(data: DomainData) -> list[Images]:
    """All that is not held out."""
    return [data.splits[n] for n in ("train", "defender", "attacker") if n in data.splits]


def _mixed(parts: Sequence[Images]) -> tuple[Tensor, Tensor]:
    """Pixels and labels of several splits in one fixed order that mixes them."""
    pixels = np.concatenate([part.pixels for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    order = np.random.default_rng(0).permutation(len(labels))
    return torch.from_numpy(pixels[order]), torch.from_numpy(labels[order])


Gaussian = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean ``(D,)`` and covariance ``(D, D)``."""


def gaussian(features: NDArray[np.float64]) -> Gaussian:
    """Mean and covariance of features ``(N, D)``."""
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet(one: Gaussian, other: Gaussian) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``.

    Heusel et al., *GANs trained by a two time-scale update rule…*, NeurIPS 2017, arXiv 1706.08500.
    """
    (mean, covariance), (other_mean, other_covariance) = one, other
    root = _root(covariance)
    cross = np.linalg.eigvalsh(root @ other_covariance @ root)
    shared = np.sqrt(np.clip(cross, 0, None)).sum()
    apart = ((mean - other_mean) ** 2).sum()
    return float(max(0.0, apart + np.trace(covariance) + np.trace(other_covariance) - 2 * shared))


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of a symmetric positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def classifier_score(probabilities: NDArray[np.float64]) -> float:
    """``exp(mean KL(p(y|x) || p(y)))`` of probabilities ``(N, C)``: from 1 to C, higher is better.

    Salimans et al., *Improved techniques for training GANs*, NeurIPS 2016, arXiv 1606.03498, with
    the critic's classifier in place of Inception.
    """
    marginal = probabilities.mean(axis=0)
    ratio = np.log(np.clip(probabilities, 1e-300, None)) - np.log(np.clip(marginal, 1e-300, None))
    return float(np.exp((probabilities * ratio).sum(axis=1).mean()))


def picture(pixels: Tensor) -> str:
    """Images ``(N, 3, H, W)`` uint8 in a row, as a PNG in base64."""
    row = pixels.cpu().permute(2, 0, 3, 1).reshape(pixels.shape[2], -1, 3)
    return picture_of(np.ascontiguousarray(row.numpy()))
