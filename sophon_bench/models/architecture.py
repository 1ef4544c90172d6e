"""What the models of a run are built by, and what timm's and diffusers' have in common."""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from sophon_bench.api import Model
from sophon_bench.plugins.failures import BadInput

Precision = Literal["fp32", "bf16"]
Compile = Literal["off", "default", "reduce-overhead", "max-autotune"]
"""How the body is compiled: not at all, or in one of `torch.compile`'s modes; CUDA graphs in the
last two."""


class BackboneError(BadInput, ValueError):
    """A backbone that does not exist, or cannot be built or trained as asked; one line."""


class Architecture(Protocol):
    """A timm classifier, or a denoising U-Net.

    Attributes:
        task: The name of the tasks that it is for.
        label: The selector for it.
    """

    @property
    def task(self) -> str: ...

    @property
    def label(self) -> str: ...

    def __hash__(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """Name and parameters as plain JSON."""
        ...

    def build(
        self,
        num_outputs: int,
        rng: torch.Generator,
        *,
        precision: Precision = "fp32",
        fresh: bool = False,
    ) -> Model:
        """A model on the CPU in train mode with every parameter trainable.

        Args:
            num_outputs: Width of the head's output; of a denoiser, channels of the images.
            rng: CPU generator that the weights are drawn from; no global generator moves.
            precision: ``bf16`` runs the model under autocast; weights and outputs stay float32.
            fresh: Whether to draw all weights even if the backbone starts from published ones.

        Raises:
            BackboneError: If it cannot be built of its parameters, or its weights cannot be had.
        """
        ...

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in the scale that models take.

        Args:
            pixels: ``(N, 3, H, W)`` uint8.

        Returns:
            ``(N, 3, H, W)`` float32 in channels-last order.
        """
        ...

    def check(self, image_size: int, num_outputs: int) -> None:
        """Fail early and in words if such images or outputs are not for it.

        Args:
            image_size: Height and width of the images, in pixels.
            num_outputs: Width of the head's output.

        Raises:
            BackboneError: With what the backbone takes instead, as far as is known.
        """
        ...


class DetachedModel(Model):
    """A library's module with its last layer beside it, which is the head.

    Attributes:
        body: The library's module; where its last layer was, what the head sees passes through.
        head: That layer.
        passed: What the head sees passes through: a place to count passes where the body is
            compiled, and its modules are not called one by one.
        precision: ``fp32``, or ``bf16`` for autocast; the result is float32 either way.
        num_outputs: Width of the head's output.
    """

    def __init__(
        self, body: nn.Module, head: nn.Module, num_outputs: int, precision: Precision
    ) -> None:
        super().__init__()
        if precision not in get_args(Precision):
            known = " or ".join(get_args(Precision))
            raise BackboneError(f"unknown precision {precision!r}; expected {known}")
        self.precision = precision
        self._num_outputs = num_outputs
        self.head = head
        self.body: Any = body
        self.passed = nn.Identity()
        self.requires_grad_(True).train()

    @property
    def num_outputs(self) -> int:
        return self._num_outputs

    def _autocast(self, inputs: Tensor) -> torch.autocast:
        enabled = self.precision == "bf16"
        return torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _cast(self, outputs: Tensor) -> Tensor:
        return outputs.float() if self.precision == "bf16" else outputs

    def _set_head(self, head: nn.Module, num_outputs: int) -> None:
        """Replace the head by one that was drawn just now."""
        self.head = head
        self.drawn_head = tuple(p.detach().clone() for p in head.parameters())
        self._num_outputs = num_outputs


def check_pixels(pixels: Tensor) -> None:
    """See that pixels are uint8 of shape ``(N, 3, H, W)``.

    Raises:
        BackboneError: If they are not.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise BackboneError(
            f"expected uint8 pixels of shape (N, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}"
        )
