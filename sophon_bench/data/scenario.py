"""Scenarios: an original, a restricted and some benign domains, split so that nothing leaks.

A scenario is a registered frozen dataclass whose fields are its parameters (``image_size`` among
them) and whose ``build()`` returns `ScenarioData`. Splits are by source (font, writer block,
texture seed), made before any rendering; no source is in two splits.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sophon_bench.api import Task
from sophon_bench.plugins.failures import BadInput
from sophon_bench.protocol import PRETRAIN_LR
from sophon_bench.results.files import write_atomic


@dataclass(frozen=True)
class Images:
    """Labelled images of one split.

    Labels and sources may be given as lists; labels of any integer type become int64.

    pixels: ``(N, 3, H, W)`` uint8.
    labels: ``(N,)`` int64 class ids.
    sources: ``(N,)`` strings that name what each image was made from; disjoint between splits.

    Raises:
        ValueError: If the lengths differ.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sources: NDArray[np.str_]

    def __post_init__(self) -> None:
        counts = len(self.pixels), len(self.labels), len(self.sources)
        if len(set(counts)) > 1:
            raise ValueError(
                "pixels, labels and sources must have one length; got {} pixels, {} labels and {} "
                "sources".format(*counts)
            )
        labels, sources = np.asarray(self.labels), np.asarray(self.sources)
        if labels.dtype.kind in "iu":
            whole = np.ascontiguousarray(labels, dtype=np.int64)
            labels = whole if np.array_equal(whole, labels) else labels
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "sources", sources)
        if isinstance(self.pixels, np.ndarray) and min(self.pixels.strides, default=0) < 0:
            # mirrored without a copy, which torch does not take
            object.__setattr__(self, "pixels", np.ascontiguousarray(self.pixels))

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class DomainData:
    """One domain with all its splits; only the harness holds this, plugins get a `Domain`.

    Splits. Original: ``train``, ``validation``, ``test``, ``second_test``. Restricted:
    ``defender``, ``attacker``, ``selection``, ``test``, ``second_test``. Benign: ``train``,
    ``selection``, ``test``. ``second_test`` shows the test sources in another rendering.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    splits: Mapping[str, Images]

    @property
    def pool(self) -> Images:
        """What an attacker's n samples are taken from."""
        return self.splits["attacker"] if "attacker" in self.splits else self.splits["train"]


class Recipe(NamedTuple):
    """How long pre-training is, in updates, and the largest step size of its schedule."""

    steps: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class ScenarioData:
    """A built scenario.

    Attributes:
        image_size: Height and width of the images in pixels.
        benign: Benign domains; the first is also the attacker's auxiliary data.
        samples: The attacker's sample counts n that the protocol asks for.
        steps: Length of the longest budget, in updates of `records.REFERENCE_BATCH` examples.
        pretrain_steps: Updates of pre-training; several: candidates.
        pretrain_lrs: Step sizes of pre-training that are candidates; a short list. Pre-trained
            weights want smaller ones than random weights. Validation utility on the original domain
            chooses one of each.
        generated: Images that are made of every model, where models make any; at least 2.

    Lists become tuples, and numpy's numbers Python's: records take no others.
    """

    image_size: int
    original: DomainData
    restricted: DomainData
    benign: tuple[DomainData, ...]
    samples: tuple[int, ...]
    steps: int
    pretrain_steps: int | tuple[int, ...]
    pretrain_lrs: tuple[float, ...] = (PRETRAIN_LR,)
    generated: int = 200

    def __post_init__(self) -> None:
        for name in ("image_size", "steps", "pretrain_steps", "generated"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        for name in ("samples", "benign", "pretrain_lrs", "pretrain_steps"):
            if isinstance(given := getattr(self, name), list | np.ndarray | tuple):
                object.__setattr__(self, name, tuple(_plain(value) for value in given))

    @property
    def domains(self) -> tuple[DomainData, ...]:
        """Original, restricted, then the benign ones."""
        return (self.original, self.restricted, *self.benign)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Candidates for pre-training: each length with each step size, in the order given."""
        steps = self.pretrain_steps
        lengths = steps if isinstance(steps, tuple) else (steps,)
        return tuple(itertools.starmap(Recipe, itertools.product(lengths, self.pretrain_lrs)))

    def domain(self, name: str) -> DomainData:
        """The domain called ``name``."""
        return next(domain for domain in self.domains if domain.name == name)

    @property
    def revision(self) -> str:
        """SHA-256 of everything that is in the data: names, labels, sources and pixels."""
        digest = hashlib.sha256()
        for domain in self.domains:
            digest.update(repr((domain.name, domain.classes)).encode())
            for name, images in sorted(domain.splits.items()):
                digest.update(name.encode() + str(images.pixels.shape).encode())
                digest.update(np.ascontiguousarray(images.pixels).tobytes())
                digest.update(np.ascontiguousarray(images.labels).tobytes())
                digest.update("\0".join(images.sources.tolist()).encode(errors="surrogatepass"))
        return digest.hexdigest()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.integer | np.floating) else value


class ScenarioError(BadInput, ValueError):
    """A scenario's data is not on this machine, or is not what it should be."""


class Scenario(Protocol):
    """What is registered with ``scenarios.register``."""

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        ...

    def build(self, cache: Path | None = None) -> ScenarioData:
        """Make the data, or read what was made before; deterministic in the scenario's fields.

        Args:
            cache: A directory to keep rendered images in; None: make them anew.

        Raises:
            ScenarioError: If it is made from files that are not there, or are damaged.
        """
        ...


Rendered = dict[tuple[str, str], Images]
"""Images by the names of domain and split."""


def cached(cache: Path | None, key: str, render: Callable[[], Rendered]) -> Rendered:
    """What ``render`` makes, from the file for ``key`` in ``cache`` if there is a whole one.

    Raises:
        WriteError: If the file cannot be written.
    """
    if cache is None:
        return render()
    path = cache / f"{key}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        return _read(path)
    rendered = render()
    arrays = {
        f"{domain}/{split}/{field}": getattr(images, field)
        for (domain, split), images in rendered.items()
        for field in FIELDS
    }
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomic(path, content.getvalue())
    return rendered


FIELDS = ("pixels", "labels", "sources")


def _read(path: Path) -> Rendered:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        names = dict.fromkeys(tuple(name.split("/")[:2]) for name in arrays.files)
        return {
            (domain, split): Images(*(arrays[f"{domain}/{split}/{field}"] for field in FIELDS))
            for domain, split in names
        }
