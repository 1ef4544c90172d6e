"""CIFAR-100 against photographs of faces, for models that generate images: SOPHON's own domains.

Deng et al., *SOPHON*, IEEE S&P 2024, arXiv 2404.12699, denoise CIFAR-100 (original) and CelebA or
FFHQ (restricted). The sets are read from the folder that the environment variable
``SOPHON_BENCH_DATA`` names; nothing is downloaded::

    cifar-100-python/{train,test,meta}              CIFAR-100, python version
    celeba/img_align_celeba/000001.jpg ...          CelebA, aligned and cropped
    celeba/{list_eval_partition,identity_CelebA,list_attr_celeba,list_bbox_celeba,
            list_landmarks_align_celeba}.txt
    ffhq/thumbnails128x128/00000/00000.png ...      FFHQ, thumbnails

CIFAR-100 and CelebA's lists go through torchvision, which compares their MD5 sums with the
published ones first: CIFAR-100 is pickled, and no other pickle may be loaded. Photographs are
cropped to their central square and resized by Pillow's bicubic filter, antialiased.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, TypeVar

import numpy as np
from annotated_types import Ge, Interval
from numpy.typing import NDArray
from PIL import Image

from sophon_bench.api import scenarios
from sophon_bench.data import rendering
from sophon_bench.data.rendering import stream
from sophon_bench.data.scenario import (
    DomainData,
    Images,
    Rendered,
    ScenarioData,
    ScenarioError,
    cached,
)
from sophon_bench.data.tasks.denoising import Denoising

FOLDER = "SOPHON_BENCH_DATA"
"""The environment variable that names the folder; no field, since it is no part of the data."""

SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
BENIGN = {"vehicles": ("vehicles_1", "vehicles_2"), "plants": ("flowers", "trees")}
"""Superclasses that the original domain goes without."""

CIFAR_CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar100": {
        name: members
        for name, members in SUPERCLASSES.items()
        if not any(name in taken for taken in BENIGN.values())
    },
    **{
        domain: {member: (member,) for name in names for member in SUPERCLASSES[name]}
        for domain, names in BENIGN.items()
    },
}
"""The original domain's classes are superclasses, those of benign domains are single ones."""

ORIGINAL_SPLITS = {
    "train": ("train", slice(0, 480)),
    "validation": ("train", slice(480, 500)),
    "test": ("test", slice(0, 20)),
}
BENIGN_SPLITS = {
    "train": ("train", slice(0, 450)),
    "selection": ("train", slice(450, 500)),
    "test": ("test", slice(0, 100)),
}
"""Which part of CIFAR-100 a split is from, and which images of each of its 100 classes."""

FACE_COUNTS = {"defender": 10_000, "attacker": 10_000, "selection": 500, "test": 1000}
SAMPLES = (500, 2000, 10_000)

FFHQ_TRAINING = range(60_000)
FFHQ_VALIDATION = range(60_000, 70_000)


class Source(NamedTuple):
    """A published set of images: its title, what has to be in the folder, and where it is from."""

    title: str
    files: tuple[str, ...]
    page: str


class Listing(NamedTuple):
    """A split before its images are read; the fields run in parallel."""

    files: list[Path]
    labels: NDArray[np.int64]
    sources: NDArray[np.str_]


class Faces(NamedTuple):
    """A restricted domain: its name, its classes, and what finds its splits in a folder."""

    name: str
    classes: tuple[str, ...]
    source: Source
    list_splits: Callable[[Path, int], dict[str, Listing]]


def _cache_key(faces: Faces, size: int, seed: int) -> str:
    """Hash of all that decides the pixels, for sets that are as published."""
    packages = ("numpy", "pillow", "torchvision")
    parts = [faces.name, str(size), str(seed), *(f"{name}=={version(name)}" for name in packages)]
    code = b"".join(Path(file).read_bytes() for file in (__file__, rendering.__file__))
    return hashlib.sha256("\0".join(parts).encode() + code).hexdigest()


def _read(faces: Faces, size: int, seed: int) -> Rendered:
    """Every split of every domain; what is missing is said before any image is read."""
    root = _folder([CIFAR, faces.source])
    listed = faces.list_splits(root, seed)
    for listing in listed.values():
        for file in listing.files:
            if not file.is_file():
                raise ScenarioError(
                    f"{faces.source.title} is not whole: {str(file)!r} does not exist; get the "
                    f"whole set from {faces.source.page}"
                )
    rendered = _read_cifar(root, size, seed)
    for split, listing in listed.items():
        pixels = np.stack([_photograph(file, size) for file in _watched(listing.files, faces.name)])
        rendered[faces.name, split] = Images(pixels, listing.labels, listing.sources)
    for domain in ("cifar100", faces.name):
        test = rendered[domain, "test"]
        mirrored = np.ascontiguousarray(test.pixels[..., ::-1])
        rendered[domain, "second_test"] = Images(mirrored, test.labels, test.sources)
    return rendered


