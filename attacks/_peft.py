"""Shared by the attacks that use peft: which layers are adapted, and the training loop."""

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench.api import AttackView, Incompatible, Model

Module = TypeVar("Module", bound=nn.Module)


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is exactly ``nn.Linear``; a subclass may compute something else."""
    return type(layer) is nn.Linear


def is_dense(layer: nn.Module) -> bool:
    """Whether a layer is exactly ``nn.Linear``, or ``nn.Conv2d`` with one group."""
    return is_linear(layer) or (type(layer) is nn.Conv2d and layer.groups == 1)


def is_weighted(layer: nn.Module) -> bool:
    """Whether a layer is exactly ``nn.Linear``, or ``nn.Conv2d`` with any number of groups."""
    return is_linear(layer) or type(layer) is nn.Conv2d


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is a normalisation layer with gains or biases."""
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm)
    return isinstance(layer, kinds) and any(True for _ in layer.parameters())


def fan_in(layer: nn.Module) -> int:
    """The number of inputs to one output of a linear or convolution layer."""
    weight: Tensor = layer.get_parameter("weight")
    return weight[0].numel()


def sites(model: Model, accepts: Callable[[nn.Module], bool], *, what: str) -> dict[str, nn.Module]:
    """The layers of the body that ``accepts`` selects, by name.

    Args:
        what: Description of these layers, for the error message.

    Raises:
        Incompatible: If there is none.
    """
    found = {
        name: layer
        for name, layer in model.named_modules()
        if name.split(".")[0] != "head" and accepts(layer)
    }
    if not found:
        raise Incompatible(f"the model's body has no {what}")
    return found


def targets(model: Model, accepts: Callable[[nn.Module], bool], *, what: str) -> str:
    """One anchored regular expression that matches the names of `sites`.

    peft matches a list of names by suffix, so it would also adapt other layers with such a suffix.
    """
    return f"^(?:{'|'.join(map(re.escape, sites(model, accepts, what=what)))})$"


def wrap(model: Model, view: AttackView, config: Any) -> Any:
    """Add peft's adapters and a fresh head to ``model``; nothing else is trainable."""
    from peft import get_peft_model

    model.fresh_head(view.task.num_outputs, view.rng)
    seed = int(torch.randint(2**63 - 1, (), generator=view.rng))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft warns about layer types and backbones that it was not written for
        warnings.filterwarnings("ignore", module=r"peft\.")
        torch.default_generator.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    model.head.requires_grad_(True)
    return wrapped


def trainable(wrapped: nn.Module) -> list[nn.Parameter]:
    """The parameters of the adapters and the head."""
    return [p for p in wrapped.parameters() if p.requires_grad]


def tune(
    model: Model, view: AttackView, config: Any, *, lr: float, batch_size: int
) -> Iterator[nn.Module]:
    """Train adapters and head with Adam; yields the wrapped model after every update.

    Args:
        config: peft's configuration, with `targets` as its ``target_modules``.
        lr: Step size.
        batch_size: Examples per update, or all if there are fewer.
    """
    yield from train(wrap(model, view, config), view, lr=lr, batch_size=batch_size)


def train(
    wrapped: Module,
    view: AttackView,
    *,
    lr: float,
    batch_size: int,
    penalty: Callable[[], Tensor] | None = None,
) -> Iterator[Module]:
    """Train all trainable parameters with Adam; yields after every update, with gradients in place.

    Args:
        lr: Step size.
        batch_size: Examples per update, or all if there are fewer.
        penalty: A term to add to the task's loss.
    """
    optimizer = torch.optim.Adam(trainable(wrapped), lr=lr)
    for batch in view.batches(batch_size):
        optimizer.zero_grad()
        loss = view.task.loss(wrapped, batch)
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        yield wrapped


def skewness(wrapped: nn.Module, *, weight: float) -> Tensor:
    """``weight`` times the mean distance of AdaLoRA's factors from orthonormality."""
    factors = [
        p if "lora_A" in name else p.T
        for name, p in wrapped.named_parameters()
        if "lora_A" in name or "lora_B" in name
    ]
    apart = [torch.dist(f @ f.T, torch.eye(len(f), device=f.device)) for f in factors]
    return weight * torch.stack(apart).mean()
