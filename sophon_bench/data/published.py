"""Published sets of images by name: where their files lie, and how they are read.

Sets lie in the folder that the environment variable ``SOPHON_BENCH_DATA`` names, as their archives
unpack or as torchvision downloads them. What is pickled (CIFAR) goes through torchvision's class,
which compares MD5 sums with the published ones first; STL-10 and SVHN are compared too. Sets of
picture files have to have as many pictures in each part as were published.

Training images of CIFAR that nearly are test images are left out; a folder of its pictures has no
indices to know them by.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sophon_bench.data.downloading import Archive
from sophon_bench.data.folders import Listing, list_folder
from sophon_bench.data.images import decode, square
from sophon_bench.data.kept import Part, Unread
from sophon_bench.data.scenario import ScenarioError

ROOT = "SOPHON_BENCH_DATA"
"""The environment variable that names the folder with the sets."""

MB = 10**6

DIGITS = tuple("0123456789")
FASHION = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)

Arrays = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""Images ``(N, H, W)`` or ``(N, H, W, 3)`` and labels ``(N,)`` by part."""


@contextlib.contextmanager
def sets_in(folder: str | Path | None) -> Iterator[None]:
    """Sets lie in ``folder``, also for processes that begin meanwhile; None: where they did."""
    before = os.environ.get(ROOT)
    if folder is not None:
        os.environ[ROOT] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(ROOT, None)
        os.environ.update({} if before is None else {ROOT: before})


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One form in which a set lies in the folder.

    Attributes:
        files: What has to be there; the first is enough to know the form.
        side: Height and width of its images in pixels; 0: they vary, or are as published.
        read: Makes classes and images of files that are there; None: they are a folder of pictures.
    """

    files: tuple[str, ...]
    side: int = 0
    read: Callable[[Published, Path], tuple[tuple[str, ...], Arrays]] | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published set of images.

    Attributes:
        name: What a scenario calls it.
        title: What its authors call it.
        page: Where to get it.
        licence: In a few words.
        bytes: Size of the archives.
        counts: Images by part.
        layouts: The forms it may have.
        archives: The files to download.
        labels: Names for class folders; empty: the folders' own.
        others: Folders of other versions, by what to say of them.
    """

    name: str
    title: str
    page: str
    licence: str
    bytes: int
    counts: Mapping[str, int]
    layouts: tuple[Layout, ...]
    archives: Callable[[], Sequence[Archive]]
    labels: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)

    def place(self, size: int) -> tuple[Path, Layout]:
        """The folder with the sets, and the form in which this one is there.

        Of several, the one with the smallest images that need not be enlarged is taken.

        Raises:
            ScenarioError: If it is not there, or not whole.
        """
        root = data_root(self)
        here = [each for each in self.layouts if (root / each.files[0]).exists()]
        if not here:
            raise ScenarioError(_absent(self, root))
        enough = [each for each in here if each.side >= size or not each.side]
        layout = min(enough, key=_side) if enough else max(here, key=_side)
        for file in layout.files:
            if not (root / file).exists():
                raise ScenarioError(
                    f"{self.title} is not whole: {str(root / file)!r} does not exist; get it again "
                    f"from {self.page}"
                )
        return root, layout

    def unread(self, size: int) -> Unread:
        """The set before it is read; raises as `place`."""
        root, layout = self.place(size)
        if layout.read is None:
            listing = list_folder(root / layout.files[0])
            self.check_counts({part: len(found) for part, found in listing.parts.items()}, root)
            named = tuple(self.labels.get(name, name) for name in listing.classes)
            listing = Listing(named, listing.parts)
            return folder_set(root / layout.files[0], listing, size, title=self.title)
        stats = [(root / file).stat() for file in layout.files]
        lines = [self.name, os.path.realpath(root), *layout.files]
        lines += [f"{found.st_size}\0{found.st_mtime_ns}" for found in stats]
        lines += map(str, sorted(near_duplicates(self.name)))
        return Unread(self.title, "\n".join(lines), size, partial(_array_parts, self, size))

    def arrays(self) -> tuple[tuple[str, ...], Arrays]:
        """Classes and images of a set that is kept in arrays, compared with what was published.

        Raises:
            ScenarioError: If the files are others than those published.
        """
        root, layout = self.place(1)
        assert layout.read is not None
        classes, found = layout.read(self, root)
        self.check_counts({part: len(labels) for part, (_, labels) in found.items()}, root)
        return classes, found

    def check_counts(self, found: Mapping[str, int], root: Path) -> None:
        """Nothing, if parts have as many images as were published.

        Raises:
            ScenarioError: Naming the first part that has not.
        """
        for part, count in self.counts.items():
            if found.get(part) != count:
                raise ScenarioError(
                    f"{self.title} in {str(root)!r} has {found.get(part, 0)} {part} images, "
                    f"{count} were published; get it again from {self.page}"
                )