def _folder(sources: Iterable[Source]) -> Path:
    """The folder that the sets are in."""
    given = os.environ.get(FOLDER)
    if not given:
        wanted = " and ".join(f"{s.files[0]} ({s.title}, from {s.page})" for s in sources)
        raise ScenarioError(
            f"the environment variable {FOLDER} is not set; it names the folder with {wanted}"
        )
    root = Path(given)
    missing = [(s, file) for s in sources for file in s.files if not (root / file).exists()]
    if missing:
        source, file = missing[0]
        others = {s.title for s, _ in missing} - {source.title}
        raise ScenarioError(
            f"{source.title} is not in {FOLDER}={given!r}: {str(root / file)!r} does not exist; "
            f"expected there: {', '.join(source.files)}, from {source.page}"
            + "".join(f"; {title} is missing too" for title in others)
        )
    return root


T = TypeVar("T")


def _verified(source: Source, root: Path, load: Callable[[], T]) -> T:
    """What torchvision loads of files that are there."""
    try:
        return load()
    except RuntimeError as error:  # torchvision's only word for an MD5 sum that differs
        raise ScenarioError(
            f"{source.title} in {str(root)!r} is not as published: the MD5 sum of one of "
            f"{', '.join(source.files)} differs; get it again from {source.page}"
        ) from error


def _read_cifar(root: Path, size: int, seed: int) -> Rendered:
    """All splits of the original and the benign domains."""
    from torchvision.datasets import CIFAR100

    rendered: Rendered = {}
    for part in ("train", "test"):
        found = _verified(CIFAR, root, partial(CIFAR100, root, train=part == "train"))
        targets = np.array(found.targets)
        drawn = {
            name: stream(seed, "cifar100", part, name).permutation(np.flatnonzero(targets == i))
            for i, name in enumerate(found.classes)
        }
        for domain, classes in CIFAR_CLASSES.items():
            splits = BENIGN_SPLITS if domain in BENIGN else ORIGINAL_SPLITS
            for split, (of, block) in splits.items():
                if of != part:
                    continue
                index = [np.concatenate([drawn[m][block] for m in c]) for c in classes.values()]
                rendered[domain, split] = Images(
                    np.stack(
                        [_square(Image.fromarray(found.data[i]), size) for c in index for i in c]
                    ),
                    np.repeat(np.arange(len(index)), [len(c) for c in index]),
                    np.array([f"cifar-100-{part}-{i:05d}" for c in index for i in c]),
                )
    return rendered


def _list_celeba(root: Path, seed: int) -> dict[str, Listing]:
    """Splits of CelebA by identity; whoever is in several partitions is taken for the first."""
    from torchvision.datasets import CelebA

    found = _verified(CELEBA.source, root, partial(CelebA, root, split="all"))
    folder = root / "celeba"
    partition = np.loadtxt(folder / "list_eval_partition.txt", dtype=np.int64, usecols=1)
    identity = found.identity[:, 0].numpy()
    male, smiling = (
        found.attr[:, found.attr_names.index(name)].numpy() for name in ("Male", "Smiling")
    )
    people, first = np.unique(identity, return_index=True)
    train, validation, test = (people[partition[first] == part] for part in range(3))
    train = stream(seed, "celeba", "identities").permutation(train)
    of = {"defender": train[::2], "attacker": train[1::2], "selection": validation, "test": test}
    splits = {}
    for split, names in of.items():
        members = np.flatnonzero(np.isin(identity, names))
        index = stream(seed, "celeba", split).permutation(members)[: FACE_COUNTS[split]]
        splits[split] = Listing(
            [folder / "img_align_celeba" / found.filename[i] for i in index],
            (2 * male + smiling)[index].astype(np.int64),
            np.array([f"celeba-identity-{identity[i]}" for i in index]),
        )
    return splits


def _list_ffhq(root: Path, seed: int) -> dict[str, Listing]:
    """Splits of FFHQ's training and validation images."""
    splits = {}
    for numbers, *names in (
        (FFHQ_TRAINING, "defender", "attacker"),
        (FFHQ_VALIDATION, "selection", "test"),
    ):
        order = stream(seed, "ffhq", *names).permutation(numbers)
        begin = 0
        for name in names:
            index = order[begin : begin + FACE_COUNTS[name]].tolist()
            begin += len(index)
            splits[name] = Listing(
                [root / FFHQ.source.files[0] / f"{i // 1000:02d}000/{i:05d}.png" for i in index],
                np.zeros(len(index), dtype=np.int64),
                np.array([f"ffhq-{i:05d}" for i in index]),
            )
    return splits


