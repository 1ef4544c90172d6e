"""A picture of a scenario: what a person should look at before believing any number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sophon_bench.data.scenario import DomainData, Images, ScenarioData

COLUMNS = 26
GAP = 2
"""Pixels between two images."""

CAPTIONS = {"test": "test", "second_test": "second test: the same sources in another rendering"}


def contact_sheet(data: ScenarioData, path: Path) -> None:
    """Draw labelled test images of every domain, class by class, into a PNG file.

    Args:
        data: What to show.
        path: The file to write; its folder must exist.
    """
    from matplotlib.figure import Figure

    rows = list(_rows(data))
    figure = Figure(figsize=(16, 0.4 + 1.05 * len(rows)), dpi=150, layout="constrained")
    size = data.image_size
    figure.suptitle(f"{size}x{size} pixels, revision {data.revision[:12]}", fontsize=9, color="0.4")
    axes = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axis, (title, classes, images) in zip(axes, rows, strict=True):
        shown = _one_of_each(images.labels, len(classes))
        axis.imshow(_strip(images.pixels[shown]), interpolation="nearest")
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
        centres = size / 2 - 0.5 + (size + GAP) * np.arange(len(shown))
        names = [classes[label] for label in images.labels[shown]]
        axis.set_xticks(centres, names, fontsize=10 if max(map(len, names)) < 3 else 7)
        axis.set_yticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.savefig(path, format="png")


def _rows(data: ScenarioData) -> Iterator[tuple[str, tuple[str, ...], Images]]:
    """Title, class names and images of every row of the sheet."""
    roles: list[tuple[str, DomainData]] = [
        ("original", data.original),
        ("restricted", data.restricted),
        *(("benign", domain) for domain in data.benign),
    ]
    for role, domain in roles:
        for split, caption in CAPTIONS.items():
            if split in domain.splits:
                title = f"{role} · {domain.name} · {caption}"
                yield title, domain.classes, domain.splits[split]


def _one_of_each(labels: NDArray[np.int64], classes: int) -> list[int]:
    """Indices of the first image of every class in turn, then of the second, until a row is full.

    Equal labels give equal indices, so a second rendering stands below the first.
    """
    members = [np.flatnonzero(labels == label) for label in range(classes)]
    count = min(COLUMNS, classes * min(map(len, members)))
    return [int(members[i % classes][i // classes]) for i in range(count)]


def _strip(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images ``(N, 3, S, S)`` side by side on white, ``(S, N * (S + GAP) - GAP, 3)``."""
    framed = np.pad(pixels, ((0, 0), (0, 0), (0, 0), (0, GAP)), constant_values=255)
    return np.concatenate(list(framed.transpose(0, 2, 3, 1)), axis=1)[:, :-GAP]
