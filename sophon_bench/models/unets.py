"""diffusers -> `Model`: a denoising U-Net as a body with a detachable head."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from sophon_bench.api import Incompatible
from sophon_bench.models.architecture import (
    BackboneError,
    DetachedModel,
    Precision,
    check_pixels,
)
from sophon_bench.plugins.registry import Registry
from sophon_bench.plugins.selectors import Trial, check_parameters, construct
from sophon_bench.seeding import seeded_from

NAME = "unet"


_registry = Registry("backbone")


@_registry.register(NAME)
@dataclass(frozen=True)
class UNet:
    """diffusers' `UNet2DModel`.

    Args:
        channels: Of each level; every level after the first halves height and width.
        layers: Residual blocks per level on the way down, and one more on the way up.
        attention: Whether the lowest level has self-attention besides the middle.
        groups: Of group normalisation; divides every number of channels.
    """

    channels: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (16, 32, 64)
    layers: Annotated[int, Ge(1)] = 1
    attention: bool = True
    groups: Annotated[int, Ge(1)] = 8

    task: ClassVar[str] = "denoising"

    def __post_init__(self) -> None:
        for count in self.channels:
            if count % self.groups:
                raise ValueError(
                    f"channels have to be multiples of groups={self.groups}; got {count}"
                )

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> UNet:
        """A U-Net from a dict of plain values.

        Raises:
            SelectorError: For a parameter that there is not, or a value that it does not take.
        """
        entry = _registry.get(NAME)
        check_parameters(entry, parameters)
        made: UNet = construct(entry, parameters)
        return made

    @property
    def label(self) -> str:
        """The selector, of what is no default: ``unet[channels=[32,64]]``."""
        return Trial(_registry.get(NAME), self).label

    def identity(self) -> dict[str, Any]:
        return {"name": NAME, "parameters": Trial(_registry.get(NAME), self).parameters}

    def build(
        self,
        num_outputs: int,
        rng: torch.Generator,
        *,
        precision: Precision = "fp32",
        fresh: bool = False,  # noqa: ARG002
    ) -> UNetModel:
        levels = len(self.channels)
        with seeded_from(rng):
            body = _diffusers().UNet2DModel(
                in_channels=num_outputs,
                out_channels=num_outputs,
                block_out_channels=self.channels,
                layers_per_block=self.layers,
                norm_num_groups=self.groups,
                attention_head_dim=self.groups,
                down_block_types=self._kinds("Down", range(levels)),
                up_block_types=self._kinds("Up", reversed(range(levels))),
            )
        return UNetModel(body, num_outputs, precision=precision)

    def _kinds(self, way: Literal["Down", "Up"], levels: Iterable[int]) -> tuple[str, ...]:
        lowest = len(self.channels) - 1
        return tuple(
            f"{'Attn' if self.attention and level == lowest else ''}{way}Block2D"
            for level in levels
        )

    def normalize(self, pixels: Tensor) -> Tensor:
        """As `Architecture.normalize`, in [-1, 1]."""
        check_pixels(pixels)
        return pixels.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)

    def check(self, image_size: int, num_outputs: int) -> None:
        """As `Architecture.check`: images are halved once for each level after the first."""
        step = 2 ** (len(self.channels) - 1)
        if image_size < step or image_size % step:
            below, above = image_size // step * step, -(-image_size // step) * step
            near = " or ".join(f"--image-size {size}" for size in (below, above) if size > 0)
            raise BackboneError(
                f"backbone {self.label!r} halves images {len(self.channels) - 1} times, and "
                f"{image_size}x{image_size} cannot be; try {near}"
            )
        self.build(num_outputs, torch.Generator().manual_seed(0))


def _diffusers() -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise BackboneError(
            f"a denoising U-Net is made by diffusers, and there is no {error.name}; "
            "in a clone of the repository, pip install '.[gen]'"
        ) from error
    return diffusers


class UNetModel(DetachedModel):
    """A `UNet2DModel`, which is taken apart; its last convolution works on ``(B, D, H, W)``."""

    def __init__(self, body: Any, num_outputs: int, *, precision: Precision = "fp32") -> None:
        head: nn.Module = body.conv_out
        body.conv_out = nn.Identity()
        super().__init__(body, head, num_outputs, precision)

    def forward(self, inputs: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Predicted noise ``(B, C, H, W)``.

        Args:
            inputs: Noisy images ``(B, C, H, W)``.
            timesteps: ``(B,)``; None: 0 for all, to see what a pass costs.
        """
        if timesteps is None:
            timesteps = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
        with self._autocast(inputs):
            seen: Tensor = self.passed(self.body(inputs, timesteps, return_dict=False)[0])
            return self._cast(self.head(seen))

    def features(self, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """There are none.

        Raises:
            Incompatible: Always: what the head of a denoiser sees is an image.
        """
        raise Incompatible("a denoiser has no feature vectors: its head sees images")

    def fresh_head(self, num_outputs: int, rng: torch.Generator) -> None:
        """Replace the last convolution by one drawn from ``rng``, on the CPU.

        Raises:
            Incompatible: For another number of channels: images come in with the body's.
        """
        if num_outputs != self._num_outputs:
            raise Incompatible(
                f"a denoiser of {self._num_outputs} channels predicts noise of as many; "
                f"got {num_outputs}"
            )
        old = self.head
        assert isinstance(old, nn.Conv2d)
        with seeded_from(rng):
            drawn = nn.Conv2d(old.in_channels, num_outputs, 3, padding=1)
        # a copy goes on being counted: here a head is more than a per cent of a pass
        head = copy.deepcopy(old).requires_grad_(True).train()
        head.load_state_dict(drawn.state_dict())
        self._set_head(head, num_outputs)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Levels on the way down, the middle, levels on the way up, as ``(path, module)``."""
        body = self.body
        return [
            ("body.conv_in", body.conv_in),
            *((f"body.down_blocks.{i}", b) for i, b in enumerate(body.down_blocks)),
            ("body.mid_block", body.mid_block),
            *((f"body.up_blocks.{i}", b) for i, b in enumerate(body.up_blocks)),
            ("body.conv_norm_out", body.conv_norm_out),
        ]
