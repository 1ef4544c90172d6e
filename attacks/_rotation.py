"""Block rotations of weights, as a parametrization.

Not from peft: it mistakes the inputs of ConvNeXt's linear layers for those of convolutions, and its
BOFT multiplies dense matrices as wide as a convolution's fan-in, which costs more than training
all weights.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sophon_bench.api import AttackView, Model

from . import _peft


class Rotation(nn.Module):
    """Rotates a weight's inputs block by block and rescales its outputs; starts as the identity.

    Every rotation is the Cayley transform (1 + A)⁻¹(1 - A) of a skew-symmetric A. In odd factors,
    counted from 1, a block holds neighbouring inputs; in even factors, it holds one input from each
    of many blocks.

    Args:
        weight: Of a linear or convolution layer, ``(out, ...)``.
        block: Size of a rotation, a divisor of the fan-in.
        factors: Number of rotations, applied one after another to all inputs.
        gains: Whether to rescale the outputs.
    """

    order: Tensor

    def __init__(self, weight: Tensor, *, block: int, factors: int, gains: bool) -> None:
        super().__init__()
        blocks = weight[0].numel() // block
        self.free = nn.Parameter(weight.new_zeros(factors, blocks, block, block))
        ones = weight.new_ones(len(weight), *(1 for _ in weight.shape[1:]))
        self.gain = nn.Parameter(ones) if gains else None
        order = torch.arange(blocks * block, device=weight.device)
        self.register_buffer("order", order.reshape(blocks, block).T.reshape(-1))

    def forward(self, weight: Tensor) -> Tensor:
        """The rotated and rescaled weight, shaped as ``weight``."""
        skew = self.free - self.free.mT
        eye = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype)
        rows = weight.reshape(len(weight), -1)
        for index, turn in enumerate(torch.linalg.solve(eye + skew, eye - skew)):
            mixed = rows[:, self.order] if index % 2 else rows
            blocks = mixed.reshape(len(rows), *turn.shape[:2])
            turned = torch.einsum("obi,bij->obj", blocks, turn).reshape(rows.shape)
            rows = turned[:, self.order.argsort()] if index % 2 else turned
        rotated = rows.reshape(weight.shape)
        return rotated if self.gain is None else self.gain * rotated


def tune(
    model: Model,
    view: AttackView,
    *,
    block: int,
    factors: int,
    gains: bool,
    lr: float,
    batch_size: int,
) -> Iterator[Model]:
    """Train a fresh head and rotations of all layers with a suitable fan-in, with Adam.

    Raises:
        Incompatible: If no layer's fan-in is a multiple of ``block``.
    """
    sites = _peft.sites(
        model,
        lambda layer: _peft.is_weighted(layer) and _peft.fan_in(layer) % block == 0,
        what=f"linear or convolution layer whose input is a multiple of block={block}",
    )
    model.fresh_head(view.task.num_outputs, view.rng)
    model.requires_grad_(False)
    for layer in sites.values():
        weight = layer.get_parameter("weight")
        rotation = Rotation(weight, block=block, factors=factors, gains=gains)
        parametrize.register_parametrization(layer, "weight", rotation)
    model.head.requires_grad_(True)
    yield from _peft.train(model, view, lr=lr, batch_size=batch_size)
