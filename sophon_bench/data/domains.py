"""What a domain is read from: ``folder:PATH``, the name of a published set, or of drawn images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sophon_bench.data.folders import Listing, list_folder
from sophon_bench.data.images import decode, square
from sophon_bench.data.kept import ImageSet, Part, Unread, read
from sophon_bench.data.roles import Role, domain
from sophon_bench.data.scenario import DomainData, Images, ScenarioError
from sophon_bench.data.scenarios.glyphs_digits import GlyphsDigits
from sophon_bench.plugins.registry import closest

FOLDER = "folder:"

ROOT = "SOPHON_BENCH_DATA"
"""The environment variable that names the folder with published sets; folders are looked for there
too, so that a record, which has no path but a folder's name, can be verified on any machine."""

DRAWN: dict[str, Role] = {
    "letters": "original",
    "digits": "restricted",
    "greek": "benign",
    "shapes": "benign",
}
"""The embedded domains of ``glyphs-digits``, by the role that their splits are made for."""

DRAWN_SIZE = 64
"""Larger ones are enlarged from it: 8x8 rasters have no more detail to show."""


def build_domain(
    text: str, role: Role, *, name: str, size: int, seed: int, cache: Path | None
) -> DomainData:
    """A domain of a scenario.

    Args:
        text: ``folder:PATH`` or a name.
        role: Which splits it needs.
        name: What it is called in tables.
        size: Height and width of the images in pixels.
        seed: Seed of which images each split takes.
        cache: Where decoded images are kept; None: nowhere.

    Raises:
        ScenarioError: If there is no such domain, its files are not there or cannot be read, or a
            class has too few images.
        WriteError: If ``cache`` cannot be written.
    """
    if text in DRAWN:
        if role != DRAWN[text]:
            raise ScenarioError(f"{text!r} is drawn as {DRAWN[text]} domain; it cannot be {role}")
        drawn = GlyphsDigits(image_size=min(size, DRAWN_SIZE)).build(cache).domain(text)
        splits = {split: _enlarged(images, size) for split, images in drawn.splits.items()}
        return DomainData(name, drawn.task, drawn.classes, splits)
    return domain(name, role, read_set(text, size, cache), seed)


def _enlarged(images: Images, size: int) -> Images:
    if images.pixels.shape[-1] == size:
        return images
    squares = [square(Image.fromarray(p.transpose(1, 2, 0)), size) for p in images.pixels]
    return Images(np.stack(squares), images.labels, images.sources)


def read_set(text: str, size: int, cache: Path | None) -> ImageSet:
    """All images of a folder or a published set; raises as `build_domain`."""
    if text.startswith(FOLDER):
        return read(_folder_set(find_folder(text), size), cache)
    hint = closest(text, sorted(DRAWN), "")
    raise ScenarioError(f"unknown domain {text!r}; {hint} A folder of images is folder:PATH")


def default_name(text: str) -> str:
    """What a domain is called unless it is given a name: its folder's name, or its own."""
    if not text.startswith(FOLDER):
        return text
    # not resolved: a link has a name of its own
    return Path(os.path.abspath(Path(text.removeprefix(FOLDER)).expanduser())).name  # noqa: PTH100


def find_folder(text: str) -> Path:
    """The folder of ``folder:PATH``: where the path says, or in the folder of published sets.

    Raises:
        ScenarioError: If it is in neither.
    """
    path = Path(text.removeprefix(FOLDER)).expanduser()
    root = os.environ.get(ROOT)
    if not path.parts:
        raise ScenarioError(f"{text!r} names no folder; the form is folder:PATH")
    places = [path] if path.is_absolute() or not root else [path, Path(root) / path]
    for place in places:
        if place.exists():
            return place
    looked = " or ".join(repr(str(place.absolute())) for place in places)
    raise ScenarioError(
        f"folder {str(path)!r} is not there: no {looked}"
        + ("" if path.is_absolute() or root else f", and {ROOT} is not set")
    )


def _folder_set(folder: Path, size: int) -> Unread:
    listing = list_folder(folder)
    return Unread(folder.name, _fingerprint(folder, listing), size, partial(_parts, listing, size))


def _parts(listing: Listing, size: int) -> tuple[tuple[str, ...], Mapping[str, Part]]:
    return listing.classes, {
        name: Part(
            [picture.label for picture in pictures],
            [picture.source for picture in pictures],
            [partial(decode, Path(picture.file), size) for picture in pictures],
        )
        for name, pictures in listing.parts.items()
    }


def _fingerprint(folder: Path, listing: Listing) -> str:
    """Where a folder is, and every picture's name, size and time of change."""
    lines = [os.path.realpath(folder), *listing.classes]
    for name, pictures in listing.parts.items():
        lines.append(name)
        for picture in pictures:
            found = os.stat(picture.file)  # noqa: PTH116 - a Path for each is slow
            lines.append(f"{picture.source}\0{found.st_size}\0{found.st_mtime_ns}")
    return "\n".join(lines)
