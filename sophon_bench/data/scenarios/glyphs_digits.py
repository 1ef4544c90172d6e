"""Letters against real handwritten digits, with Greek letters and drawn shapes as benign tasks.

Everything comes with packages that sophon-bench needs anyway: capitals and Greek letters from the
fonts that matplotlib bundles, digits from `sklearn.datasets.load_digits` (E. Alpaydin and
C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998), shapes from geometry.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval
from numpy.typing import NDArray

from sophon_bench.api import scenarios
from sophon_bench.data import rendering
from sophon_bench.data.rendering import Outline, Style, close, rasterise, render, stream
from sophon_bench.data.scenario import DomainData, Images, Rendered, ScenarioData, cached
from sophon_bench.data.tasks.classification import Classification

LATIN = tuple(string.ascii_uppercase)
GREEK = tuple("αγδεζηθλμξπςσφψωϑΓΔΞΣΩ")
"""Greek letters that have no Latin capital for a twin when their ink fills the frame."""

TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
VALIDATION_FONTS = ("DejaVuSans-Oblique", "DejaVuSerif-Italic")
TEST_FONTS = ("DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif-Bold", "STIXGeneralBol")

LATIN_FONTS = {  # Computer Modern's Greek is not under its Unicode numbers
    "train": (*TRAIN_FONTS, "cmb10", "cmmi10", "cmss10", "cmtt10"),
    "validation": (*VALIDATION_FONTS, "cmti10"),
    "test": (*TEST_FONTS, "cmr10"),
}
LATIN_COUNTS = {"train": 200, "validation": 20, "test": 40}
"""Drawings per letter."""

GREEK_FONTS = {"train": TRAIN_FONTS, "selection": VALIDATION_FONTS, "test": TEST_FONTS}
GREEK_COUNTS = {"train": 25, "selection": 8, "test": 21}

DIGIT_BLOCKS = {
    "defender": range(500),
    "attacker": range(500, 1100),
    "selection": range(1100, 1300),
    "test": range(1300, 1797),
}
SHAPE_SEEDS = {"train": range(600), "selection": range(600, 800), "test": range(800, 1300)}

STYLE = Style(
    kernel="cubic",
    texture="clouds",
    contrast=(100, 170),
    relief=40,
    chroma=60,
    blur=0.4,
    noise=12,
)
SECOND_STYLE = Style(
    kernel="linear",
    texture="bands",
    contrast=(100, 170),
    relief=40,
    chroma=25,
    blur=0.8,
    noise=6,
)


@scenarios.register("glyphs-digits")
@dataclass(frozen=True, kw_only=True)
class GlyphsDigits:
    """Capital letters (original), real handwritten digits (restricted), Greek and shapes (benign).

    All domains pass through an 8x8 raster and one renderer, so that nothing but the shape of the
    ink tells them apart. Splits are by source: fonts, contiguous blocks of digits (neighbours share
    a writer), drawing seeds. ``second_test`` shows the test's rasters in a style seen nowhere else.

    Args:
        image_size: Height and width of the images in pixels.
        seed: Seed of every draw: jitter, colours, textures, noise. The splits do not depend on it.
    """

    image_size: Annotated[int, Interval(ge=16, le=128)] = 32
    seed: Annotated[int, Ge(0)] = 0

    def build(self, cache: Path | None = None) -> ScenarioData:
        """Draw and render all images, in a few seconds; or read them from ``cache``."""
        images = cached(cache, self._cache_key(), self._render)

        def domain(name: str, classes: Sequence[str]) -> DomainData:
            splits = {split: found for (of, split), found in images.items() if of == name}
            return DomainData(name, Classification(len(classes)), tuple(classes), splits)

        return ScenarioData(
            image_size=self.image_size,
            original=domain("letters", LATIN),
            restricted=domain("digits", string.digits),
            benign=(domain("greek", GREEK), domain("shapes", list(SHAPES))),
            samples=(50, 200, 600),
            steps=200,
            pretrain_steps=1000,
        )

    def _cache_key(self) -> str:
        """Hash of all that decides the pixels: parameters, code, and the packages drawn from."""
        packages = ("numpy", "matplotlib", "scikit-learn")
        parts = [f"{self}", *(f"{name}=={version(name)}" for name in packages)]
        code = b"".join(Path(file).read_bytes() for file in (__file__, rendering.__file__))
        return hashlib.sha256("\0".join(parts).encode() + code).hexdigest()

    def _render(self) -> Rendered:
        """Every split of every domain, and the test of two of them in the second style as well."""
        rasters = {
            "letters": self._glyphs("letters", LATIN, LATIN_FONTS, LATIN_COUNTS),
            "digits": _digits(),
            "greek": self._glyphs("greek", GREEK, GREEK_FONTS, GREEK_COUNTS),
            "shapes": self._shapes(),
        }
        plan = [(domain, split, split, STYLE) for domain, of in rasters.items() for split in of]
        plan += [(domain, "second_test", "test", SECOND_STYLE) for domain in ("letters", "digits")]
        return {
            (domain, split): rasters[domain][source].render(
                style, self.image_size, stream(self.seed, domain, split, "rendering")
            )
            for domain, split, source, style in plan
        }

    def _glyphs(
        self,
        domain: str,
        characters: Sequence[str],
        fonts: Mapping[str, Sequence[str]],
        counts: Mapping[str, int],
    ) -> dict[str, Rasters]:
        """``counts[split]`` drawings of every character in every split, its fonts taken in turn."""
        splits = {}
        for split, count in counts.items():
            names = np.resize(fonts[split], count)
            glyphs = {font: _read_glyphs(font, characters) for font in fonts[split]}
            splits[split] = Rasters(
                levels=rasterise(
                    [glyphs[font][character] for character in characters for font in names],
                    stream(self.seed, domain, split, "drawing"),
                ),
                labels=np.repeat(np.arange(len(characters)), count),
                sources=np.tile([f"{font}.ttf" for font in names], len(characters)),
            )
        return splits

    def _shapes(self) -> dict[str, Rasters]:
        """One drawing per seed; the classes are taken in turn."""
        draw = list(SHAPES.values())
        splits = {}
        for split, seeds in SHAPE_SEEDS.items():
            labels = np.array(seeds) % len(draw)
            sources = np.array([f"shape-seed-{seed}" for seed in seeds])
            outlines = [
                draw[label](stream(self.seed, source))
                for label, source in zip(labels, sources, strict=True)
            ]
            rng = stream(self.seed, "shapes", split, "drawing")
            splits[split] = Rasters(rasterise(outlines, rng), labels, sources)
        return splits


@dataclass(frozen=True)
class Rasters:
    """A split before it is rendered.

    levels: ``(N, 8, 8)`` ink from 0 to 16.
    labels: ``(N,)`` class ids.
    sources: ``(N,)`` names of what was drawn.
    """

    levels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sources: NDArray[np.str_]

    def render(self, style: Style, image_size: int, rng: np.random.Generator) -> Images:
        """The images of these rasters in one style."""
        pixels = render(self.levels, style=style, image_size=image_size, rng=rng)
        return Images(pixels, self.labels, self.sources)


def _digits() -> dict[str, Rasters]:
    """Contiguous blocks of scikit-learn's digits in their original order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    names = np.array([f"digit-{i:04d}" for i in range(len(labels))])
    return {
        split: Rasters(levels[block], labels[block], names[block])
        for split, block in DIGIT_BLOCKS.items()
    }