def data_root(wanted: Published) -> Path:
    """The folder with the sets.

    Raises:
        ScenarioError: If no folder is named, or it is not there.
    """
    given = os.environ.get(ROOT)
    if not given:
        raise ScenarioError(
            f"{wanted.title} is needed: name the folder with {wanted.layouts[0].files[0]} by "
            f"--data or {ROOT}; 'sophon-bench data list' says more"
        )
    root = Path(given).expanduser()
    if not root.is_dir():
        raise ScenarioError(f"the folder of sets {given!r} (--data or {ROOT}) does not exist")
    return root


def _absent(wanted: Published, root: Path) -> str:
    """Why a set is not found, and where it may be instead."""
    names = [each.files[0] for each in wanted.layouts]
    for other, words in wanted.others.items():
        if (root / other).exists():
            return (
                f"{str(root / other)!r} is {words}; expected beside it: {names[0]}, from "
                f"{wanted.page}"
            )
    levels = [root.parent, *sorted(path for path in root.iterdir() if path.is_dir())]
    for level in levels:
        for name in names:
            if os.path.exists(level / name):  # noqa: PTH110 - Path.exists raises if it may not look
                return (
                    f"{wanted.title} is at another level: {str(level / name)!r}; name the folder "
                    f"above it: --data {str(level)!r}"
                )
    return (
        f"{wanted.title} is not in {str(root)!r}; expected there: {' or '.join(names)}, from "
        f"{wanted.page}"
    )


def _side(layout: Layout) -> float:
    return layout.side or float("inf")


# Reading ---------------------------------------------------------------------------------------


def folder_set(folder: Path, listing: Listing, size: int, *, title: str) -> Unread:
    """A folder of pictures before they are read."""
    lines = [os.path.realpath(folder), *listing.classes]
    for name, pictures in listing.parts.items():
        lines.append(name)
        for picture in pictures:
            found = os.stat(picture.file)  # noqa: PTH116 - a Path for each is slow
            lines.append(f"{picture.source}\0{found.st_size}\0{found.st_mtime_ns}")
    return Unread(title, "\n".join(lines), size, partial(_folder_parts, listing, size))


def _folder_parts(listing: Listing, size: int) -> tuple[tuple[str, ...], Mapping[str, Part]]:
    return listing.classes, {
        name: Part(
            [picture.label for picture in pictures],
            [picture.source for picture in pictures],
            [partial(decode, Path(picture.file), size) for picture in pictures],
        )
        for name, pictures in listing.parts.items()
    }


def _array_parts(found: Published, size: int) -> tuple[tuple[str, ...], Mapping[str, Part]]:
    classes, arrays = found.arrays()
    parts = {}
    for part, (images, labels) in arrays.items():
        left_out = near_duplicates(found.name) if part == "train" else ()
        kept = [number for number in range(len(labels)) if number not in left_out]
        parts[part] = Part(
            labels[kept].tolist(),
            [f"{found.name}-{part}-{number:06d}" for number in kept],
            [partial(_resized, images[number], size) for number in kept],
        )
    return classes, parts


