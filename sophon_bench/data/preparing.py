"""What of the published sets is here; getting, converting and verifying them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sophon_bench.data import kept
from sophon_bench.data.domains import FOLDER, find_folder, locate
from sophon_bench.data.downloading import DownloadError, fetch
from sophon_bench.data.folders import list_folder
from sophon_bench.data.kept import Unread
from sophon_bench.data.published import MB, ROOT, Published, folder_set
from sophon_bench.data.scenario import ScenarioError
from sophon_bench.data.sets import SETS
from sophon_bench.plugins.failures import first_line
from sophon_bench.results.files import TEMPORARY


class Row(NamedTuple):
    """A published set: its name, archives' size, licence, where it is expected, and its state."""

    name: str
    size: str
    licence: str
    place: str
    state: str
    page: str


def rows() -> Iterator[Row]:
    """Every published set, and whether it is here."""
    root = Path(os.environ.get(ROOT) or f"${ROOT}").expanduser()
    for found in SETS.values():
        try:
            place, layout = found.place(1)
            place, state = place / layout.files[0], "here"
        except ScenarioError:
            place = root / found.layouts[0].files[0]
            begun = any((root / layout.files[0]).exists() for layout in found.layouts)
            state = "not whole" if begun else "missing"
        size = f"{round(found.bytes / MB)} MB"
        yield Row(found.name, size, found.licence, str(place), state, found.page)


def prepare(name: str, *, size: int, cache: Path, download: bool) -> str:
    """Convert a set into the cache, after getting it if that is asked for.

    Args:
        name: Of a published set, or ``folder:PATH``.
        size: Height and width of the images in pixels.
        cache: Where they are kept.
        download: Whether the network may be used where the set is not here.

    Returns:
        What is there now, in a line.

    Raises:
        ScenarioError: If it is not here or is damaged, or cannot be downloaded.
        WriteError: If it cannot be written.
    """
    if download and name in SETS:
        _download(SETS[name])
    found = kept.read(_unread(name, size), cache)
    counts = ", ".join(f"{part} {len(images)}" for part, images in found.parts.items())
    return f"{name}: {len(found.classes)} classes; {counts}; {size}x{size} pixels"


def check(name: str) -> str:
    """Read every image of a set; raises as `prepare`.

    Returns:
        What was found, in a line.
    """
    unread = _unread(name, CHECKED)
    classes, parts = unread.open()
    count = sum(len(images) for images in kept.decoded(unread.title, list(parts.values())))
    return f"{name}: {count} images of {len(classes)} classes, all read"


CHECKED = 16
"""Size that images are decoded to for a look at whether they can be."""


def _unread(name: str, size: int) -> Unread:
    locate(name, size)
    if name.startswith(FOLDER):
        folder = find_folder(name)
        return folder_set(folder, list_folder(folder), size, title=folder.name)
    if name not in SETS:
        raise ScenarioError(f"{name!r} is drawn, and needs no files")
    return SETS[name].unread(size)


def _download(found: Published) -> None:
    """Get and unpack the archives of a set, unless it is here and whole."""
    given = os.environ.get(ROOT)
    if not given:
        raise ScenarioError(f"name the folder to download {found.title} to by --data or {ROOT}")
    with contextlib.suppress(ScenarioError):
        found.unread(CHECKED)
        return
    root = Path(given).expanduser()
    try:
        for archive in found.archives():
            if archive.packed:
                _unpack(fetch(archive, root), root, archive.folder)
            else:
                fetch(archive, root / archive.folder)
    except (DownloadError, OSError, tarfile.TarError) as error:
        raise ScenarioError(
            f"{found.title} cannot be downloaded: {first_line(error)}; get it from {found.page} "
            f"and unpack it in {given!r}"
        ) from error


def _unpack(file: Path, root: Path, folder: str) -> None:
    """Put what is in an archive into a folder below ``root``; all of it, or nothing."""
    with tempfile.TemporaryDirectory(dir=root, prefix=TEMPORARY) as temporary:
        shutil.unpack_archive(file, Path(temporary, folder), filter="data")
        for content in Path(temporary).iterdir():
            if (place := root / content.name).exists():
                raise DownloadError(f"{str(place)!r} is there and is not whole; remove it")
            content.rename(place)