def _watched(files: list[Path], name: str) -> Iterator[Path]:
    """The files in turn, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        files, f"reading {name}", console=console, transient=True, disable=not console.is_terminal
    )


def _photograph(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(file, formats=["JPEG", "PNG"]) as image:
            return _square(image, size)
    except OSError as error:
        raise ScenarioError(
            f"{str(file)!r} cannot be read as an image: {error}; get the file again"
        ) from error


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The central square ``(3, size, size)``; images of that size stay as they are."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # cropped first: resize's own box lets the filter see pixels outside it
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


CIFAR = Source(
    "CIFAR-100",
    tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
    "https://www.cs.toronto.edu/~kriz/cifar.html",
)
CELEBA = Faces(
    "celeba",
    ("female", "female smiling", "male", "male smiling"),
    Source(
        "CelebA",
        (
            "celeba/img_align_celeba",
            "celeba/list_eval_partition.txt",
            "celeba/identity_CelebA.txt",
            "celeba/list_attr_celeba.txt",
            "celeba/list_bbox_celeba.txt",
            "celeba/list_landmarks_align_celeba.txt",
        ),
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    ),
    _list_celeba,
)
FFHQ = Faces(
    "ffhq",
    ("face",),
    Source("FFHQ", ("ffhq/thumbnails128x128",), "https://github.com/NVlabs/ffhq-dataset"),
    _list_ffhq,
)


@dataclass(frozen=True, kw_only=True)
class _Cifar100Faces:
    image_size: Annotated[int, Interval(ge=16, le=128)] = 32
    seed: Annotated[int, Ge(0)] = 0
    one_step: bool = False

    faces: ClassVar[Faces]

    def build(self, cache: Path | None = None) -> ScenarioData:
        """Read the sets, in a few minutes; or what was read before from ``cache``.

        Raises:
            ScenarioError: If a set is not where it should be, or not as it was published.
        """
        faces, size, seed = self.faces, self.image_size, self.seed
        images = cached(cache, _cache_key(faces, size, seed), lambda: _read(faces, size, seed))
        classes = {faces.name: faces.classes} | {n: tuple(c) for n, c in CIFAR_CLASSES.items()}

        def domain(name: str) -> DomainData:
            splits = {split: found for (of, split), found in images.items() if of == name}
            return DomainData(name, Denoising(one_step=self.one_step), classes[name], splits)

        return ScenarioData(
            image_size=size,
            original=domain("cifar100"),
            restricted=domain(faces.name),
            benign=tuple(domain(name) for name in BENIGN),
            samples=SAMPLES,
            steps=2000,
            pretrain_steps=10_000,
        )


@scenarios.register("cifar100-celeba")
@dataclass(frozen=True, kw_only=True)
class Cifar100CelebA(_Cifar100Faces):
    """CIFAR-100 (original) and CelebA (restricted), to be denoised; read from SOPHON_BENCH_DATA.

    Original: 16 superclasses of CIFAR-100 with 38400 training, 1600 validation and 1600 test
    images; benign: the other four, as vehicles and plants, 4500, 500 and 1000 each. Restricted:
    10000 images each of the defender and the attacker, 500 and 1000 of selection and test, labelled
    by CelebA's Male and Smiling. The first two are of CelebA's training partition, then validation
    and test; no identity is in two splits. ``second_test`` shows the test's images mirrored.
    CIFAR-100's near-duplicates between training and test (arXiv 1902.00423) are left in.

    Args:
        image_size: Height and width of the images in pixels.
        seed: Seed of which images each split takes.
        one_step: Denoise at timestep 1 alone, as SOPHON's released code does.
    """

    faces: ClassVar[Faces] = CELEBA


@scenarios.register("cifar100-ffhq")
@dataclass(frozen=True, kw_only=True)
class Cifar100Ffhq(_Cifar100Faces):
    """CIFAR-100 (original) and FFHQ (restricted), to be denoised; read from SOPHON_BENCH_DATA.

    Original and benign domains are those of ``cifar100-celeba``. Restricted: 10000 images each of
    the defender and the attacker from FFHQ's 60000 training images, 500 and 1000 of selection and
    test from its 10000 of validation. FFHQ has no labels and says of nobody who it is: splits are
    disjoint by image, and all are of one class. ``second_test`` shows the test's images mirrored.

    Args:
        image_size: Height and width of the images in pixels.
        seed: Seed of which images each split takes.
        one_step: Denoise at timestep 1 alone, as SOPHON's released code does.
    """

    faces: ClassVar[Faces] = FFHQ
