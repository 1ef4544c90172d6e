"""Image classification: cross-entropy to train, accuracy to score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sophon_bench.api import Batch, Predictor, Samples

SCORING_BATCH = {"cpu": 64, "cuda": 512}
"""Examples per forward pass: what a processor's cache holds, and what fills a GPU."""


@dataclass(frozen=True)
class Classification:
    """Tell ``num_outputs`` classes apart.

    A model with more outputs than that (a kept head) is trained and scored over all its outputs;
    the targets index the first ones (SOPHON's direct-all fine-tuning).
    """

    num_outputs: int

    name: ClassVar[str] = "classification"
    utility_name: ClassVar[str] = "accuracy"
    draws: ClassVar[bool] = False

    def predict(self, model: Predictor, inputs: Tensor) -> Tensor:
        """Logits ``(B, K)``.

        Raises:
            ValueError: If the outputs are anything else.
        """
        outputs = model(inputs)
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == len(inputs):
            return outputs
        made = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the predictor made {made} of {len(inputs)} inputs; expected a tensor of shape "
            f"({len(inputs)}, K), one row of logits for each"
        )

    def loss(self, model: Predictor, batch: Batch) -> Tensor:
        """Cross-entropy, averaged over the batch."""
        return F.cross_entropy(self.predict(model, batch.inputs), batch.targets)

    def utility(self, predictor: Predictor, samples: Samples) -> float:
        """Accuracy in [0, 1]; a row of outputs with a NaN counts as wrong."""
        correct = torch.zeros((), dtype=torch.long, device=samples.targets.device)
        size = SCORING_BATCH[samples.targets.device.type]
        for start in range(0, len(samples), size):
            batch = samples[start : start + size]
            outputs = self.predict(predictor, batch.inputs)
            right = (outputs.argmax(dim=1) == batch.targets) & ~outputs.isnan().any(dim=1)
            correct += right.sum()
        return float(correct) / len(samples)

    def trivial_loss(self, samples: Samples) -> None:
        """None: accuracy does not follow from the loss."""
