"""Exponential moving average of a model's weights."""

import torch

from sophon_bench.api import Model


@torch.no_grad()
def follow(average: Model, model: Model, *, decay: float) -> None:
    """Move ``average`` a fraction ``1 - decay`` towards ``model``; buffers are copied."""
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)
