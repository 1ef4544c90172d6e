"""Pictures in records: PNGs in base64, which anybody may submit. What is read is checked first."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

from sophon_bench.plugins.failures import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WIDEST, HIGHEST = 4096, 512
"""Pixels of a picture at most."""

LONGEST = 4 * WIDEST * HIGHEST + 2**16
"""Characters of its base64 at most: that of pixels which cannot be compressed, and some more."""

HEADER = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
"""What a PNG begins with; width and height are next, four bytes each."""


BROKEN = (
    OSError, ValueError, SyntaxError, LookupError, EOFError, ArithmeticError, TypeError,
    struct.error, zlib.error,
)  # fmt: skip
"""What Pillow raises for broken files."""


class PictureError(BadInput, ValueError):
    """A text that is no picture of a record; says why."""


def picture_of(pixels: NDArray[np.uint8]) -> str:
    """Pixels ``(H, W, 3)`` as a PNG in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def pixels_of(text: str) -> NDArray[np.uint8]:
    """The pixels ``(H, W, 3)`` of a PNG in base64.

    Its size is read from its header before anything is unpacked.

    Raises:
        PictureError: If it is no PNG, or a larger one than records have.
    """
    import numpy as np
    from PIL import Image

    if len(text) > LONGEST:
        raise PictureError(f"its picture has {len(text)} characters; at most {LONGEST} are read")
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PictureError("its picture is not a PNG in base64") from error
    size = content[len(HEADER) : len(HEADER) + 8]
    if not content.startswith(HEADER) or len(size) < 8:
        raise PictureError("its picture is not a PNG in base64")
    width, height = struct.unpack(">II", size)
    if not (1 <= width <= WIDEST and 1 <= height <= HIGHEST):
        raise PictureError(
            f"its picture has {width} x {height} pixels; at most {WIDEST} x {HIGHEST} are read"
        )
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=["PNG"]) as image,
        ):
            return np.asarray(image.convert("RGB"))
    except BROKEN as error:
        raise PictureError("its picture is a broken PNG") from error


def data_uri(text: str) -> str:
    """The picture as an address that holds it: its pixels alone, encoded anew.

    Raises:
        PictureError: As `pixels_of`.
    """
    return f"data:image/png;base64,{picture_of(pixels_of(text))}"
