"""Bottleneck adapters on the blocks of any model, added by forward hooks."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sophon_bench.api import Incompatible, Model

from . import _probing

Form = Literal["sequential", "parallel"]


class Bottleneck(nn.Module):
    """A two-layer bottleneck network on the channels at each position; its output starts at zero.

    Args:
        like: An output of the block; its shape determines which dimension holds the channels.
        rank: Width of the bottleneck.
        rng: CPU generator that the first layer is drawn from; the second starts at zero.
    """

    def __init__(self, like: Tensor, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        self.dim = -1 if _probing.channels_last(like) else 1
        width = like.shape[self.dim]
        self.down = nn.utils.skip_init(nn.Linear, width, rank)
        self.up = nn.utils.skip_init(nn.Linear, rank, width)
        nn.init.normal_(self.down.weight, std=width**-0.5, generator=rng)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)
        self.to(like.device)

    def forward(self, inputs: Tensor) -> Tensor:
        """The term to add to the block's output, from an activation of the same shape."""
        hidden = nn.functional.gelu(self.down(inputs.movedim(self.dim, -1)))
        added: Tensor = self.up(hidden).movedim(-1, self.dim)
        return added


class Adapted(nn.Module):
    """A model with a bottleneck after each of its blocks, or in parallel to it.

    Args:
        model: The model to adapt, by hooks on its blocks; its function is the same at the start.
        sample: Images ``(B, C, H, W)`` for a forward pass that finds the shapes of activations.
        rank: Width of the bottlenecks.
        form: ``parallel`` reads a block's input where that has the shape of the output.
        rng: CPU generator.

    Raises:
        Incompatible: If no block outputs a tensor.
    """

    def __init__(
        self, model: Model, sample: Tensor, *, rank: int, form: Form, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.model = model
        self.adapters = nn.ModuleList()
        blocks = [block for _, block in model.blocks()]
        shapes = _dry_run(model, blocks, sample)
        for block, (before, after) in zip(blocks, shapes, strict=True):
            if after is None or after.ndim < 2:
                continue
            beside = form == "parallel" and before is not None and before.shape == after.shape
            adapter = Bottleneck(after, rank, rng)
            self.adapters.append(adapter)
            block.register_forward_hook(_beside(adapter) if beside else _behind(adapter))
        if not self.adapters:
            raise Incompatible("no block of the model makes a tensor to adapt")

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, K)`` of images ``(B, C, H, W)``."""
        logits: Tensor = self.model(inputs)
        return logits


def _beside(adapter: nn.Module) -> Any:
    return lambda _block, arguments, output: output + adapter(arguments[0])


def _behind(adapter: nn.Module) -> Any:
    return lambda _block, _arguments, output: output + adapter(output)


@torch.no_grad()
def _dry_run(
    model: Model, blocks: Sequence[nn.Module], sample: Tensor
) -> list[tuple[Tensor | None, Tensor | None]]:
    """The first input and the output of each block; None where it is not a tensor."""
    seen: dict[nn.Module, tuple[Tensor | None, Tensor | None]] = {}

    def catch(block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        first = arguments[0] if arguments else None
        seen[block] = (
            first if isinstance(first, Tensor) else None,
            output if isinstance(output, Tensor) else None,
        )

    handles = [block.register_forward_hook(catch) for block in blocks]
    training = model.training
    try:
        model.eval()(sample)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return [seen.get(block, (None, None)) for block in blocks]
