"""Pictures in folders: ``<class>/<picture>``, or ``<split>/<class>/<picture>``.

Classes are the folders' names, in sorted order. Pictures may lie deeper inside a class. Links are
followed; what is hidden (names that begin with a dot) or is no picture by its name is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sophon_bench.data.images import FOREIGN, SUFFIXES
from sophon_bench.data.scenario import ScenarioError

PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of split folders, in any case, by what they are taken for."""

WHOLE = "all"
"""The one part of a folder that has no splits."""

HIDDEN = (".", "__MACOSX")
"""How names begin that systems hide, or write into archives."""

LEVELS = "<class>/<picture> or {train,val,test}/<class>/<picture>"


class Picture(NamedTuple):
    """A file, its class, and its path below the folder, with slashes."""

    file: str
    label: int
    source: str


@dataclass(frozen=True)
class Listing:
    """What is in a folder: classes, and pictures by part."""

    classes: tuple[str, ...]
    parts: dict[str, list[Picture]]


def list_folder(root: Path) -> Listing:
    """The classes and pictures of a folder; nothing is decoded.

    Raises:
        ScenarioError: If there is none, if pictures lie at another level than expected, or if a
            class has none.
    """
    if not root.is_dir():
        wrong = "is a file; unpack it and name the folder" if root.exists() else "does not exist"
        raise ScenarioError(f"folder {str(root)!r} {wrong}")
    folders = _folders(root)
    parts = _parts(root, folders)
    if not parts:
        classes, pictures = _classes(root, root)
        return Listing(classes, {WHOLE: pictures})
    found = {part: _classes(folder, root) for part, folder in parts.items()}
    first, *others = found
    for other in others:
        for one, two in ((first, other), (other, first)):
            if missing := [name for name in found[one][0] if name not in found[two][0]]:
                raise ScenarioError(
                    f"class {missing[0]!r} is in {str(parts[one])!r} and not in "
                    f"{str(parts[two])!r}; all splits need the same classes"
                )
    return Listing(found[first][0], {part: pictures for part, (_, pictures) in found.items()})


def _parts(root: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """The split folders by part; none if the folders are classes."""
    known = {name: part for part, names in PARTS.items() for name in names}
    found: dict[str, Path] = {}
    others = []
    for folder in folders:
        part = known.get(folder.name.lower())
        if part is None:
            others.append(folder)
        elif part in found:
            raise ScenarioError(
                f"{found[part].name!r} and {folder.name!r} in {str(root)!r} are both taken for "
                f"the {part} split; keep one of them"
            )
        else:
            found[part] = folder
    # a class may be called so too: a train among vehicles
    if "train" not in found or (others and not _folders(found["train"])):
        return {}
    if len(found) == 1:
        raise ScenarioError(
            f"{str(root)!r} has {found['train'].name!r} and neither val nor test; name "
            f"{str(found['train'])!r} to have it split by seed"
        )
    for other in others:
        if picture := next(_pictures(other), None):
            splits = ", ".join(each.name for each in found.values())
            raise ScenarioError(
                f"{picture!r} lies beside the splits {splits} of {str(root)!r}; expected "
                f"there: {LEVELS}"
            )
    return {part: found[part] for part in PARTS if part in found}


def _classes(folder: Path, root: Path) -> tuple[tuple[str, ...], list[Picture]]:
    """Classes in a folder, and their pictures in order of class and name."""
    if stray := next(_pictures(folder, deep=False), None):
        raise ScenarioError(
            f"{stray!r} lies at the wrong level; expected in {str(root)!r}: {LEVELS}"
        )
    folders = _folders(folder)
    found = [sorted(_pictures(each)) for each in folders]
    if not any(found):
        raise ScenarioError(f"no picture in {str(folder)!r}; expected in {str(root)!r}: {LEVELS}")
    for each, pictures in zip(folders, found, strict=True):
        if not pictures:
            raise ScenarioError(f"class folder {str(each)!r} has no picture; remove it")
    if not any(next(_pictures(each, deep=False), None) for each in folders):
        level = folders[0] if len(folders) == 1 else Path(found[0][0]).parent.parent
        raise ScenarioError(
            f"pictures lie too deep in {str(folder)!r}, {found[0][0]!r} for one; expected "
            f"there: {LEVELS}; did you mean {str(level)!r}?"
        )
    if len(folders) < 2:
        raise ScenarioError(
            f"{str(folder)!r} has one class folder, {folders[0].name!r}; at least 2 are expected"
        )
    below = len(os.path.join(root, ""))  # noqa: PTH118 - a Path for each is slow
    return tuple(each.name for each in folders), [
        Picture(file, label, file[below:].replace(os.sep, "/"))
        for label, pictures in enumerate(found)
        for file in pictures
    ]


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _pictures(
    folder: Path | str, *, deep: bool = True, above: tuple[str, ...] = ()
) -> Iterator[str]:
    """Files that are pictures by their names, at any depth if ``deep``."""
    real = os.path.realpath(folder)
    if real in above:
        raise ScenarioError(f"{str(folder)!r} is a link to a folder above it; remove it")
    for entry in _entries(folder):
        dot, suffix = entry.name.rpartition(".")[1:]
        kind = (dot + suffix).lower()
        if entry.is_dir():
            if deep:
                yield from _pictures(entry.path, above=(*above, real))
        elif kind in FOREIGN:
            raise ScenarioError(f"{entry.path!r}: {kind} is not decoded; save it as PNG or JPEG")
        elif kind in SUFFIXES:
            if not entry.is_file():
                raise ScenarioError(f"{entry.path!r} is a broken link, or no file; remove it")
            yield entry.path


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(HIDDEN)]
    except OSError as error:
        raise ScenarioError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from error
