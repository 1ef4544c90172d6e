"""Tasks that are related to the restricted one and not restricted: how far does a defense reach?

Related tasks are benign domains, so that no defense sees them. The first domain is the original
task once more, in new drawings: what fine-tuning on it keeps is the intactness of Deng et al.,
*SOPHON*, IEEE S&P 2024, arXiv 2404.12699.
"""

from __future__ import annotations

import dataclasses
import hashlib
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval
from numpy.typing import NDArray

from sophon_bench.api import scenarios
from sophon_bench.data import rendering
from sophon_bench.data.rendering import Outline, close, rasterise, stream
from sophon_bench.data.scenario import DomainData, Images, Rendered, ScenarioData, cached
from sophon_bench.data.scenarios import glyphs_digits
from sophon_bench.data.scenarios.glyphs_digits import (
    DIGIT_BLOCKS,
    GREEK_COUNTS,
    GREEK_FONTS,
    LATIN,
    STYLE,
    GlyphsDigits,
    Rasters,
)
from sophon_bench.data.scenarios.photographs import ImagenetteCifar10
from sophon_bench.data.tasks.classification import Classification

ALPHABETS = {
    "letters-redrawn": LATIN,
    "small-letters": tuple("abdefghmnqrt"),
    "cyrillic": tuple("ДЖИЛПФЦШЩЫЬЭЮЯ"),
    "printed-digits": tuple(string.digits),
}
"""Characters in matplotlib's fonts by domain; of small and Cyrillic letters those that have no
capital or digit for a twin when their ink fills the frame."""

SPLITS = {"train": "attacker", "selection": "selection", "test": "test"}
"""Blocks of scikit-learn's digits by split: the defender's are in none."""

SHIFT = 2
"""Raster cells, of 8: a fifth of the frame, and up to a sixth of the ink leaves it."""

FULL = 16
"""Level of a raster cell that is all ink."""

CHROMA = 200.0
"""Grey levels by which a channel's mean may differ from grey; 60 elsewhere."""


