"""Random image augmentation, computed on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sophon_bench.api import Incompatible


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Shift, rotate and zoom each image, and erase a square in half of them.

    Images are not mirrored, which would turn digits and letters into other characters. Pixels from
    beyond the border are filled by reflection.

    Args:
        distortion: Largest shift, as a fraction of the image; also the largest relative change of
            size, and the largest rotation in radians.
        erase: Side of the erased square, as a fraction of the image; the square is set to the mean
            colour.
    """

    distortion: float
    erase: float

    def __call__(self, inputs: Tensor, rng: torch.Generator) -> Tensor:
        """A random view of each image in ``(B, C, H, W)``, drawn from the CPU generator ``rng``.

        Raises:
            Incompatible: If the inputs are not images.
        """
        if inputs.ndim != 4:
            raise Incompatible(f"augmentation needs images, inputs are {tuple(inputs.shape)}")
        count, _, height, width = inputs.shape
        draws = torch.rand(7, count, generator=rng).to(inputs.device) * 2 - 1
        angle = draws[0] * self.distortion
        scale = 1 + draws[1] * self.distortion
        x, y = 2 * self.distortion * draws[2:4]  # an image is 2 wide in grid coordinates
        cos, sin = angle.cos() * scale, angle.sin() * scale
        matrix = torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(count, 2, 3)
        grid = functional.affine_grid(matrix, [count, 1, height, width], align_corners=False)
        moved = functional.grid_sample(
            inputs, grid.to(inputs.dtype), padding_mode="reflection", align_corners=False
        )
        rows = torch.linspace(-1, 1, height, device=inputs.device)
        columns = torch.linspace(-1, 1, width, device=inputs.device)
        hit = (rows - draws[4, :, None]).abs()[:, :, None] < self.erase
        hit = hit & ((columns - draws[5, :, None]).abs()[:, None, :] < self.erase)
        hit = hit & (draws[6] > 0)[:, None, None]
        return moved.masked_fill(hit[:, None], 0.0)
