"""Optimizers, schedules and parameter scopes by name, and the plain loop that pre-training uses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench.api import Batch, Domain, Incompatible, Model

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


_FUSED = ("adagrad", "adam", "adamw")
"""Where one kernel does the whole update several times as fast; SGD gains nothing by it."""


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, lr: float, decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer called ``name``; momentum and Nesterov use 0.9, the rest torch's defaults.

    Args:
        lr: Step size, positive.
        decay: L2 penalty (decoupled for ``adamw``), at least 0.
    """
    how = {"fused": True} if name in _FUSED else {"foreach": True}
    return _OPTIMIZERS[name](list(parameters), lr=lr, weight_decay=decay, **how)


ScheduleName = Literal["constant", "cosine", "one-cycle", "warm-up"]

WARM_UP = 20
"""Updates that ``warm-up`` takes where the number of steps is not known."""


def make_schedule(
    name: ScheduleName, optimizer: torch.optim.Optimizer, *, steps: int | None
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule called ``name`` over ``steps`` updates.

    ``warm-up`` rises linearly over the first tenth of ``steps`` (the first 20 updates where that
    is None) and then stays.

    Raises:
        ValueError: If the schedule has a length and ``steps`` is None.
    """
    check_schedule(name, steps)
    length = 10 * WARM_UP if steps is None else steps
    if name == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
    if name == "warm-up":
        rise = math.ceil(length / 10)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / rise))
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length)
    peak = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=length)


def check_schedule(name: ScheduleName, steps: int | None) -> None:
    """See that a schedule that ends knows when.

    Raises:
        ValueError: If it does not.
    """
    if name in ("cosine", "one-cycle") and steps is None:
        raise ValueError(f"schedule={name} needs steps=N, the length of the schedule")


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


ScopeName = Literal["all", "head", "blocks", "norm", "bias"]


def last_blocks(model: Model, count: int) -> list[tuple[str, nn.Module]]:
    """The end of the body, from its ``count``-th last block that has weight matrices.

    A final normalisation that stands as a block of its own comes along and is not counted.

    Raises:
        Incompatible: If the model has fewer such blocks.
    """
    blocks = model.blocks()
    starts = [i for i, (_, b) in enumerate(blocks) if any(p.ndim > 1 for p in b.parameters())]
    if not 1 <= count <= len(starts):
        raise Incompatible(f"the model has {len(starts)} blocks, not {count}; choose from 1 up")
    return blocks[starts[-count] :]


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation layer, torch's or one of timm's own."""
    known = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    leaf = not any(True for child in module.children() if any(True for _ in child.parameters()))
    return isinstance(module, known) or (leaf and "norm" in type(module).__name__.lower())


def scope_parameters(model: Model, scope: ScopeName, *, count: int = 1) -> list[nn.Parameter]:
    """Parameters to move, each once: those of ``scope``, and always those of the head.

    Args:
        scope: ``all``; ``head`` alone; the last ``blocks``; the gains and biases of ``norm``
            layers; every ``bias``.
        count: How many blocks from the end ``blocks`` means.

    Raises:
        Incompatible: If the body has nothing of the kind, or fewer blocks.
    """
    head = {id(p): p for p in model.head.parameters()}
    if scope == "all":
        body = list(model.parameters())
    elif scope == "head":
        return list(head.values())
    elif scope == "blocks":
        body = [p for _, block in last_blocks(model, count) for p in block.parameters()]
    elif scope == "norm":
        body = [p for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)]
    else:
        body = [p for name, p in model.named_parameters() if name.endswith("bias")]
    chosen = {id(p): p for p in body}
    if chosen.keys() <= head.keys():
        raise Incompatible(f"scope={scope} finds no parameter in the body of this model")
    return list((chosen | head).values())


def move_only(model: Model, scope: ScopeName, *, count: int = 1) -> list[nn.Parameter]:
    """Freeze every parameter but those of ``scope``, and return these; as `scope_parameters`."""
    moving = scope_parameters(model, scope, count=count)
    model.requires_grad_(False)
    for parameter in moving:
        parameter.requires_grad_(True)
    return moving


def descend(
    loss: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    parameters: Iterable[nn.Parameter],
    *,
    optimizer: OptimizerName,
    lr: float,
    decay: float = 0.0,
    schedule: ScheduleName = "constant",
    steps: int | None = None,
    clip: float | None = None,
) -> Iterator[None]:
    """Follow the gradient of ``loss``: one update per batch, a yield after every one.

    Args:
        lr: Step size, at the peak of the schedule.
        decay: L2 penalty, decoupled for ``adamw``.
        steps: Updates, the length of the schedule; None: as many as there are batches.
        clip: Largest norm of the whole gradient; None: any.
    """
    moving = list(parameters)
    stepper = make_optimizer(optimizer, moving, lr=lr, decay=decay)
    scheduler = make_schedule(schedule, stepper, steps=steps)
    for batch in itertools.islice(batches, steps):
        stepper.zero_grad()
        loss(batch).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(moving, clip)
        stepper.step()
        scheduler.step()
        yield


def train(
    model: Model, domain: Domain, *, steps: int, batch_size: int, lr: float, rng: torch.Generator
) -> Iterator[Model]:
    """Plain training: AdamW, one-cycle, gradient norm clipped at 1; yields after every update.

    Args:
        steps: Updates, the horizon of the schedule.
        lr: Peak step size.
        rng: CPU generator that the batches are drawn from.
    """
    for _ in descend(
        lambda batch: domain.task.loss(model, batch),
        domain.train.batches(batch_size, rng),
        model.parameters(),
        optimizer="adamw",
        lr=lr,
        decay=1e-2,
        schedule="one-cycle",
        steps=steps,
        clip=1.0,
    ):
        yield model
