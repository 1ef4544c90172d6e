"""A scenario that trains in seconds, as a plugin file: stripes of class-dependent directions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sophon_bench.api import scenarios
from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.data.tasks.classification import Classification


@scenarios.register("tiny")
@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Noisy stripes whose direction is the class; domains differ in wavelength."""

    image_size: int = 16

    def build(self, cache: Path | None = None) -> ScenarioData:
        return ScenarioData(
            image_size=self.image_size,
            original=self._domain(
                "wide", 6, 3.0, {"train": 240, "validation": 60, "test": 60, "second_test": 60}
            ),
            restricted=self._domain(
                "narrow",
                4,
                1.5,
                {"defender": 60, "attacker": 40, "selection": 40, "test": 40, "second_test": 40},
            ),
            benign=(self._domain("broad", 3, 5.0, {"train": 30, "selection": 15, "test": 15}),),
            samples=(8, 20, 40),
            steps=8,
            pretrain_steps=8,
        )

    def _domain(
        self, name: str, classes: int, wavelength: float, splits: Mapping[str, int]
    ) -> DomainData:
        images = {
            split: self._images(name, split, classes, wavelength, n) for split, n in splits.items()
        }
        return DomainData(name, Classification(classes), tuple(map(str, range(classes))), images)

    def _images(self, name: str, split: str, classes: int, wavelength: float, n: int) -> Images:
        rng = np.random.default_rng([ord(c) for c in name + split])
        labels = np.arange(n, dtype=np.int64) % classes
        y, x = np.mgrid[: self.image_size, : self.image_size]
        angle = np.pi * labels[:, None, None] / classes
        phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
        pixels = 128 + 80 * wave[:, None] + rng.normal(0, 20, (n, 3, *x.shape))
        sources = np.array([f"{name}-{split}-{i}" for i in range(n)])
        return Images(pixels.clip(0, 255).astype(np.uint8), labels, sources)
