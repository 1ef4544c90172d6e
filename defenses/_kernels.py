"""Maximum mean discrepancy between two sets of activations."""

import torch
from torch import Tensor

KERNELS, RATIO = 5, 2.0
"""Gaussian kernels, and how much wider each is than the one before."""


def mmd(one: Tensor, other: Tensor) -> Tensor:
    """Biased squared maximum mean discrepancy under a sum of `KERNELS` Gaussian kernels.

    The middle kernel's bandwidth is the mean squared distance between distinct points.

    Args:
        one: ``(N, D)``, or with more dimensions that are flattened.
        other: As ``one``, with the same N.
    """
    points = torch.cat([one.flatten(1), other.flatten(1)])
    squares = points.square().sum(1)
    distances = (squares[:, None] + squares - 2 * points @ points.T).clamp_min(0)
    count = len(points)
    middle = distances.detach().sum() / (count**2 - count)
    widths = [middle * RATIO ** (k - KERNELS // 2) for k in range(KERNELS)]
    kernel = torch.stack([torch.exp(-distances / width) for width in widths]).sum(0)
    n = len(one)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()
