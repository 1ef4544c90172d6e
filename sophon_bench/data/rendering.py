"""One rasteriser for every drawn and every scanned domain, so that no artefact tells them apart.

Outlines become 8x8 rasters the way `sklearn.datasets.load_digits` was made (NIST's preprocessing:
a 32x32 bitmap whose ink fills the height and at most 20 columns, counted in blocks of 4x4); real
digits are such rasters already. From there on all domains share `render`: enlarge, jitter, blur,
composite two smooth colour textures, add noise.

One numpy gives the same bytes on every processor: all arithmetic on pixels is either element by
element or a sum of products of multiples of 1/64, which float32 holds exactly in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Outline = NDArray[np.float64]
"""Edges ``(E, 2, 2)``: edge, end, xy."""

BITMAP = 32
BLOCK = 4
RASTER = BITMAP // BLOCK
INK_WIDTH = 20
"""Columns of the bitmap that NIST's normalisation lets the ink fill; it fills all the rows."""
MIN_INK = 0.25
"""Fraction of the bitmap that is ink in the faintest digits."""
MARGIN = 2
"""Empty raster cells on all sides before enlarging: as far as a cubic kernel reaches."""

_CHUNK = 256
"""Images rendered at once: small enough for the processor's cache."""


def stream(seed: int, *names: str) -> np.random.Generator:
    """A random stream of its own for every ``(seed, names)``."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


# Drawing: outlines -> rasters ------------------------------------------------------------------


def close(*polygons: NDArray[np.float64]) -> Outline:
    """The edges of polygons ``(K, 2)``, the last corner joined to the first; y points down."""
    return np.concatenate([np.stack([p, np.roll(p, -1, axis=0)], axis=1) for p in polygons])


def rasterise(outlines: Sequence[Outline], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw rotated and sheared outlines into rasters ``(N, 8, 8)`` with levels 0..16."""
    count = len(outlines)
    owner = np.repeat(np.arange(count), [len(edges) for edges in outlines])
    points = np.concatenate(outlines)
    points = np.einsum("eij,ekj->eki", _jitter(count, rng)[owner], points)
    points = _fit(points, owner, width=INK_WIDTH * rng.uniform(0.95, 1.2, count))
    bitmaps = _thicken(_fill(points, owner, count))
    blocks = bitmaps.reshape(count, RASTER, BLOCK, RASTER, BLOCK)
    levels: NDArray[np.uint8] = blocks.sum(axis=(2, 4), dtype=np.uint8)
    return levels


