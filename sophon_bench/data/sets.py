"""The published sets that scenarios may name.

URLs and MD5 sums of archives are those of torchvision's classes. CINIC-10 has none there, and its
publisher states no sum; the one here is what several public readers of it compare with.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from sophon_bench.data.downloading import Archive
from sophon_bench.data.published import (
    MB,
    Layout,
    Published,
    read_cifar,
    read_idx,
    read_stl10,
    read_svhn,
)

IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")

BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
BINARIES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")

WORDNET = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Names of Imagenette's class folders."""


IMAGENETTE_160 = Archive(
    ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",),
    "e793b78cc4c9e9a4ccc0c1155377a412",
)

CINIC = Archive(
    ("https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",),
    "6ee4d0c996905fe93221de577967a372",
    "CINIC-10",
)


def _archive(name: str) -> tuple[Archive, ...]:
    """The one archive of a class of torchvision's."""
    import torchvision.datasets

    cls = getattr(torchvision.datasets, name)
    return (Archive((cls.url,), cls.tgz_md5),)


def _idx_archives(name: str) -> tuple[Archive, ...]:
    import torchvision.datasets

    cls = getattr(torchvision.datasets, name)
    return tuple(
        Archive(tuple(f"{mirror}{file}" for mirror in cls.mirrors), md5, f"{name}/raw")
        for file, md5 in cls.resources
    )


def _svhn_archives() -> tuple[Archive, ...]:
    from torchvision.datasets import SVHN

    files = (SVHN.split_list[part] for part in ("train", "test"))
    return tuple(Archive((url,), md5, "svhn") for url, _, md5 in files)


def _in(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


def _idx_layouts(folder: str) -> tuple[Layout, ...]:
    """Unpacked, as torchvision leaves them, and as they are downloaded."""
    return tuple(
        Layout(files=_in(f"{folder}/raw", *(f"{name}-ubyte{end}" for name in IDX)), read=read_idx)
        for end in ("", ".gz")
    )


def _first_version(ends: Iterable[str]) -> dict[str, str]:
    words = "Imagenette's version 1, whose parts are others"
    return {f"imagenette{end}": words for end in ends}


SETS = {
    each.name: each
    for each in (
        Published(
            name="cifar10",
            title="CIFAR-10",
            page="https://www.cs.toronto.edu/~kriz/cifar.html",
            licence="none stated; cite Krizhevsky 2009",
            bytes=170 * MB,
            counts={"train": 50_000, "test": 10_000},
            layouts=(
                Layout(
                    files=_in("cifar-10-batches-py", "batches.meta", *BATCHES, "test_batch"),
                    read=read_cifar,
                ),
                Layout(files=("cifar10",)),
            ),
            archives=partial(_archive, "CIFAR10"),
            others={
                "cifar-10-batches-bin": "CIFAR-10's binary version, not the one for Python",
                "cifar-10-batches-mat": "CIFAR-10's Matlab version, not the one for Python",
            },
        ),
        Published(
            name="cifar100",
            title="CIFAR-100",
            page="https://www.cs.toronto.edu/~kriz/cifar.html",
            licence="none stated; cite Krizhevsky 2009",
            bytes=169 * MB,
            counts={"train": 50_000, "test": 10_000},
            layouts=(
                Layout(
                    files=_in("cifar-100-python", "meta", "train", "test"),
                    read=read_cifar,
                ),
            ),
            archives=partial(_archive, "CIFAR100"),
            others={
                "cifar-100-binary": "CIFAR-100's binary version, not the one for Python",
                "cifar-100-matlab": "CIFAR-100's Matlab version, not the one for Python",
            },
        ),
        Published(
            name="cinic10",
            title="CINIC-10",
            page="https://datashare.ed.ac.uk/handle/10283/3192",
            licence="MIT; its images by ImageNet's terms, research only",
            bytes=688 * MB,
            counts={"train": 90_000, "validation": 90_000, "test": 90_000},
            layouts=(Layout(files=("CINIC-10",)),),
            archives=lambda: (CINIC,),
        ),
        Published(
            name="stl10",
            title="STL-10",
            page="https://cs.stanford.edu/~acoates/stl10/",
            licence="none stated; from ImageNet, research only",
            bytes=2640 * MB,
            counts={"train": 5000, "test": 8000},
            layouts=(
                Layout(
                    files=_in("stl10_binary", "class_names.txt", *BINARIES),
                    read=read_stl10,
                ),
            ),
            archives=partial(_archive, "STL10"),
            others={"stl10_matlab": "STL-10's Matlab version, not the binary one"},
        ),
        Published(
            name="svhn",
            title="SVHN",
            page="http://ufldl.stanford.edu/housenumbers/",
            licence="not for commercial use",
            bytes=246 * MB,
            counts={"train": 73_257, "test": 26_032},
            layouts=(
                Layout(files=("svhn/train_32x32.mat", "svhn/test_32x32.mat"), read=read_svhn),
            ),
            archives=_svhn_archives,
        ),
        Published(
            name="mnist",
            title="MNIST",
            page="https://ossci-datasets.s3.amazonaws.com/mnist/",
            licence="CC BY-SA 3.0",
            bytes=12 * MB,
            counts={"train": 60_000, "test": 10_000},
            layouts=_idx_layouts("MNIST"),
            archives=partial(_idx_archives, "MNIST"),
        ),
        Published(
            name="fashion-mnist",
            title="Fashion-MNIST",
            page="https://github.com/zalandoresearch/fashion-mnist",
            licence="MIT",
            bytes=31 * MB,
            counts={"train": 60_000, "test": 10_000},
            layouts=_idx_layouts("FashionMNIST"),
            archives=partial(_idx_archives, "FashionMNIST"),
        ),
        Published(
            name="imagenette",
            title="Imagenette",
            page="https://github.com/fastai/imagenette",
            licence="ImageNet's terms, research only",
            bytes=99 * MB,
            counts={"train": 9469, "validation": 3925},
            layouts=(
                Layout(files=("imagenette2-160",), side=160),
                Layout(files=("imagenette2-320",), side=320),
                Layout(files=("imagenette2",)),
            ),
            archives=lambda: (IMAGENETTE_160,),
            labels=WORDNET,
            others=_first_version(("-160", "-320", "")),
        ),
    )
}
"""By name."""
