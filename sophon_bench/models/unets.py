"""diffusers -> `Model`: a denoising U-Net as a body with a detachable head."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from sophon_bench.api import Incompatible, Model
from sophon_bench.models.backbones import BackboneError, Precision
from sophon_bench.plugins.registry import unknown
from sophon_bench.plugins.selectors import format_selector
from sophon_bench.seeding import seeded_from

NAME = "unet"


@dataclass(frozen=True)
class UNet:
    """diffusers' `UNet2DModel`.

    Args:
        channels: Of each level; every level after the first halves height and width.
        layers: Residual blocks per level on the way down, and one more on the way up.
        attention: Whether the lowest level has self-attention besides the middle.
        groups: Of group normalisation; divides every number of channels.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    layers: int = 1
    attention: bool = True
    groups: int = 8

    task: ClassVar[str] = "denoising"

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> UNet:
        """A U-Net from a dict of plain values; lists become tuples.

        Raises:
            BackboneError: For a parameter that there is not, or a value that it does not take.
        """
        known = {field.name: field.type for field in fields(cls)}
        for key in parameters.keys() - known.keys():
            raise BackboneError(unknown("parameter of backbone unet", key, known))
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()
        }
        made = cls(**values)
        made._check_values()
        return made

    def _check_values(self) -> None:
        channels = self.channels
        if not (isinstance(channels, tuple) and channels and all(_count(c) for c in channels)):
            raise BackboneError(
                f"channels of unet has to be a list of counts such as [16,32,64]; got {channels!r}"
            )
        for name in ("layers", "groups"):
            if not _count(getattr(self, name)):
                raise BackboneError(
                    f"{name} of unet has to be a whole number from 1; got {getattr(self, name)!r}"
                )
        if not isinstance(self.attention, bool):
            raise BackboneError(f"attention of unet is true or false; got {self.attention!r}")
        for count in channels:
            if count % self.groups:
                raise BackboneError(
                    f"channels of unet have to be multiples of groups={self.groups}; got {count}"
                )

    @property
    def label(self) -> str:
        """The selector, of what is no default: ``unet[channels=[32,64]]``."""
        changed = {
            field.name: _plain(getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return format_selector(NAME, changed)

    def identity(self) -> dict[str, Any]:
        """Name and parameters as plain JSON."""
        parameters = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {"name": NAME, "parameters": parameters}

    def build(
        self,
        num_outputs: int,
        rng: torch.Generator,
        *,
        precision: Precision = "fp32",
        fresh: bool = False,  # noqa: ARG002
    ) -> UNetModel:
        """A model on the CPU in train mode with every parameter trainable.

        Args:
            num_outputs: Channels of the images.
            rng: CPU generator that the weights are drawn from; no global generator moves.
            precision: ``bf16`` runs the model under autocast; weights and outputs stay float32.
            fresh: No matter: there are no published weights.

        Raises:
            BackboneError: If diffusers is not installed, or refuses the parameters.
        """
        if precision not in get_args(Precision):
            known = " or ".join(get_args(Precision))
            raise BackboneError(f"unknown precision {precision!r}; expected {known}")
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
        model = UNetModel(body, num_outputs, precision=precision)
        return model.requires_grad_(True).train()

    def _kinds(self, way: Literal["Down", "Up"], levels: Any) -> tuple[str, ...]:
        lowest = len(self.channels) - 1
        return tuple(
            f"{'Attn' if self.attention and level == lowest else ''}{way}Block2D"
            for level in levels
        )

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels ``(N, 3, H, W)`` uint8 as float32 in [-1, 1], in channels-last order."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise BackboneError(
                f"expected uint8 pixels of shape (N, 3, H, W), got {pixels.dtype} "
                f"{tuple(pixels.shape)}"
            )
        return pixels.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)

    def check(self, image_size: int, num_outputs: int) -> None:
        """See that images of this size can be halved as often as the levels ask, and be trained on.

        Raises:
            BackboneError: If not, with sizes that can.
        """
        step = 2 ** (len(self.channels) - 1)
        if image_size < step or image_size % step:
            below, above = image_size // step * step, -(-image_size // step) * step
            near = " or ".join(f"--image-size {size}" for size in (below, above) if size > 0)
            raise BackboneError(
                f"backbone {self.label!r} halves images {len(self.channels) - 1} times, and "
                f"{image_size}x{image_size} cannot be; try {near}"
            )
        self.build(num_outputs, torch.Generator().manual_seed(0))


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _diffusers() -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise BackboneError(
            f"a denoising U-Net is made by diffusers, and there is no {error.name}; "
            f"pip install 'sophon-bench[gen]'"
        ) from error
    return diffusers


class UNetModel(Model):
    """A U-Net, its last convolution detached.

    Attributes:
        body: diffusers' module; where its last convolution was, what it saw passes through.
        head: That convolution, on ``(B, D, H, W)``.
        passed: What goes to the head passes through: a place to count passes of a compiled body.

    Args:
        body: A `UNet2DModel`, which is taken apart.
        num_outputs: Channels of the images.
        precision: What is computed in; the result is float32 either way.
    """

    def __init__(self, body: Any, num_outputs: int, *, precision: Precision = "fp32") -> None:
        super().__init__()
        self.precision = precision
        self._num_outputs = num_outputs
        self.head: nn.Module = body.conv_out
        body.conv_out = nn.Identity()
        self.body = body
        self.passed = nn.Identity()

    @property
    def num_outputs(self) -> int:
        return self._num_outputs

    def forward(self, inputs: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Predicted noise ``(B, C, H, W)``.

        Args:
            inputs: Noisy images ``(B, C, H, W)``.
            timesteps: ``(B,)``; None: 0 for all, to see what a pass costs.
        """
        if timesteps is None:
            timesteps = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
        enabled = self.precision == "bf16"
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=enabled):
            seen: Tensor = self.passed(self.body(inputs, timesteps, return_dict=False)[0])
            outputs: Tensor = self.head(seen)
        return outputs.float() if enabled else outputs

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
        self.head = copy.deepcopy(old).requires_grad_(True).train()
        self.head.load_state_dict(drawn.state_dict())
        self.drawn_head = tuple(p.detach().clone() for p in self.head.parameters())

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Levels on the way down, the middle, levels on the way up, as ``(path, module)``."""
        levels: list[tuple[str, nn.Module]] = [
            *((f"body.down_blocks.{i}", b) for i, b in enumerate(self.body.down_blocks)),
            ("body.mid_block", self.body.mid_block),
            *((f"body.up_blocks.{i}", b) for i, b in enumerate(self.body.up_blocks)),
        ]
        first: Sequence[tuple[str, nn.Module]] = [("body.conv_in", self.body.conv_in)]
        return [*first, *levels, ("body.conv_norm_out", self.body.conv_norm_out)]
