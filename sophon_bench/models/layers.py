"""How far a released model's layers are from the undefended model's: scale, and gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sophon_bench.api import Batch, Model, Task
from sophon_bench.results.records import Ratios
from sophon_bench.seeding import seeded


def ratios(
    released: Model, undefended: Model, task: Task, batch: Batch, rng_seed: int
) -> tuple[Ratios, Ratios]:
    """Ratios of the two models over all weights with two or more dimensions outside the head.

    Neither model changes, and no global random state moves.

    Args:
        released: The defended model.
        undefended: The one that it was made from, of the same architecture.
        task: The restricted task, whose loss gradients are taken of.
        batch: Samples of it.
        rng_seed: Of the fresh head that both models get for it, and of dropout.

    Returns:
        Largest singular values of ``weight.flatten(1)``, and gradient norms in train mode, each
        released over undefended. A ratio that is not finite is None, as the largest; both are if
        there is no finite one. Weights that are zero in both models have ratio 1.

    Raises:
        ValueError: If there is no such weight.
    """
    if not _weights(released):
        raise ValueError("layer ratios need a weight with two or more dimensions outside the head")
    models = (released, undefended)
    sigmas = [{name: _sigma(p) for name, p in _weights(model).items()} for model in models]
    gradients = [_gradients(model, task, batch, rng_seed) for model in models]
    return _ratios(*sigmas), _ratios(*gradients)


def _weights(model: Model) -> dict[str, nn.Parameter]:
    head = {id(parameter) for parameter in model.head.parameters()}
    named = model.named_parameters()
    return {name: p for name, p in named if p.ndim >= 2 and id(p) not in head}


@torch.no_grad()
def _sigma(weight: Tensor) -> float:
    """The largest singular value, as the root of the smaller Gram matrix's largest eigenvalue."""
    if not weight.isfinite().all():
        return math.nan
    matrix = weight.double().flatten(1)
    matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    # eigenvalues of a zero matrix may come out a rounding below zero
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1])))


def _gradients(model: Model, task: Task, batch: Batch, rng_seed: int) -> Mapping[str, float]:
    model = copy.deepcopy(model).requires_grad_(True).train()
    model.fresh_head(task.num_outputs, torch.Generator().manual_seed(rng_seed))
    with seeded(rng_seed, batch.inputs.device), torch.enable_grad():
        task.loss(model, batch).backward()
    weights = _weights(model)
    return {n: float(p.grad.double().norm()) for n, p in weights.items() if p.grad is not None}


def _ratios(released: Mapping[str, float], undefended: Mapping[str, float]) -> Ratios:
    found = {
        name: _ratio(released[name], undefended[name])
        for name in released.keys() & undefended.keys()
    }
    wild = sorted(name for name, ratio in found.items() if not math.isfinite(ratio))
    finite = sorted((ratio, name) for name, ratio in found.items() if math.isfinite(ratio))
    smallest, smallest_at = finite[0] if finite else (None, wild[0])
    largest, largest_at = (None, wild[0]) if wild else finite[-1]
    return Ratios(
        smallest=smallest, smallest_at=smallest_at, largest=largest, largest_at=largest_at
    )


def _ratio(one: float, other: float) -> float:
    if one == other == 0:
        return 1.0
    return one / other if other > 0 else math.nan