def _jitter(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Rotations and shears ``(N, 2, 2)``; scale would be undone by `_fit`."""
    angle = rng.uniform(-0.2, 0.2, count)
    shear = rng.uniform(-0.2, 0.2, count)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos, shear * cos - sin, sin, shear * sin + cos], axis=1).reshape(-1, 2, 2)


def _fit(
    points: NDArray[np.float64], owner: NDArray[np.intp], *, width: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale every outline to the bitmap's height and to ``width``, and centre it.

    A narrow outline (an I) is widened to twice its natural proportions and no further.
    """
    starts = np.searchsorted(owner, np.arange(len(width)))
    low = np.minimum.reduceat(points.min(axis=1), starts)
    high = np.maximum.reduceat(points.max(axis=1), starts)
    tall = BITMAP / (high[:, 1] - low[:, 1])
    wide = np.minimum(width / (high[:, 0] - low[:, 0]), 2 * tall)
    scale, centre = np.stack([wide, tall], axis=1), (low + high) / 2
    fitted: NDArray[np.float64] = (points - centre[owner, None]) * scale[owner, None] + BITMAP / 2
    return fitted


def _fill(points: NDArray[np.float64], owner: NDArray[np.intp], count: int) -> NDArray[np.bool_]:
    """Bitmaps ``(N, 32, 32)``: pixel centres around which the edges wind at least once."""
    (x0, y0), (x1, y1) = points[:, 0].T, points[:, 1].T
    rows = np.arange(BITMAP) + 0.5
    edge, row = np.nonzero((y0[:, None] <= rows) != (y1[:, None] <= rows))
    slope = (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    x = x0[edge] + (rows[row] - y0[edge]) * slope
    column = np.clip(np.ceil(x - 0.5), 0, BITMAP).astype(np.intp)
    cell = (owner[edge] * BITMAP + row) * (BITMAP + 1) + column
    turns = np.bincount(
        cell, weights=np.sign(y1 - y0)[edge], minlength=count * BITMAP * (BITMAP + 1)
    )
    winding = turns.reshape(count, BITMAP, BITMAP + 1).cumsum(axis=2)
    inside: NDArray[np.bool_] = winding[:, :, :BITMAP] != 0
    return inside


def _thicken(bitmaps: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow thin strokes by a pixel on all sides until a quarter of the bitmap is ink.

    NIST's preprocessing did so to the digits: hardly one of them has less.
    """
    bitmaps = bitmaps.copy()
    for _ in range(BLOCK):
        thin = bitmaps.mean(axis=(1, 2)) < MIN_INK
        ink = np.pad(bitmaps[thin], ((0, 0), (1, 1), (1, 1)))
        bitmaps[thin] |= ink[:, 2:, 1:-1] | ink[:, :-2, 1:-1] | ink[:, 1:-1, 2:] | ink[:, 1:-1, :-2]
    return bitmaps


# Rendering: rasters -> images ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Style:
    """How rasters become images.

    Attributes:
        kernel: Interpolation between raster cells and between texture knots.
        texture: Smooth colour noise, or soft bands in a random direction.
        contrast: Least and greatest difference in grey level between ink and paper.
        relief: Greatest deviation of a texture from its mean, in grey levels per channel.
        chroma: Greatest deviation of a channel's mean from grey, in grey levels.
        blur: Greatest weight of a 3x3 binomial filter, in bitmap pixels, on the ink.
        noise: Greatest deviation of a pixel, in grey levels per channel.
    """

    kernel: Literal["cubic", "linear"]
    texture: Literal["clouds", "bands"]
    contrast: tuple[float, float]
    relief: float
    chroma: float
    blur: float
    noise: int


def render(
    rasters: NDArray[np.uint8], *, style: Style, image_size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Colour images ``(N, 3, S, S)`` of rasters ``(N, 8, 8)`` with levels 0..16."""
    pixels = np.empty((len(rasters), 3, image_size, image_size), np.uint8)
    for start in range(0, len(rasters), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        pixels[chunk] = _render(rasters[chunk], style, image_size, rng)
    return pixels


def _render(
    rasters: NDArray[np.uint8], style: Style, size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    count = len(rasters)
    ink = _ink(rasters, style, size, rng)[:, None]
    paper_colour, ink_colour = _colours(count, style, rng)
    paper = paper_colour + _texture(count, style, size, rng)
    image = paper + ink * (ink_colour + _texture(count, style, size, rng) - paper)
    noise = rng.integers(-style.noise, style.noise, image.shape, dtype=np.int8, endpoint=True)
    pixels: NDArray[np.uint8] = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return pixels


def _ink(rasters: NDArray[np.uint8], style: Style, size: int, rng: np.random.Generator) -> Floats:
    """Coverage ``(N, S, S)`` in [0, 1]: the raster enlarged, blurred and moved about."""
    cells = np.pad(rasters, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    fine = _enlarge(cells, BLOCK * cells.shape[-1], style) / np.float32(16)
    blur = rng.uniform(0, style.blur, (len(fine), 1, 1)).astype(np.float32)
    fine += blur * (_binomial(_binomial(fine, axis=1), axis=2) - fine)
    return _warp(fine, size, rng)


def _enlarge(knots: NDArray[np.uint8] | NDArray[np.int16], size: int, style: Style) -> Floats:
    """Interpolate ``(..., K, K)`` integers to ``(..., size, size)``."""
    weights = _weights(knots.shape[-1], size, style.kernel)
    enlarged: Floats = weights @ knots.astype(np.float32) @ weights.T
    return enlarged


def _weights(knots: int, size: int, kernel: Literal["cubic", "linear"]) -> Floats:
    """Interpolation matrix ``(size, knots)`` of multiples of 1/64 whose rows sum to one."""
    distance = np.abs((np.arange(size)[:, None] + 0.5) * knots / size - np.arange(knots) - 0.5)
    if kernel == "linear":
        raw = np.maximum(0, 1 - distance)
    else:  # the cubic B-spline: smooth, and it never overshoots
        near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(0, 2 - distance) ** 3 / 6
        raw = np.where(distance < 1, near, far)
    # The last bit of a sum may differ between machines; no whole number may hinge on it.
    weights = np.floor(64 * raw / raw.sum(axis=1, keepdims=True) + 1e-6)
    weights[np.arange(size), distance.argmin(axis=1)] += 64 - weights.sum(axis=1)
    rounded: Floats = (weights / 64).astype(np.float32)
    return rounded


def _warp(fine: Floats, size: int, rng: np.random.Generator) -> Floats:
    """Rotate, scale and shift ``(N, F, F)`` into ``(N, size, size)``, bilinearly."""
    count, extent = len(fine), fine.shape[-1]
    angle = rng.uniform(-0.15, 0.15, count)
    # The ink's box takes 76 to 94 % of the frame.
    zoom = BITMAP / rng.uniform(0.76, 0.94, count)
    shift = extent / 2 + rng.uniform(-2, 2, (2, count))
    grid = (np.arange(size) + 0.5) / size - 0.5
    cos, sin = (zoom * np.cos(angle))[:, None, None], (zoom * np.sin(angle))[:, None, None]
    x = cos * grid - sin * grid[:, None] + shift[0, :, None, None]
    y = sin * grid + cos * grid[:, None] + shift[1, :, None, None]
    x, y = np.clip(x - 0.5, 0, extent - 1.001), np.clip(y - 0.5, 0, extent - 1.001)
    column, row = x.astype(np.intp), y.astype(np.intp)
    right, down = (x - column).astype(np.float32), (y - row).astype(np.float32)
    first = (np.arange(count)[:, None, None] * extent + row) * extent + column
    flat = fine.reshape(-1)
    top = flat[first] + right * (flat[first + 1] - flat[first])
    below = first + extent
    bottom = flat[below] + right * (flat[below + 1] - flat[below])
    warped: Floats = top + down * (bottom - top)
    return warped


def _binomial(image: Floats, *, axis: int) -> Floats:
    """Filter with [1 2 1]/4 along ``axis``; it wraps around, from margin to margin."""
    sides = np.roll(image, 1, axis=axis) + np.roll(image, -1, axis=axis)
    filtered: Floats = np.float32(0.25) * sides + np.float32(0.5) * image
    return filtered


def _colours(count: int, style: Style, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Mean paper and ink colours ``(N, 3, 1, 1)``, apart by the style's contrast, either way up."""
    contrast = rng.uniform(*style.contrast, count)
    dark = rng.uniform(style.relief, 255 - style.relief - contrast)
    greys = np.stack([dark, dark + contrast])
    greys = np.where(rng.random(count) < 0.5, greys, greys[::-1])
    hue = rng.uniform(-style.chroma, style.chroma, (2, count, 3))
    hue -= hue.mean(axis=2, keepdims=True)
    paper, ink = (greys[:, :, None] + hue).astype(np.float32)[..., None, None]
    return paper, ink


def _texture(count: int, style: Style, size: int, rng: np.random.Generator) -> Floats:
    """Smooth deviations ``(N, 3, size, size)`` from a mean colour."""
    if style.texture == "clouds":
        knots = rng.integers(-64, 64, (count, 3, 5, 5), dtype=np.int16, endpoint=True)
        return _enlarge(knots, size, style) * np.float32(style.relief / 64)
    tint = rng.uniform(-style.relief, style.relief, (count, 3, 1, 1)).astype(np.float32)
    return tint * _bands(count, size, rng)[:, None]


def _bands(count: int, size: int, rng: np.random.Generator) -> Floats:
    """Triangular waves ``(N, size, size)`` from -1 to 1, in any direction."""
    angle, phase = rng.uniform(0, 2 * np.pi, count), rng.uniform(0, 1, count)
    cycles = rng.uniform(0.5, 2, count)
    grid = (np.arange(size) + 0.5) / size
    across, down = (cycles * np.cos(angle))[:, None, None], (cycles * np.sin(angle))[:, None, None]
    turns = across * grid + down * grid[:, None] + phase[:, None, None]
    wave: Floats = (np.abs(4 * (turns - np.floor(turns)) - 2) - 1).astype(np.float32)
    return wave
