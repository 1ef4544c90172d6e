"""Pictures as people have them, as RGB squares of one size.

Whatever the format says is applied before anything else: EXIF orientation, palettes, transparency
(shown on white), 16-bit grey levels, CMYK, grey levels repeated in three channels. Embedded colour
profiles are not. Of several frames the first is taken. Then the central square is cut out and
resized by Pillow's bicubic filter, antialiased. Cut out rather than squashed: shapes keep their
proportions, and it is what published weights were trained and evaluated on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sophon_bench.data.scenario import ScenarioError
from sophon_bench.plugins.failures import first_line

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000")
"""What is decoded: none of them runs other programs, as EPS does."""

SUFFIXES = frozenset(
    ["." + name for name in (
        "jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "dib", "tif", "tiff", "webp", "avif",
        "ppm", "pgm", "pbm", "pnm", "jp2",
    )]
)  # fmt: skip
"""Names of files that are taken for pictures, in lower case."""

FOREIGN = frozenset(
    ["." + name for name in (
        "heic", "heif", "jxl", "svg", "psd", "xcf", "dng", "cr2", "cr3", "nef", "arw",
    )]
)  # fmt: skip
"""Names of pictures that are not decoded: they are refused rather than left out."""

LARGEST = 178_956_970
"""Pixels of the largest picture that is decoded, 0.5 GB: Pillow's own limit."""

SHARP = 2
"""A JPEG file is decoded at an eighth, a quarter or half its size if that is still twice ours."""


class _Unfit(Exception):
    """Why a picture is refused though it is whole: what follows its name."""


def decode(file: Path, size: int) -> NDArray[np.uint8]:
    """The picture in a file, ``(3, size, size)``.

    Raises:
        ScenarioError: If it cannot be decoded rightly, with the file's name and the reason.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise Image.DecompressionBombError  # where somebody has taken Pillow's limit away
            image.draft(None, (SHARP * size, SHARP * size))
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                raise _Unfit("has 32-bit grey levels, of unknown range; save it with 16 or 8 bits")
            return square(_rgb(ImageOps.exif_transpose(image)), size)
    # whatever a damaged file makes the decoders raise
    except Exception as error:
        raise ScenarioError(f"{str(file)!r} {_reason(file, error)}") from error


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The central square of an RGB image, ``(3, size, size)``."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # cropped first: resize's own box lets the filter see pixels outside it
    cropped = image.crop((left, top, left + side, top + side))
    return np.asarray(cropped.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        shown = Image.new("RGBA", image.size, "white")
        shown.alpha_composite(image.convert("RGBA"))
        image = shown
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey levels 0 to 65535 as 0 to 255; the level that stands for transparency becomes white."""
    levels = np.asarray(image).astype(np.uint32)
    shown = (levels * 255 + 32767) // 65535
    shown[levels == image.info.get("transparency", -1)] = 255
    return Image.fromarray(shown.astype(np.uint8)).convert("RGB")


def _reason(file: Path, error: Exception) -> str:
    """Why a file cannot be decoded, after its name."""
    if isinstance(error, _Unfit):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {LARGEST} pixels, the most that is decoded; make it smaller"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    if file.stat().st_size == 0:
        return "is empty (0 bytes); get it again, or remove it"
    if isinstance(error, UnidentifiedImageError):
        return f"is no picture of a known format ({', '.join(FORMATS)})"
    return f"cannot be decoded: {first_line(error)}; get it again, or remove it"
