"""Denoising: predict the noise in a noisy image, as diffusion models do.

Ho, Jain, Abbeel, *Denoising diffusion probabilistic models*, NeurIPS 2020, arXiv 2006.11239; the
noise schedule is diffusers' `DDPMScheduler` with the paper's linear beta from 1e-4 to 0.02.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sophon_bench.api import Batch, Incompatible, Predictor, Samples

TIMESTEPS = 1000
"""T, the number of timesteps."""

SCORING_BATCH = {"cpu": 64, "cuda": 512}
"""Noisy images per forward pass."""

SCORING_SEED = 0
"""Of the noises that scores are taken on."""

GENERATION_SEED = 1
"""Of the noises that images are made from."""

GENERATION_STEPS = 20
"""Of DDIM, for an image."""


class Denoiser(Protocol):
    """A predictor that is told the timestep as well."""

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Predicted noise ``(B, C, H, W)`` of noisy images at timesteps ``(B,)``."""
        ...


@dataclass(frozen=True)
class Denoising:
    """Predict the noise epsilon in ``sqrt(a_t) x + sqrt(1 - a_t) epsilon``; targets do not matter.

    Args:
        num_outputs: Channels of the images.
        one_step: Only ever timestep 1, noise of deviation 0.0148, as SOPHON's released code does;
            otherwise all timesteps.
        timesteps: Training draws from the first so many. Scores are of all.
    """

    num_outputs: int = 3
    one_step: bool = False
    timesteps: int = TIMESTEPS

    name: ClassVar[str] = "denoising"
    utility_name: ClassVar[str] = "denoising skill"
    draws: ClassVar[bool] = True

    def predict(self, model: Predictor, inputs: Tensor) -> Tensor:
        """Predicted noise ``(B, C, H, W)`` for images that noise is drawn for.

        Args:
            inputs: ``(B, C, H, W)`` images in [-1, 1].

        Raises:
            Incompatible: If the predictor takes no timesteps.
            ValueError: If the outputs have another shape.
        """
        noise = torch.randn_like(inputs)
        return _predicted(model, *self._noisy(inputs, noise))

    def loss(self, model: Predictor, batch: Batch) -> Tensor:
        """Mean square error of the predicted noise; timesteps and noise are drawn."""
        noise = torch.randn_like(batch.inputs)
        return mse_loss(_predicted(model, *self._noisy(batch.inputs, noise)), noise)

    def utility(self, predictor: Predictor, samples: Samples) -> float:
        """The skill ``1 - MSE / MSE_pixelwise`` of the predicted noise, at most 1.

        ``MSE_pixelwise`` is that of the best estimate for who knows no more than the mean and the
        variance of the pixels (`pixelwise`), on the same noises: the trivial predictor, as chance
        is among classifiers. Timesteps and noises are the same at each call. A prediction that is
        not finite counts as none (0).
        """
        model, trivial = self.errors(predictor, samples)
        return 1 - model / trivial

    def errors(self, predictor: Predictor, samples: Samples) -> tuple[float, float]:
        """Mean square errors of the predictor and of the pixelwise estimate, on fixed noises."""
        inputs = samples.inputs
        statistics = inputs.mean(dim=(0, 2, 3), keepdim=True), inputs.var(correction=0)
        rng = torch.Generator().manual_seed(SCORING_SEED)
        sums = torch.zeros(2, dtype=torch.float64)
        size = SCORING_BATCH[inputs.device.type]
        for start in range(0, len(samples), size):
            images = samples[start : start + size].inputs
            noise = torch.randn(images.shape, generator=rng).to(images)
            timesteps = self._spread(start, len(images)).to(images.device)
            noisy = schedule().add_noise(images, noise, timesteps)
            found = _predicted(predictor, noisy, timesteps).float()
            found = torch.where(found.isfinite(), found, 0.0)
            guess = self.pixelwise(noisy, timesteps, *statistics)
            errors = [(e - noise).double().square().mean() for e in (found, guess)]
            sums += torch.stack(errors).cpu() * len(images)
        model, trivial = (sums / len(samples)).tolist()
        return model, trivial

    def trivial_loss(self, samples: Samples) -> float:
        """``MSE_pixelwise``, of `utility`."""
        return self.errors(_nothing, samples)[1]

    @torch.no_grad()
    def generate(
        self, predictor: Predictor, count: int, image_size: int, device: torch.device
    ) -> Tensor | None:
        """Images ``(count, C, H, W)`` uint8 by deterministic DDIM from fixed noise.

        Song, Meng, Ermon, *Denoising diffusion implicit models*, ICLR 2021, arXiv 2010.02502, with
        `GENERATION_STEPS` of the timesteps; noise that is not finite counts as none. None where
        only one timestep was learnt.
        """
        if self.one_step:
            return None
        from diffusers import DDIMScheduler

        untyped: Any = DDIMScheduler
        scheduler = untyped.from_config(schedule().config)
        scheduler.set_timesteps(GENERATION_STEPS)
        rng = torch.Generator().manual_seed(GENERATION_SEED)
        made = []
        most = SCORING_BATCH[device.type]
        for size in (min(most, count - start) for start in range(0, count, most)):
            shape = (size, self.num_outputs, image_size, image_size)
            images = torch.randn(shape, generator=rng).to(device)
            for step in scheduler.timesteps.tolist():
                timesteps = torch.full((size,), step, dtype=torch.long, device=device)
                noise = _predicted(predictor, images, timesteps).float()
                noise = torch.where(noise.isfinite(), noise, 0.0)
                images = scheduler.step(noise, step, images).prev_sample
            made.append(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(made)

    def pixelwise(self, noisy: Tensor, timesteps: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """``sqrt(1-a) (x_t - sqrt(a) mean) / (a variance + 1 - a)``: least squares per pixel.

        Args:
            noisy: ``(B, C, H, W)``.
            timesteps: ``(B,)``.
            mean: Of the clean pixels, ``(1, C, 1, 1)``.
            variance: Of the clean pixels, a scalar.
        """
        kept = _kept(timesteps)
        return (1 - kept).sqrt() * (noisy - kept.sqrt() * mean) / (kept * variance + 1 - kept)

    def _noisy(self, inputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy images at timesteps ``(B,)`` that are drawn, and these."""
        if self.one_step:
            timesteps = torch.ones(len(inputs), dtype=torch.long, device=inputs.device)
        else:
            timesteps = torch.randint(self.timesteps, (len(inputs),), device=inputs.device)
        return schedule().add_noise(inputs, noise, timesteps), timesteps

    def _spread(self, start: int, count: int) -> Tensor:
        """The timesteps of images ``start`` to ``start + count`` in scoring, all ranges alike.

        Multiples of the golden ratio: any run of images has them spread evenly.
        """
        if self.one_step:
            return torch.ones(count, dtype=torch.long)
        index = torch.arange(start, start + count, dtype=torch.float64)
        return ((index * (math.sqrt(5) - 1) / 2 % 1) * TIMESTEPS).long()


def _nothing(noisy: Tensor, timesteps: Tensor | None = None) -> Tensor:  # noqa: ARG001
    return torch.zeros_like(noisy)


@functools.lru_cache
def schedule() -> Any:
    """Diffusers' `DDPMScheduler`: how much noise there is at each timestep.

    Raises:
        ModuleNotFoundError: If diffusers is not installed.
    """
    from diffusers import DDPMScheduler

    untyped: Any = DDPMScheduler
    return untyped(
        num_train_timesteps=TIMESTEPS, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
    )


def _takes_timesteps(predictor: Predictor) -> bool:
    call = predictor.forward if isinstance(predictor, nn.Module) else predictor
    try:
        inspect.signature(call).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a built-in, which tells no signature
        pass
    return True


def _kept(timesteps: Tensor) -> Tensor:
    """``a_t``, the product of ``1 - beta`` up to t: ``(B, 1, 1, 1)``."""
    kept: Tensor = schedule().alphas_cumprod.to(timesteps.device)[timesteps]
    return kept.reshape(-1, 1, 1, 1)


def _predicted(predictor: Predictor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    if not _takes_timesteps(predictor):
        raise Incompatible("it predicts from images alone; a denoiser also gets the timestep")
    outputs = cast(Denoiser, predictor)(noisy, timesteps)
    if isinstance(outputs, Tensor) and outputs.shape == noisy.shape:
        return outputs
    made = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(
        f"the predictor made {made} of noisy images {tuple(noisy.shape)}; expected the noise in "
        f"them, of the same shape"
    )