def _shifted(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rasters ``(N, 12, 12)`` with the ink off the centre, towards the four corners in turn."""
    count, side, _ = levels.shape
    moved = np.zeros((count, side + 2 * SHIFT, side + 2 * SHIFT), np.uint8)
    for number, raster in enumerate(levels):
        x, y = 2 * SHIFT * (number % 2), 2 * SHIFT * (number // 2 % 2)
        moved[number, y : y + side, x : x + side] = raster
    return moved


VARIANTS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "digits-parity": np.copy,
    "digits-coloured": np.copy,
    "digits-shifted": _shifted,
    "digits-rotated": lambda levels: np.rot90(levels, axes=(1, 2)),
    "digits-inverted": lambda levels: FULL - levels,
}
"""What becomes of rasters ``(N, 8, 8)`` of handwritten digits, by domain."""


Task = Literal[
    "greek", "shapes", "letters-redrawn", "small-letters", "cyrillic", "printed-digits",
    "digits-parity", "digits-coloured", "digits-shifted", "digits-rotated", "digits-inverted",
]  # fmt: skip


@scenarios.register("glyphs-related")
@dataclass(frozen=True, kw_only=True)
class GlyphsRelated:
    """Letters (original), handwritten digits (restricted), and eleven tasks more or less like them.

    Original and restricted domain, Greek and shapes are those of ``glyphs-digits``. Benign besides:
    the original letters in new drawings, small and Cyrillic letters, printed digits; and of
    handwritten digits that no defender has, whether they are odd (``digits-parity``), and the
    digits in vivid colours, off the centre, turned by 90 degrees, and with ink and paper exchanged.

    Args:
        image_size: Height and width of the images in pixels.
        seed: Seed of every draw: jitter, colours, textures, noise. The splits do not depend on it.
        tasks: The benign domains, in this order; none named: all of them.
        pretrain_steps: Updates of pre-training.
    """

    image_size: Annotated[int, Interval(ge=16, le=128)] = 32
    seed: Annotated[int, Ge(0)] = 0
    tasks: tuple[Task, ...] = ()
    pretrain_steps: Annotated[int, Ge(1)] = 1000

    def build(self, cache: Path | None = None) -> ScenarioData:
        """Draw and render all images, in a few seconds; or read them from ``cache``."""
        base = GlyphsDigits(image_size=self.image_size, seed=self.seed).build(cache)
        images = cached(cache, self._cache_key(), self._render)

        def domain(name: str, classes: Sequence[str]) -> DomainData:
            splits = {split: found for (of, split), found in images.items() if of == name}
            return DomainData(name, Classification(len(classes)), tuple(classes), splits)

        variants = dict.fromkeys(VARIANTS, string.digits) | {"digits-parity": ("even", "odd")}
        related = [domain(name, classes) for name, classes in (ALPHABETS | variants).items()]
        known = {found.name: found for found in (*base.benign, *related)}
        benign = tuple(known[name] for name in self.tasks or known)
        return dataclasses.replace(base, benign=benign, pretrain_steps=self.pretrain_steps)

    def _cache_key(self) -> str:
        """Hash of all that decides the pixels: parameters, code, and the packages drawn from."""
        packages = ("numpy", "matplotlib", "scikit-learn")
        parts = ["related", str(self.image_size), str(self.seed)]
        parts += [f"{name}=={version(name)}" for name in packages]
        files = (__file__, glyphs_digits.__file__, rendering.__file__)
        code = b"".join(Path(file).read_bytes() for file in files)
        return hashlib.sha256("\0".join(parts).encode() + code).hexdigest()

    def _render(self) -> Rendered:
        rasters = {
            (name, split): self._glyphs(name, characters, split)
            for name, characters in ALPHABETS.items()
            for split in SPLITS
        }
        rasters |= {
            (name, split): self._digits(name, split) for name in VARIANTS for split in SPLITS
        }
        return {
            (name, split): found.render(
                dataclasses.replace(STYLE, chroma=CHROMA) if name == "digits-coloured" else STYLE,
                self.image_size,
                stream(self.seed, name, split, "rendering"),
            )
            for (name, split), found in rasters.items()
        }

    def _glyphs(self, name: str, characters: Sequence[str], split: str) -> Rasters:
        """As many drawings of every character as of a Greek one, its fonts taken in turn."""
        fonts = np.resize(GREEK_FONTS[split], GREEK_COUNTS[split])
        outlines = [_outline(font, character) for character in characters for font in fonts]
        return Rasters(
            levels=rasterise(outlines, stream(self.seed, name, split, "drawing")),
            labels=np.repeat(np.arange(len(characters)), len(fonts)),
            sources=np.tile([f"{font}.ttf" for font in fonts], len(characters)),
        )

    def _digits(self, name: str, split: str) -> Rasters:
        from sklearn.datasets import load_digits

        block = np.array(DIGIT_BLOCKS[SPLITS[split]])
        found = load_digits()
        labels = found.target[block].astype(np.int64)
        levels = found.images[block].astype(np.uint8)
        return Rasters(
            levels=VARIANTS[name](levels),
            labels=labels % 2 if name == "digits-parity" else labels,
            sources=np.array([f"digit-{number:04d}" for number in block]),
        )


def _outline(font: str, character: str) -> Outline:
    """The outline of a character in one of matplotlib's fonts, unhinted."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    prop = FontProperties(fname=f"{get_data_path()}/fonts/ttf/{font}.ttf")
    polygons = TextPath((0, 0), character, size=100, prop=prop).to_polygons()
    return close(*(np.asarray(polygon) * (1, -1) for polygon in polygons))


SHARED = {"airplane", "bird", "car", "cat", "deer", "dog", "horse", "ship", "truck"}
"""STL-10's classes that CIFAR-10 has too (there a car is an automobile); it has no frog but a
monkey."""


@scenarios.register("imagenette-cifar10-related")
@dataclass(frozen=True, kw_only=True)
class ImagenetteCifar10Related(ImagenetteCifar10):
    """Imagenette (original), CIFAR-10 (restricted), and nine of its classes in STL-10 (benign).

    ``imagenette-cifar10`` with one more benign domain: other photographs, of higher resolution, of
    the classes that the restricted domain shares with STL-10.
    """

    domains: ClassVar[tuple[str, ...]] = ("imagenette", "cifar10", "mnist", "shapes", "stl10")

    def build(self, cache: Path | None = None) -> ScenarioData:
        """Read the sets, or map what was read before from ``cache``; raises as its base."""
        data = super().build(cache)
        *others, stl10 = data.benign
        return dataclasses.replace(data, benign=(*others, _with_classes(stl10, "stl10-shared")))


def _with_classes(found: DomainData, name: str) -> DomainData:
    """A domain's images of the `SHARED` classes, which are numbered anew."""
    kept = [number for number, label in enumerate(found.classes) if label in SHARED]
    numbers = np.full(len(found.classes), -1)
    numbers[kept] = np.arange(len(kept))

    def among(images: Images) -> Images:
        rows = np.isin(images.labels, kept)
        labels = numbers[images.labels[rows]]
        return Images(images.pixels[rows], labels, images.sources[rows])

    splits = {split: among(images) for split, images in found.splits.items()}
    classes = tuple(found.classes[number] for number in kept)
    return DomainData(name, Classification(len(classes)), classes, splits)
