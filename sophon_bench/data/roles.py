"""From a set of images to a domain with the splits that its role needs.

Test images come from the set's own test part; where it has none, from its validation part; where
it has no parts at all, from all its images. Everything else comes from what is left of training
images, but for the validation or selection split if there are both a validation and a test part.
Images are drawn class by class from a seed, as many of each class if it has them. No file is in two
splits, and of images with equal pixels one is used. ``second_test`` shows the test's mirrored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sophon_bench.data.folders import WHOLE
from sophon_bench.data.kept import ImageSet
from sophon_bench.data.rendering import stream
from sophon_bench.data.scenario import DomainData, Images, ScenarioError
from sophon_bench.data.tasks.classification import Classification

Role = Literal["original", "restricted", "benign"]


class Share(NamedTuple):
    """How large a split is: at most so many images, and at most this share of what it is from."""

    most: int
    share: float


TEST: dict[Role, Share] = {
    "original": Share(2000, 0.2),
    "restricted": Share(1000, 0.2),
    "benign": Share(1000, 0.2),
}
"""1000 test images: a standard error of 1.6 points at most, and they are scored a dozen times."""

HELD_OUT: dict[Role, tuple[str, Share]] = {
    "original": ("validation", Share(1000, 0.1)),
    "restricted": ("selection", Share(500, 0.1)),
    "benign": ("selection", Share(500, 0.1)),
}
"""The split that training, or the harness, chooses by."""

TRAINING: dict[Role, dict[str, Share]] = {
    "original": {"train": Share(20_000, 1.0)},
    "restricted": {"attacker": Share(2000, 0.5), "defender": Share(5000, 1.0)},
    "benign": {"train": Share(2000, 1.0)},
}
"""What is left, in this order. An attacker holds few samples, a defender may collect more."""


def domain(name: str, role: Role, found: ImageSet, seed: int) -> DomainData:
    """The splits of a role, drawn from a set of images.

    Raises:
        ScenarioError: If a class has too few images to be in every split.
    """
    splits: dict[str, Images] = {}
    for part, wanted in _plan(role, found.parts).items():
        images, unique = found.parts[part], found.unique[part]
        drawn: list[list[NDArray[np.int64]]] = [[] for _ in wanted]
        for label, named in enumerate(found.classes):
            members = np.flatnonzero(unique & (images.labels == label))
            if len(members) < len(wanted):
                raise ScenarioError(_too_few(name, part, named, len(members), wanted))
            rng = stream(seed, name, part, str(label))
            sizes = _sizes(len(members), [share for _, share in wanted], len(found.classes))
            blocks = np.split(rng.permutation(members), np.cumsum(sizes))
            for found_so_far, block in zip(drawn, blocks, strict=False):
                found_so_far.append(block)
        for (split, _), blocks in zip(wanted, drawn, strict=True):
            splits[split] = _chosen(images, np.sort(np.concatenate(blocks)))
    if role != "benign":
        test = splits["test"]
        splits["second_test"] = Images(test.pixels[..., ::-1], test.labels, test.sources)
    return DomainData(name, Classification(len(found.classes)), found.classes, splits)


def split_domain(
    name: str, role: Role, images: Images, classes: Sequence[str], seed: int = 0
) -> DomainData:
    """The splits that a domain's role needs, drawn from all its images as from a folder's.

    A fifth of each class is tested, a tenth held out; of images with equal pixels one is used.

    Args:
        name: What the domain is called in tables.
        role: ``original``, ``restricted`` or ``benign``.
        images: All of them, ``(N, 3, H, W)``, each with a source of its own.
        classes: Names of the labels 0, 1, ….
        seed: Seed of which images each split takes.

    Raises:
        ScenarioError: If a class has too few images to be in every split.
    """
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.pixels]
    unique = np.zeros(len(images), dtype=np.bool_)
    unique[np.unique(digests, return_index=True)[1]] = True
    return domain(name, role, ImageSet(tuple(classes), {WHOLE: images}, {WHOLE: unique}), seed)


Wanted = list[tuple[str, Share]]


def _plan(role: Role, parts: Collection[str]) -> dict[str, Wanted]:
    """The splits that are drawn from each part, in this order."""
    test, held_out, training = ("test", TEST[role]), HELD_OUT[role], [*TRAINING[role].items()]
    if WHOLE in parts:
        return {WHOLE: [test, held_out, *training]}
    if "test" in parts and "validation" in parts:
        return {"test": [_all(test)], "validation": [_all(held_out)], "train": training}
    (tested,) = {"test", "validation"} & {*parts}
    return {tested: [_all(test)], "train": [held_out, *training]}


def _all(wanted: tuple[str, Share]) -> tuple[str, Share]:
    """A split that has a part of its own."""
    split, share = wanted
    return split, share._replace(share=1.0)


def _sizes(count: int, shares: Sequence[Share], classes: int) -> list[int]:
    """How many of the ``count`` images of a class every split takes, one at least."""
    sizes: list[int] = []
    for number, (most, share) in enumerate(shares, start=1):
        room = count - sum(sizes) - (len(shares) - number)
        wanted = min(math.floor(share * count), math.ceil(most / classes))
        sizes.append(min(room, max(1, wanted)))
    return sizes


def _chosen(images: Images, index: NDArray[np.int64]) -> Images:
    """Some of the images; a run of them stays where it is, in a mapped file."""
    run = index[-1] - index[0] + 1 == len(index)
    chosen = slice(index[0], index[-1] + 1) if run else index
    return Images(images.pixels[chosen], images.labels[chosen], images.sources[chosen])


def _too_few(name: str, part: str, label: str, count: int, wanted: Wanted) -> str:
    splits = ", ".join(split for split, _ in wanted)
    where = name if part == WHOLE else f"{name}/{part}"
    images = f"{count} different image" + "s" * (count != 1)
    return (
        f"{where}: class {label!r} has {images}; at least {len(wanted)} are needed, one for each "
        f"of {splits}"
    )
