"""Fine-tuning simulation: how suppression gets the gradient of what a fine-tuner would reach.

Deng et al., SOPHON, IEEE S&P 2024, https://arxiv.org/abs/2404.12699. From a copy theta_0 of the
weights theta, a strategy phi takes K steps on adaptation data R_k and is evaluated on T_k::

    theta_k = phi(theta_{k-1}; R_k)        G = sum_k gamma_k  d L_alpha(theta_k; T_k) / d theta

Each step draws its own examples and splits them, so that R_k and T_k are disjoint.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sophon_bench.api import Batch, Model, Samples, Task
from sophon_bench.training import make_optimizer

from .strategies import Head, Strategy

Gamma = Literal["mean", "last"]
Objective = Callable[[Tensor, Tensor], Tensor]
"""L_alpha of outputs and targets."""


class Step(NamedTuple):
    """One inner step: R_k to adapt to, T_k to evaluate on, and the weight gamma_k."""

    adapt: Batch
    judge: Batch
    weight: float


def draw_steps(
    samples: Samples, steps: int, *, adapt: int, judge: int, gamma: Gamma, rng: torch.Generator
) -> Iterator[Step]:
    """``steps`` steps of ``adapt`` and ``judge`` examples, in the same ratio if N is smaller."""
    for k in range(1, steps + 1):
        # A new iterator each time: its first batch lies within one epoch, so no example repeats.
        inputs, targets = next(samples.batches(adapt + judge, rng))
        cut = round(len(inputs) * adapt / (adapt + judge))
        cut = min(max(cut, 1), len(inputs) - 1)
        yield Step(
            adapt=Batch(inputs[:cut], targets[:cut]),
            judge=Batch(inputs[cut:], targets[cut:]),
            weight=1 / steps if gamma == "mean" else float(k == steps),
        )


def shared_parameters(model: Model, head: Head) -> list[nn.Parameter]:
    """The parameters that learner and model share: all, or with a fresh head those of the body."""
    return [t for t in shared_tensors(model, head) if isinstance(t, nn.Parameter)]


def shared_tensors(model: Model, head: Head) -> list[Tensor]:
    """As `shared_parameters`, with the buffers."""
    own = {id(t) for t in _tensors(model.head)} if head == "fresh" else set()
    return [t for t in _tensors(model) if id(t) not in own]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def reset(learner: Model, model: Model, head: Head, *, task: Task, rng: torch.Generator) -> None:
    """Reset the learner to the model's weights, with a new head of its own if ``head`` is fresh."""
    if head == "fresh":
        learner.fresh_head(task.num_outputs, rng)
    with torch.no_grad():
        torch._foreach_copy_(shared_tensors(learner, head), shared_tensors(model, head))
    learner.train()


def first_order(
    learner: Model, strategy: Strategy, steps: Iterable[Step], *, task: Task, objective: Objective
) -> list[Tensor]:
    """G over the shared parameters; gradients are taken at theta_k and applied to theta unchanged.

    A single learner is updated in place, so memory does not grow with the number of steps.
    """
    wanted = shared_parameters(learner, strategy.head)
    optimizer = make_optimizer(strategy.optimizer, learner.parameters(), lr=strategy.lr)
    total = [torch.zeros_like(p) for p in wanted]
    for adapt, judge, weight in steps:
        optimizer.zero_grad()
        torch.autograd.backward(task.loss(learner, adapt))
        optimizer.step()
        if weight:
            loss = weight * objective(task.predict(learner, judge.inputs), judge.targets)
            gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
            torch._foreach_add_(total, gradients)
    return total
