"""Optimizers by name, and the plain training loop that pre-training uses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import nn

from sophon_bench.api import Domain, Incompatible, Model

OptimizerName = Literal[
    "sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "adamw"
]

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, **kw: torch.optim.SGD(p, momentum=0.9, **kw),
    "nesterov": lambda p, **kw: torch.optim.SGD(p, momentum=0.9, nesterov=True, **kw),
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, lr: float, decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer called ``name``; momentum and Nesterov use 0.9, the rest torch's defaults.

    Args:
        lr: Step size, positive.
        decay: L2 penalty (decoupled for ``adamw``), at least 0.
    """
    return _OPTIMIZERS[name](list(parameters), lr=lr, weight_decay=decay)


ScheduleName = Literal["constant", "cosine", "one-cycle"]


def make_schedule(
    name: ScheduleName, optimizer: torch.optim.Optimizer, *, steps: int | None
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule called ``name`` over ``steps`` updates.

    Raises:
        ValueError: If the schedule has a length and ``steps`` is None.
    """
    if name == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
    if steps is None:
        raise ValueError(f"schedule {name!r} needs a number of steps")
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    peak = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps)


HeadName = Literal["fresh", "kept"]


def choose_head(model: Model, head: HeadName, *, outputs: int, rng: torch.Generator) -> None:
    """Give the model a fresh head with ``outputs`` outputs, or see that the kept one has as many.

    Raises:
        Incompatible: If the kept head has fewer: targets could not index its outputs.
    """
    if head == "fresh":
        model.fresh_head(outputs, rng)
    elif model.num_outputs < outputs:
        raise Incompatible(
            f"head=kept needs at least {outputs} outputs, the model has {model.num_outputs}"
        )


def train(
    model: Model, domain: Domain, *, steps: int, batch_size: int, lr: float, rng: torch.Generator
) -> Iterator[Model]:
    """Plain training: AdamW, one-cycle, gradient norm clipped at 1; yields after every update.

    Args:
        steps: Updates, the horizon of the schedule.
        lr: Peak step size.
        rng: CPU generator that the batches are drawn from.
    """
    optimizer = make_optimizer("adamw", model.parameters(), lr=lr, decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    for batch in itertools.islice(domain.train.batches(batch_size, rng), steps):
        optimizer.zero_grad()
        domain.task.loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield model