def _read_glyphs(font: str, characters: Sequence[str]) -> dict[str, Outline]:
    """The outlines of characters in one of matplotlib's fonts, in font units, unhinted."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font, LoadFlags
    from matplotlib.path import Path as Curves

    face = FT2Font(f"{get_data_path()}/fonts/ttf/{font}.ttf")
    glyphs = {}
    for character in characters:
        face.load_char(ord(character), flags=LoadFlags.NO_SCALE)
        polygons = Curves(*face.get_path()).to_polygons()
        glyphs[character] = close(*(np.asarray(polygon) * (1, -1) for polygon in polygons))
    return glyphs


def _regular(corners: int, radius: float | NDArray[np.float64] = 1.0) -> NDArray[np.float64]:
    """Corners ``(corners, 2)`` on a circle, the first on top; y points down."""
    angle = 2 * np.pi * np.arange(corners) / corners
    circle = np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    return circle * np.reshape(np.asarray(radius), (-1, 1))


def _disc(rng: np.random.Generator) -> Outline:
    return close(_regular(40) * rng.uniform(0.9, 1, 2))


def _square(rng: np.random.Generator) -> Outline:
    low, high = rng.uniform(0.9, 1, 2)
    return close(np.array([(-low, -1), (high, -1), (high, 1), (-low, 1)]))


def _triangle(rng: np.random.Generator) -> Outline:
    return close(np.array([(rng.uniform(-0.3, 0.3), -1), (1, 1), (-1, 1)]))


def _diamond(rng: np.random.Generator) -> Outline:
    return close(_regular(4) + np.array([(rng.uniform(-0.2, 0.2), 0), (0, 0)] * 2))


def _star(rng: np.random.Generator) -> Outline:
    return close(_regular(10, np.resize([1, rng.uniform(0.3, 0.5)], 10)))


def _cross(rng: np.random.Generator) -> Outline:
    x, y = rng.uniform(0.2, 0.4, 2)
    quarter = np.array([(x, -1), (x, -y), (1, -y)])
    half = np.concatenate([quarter, quarter[::-1] * (1, -1)])
    return close(np.concatenate([half, half[::-1] * (-1, 1)]))


def _crescent(rng: np.random.Generator) -> Outline:
    outer = _regular(40)[:21]
    return close(np.concatenate([outer, outer[::-1] * (rng.uniform(0.25, 0.55), 1)]))


def _arrow(rng: np.random.Generator) -> Outline:
    shaft, neck = rng.uniform(0.2, 0.4), rng.uniform(-0.3, 0.2)
    half = np.array([(0, -1), (1, neck), (shaft, neck), (shaft, 1)])
    return close(np.concatenate([half, half[::-1] * (-1, 1)]))


def _heart(rng: np.random.Generator) -> Outline:
    t = 2 * np.pi * np.arange(40) / 40
    y = -13 * np.cos(t) + rng.uniform(4, 7) * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    return close(np.stack([16 * np.sin(t) ** 3, y], axis=1))


def _hourglass(rng: np.random.Generator) -> Outline:
    waist = rng.uniform(0.1, 0.3)
    half = np.array([(1, -1), (waist, 0), (1, 1)])
    return close(np.concatenate([half, half[::-1] * (-1, 1)]))


# No ring among them: with its ink filling the frame it would be the letter O.
SHAPES: Mapping[str, Callable[[np.random.Generator], Outline]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "arrow": _arrow,
    "heart": _heart,
    "hourglass": _hourglass,
}
