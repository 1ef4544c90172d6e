"""Sets of images at one size: decoded once, then mapped from files into memory.

A set lies in a folder of the scenario cache: ``pixels.npy`` ``(N, 3, S, S)``, ``labels.npy``,
``sources.npy``, ``unique.npy``, and ``set.json`` with its classes and the range of every part. The
folder gets its name when all of it is written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sophon_bench.data import images
from sophon_bench.data.scenario import Images
from sophon_bench.results.files import TEMPORARY, WriteError

CHUNK = 256
"""Images that are decoded before their pixels are written."""

THERE = (errno.EEXIST, errno.ENOTEMPTY)
"""What the system says where another process has put a set meanwhile."""

FIRST = ("test", "validation", "train")
"""Parts in the order in which the first of several equal images is looked for."""


@dataclass(frozen=True)
class Part:
    """Images of a part before they are decoded; each of ``loads`` makes one ``(3, S, S)``."""

    labels: Sequence[int]
    sources: Sequence[str]
    loads: Sequence[Callable[[], NDArray[np.uint8]]]


@dataclass(frozen=True)
class ImageSet:
    """A set as it was published or collected.

    Attributes:
        classes: Their names.
        parts: Images by part.
        unique: By part, ``(N,)`` whether no earlier image has the same pixels, in order of `FIRST`.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, Images]
    unique: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Unread:
    """A set before it is read.

    Attributes:
        title: For the progress bar.
        fingerprint: What decides the pixels, and where they are read from.
        size: Height and width of the images in pixels.
        open: Finds the classes and the parts.
    """

    title: str
    fingerprint: str
    size: int
    open: Callable[[], tuple[tuple[str, ...], Mapping[str, Part]]]

    @property
    def key(self) -> str:
        """Name of its folder in the cache."""
        packages = [f"{name}=={version(name)}" for name in ("numpy", "pillow")]
        code = Path(images.__file__).read_bytes() + Path(__file__).read_bytes()
        parts = "\0".join([self.fingerprint, str(self.size), *packages])
        return hashlib.sha256(parts.encode(errors="surrogatepass") + code).hexdigest()


def read(unread: Unread, cache: Path | None) -> ImageSet:
    """A set from the cache, or decoded and put there; without a cache, in memory.

    Raises:
        ScenarioError: If an image cannot be decoded.
        WriteError: If the cache cannot be written.
    """
    if cache is None:
        with tempfile.TemporaryDirectory() as folder:
            _write(unread, Path(folder))
            return _mapped(Path(folder), in_memory=True)
    place = cache / unread.key
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, TypeError):
        return _mapped(place)
    temporary = cache / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        temporary.mkdir(parents=True)
        _write(unread, temporary)
        shutil.rmtree(place, ignore_errors=True)
        try:
            temporary.rename(place)
        except OSError as error:
            if error.errno not in THERE:
                raise
        return _mapped(place)
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(place)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(unread: Unread, folder: Path) -> None:
    classes, parts = unread.open()
    counts = [len(part.labels) for part in parts.values()]
    shape = (sum(counts), 3, unread.size, unread.size)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)
    digests: list[bytes] = []
    for found in decoded(unread.title, list(parts.values())):
        pixels[len(digests) : len(digests) + len(found)] = found
        digests += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in found]
    pixels.flush()
    labels = np.concatenate([np.asarray(part.labels, dtype=np.int64) for part in parts.values()])
    np.save(folder / "labels.npy", labels)
    np.save(folder / "sources.npy", np.array([s for p in parts.values() for s in p.sources]))
    ends = np.cumsum(counts).tolist()
    ranges = {name: [end - n, end] for name, n, end in zip(parts, counts, ends, strict=True)}
    np.save(folder / "unique.npy", _unique(digests, ranges))
    folder.joinpath("set.json").write_text(json.dumps({"classes": classes, "parts": ranges}))


def _unique(digests: Sequence[bytes], ranges: Mapping[str, list[int]]) -> NDArray[np.bool_]:
    """Which images are the first with their digest; test images come first."""
    found = np.zeros(len(digests), dtype=np.bool_)
    seen: set[bytes] = set()
    for name in sorted(ranges, key=lambda name: FIRST.index(name) if name in FIRST else 0):
        for number in range(*ranges[name]):
            found[number] = digests[number] not in seen
            seen.add(digests[number])
    return found


def decoded(title: str, parts: Sequence[Part]) -> Iterator[NDArray[np.uint8]]:
    """Images in order, some at a time; a bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    jobs = [load for part in parts for load in part.loads]
    console = Console(stderr=True)
    with (
        warnings.catch_warnings(),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        # half the size that is refused; whoever has such photographs knows
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # damaged and unusual tags are no matter of the pixels
        warnings.simplefilter("ignore", UserWarning)
        task = progress.add_task(f"reading {title}", total=len(jobs))
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]
            yield np.stack([*threads.map(lambda load: load(), chunk)])
            progress.advance(task, len(chunk))


def _mapped(folder: Path, *, in_memory: bool = False) -> ImageSet:
    """A written set; its pixels stay in the file, and writing to them changes a copy."""
    content = json.loads(folder.joinpath("set.json").read_text())
    pixels = np.load(folder / "pixels.npy", mmap_mode=None if in_memory else "c")
    labels, sources, unique = (
        np.load(folder / f"{name}.npy") for name in ("labels", "sources", "unique")
    )
    ranges = {name: slice(*ends) for name, ends in content["parts"].items()}
    return ImageSet(
        tuple(content["classes"]),
        {name: Images(pixels[r], labels[r], sources[r]) for name, r in ranges.items()},
        {name: unique[r] for name, r in ranges.items()},
    )
