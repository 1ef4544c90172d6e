"""Shared by gradient-free attacks: a closed-form head, and descent along estimated gradients."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sophon_bench.api import AttackView, Batch, Incompatible, Model

from . import _peft, _probing

Loss = Callable[[Tensor], Tensor]
"""The loss at a point, always on the same batch."""


@torch.no_grad()
def solve_head(model: Model, view: AttackView) -> nn.Linear:
    """A head from ridge regression of one-hot targets on standardised features, scaled to logits.

    The penalty and the scale of the logits are those with the lowest loss on validation.

    Raises:
        Incompatible: If targets are not class ids.
    """
    train, validation = view.train, view.validation
    if train.targets.ndim != 1 or train.targets.is_floating_point():
        raise Incompatible("a head in closed form needs class ids as targets, one per example")
    features, held = (
        torch.cat([_probing.activations(model, x)[-1] for x in part.inputs.split(_probing.BATCH)])
        for part in (train, validation)
    )
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    columns = (features - mean) / deviation
    targets = nn.functional.one_hot(train.targets.cpu(), view.task.num_outputs).double()
    level = targets.mean(0)
    gram, right = columns.T @ columns, columns.T @ (targets - level)
    found = []
    for penalty, scale in itertools.product((1.0, 10.0, 100.0, 1000.0), (3.0, 10.0, 30.0, 100.0)):
        solution = torch.linalg.solve(gram + penalty * torch.eye(len(gram)), right)
        weight = scale * (solution / deviation[:, None]).T
        bias = scale * level - weight @ mean
        loss = nn.functional.cross_entropy(held @ weight.T + bias, validation.targets.cpu())
        found.append((float(loss), penalty, scale, weight, bias))
    _, _, _, weight, bias = min(found, key=lambda entry: entry[0])
    head: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return head.to(view.device)


def descend(
    model: Model,
    view: AttackView,
    estimate: Callable[[Loss, Tensor], Tensor],
    *,
    lr: float,
    batch_size: int,
) -> Iterator[Model]:
    """Train the gains and biases of normalisation, and a closed-form head, by estimated gradients.

    Points are in units of each tensor's root mean square. Adam takes the steps; each yields the
    point with the lowest validation loss so far. BatchNorm's statistics stay as released.

    Args:
        estimate: Estimates the gradient of a loss at a point from values of the loss alone.
        lr: Step size.
        batch_size: Examples per gradient estimate, or all if there are fewer.
    """
    model.eval().requires_grad_(False)
    model.head = solve_head(model, view).requires_grad_(False)
    yield model
    norms = [m for m in model.modules() if _peft.is_norm(m)]
    moving = [p for m in (*norms, model.head) for p in m.parameters(recurse=False)]
    start = parameters_to_vector(moving)
    # a bias that is zero everywhere has no scale of its own
    sizes = [p.square().mean().sqrt().clamp_min(1e-2).expand(p.numel()) for p in moving]
    unit = torch.cat(sizes)
    point = torch.zeros_like(start)
    optimizer = torch.optim.Adam([point], lr=lr)

    @torch.no_grad()
    def loss_at(place: Tensor, batch: Batch) -> Tensor:
        vector_to_parameters(start + unit * place, moving)
        return view.task.loss(model, batch)

    held = Batch(view.validation.inputs, view.validation.targets)
    best, lowest = point.clone(), loss_at(point, held)
    for batch in view.batches(batch_size):
        point.grad = estimate(partial(loss_at, batch=batch), point)
        optimizer.step()
        loss = loss_at(point, held)
        best = torch.where(loss < lowest, point, best)
        lowest = torch.minimum(loss, lowest)
        vector_to_parameters(start + unit * best, moving)
        yield model
