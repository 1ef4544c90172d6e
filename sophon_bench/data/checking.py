"""What is wrong with what a scenario builds, in sentences: looked at once, before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations

import numpy as np

from sophon_bench.api import Task
from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.data.tasks.denoising import Denoising

SPLITS = {
    "original": ("train", "validation", "test", "second_test"),
    "restricted": ("defender", "attacker", "selection", "test", "second_test"),
    "benign": ("train", "selection", "test"),
}
"""What a domain has to have, by its role."""

TASKS = (Classification.name, Denoising.name)
"""What there are backbones for."""

CHANNELS = 3

SHOWN = 8
"""Values at most that a sentence lists."""


def problems(data: object) -> Iterator[tuple[str, str]]:
    """Everything that is wrong with ``data``.

    Yields:
        What was looked at (``splits``, ``images``, ``sources`` or ``samples``), and a line that
        says where, what there is and what is expected. If splits are wrong, nothing else is
        looked at.
    """
    wrong = [("splits", words) for words in _splits(data)]
    yield from wrong
    if isinstance(data, ScenarioData) and not wrong:
        for what, check in CHECKS:
            yield from ((what, words) for words in check(data))


def _splits(data: object) -> Iterator[str]:
    """What is not of its type, has no name, or is not there."""
    if not isinstance(data, ScenarioData):
        yield f"build returns {_shown(data)}; ScenarioData is expected"
        return
    benign: object = data.benign
    if not isinstance(benign, tuple):
        yield f"benign is {_shown(benign)}; a tuple of DomainData is expected"
        return
    roles = ["original", "restricted", *("benign" for _ in benign)]
    for role, domain in zip(roles, data.domains, strict=True):
        yield from _parts(role, domain)
    names = [domain.name for domain in data.domains if isinstance(domain, DomainData)]
    for name, count in Counter(map(_shown, names)).items():
        if count > 1:
            yield f"{count} domains are called {name}; each needs a name of its own"


def _parts(role: str, domain: object) -> Iterator[str]:
    """What is wrong with the parts of one domain."""
    if not isinstance(domain, DomainData):
        yield f"the {role} domain is {_shown(domain)}; DomainData is expected"
        return
    name, splits, classes = domain.name, domain.splits, domain.classes
    if not _is_line(name):
        yield f"the {role} domain is called {_shown(name)}; a line of printable text is expected"
        return
    if not isinstance(classes, list | tuple) or not classes or not all(map(_is_line, classes)):
        yield f"{name}: classes are {_shown(classes)}; their names are expected, in a tuple"
    given: object = splits
    if not isinstance(given, Mapping):
        yield f"{name}: splits are {_shown(given)}; Images by the name of a split are expected"
        return
    counts = {}
    for split, images in given.items():
        if not _is_line(split):
            yield f"{name}: a split is called {_shown(split)}; a line of text is expected"
            return
        if not isinstance(images, Images):
            yield f"{name}/{split} is {_shown(images)}; Images are expected"
            return
        counts[split] = len(images)
        if counts[split] == 1:
            yield f"{name}/{split} has 1 image; at least 2 are expected"
    if missing := [split for split in SPLITS[role] if not counts.get(split)]:
        needed = ", ".join(SPLITS[role])
        yield f"{name}: the {role} domain has no {', '.join(missing)} (it needs {needed})"


def _tasks(data: ScenarioData) -> Iterator[str]:
    first: object = data.original.task
    for domain in data.domains:
        task: object = domain.task
        if isinstance(task, type) or not isinstance(task, Task):
            yield (
                f"{domain.name}: its task is {_shown(task)}; one such as "
                f"Classification({len(domain.classes)}) is expected"
            )
            continue
        if task.name not in TASKS:
            known = " or ".join(TASKS)
            yield f"{domain.name}: its task is called {_shown(task.name)}; {known} is expected"
        elif isinstance(first, Task) and task.name != first.name:
            yield (
                f"{domain.name}: its task is {task.name}, that of {data.original.name} is "
                f"{first.name}; one is expected for all domains"
            )
        classifies = task.name == Classification.name
        expected, each = (len(domain.classes), "class") if classifies else (CHANNELS, "channel")
        if task.num_outputs != expected:
            yield (
                f"{domain.name}: its task has {_shown(task.num_outputs)} outputs; {expected} are "
                f"expected, one for each {each}"
            )


def _pixels(data: ScenarioData) -> Iterator[str]:
    size = data.image_size
    if not _is_whole(size, 1):
        yield f"image_size is {_shown(size)}; a whole number of pixels is expected, at least 1"
        return
    shape = (CHANNELS, size, size)
    for _, where, images in _each_split(data):
        pixels: object = images.pixels
        if not isinstance(pixels, np.ndarray):
            kind = type(pixels).__name__
            yield f"{where}: pixels are of type {kind}; a numpy array is expected"
        elif pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
            last = pixels.ndim == 4 and pixels.shape[3] == CHANNELS != pixels.shape[1]
            hint = "; its channels are last, transpose(0, 3, 1, 2) puts them first" if last else ""
            yield (
                f"{where} has {pixels.dtype} images of {pixels.shape[1:]}; uint8 of {shape} is "
                f"expected{hint}"
            )


def _labels(data: ScenarioData) -> Iterator[str]:
    for domain, where, images in _each_split(data):
        labels, classes = images.labels, domain.classes
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            yield (
                f"{where}: labels are {labels.dtype} of shape {labels.shape}; whole numbers of "
                f"shape ({len(images)},) are expected"
            )
            continue
        found, count = set(labels.tolist()), len(classes)
        if found != set(range(count)):
            expected = f"exactly 0 to {count - 1} are expected, one for each of its {count} classes"
            missing = [f"{n} ({classes[n]})" for n in range(count) if n not in found]
            yield (
                f"{where}: labels are {_listed(map(str, sorted(found)))}; "
                + (expected if count > 1 else "only 0 is expected, for its one class")
                + (f"; missing: {_listed(missing)}" if missing else "")
            )


def _sources(data: ScenarioData) -> Iterator[str]:
    for domain in data.domains:
        sources: dict[str, set[str]] = {}
        for split, images in domain.splits.items():
            listed = images.sources.tolist()
            if images.sources.ndim == 1 and all(isinstance(source, str) for source in listed):
                sources[split] = set(listed)
                continue
            yield (
                f"{domain.name}/{split}: sources are {images.sources.dtype} of shape "
                f"{images.sources.shape}; strings of shape ({len(images)},) are expected"
            )
        for one, other in combinations(sources, 2):
            shared = sources[one] & sources[other]
            # the second test shows the images of the test in another rendering
            if shared and {one, other} != {"test", "second_test"}:
                more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
                yield (
                    f"{domain.name}: source {min(shared)!r}{more} is in {one} and in {other}; "
                    f"split by source before rendering"
                )


def _samples(data: ScenarioData) -> Iterator[str]:
    pool, counts = len(data.restricted.pool), data.samples
    given: object = counts
    if not isinstance(given, tuple) or not given or not all(_is_whole(n, 2, pool) for n in given):
        yield (
            f"samples={_shown(given)}; whole numbers from 2 to the {pool} images of "
            f"{data.restricted.name}/attacker are expected"
        )
    for name, least, why in (
        ("steps", 1, ""),
        ("generated", 2, ": fewer images have no covariance"),
    ):
        if not _is_whole(value := getattr(data, name), least):
            yield f"{name} is {_shown(value)}; a whole number is expected, at least {least}{why}"


def _recipes(data: ScenarioData) -> Iterator[str]:
    lengths, sizes = data.pretrain_steps, data.pretrain_lrs
    whole = [_is_whole(one, 1) for one in (lengths if isinstance(lengths, tuple) else (lengths,))]
    if not whole or not all(whole):
        several = "whole numbers are" if isinstance(lengths, tuple) else "a whole number is"
        yield f"pretrain_steps is {_shown(lengths)}; {several} expected, at least 1"
    given: object = sizes
    if not isinstance(given, tuple) or not given or not all(map(_is_step_size, given)):
        yield f"pretrain_lrs is {_shown(sizes)}; a tuple of step sizes above 0 is expected"
    for name, listed in (("pretrain_steps", lengths), ("pretrain_lrs", sizes)):
        if isinstance(listed, tuple) and len(set(listed)) < len(listed):
            yield f"{name} is {_shown(listed)}; each candidate is expected once"


CHECKS: tuple[tuple[str, Callable[[ScenarioData], Iterator[str]]], ...] = (
    ("images", _tasks),
    ("images", _pixels),
    ("images", _labels),
    ("sources", _sources),
    ("samples", _samples),
    ("samples", _recipes),
)
"""What is looked at once the splits are right."""


def _each_split(data: ScenarioData) -> Iterator[tuple[DomainData, str, Images]]:
    for domain in data.domains:
        for split, images in domain.splits.items():
            yield domain, f"{domain.name}/{split}", images


def _is_line(value: object) -> bool:
    """Whether it is text that a table can print."""
    return isinstance(value, str) and value.isprintable() and value == value.strip() != ""


def _is_whole(value: object, least: int, most: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_step_size(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < float("inf")


def _listed(values: Iterable[str]) -> str:
    """The values, or the first and the last ones if they are many."""
    listed = [*values]
    if len(listed) > SHOWN:
        half = SHOWN // 2
        listed = [*listed[:half], "…", *listed[-half:]]
    return ", ".join(listed) or "none"


def _shown(value: object) -> str:
    """A value in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
