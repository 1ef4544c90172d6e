"""Second order: differentiate through the inner updates instead of taking them as constants.

The update rules repeat torch's own SGD, SGD with momentum 0.9 and Adam, as functions that
autograd can see through; memory grows with the number of steps.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from sophon_bench.api import Model, Task

from .simulate import Objective, Step, shared_parameters
from .strategies import Strategy

MOMENTUM = 0.9
BETAS = (0.9, 0.999)
EPS = 1e-8


class Moments(NamedTuple):
    """What an optimizer remembers of one parameter: running sums of g and of g squared."""

    first: Tensor
    second: Tensor


def sgd(gradient: Tensor, moments: Moments, step: int) -> tuple[Tensor, Moments]:  # noqa: ARG001
    """The gradient itself."""
    return gradient, moments


def momentum(gradient: Tensor, moments: Moments, step: int) -> tuple[Tensor, Moments]:  # noqa: ARG001
    """The velocity v = 0.9 v + g."""
    velocity = MOMENTUM * moments.first + gradient
    return velocity, moments._replace(first=velocity)


def adam(gradient: Tensor, moments: Moments, step: int) -> tuple[Tensor, Moments]:
    """Running mean over running size, m / (sqrt(v) + eps), both corrected for starting at 0."""
    first = BETAS[0] * moments.first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * moments.second + (1 - BETAS[1]) * gradient**2
    # sqrt has an infinite slope at 0, where a dead unit sits; its update there is m / eps.
    alive = second > 0
    root = torch.where(alive, second, 1.0).sqrt() * alive
    size = root / (1 - BETAS[1] ** step) ** 0.5 + EPS
    return first / (1 - BETAS[0] ** step) / size, Moments(first, second)


RULES = {"sgd": sgd, "momentum": momentum, "adam": adam}


def second_order(
    learner: Model, strategy: Strategy, steps: Iterable[Step], *, task: Task, objective: Objective
) -> list[Tensor]:
    """G over the shared parameters, exact: with d theta_k / d theta in it."""
    rule = RULES[strategy.optimizer]
    names = [name for name, _ in learner.named_parameters()]
    weights: Sequence[Tensor] = list(learner.parameters())
    moments = [Moments(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    total = torch.zeros((), device=weights[0].device)

    def predict(inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(learner, dict(zip(names, weights, strict=True)), inputs)
        return outputs

    for number, (adapt, judge, weight) in enumerate(steps, start=1):
        gradients = torch.autograd.grad(
            task.loss(predict, adapt), weights, create_graph=True, materialize_grads=True
        )
        moved = [rule(g, m, number) for g, m in zip(gradients, moments, strict=True)]
        weights = [w - strategy.lr * update for w, (update, _) in zip(weights, moved, strict=True)]
        moments = [memory for _, memory in moved]
        if weight:
            loss = objective(task.predict(predict, judge.inputs), judge.targets)
            total = total + weight * loss
    wanted = shared_parameters(learner, strategy.head)
    return list(torch.autograd.grad(total, wanted, materialize_grads=True))
