"""Block-diagonal rotations of weights, as a parametrization."""

import torch
from torch import Tensor, nn


class Rotation(nn.Module):
    """Rotates a weight's inputs block by block and rescales its outputs; nothing at the start.

    A rotation is the Cayley transform (1 + A)⁻¹(1 - A) of a skew-symmetric A.

    Args:
        weight: Of a linear or convolution layer, ``(out, ...)``.
        block: Width of a rotation, a divisor of the inputs of one output.
    """

    def __init__(self, weight: Tensor, block: int) -> None:
        super().__init__()
        blocks = weight[0].numel() // block
        self.free = nn.Parameter(weight.new_zeros(blocks, block, block))
        self.gain = nn.Parameter(weight.new_ones(len(weight), *(1 for _ in weight.shape[1:])))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer works with, shaped as ``weight``."""
        skew = self.free - self.free.mT
        eye = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype)
        turn = torch.linalg.solve(eye + skew, eye - skew)
        blocks = weight.reshape(len(weight), *turn.shape[:2])
        turned = torch.einsum("obi,bij->obj", blocks, turn)
        return self.gain * turned.reshape(weight.shape)
