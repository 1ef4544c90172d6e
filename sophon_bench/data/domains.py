"""What a domain is read from: ``folder:PATH``, the name of a published set, or of drawn images.

A folder is looked for in the folder of the published sets too: records have no path but a folder's
name, and can so be verified on any machine.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
from PIL import Image

from sophon_bench.data.folders import list_folder
from sophon_bench.data.images import square
from sophon_bench.data.kept import ImageSet, read
from sophon_bench.data.published import ROOT, folder_set
from sophon_bench.data.roles import Role, domain
from sophon_bench.data.scenario import DomainData, Images, ScenarioError
from sophon_bench.data.scenarios.glyphs_digits import GlyphsDigits
from sophon_bench.data.sets import SETS
from sophon_bench.plugins.registry import closest

FOLDER = "folder:"

DRAWN: dict[str, Role] = {
    "letters": "original",
    "digits": "restricted",
    "greek": "benign",
    "shapes": "benign",
}
"""The embedded domains of ``glyphs-digits``, by the role that their splits are made for."""

DRAWN_SIZE = 64
"""Larger ones are enlarged from it: 8x8 rasters have no more detail to show."""


def locate(text: str, size: int) -> None:
    """Nothing, if a domain's files are where they should be; raises as `build_domain`."""
    if text.startswith(FOLDER):
        find_folder(text)
    elif text in SETS:
        SETS[text].place(size)
    elif text not in DRAWN:
        known = sorted([*DRAWN, *SETS])
        hint = closest(text, known, f"there are: {', '.join(known)}.")
        raise ScenarioError(f"unknown domain {text!r}; {hint} A folder of images is folder:PATH")


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
        scenario = GlyphsDigits(image_size=min(size, DRAWN_SIZE))
        if role == "benign":
            drawn = _benign(scenario, cache)[text]
        else:
            drawn = scenario.build(cache).domain(text)
        splits = {split: _enlarged(images, size) for split, images in drawn.splits.items()}
        return DomainData(name, drawn.task, drawn.classes, splits)
    return domain(name, role, read_set(text, size, cache), seed)


@functools.lru_cache(maxsize=1)
def _benign(scenario: GlyphsDigits, cache: Path | None) -> dict[str, DomainData]:
    """The drawn benign domains: the two are small, and mostly wanted together."""
    return {domain.name: domain for domain in scenario.build(cache).benign}


def _enlarged(images: Images, size: int) -> Images:
    if images.pixels.shape[-1] == size:
        return images
    squares = [square(Image.fromarray(p.transpose(1, 2, 0)), size) for p in images.pixels]
    return Images(np.stack(squares), images.labels, images.sources)


def read_set(text: str, size: int, cache: Path | None) -> ImageSet:
    """All images of a folder or a published set; raises as `build_domain`."""
    if text.startswith(FOLDER):
        folder = find_folder(text)
        return read(folder_set(folder, list_folder(folder), size, title=folder.name), cache)
    locate(text, size)
    return read(SETS[text].unread(size), cache)


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