@functools.cache
def near_duplicates(name: str) -> frozenset[int]:
    """Indices of a set's training images that nearly are test images; none where no list is known.

    The lists are those of Barz and Denzler, Do We Train on Test Data?, 2020, arXiv 1902.00423.
    """
    lists = json.loads(Path(__file__).with_name("near_duplicates.json").read_text())
    return frozenset(lists.get(name, ()))


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return square(Image.fromarray(image).convert("RGB"), size)


def _verified(found: Published, root: Path, load: Callable[[], Any]) -> Any:
    """What torchvision loads of files that are there."""
    try:
        return load()
    except RuntimeError as error:  # torchvision's only word for an MD5 sum that differs
        raise ScenarioError(_altered(found, root)) from error


def _altered(found: Published, root: Path) -> str:
    return (
        f"{found.title} in {str(root)!r} is not as published: the MD5 sum of one of its files "
        f"differs; get it again from {found.page}"
    )


def read_cifar(found: Published, root: Path) -> tuple[tuple[str, ...], Arrays]:
    """CIFAR-10 or CIFAR-100, the version for Python."""
    from torchvision import datasets

    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[found.name]
    parts = {
        part: _verified(found, root, partial(cls, root, train=part == "train"))
        for part in ("train", "test")
    }
    classes = tuple(map(str, parts["train"].classes))
    return classes, {part: (s.data, np.array(s.targets)) for part, s in parts.items()}


def read_stl10(found: Published, root: Path) -> tuple[tuple[str, ...], Arrays]:
    """The labelled images; torchvision's class would ask for 2.7 GB of others too."""
    from torchvision.datasets import STL10
    from torchvision.datasets.utils import check_integrity

    folder = root / STL10.base_folder
    sums = dict([*STL10.train_list, *STL10.test_list])
    arrays: Arrays = {}
    for part in ("train", "test"):
        files = [folder / f"{part}_{kind}.bin" for kind in "Xy"]
        if not all(check_integrity(file, sums[file.name]) for file in files):
            raise ScenarioError(_altered(found, root))
        images, labels = (np.fromfile(file, dtype=np.uint8) for file in files)
        arrays[part] = (
            images.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1),
            labels.astype(np.int64) - 1,
        )
    return tuple((folder / STL10.class_names_file).read_text().split()), arrays


def read_svhn(found: Published, root: Path) -> tuple[tuple[str, ...], Arrays]:
    """The cropped digits, without the extra ones."""
    from torchvision.datasets import SVHN

    arrays: Arrays = {}
    for part in ("train", "test"):
        read = _verified(found, root, partial(SVHN, root / "svhn", split=part))
        arrays[part] = read.data.transpose(0, 2, 3, 1), read.labels
    return DIGITS, arrays


def read_idx(found: Published, root: Path) -> tuple[tuple[str, ...], Arrays]:
    """IDX files, also as they are downloaded, which torchvision does not read."""
    folder = root / Path(found.layouts[0].files[0]).parent
    arrays: Arrays = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        images = _idx(found, folder / f"{name}-images-idx3-ubyte", 3)
        arrays[part] = images, _idx(found, folder / f"{name}-labels-idx1-ubyte", 1).astype(np.int64)
    return (FASHION if found.name == "fashion-mnist" else DIGITS), arrays


def _idx(found: Published, file: Path, dimensions: int) -> NDArray[np.uint8]:
    """Bytes with their shape before them, from ``file`` or ``file.gz``."""
    packed = file.with_name(f"{file.name}.gz")
    given = file if file.exists() else packed
    try:
        content = given.read_bytes() if given == file else gzip.decompress(given.read_bytes())
        head = np.frombuffer(content, ">i4", dimensions + 1).tolist()
        if head[0] != 0x800 + dimensions:
            raise ValueError("its first bytes are not those of the format")
        return np.frombuffer(content, np.uint8, offset=4 * len(head)).reshape(head[1:])
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ScenarioError(
            f"{str(given)!r} of {found.title} is damaged: {error}; get it again from {found.page}"
        ) from error
