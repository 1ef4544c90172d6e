"""A bench that is made in a second or two, for plugins to be checked on."""

from __future__ import annotations

import functools

import numpy as np
import torch

from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.data.tasks.denoising import Denoising
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.models.architecture import Architecture
from sophon_bench.models.backbones import Backbone

BACKBONE = Backbone.of("test_resnet")
"""What plugins are checked on if nothing else is asked for; it has no dropout."""

SAMPLES = 40
BUDGET = 4 * 64

SPLITS = {
    "original": {"train": 240, "validation": 60, "test": 60, "second_test": 60},
    "restricted": {
        "defender": 60, "attacker": SAMPLES, "selection": 40, "test": 40, "second_test": 40,
    },
    "benign": {"train": 30, "selection": 15, "test": 15},
}  # fmt: skip
"""Images of each split."""


@functools.cache
def small_bench(backbone: Architecture = BACKBONE) -> tuple[Bench, Weights]:
    """Striped images, and weights that a few updates have pre-trained; made in a second or two.

    Images are 32×32, or 16×16 where they are denoised.

    Raises:
        BackboneError: If the backbone does not exist or cannot be trained on these images.
    """
    size = 16 if backbone.task == Denoising.name else 32
    stripes = functools.partial(_stripes, backbone.task, size)
    data = ScenarioData(
        image_size=size,
        original=stripes("wide", 6, 6.0, SPLITS["original"]),
        restricted=stripes("narrow", 4, 3.0, SPLITS["restricted"]),
        benign=(stripes("broad", 3, 10.0, SPLITS["benign"]),),
        samples=(SAMPLES,),
        steps=BUDGET // 64,
        pretrain_steps=8,
        generated=16,
    )
    backbone.check(data.image_size, data.original.task.num_outputs)
    bench = Bench(data, backbone, device=torch.device("cpu"), precision="fp32")
    return bench, loop.pretrain(bench, 0, quiet).weights


def _stripes(
    kind: str, size: int, name: str, classes: int, wavelength: float, splits: dict[str, int]
) -> DomainData:
    """Noisy stripes whose direction is the class; domains differ in wavelength."""
    images = {}
    for split, count in splits.items():
        rng = np.random.default_rng([ord(c) for c in name + split])
        labels = np.arange(count, dtype=np.int64) % classes
        y, x = np.mgrid[:size, :size]
        angle = np.pi * labels[:, None, None] / classes
        phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
        pixels = 128 + 80 * wave[:, None] + rng.normal(0, 20, (count, 3, size, size))
        sources = np.array([f"{name}-{split}-{i}" for i in range(count)])
        images[split] = Images(pixels.clip(0, 255).astype(np.uint8), labels, sources)
    task = Denoising() if kind == Denoising.name else Classification(classes)
    return DomainData(name, task, tuple(map(str, range(classes))), images)


def quiet(_fraction: float | None, _words: str) -> None:
    """Say nothing of the progress."""
