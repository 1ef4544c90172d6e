"""Optimizers, schedules and parameter scopes by name, and the plain loop that pre-training uses."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sophon_bench.api import Batch, Domain, Incompatible, Model, Task
from sophon_bench.fused_sgd import FusedSGD, aligned

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


_FUSED = {
    **dict.fromkeys(("sgd", "momentum", "nesterov", "adam", "adamw"), ("cpu", "cuda")),
    "adagrad": ("cpu",),
}
"""Where one kernel does the whole update; of the others, torch takes several weights at once on a
GPU, and on a CPU one after the other, which is as fast there."""


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, lr: float, decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer called ``name``; momentum and Nesterov use 0.9, the rest torch's defaults.

    ``decay`` is an L2 penalty, decoupled for ``adamw``.
    """
    return _optimizer(name, [{"params": list(parameters), "lr": lr, "weight_decay": decay}])


def _optimizer(name: OptimizerName, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    kinds = {(p.device.type, p.dtype) for group in groups for p in group["params"]}
    if len(kinds) != 1 or kinds.pop()[0] not in _FUSED.get(name, ()):
        return _OPTIMIZERS[name](groups)
    if name in ("sgd", "momentum", "nesterov"):
        return FusedSGD(groups, momentum=0.0 if name == "sgd" else 0.9, nesterov=name == "nesterov")
    optimizer = _OPTIMIZERS[name](groups, fused=True)
    optimizer.register_step_pre_hook(_align)
    return optimizer


def _align(optimizer: torch.optim.Optimizer, *_arguments: Any) -> None:
    """Lay all gradients out as their parameters are."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = aligned(parameter.grad, parameter)


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
    """Raise ValueError if a schedule that ends does not know when."""
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


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Normalisation by statistics of a batch; timm's own are of these classes as well."""


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation layer, torch's or one of timm's own."""
    known = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
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


def descend_many(
    model: Model,
    task: Task,
    batches: Iterable[Batch],
    moving: Sequence[nn.Parameter],
    *,
    optimizer: OptimizerName,
    lrs: Sequence[float],
    decays: Sequence[float],
    schedule: ScheduleName = "constant",
    steps: int | None = None,
    clip: float | None = None,
) -> Iterator[list[Model]]:
    """As `descend`, for several step sizes and penalties at once; yields a model for each.

    All begin as ``model`` is and see the same batches and the same dropout, as each would alone.
    """
    together = _Together(model, moving, len(lrs))
    groups = [
        {"params": own, "lr": lr, "weight_decay": decay}
        for own, lr, decay in zip(together.moving, lrs, decays, strict=True)
    ]
    stepper = _optimizer(optimizer, groups)
    scheduler = make_schedule(schedule, stepper, steps=steps)
    for batch in itertools.islice(batches, steps):
        together.differentiate(task, batch)
        for own in together.moving if clip is not None else ():
            nn.utils.clip_grad_norm_(own, clip)  # type: ignore[arg-type]
        stepper.step()
        scheduler.step()
        yield together.members


class _Together:
    """Copies of a model side by side: one pass moves all of them.

    Attributes:
        members: The copies; their weights and buffers are slices of stacked ones.
        moving: For each, its parameters that are trained.
    """

    def __init__(self, model: Model, moving: Sequence[nn.Parameter], count: int) -> None:
        chosen = {id(parameter) for parameter in moving}
        self.model = model
        self.members = [copy.deepcopy(model) for _ in range(count)]
        self.moving: list[list[nn.Parameter]] = [[] for _ in range(count)]
        self._weights: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}
        own = [dict(member.named_parameters()) for member in self.members]
        for name, parameter in model.named_parameters():
            if id(parameter) not in chosen:
                self._fixed[name] = parameter.detach()
                continue
            stacked = torch.stack([parameter.detach()] * count)
            self._weights[name] = stacked.requires_grad_()
            for mine, found, part in zip(own, self.moving, self._weights[name], strict=True):
                mine[name].data = part.detach()
                found.append(mine[name])
        self._buffers = {n: torch.stack([b] * count) for n, b in model.named_buffers()}
        for name, stacked in self._buffers.items():
            path, _, leaf = name.rpartition(".")
            for member, part in zip(self.members, stacked, strict=True):
                setattr(member.get_submodule(path), leaf, part)

    def differentiate(self, task: Task, batch: Batch) -> None:
        """Give every copy's moving parameters the gradient of its own loss on ``batch``."""

        def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            tensors = {**self._fixed, **weights, **buffers}
            return task.loss(lambda *inputs: functional_call(self.model, tensors, inputs), batch)

        with warnings.catch_warnings():
            # whether doing without a rule is too slow is measured before anything is run at once
            warnings.filterwarnings("ignore", "There is a performance drop")
            losses = vmap(loss, randomness="same")(self._weights, self._buffers)
        gradients = torch.autograd.grad(losses.sum(), list(self._weights.values()))
        for parts, *parameters in zip(gradients, *self.moving, strict=True):
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part


def train(
    model: Model, domain: Domain, *, steps: int, batch_size: int, lr: float, rng: torch.Generator
) -> Iterator[Model]:
    """AdamW, one-cycle over ``steps`` updates with peak ``lr``, gradient norm clipped at 1."""
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
