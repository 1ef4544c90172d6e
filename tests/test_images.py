"""Pictures in the formats that people have, decoded or refused by name."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from sophon_bench.data.images import LARGEST, decode
from sophon_bench.data.scenario import ScenarioError

RED, GREEN, BLUE, WHITE, GREY = (
    (200, 30, 30), (30, 180, 30), (30, 30, 220), (255, 255, 255), (128, 128, 128),
)  # fmt: skip
SIZE = 8


def quarters(*colours: tuple[int, int, int]) -> Image.Image:
    """A square of 64 pixels whose quarters are of four colours, row by row."""
    image = Image.new("RGB", (64, 64))
    for number, colour in enumerate(colours):
        left, top = 32 * (number % 2), 32 * (number // 2)
        image.paste(colour, (left, top, left + 32, top + 32))
    return image


PICTURE = quarters(RED, GREEN, BLUE, WHITE)


def corners(pixels: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """The colours of the four quarters, row by row."""
    assert pixels.shape == (3, SIZE, SIZE)
    assert pixels.dtype == np.uint8
    return [tuple(pixels[:, y, x].tolist()) for y in (1, SIZE - 2) for x in (1, SIZE - 2)]


def close(found: list[tuple[int, ...]], expected: list[tuple[int, ...]], by: int) -> None:
    np.testing.assert_allclose(found, expected, atol=by)


COLOURS = [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(
    ("name", "mode", "options", "by"),
    [
        ("a.png", "RGB", {}, 0),
        ("a.PNG", "RGB", {}, 0),
        ("a.bmp", "RGB", {}, 0),
        ("a.ppm", "RGB", {}, 0),
        ("a.tif", "RGB", {"compression": "tiff_lzw"}, 0),
        ("a.webp", "RGB", {"lossless": True}, 0),
        ("a.gif", "P", {}, 4),
        ("a.png", "P", {}, 4),
        ("a.jpg", "RGB", {"quality": 95}, 6),
        ("a.JPEG", "RGB", {"quality": 95, "progressive": True}, 6),
        ("a.jpg", "CMYK", {"quality": 95}, 8),
        ("a.tiff", "CMYK", {}, 1),
        ("ein Äpfel 苹果.png", "RGB", {}, 0),
    ],
)
def test_colours_come_out_of_every_format(
    name: str, mode: str, options: dict[str, Any], by: int, tmp_path: Path
) -> None:
    PICTURE.convert(mode).save(tmp_path / name, **options)
    close(corners(decode(tmp_path / name, SIZE)), COLOURS, by)


def test_lab_colours_are_converted(tmp_path: Path) -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    lab = ImageCms.applyTransform(PICTURE, transform)
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    close(corners(decode(tmp_path / "a.tif", SIZE)), COLOURS, 8)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_levels_are_repeated(mode: str, tmp_path: Path) -> None:
    grey = quarters((0, 0, 0), WHITE, WHITE, (0, 0, 0))
    grey.convert("L").convert(mode).save(tmp_path / "a.png")
    black = (0, 0, 0)
    assert corners(decode(tmp_path / "a.png", SIZE)) == [black, WHITE, WHITE, black]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_become_8(name: str, tmp_path: Path) -> None:
    levels = np.zeros((64, 64), np.uint16)
    levels[:32, 32:], levels[32:, :32], levels[32:, 32:] = 255, 128 * 257, 65535
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 64 64 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(tmp_path / name)
    assert corners(decode(tmp_path / name, SIZE)) == [(0,) * 3, (1,) * 3, GREY, WHITE]


def test_16_bit_levels_that_stand_for_transparency_are_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((64, 64), 7, np.uint16))
    image.save(tmp_path / "a.png", transparency=7)
    with Image.open(tmp_path / "a.png") as written:
        assert written.info["transparency"] == 7
    assert corners(decode(tmp_path / "a.png", SIZE)) == [WHITE] * 4


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (*RED, 255))
    image.paste((*GREEN, 0), (32, 0, 64, 64))
    image.save(tmp_path / "a.png")
    assert corners(decode(tmp_path / "a.png", SIZE)) == [RED, WHITE, RED, WHITE]


def test_grey_with_transparency_is_blended_with_white(tmp_path: Path) -> None:
    Image.new("LA", (64, 64), (0, 51)).save(tmp_path / "a.png")
    close(corners(decode(tmp_path / "a.png", SIZE)), [(204,) * 3] * 4, 1)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_palette_may_have_a_transparent_colour(transparency: Any, tmp_path: Path) -> None:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (32, 0, 64, 64))
    image.save(tmp_path / "a.png", transparency=transparency)
    assert corners(decode(tmp_path / "a.png", SIZE)) == [RED, WHITE, RED, WHITE]


def test_one_rgb_colour_may_stand_for_transparency(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png", transparency=GREEN)
    assert corners(decode(tmp_path / "a.png", SIZE)) == [RED, WHITE, BLUE, WHITE]


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (4, [BLUE, WHITE, RED, GREEN]),
        (5, [RED, BLUE, GREEN, WHITE]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (7, [WHITE, GREEN, BLUE, RED]),
        (8, [GREEN, WHITE, RED, BLUE]),
        (99, [RED, GREEN, BLUE, WHITE]),
    ],
)
def test_exif_orientation_is_applied(
    orientation: int, shown: list[tuple[int, ...]], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(tmp_path / "a.jpg", exif=exif, quality=95)
    close(corners(decode(tmp_path / "a.jpg", SIZE)), shown, 6)


def test_the_central_square_is_taken_and_antialiased(tmp_path: Path) -> None:
    wide = Image.new("RGB", (128, 64), GREEN)
    fine = np.indices((64, 64)).sum(axis=0) % 2 * 200
    wide.paste(Image.fromarray(fine.astype(np.uint8)).convert("RGB"), (32, 0))
    wide.save(tmp_path / "a.png")
    inner = decode(tmp_path / "a.png", SIZE)[:, 1:-1, 1:-1].astype(int)
    assert abs(inner - 100).max() <= 2, "a fine chequerboard becomes grey, green is cut off"
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png")
    tall = decode(tmp_path / "b.png", SIZE)
    np.testing.assert_allclose(tall[:, 1:-1, 1:-1].astype(int), inner, atol=2)


def test_large_photographs_keep_their_detail_when_decoded_small(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    large = Image.fromarray(small).resize((SIZE * 64, SIZE * 64), Image.Resampling.NEAREST)
    large.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    large.save(tmp_path / "a.png")
    difference = decode(tmp_path / "a.jpg", SIZE).astype(int) - decode(tmp_path / "a.png", SIZE)
    assert abs(difference).max() <= 8


def test_the_first_of_several_frames_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, GREEN)]
    for name in ("a.gif", "a.tif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        close(corners(decode(tmp_path / name, SIZE)), [RED] * 4, 4)


def test_a_picture_may_be_called_what_it_is_not(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg", format="PNG")
    assert corners(decode(tmp_path / "a.jpg", SIZE)) == COLOURS


def cut(form: str, share: float) -> Callable[[Path], object]:
    """A file that ends too early."""

    def write(file: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(file, format=form)
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])

    return write


def png(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda file: file.write_text("<html>not found"), "is no picture of a known format"),
        (cut("JPEG", 0.5), "cannot be decoded: image file is truncated"),
        (cut("PNG", 0.5), "cannot be decoded: "),
        (cut("WEBP", 0.5), "cannot be decoded: |is no picture"),
        (cut("GIF", 0.5), "cannot be decoded: "),
        (cut("BMP", 0.5), "cannot be decoded: "),
        (cut("TIFF", 0.5), "cannot be decoded: "),
        (lambda file: file.write_bytes(png(30_000, 30_000)), f"has more than {LARGEST} pixels"),
        (lambda file: Image.new("F", (8, 8)).save(file, "TIFF"), "has 32-bit grey levels"),
        (lambda file: Image.new("I", (8, 8)).save(file, "TIFF"), "has 32-bit grey levels"),
        (lambda file: None, "cannot be read: No such file"),
        (lambda file: file.mkdir(), "cannot be read: Is a directory"),
        (lambda file: file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
         "is no picture of a known format"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_refused_by_name(
    write: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    file = tmp_path / "Bild ü.jpg"
    write(file)
    with pytest.raises(ScenarioError, match=f"^'{file}' ({words})") as raised:
        decode(file, SIZE)
    assert len(str(raised.value).splitlines()) == 1


def test_bombs_are_refused_without_pillows_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png(30_000, 30_000))
    with pytest.raises(ScenarioError, match="make it smaller"):
        decode(tmp_path / "a.png", SIZE)


def test_damaged_tags_are_no_matter_of_the_pixels(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        close(corners(decode(tmp_path / "a.jpg", SIZE)), COLOURS, 6)
