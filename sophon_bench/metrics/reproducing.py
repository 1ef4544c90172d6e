"""Whether work that was done again came out as it was reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from sophon_bench.metrics.envelopes import selected
from sophon_bench.protocol import TOLERANCE
from sophon_bench.records import Cell, Point

Agreement = Literal["identical", "agrees", "differs"]


def agreements(pairs: Sequence[tuple[Cell, Cell]]) -> list[dict[str, Any]]:
    """Flat rows, one per cell that was reported and made again.

    What is compared is the test utility of the checkpoint that selection picks. Other processors
    round otherwise, and a training run takes another path from there: accuracies ``agree`` if they
    differ by no more than two samples of test images would, at 95 % over all pairs together
    (Bonferroni). The images are the same, so that the bound is a wide one. Other utilities are no
    shares of images, and agree within `TOLERANCE`; they have no interval. Statuses have to be the
    same.

    Args:
        pairs: What was reported, and what came out now, of equal keys.
    """
    return [_row(before, now, len(pairs)) for before, now in pairs]


def _row(before: Cell, now: Cell, count: int) -> dict[str, Any]:
    was, again = (selected(cell, cell.budget * cell.stretch) for cell in (before, now))
    return {
        "key": before.key,
        "utility": before.utility,
        "defense": before.defense.label,
        "attack": before.attack.label,
        "domain": before.domain,
        "samples": before.samples,
        "seed": before.seed,
        "stretch": before.stretch,
        **_side("reported", before, was),
        **_side("again", now, again),
        "agreement": _agreement(before, now, was, again, count),
    }


def _side(name: str, cell: Cell, point: Point | None) -> dict[str, Any]:
    low, high = None, None
    if point is not None and cell.utility == "accuracy":
        low, high = wilson(point.test, cell.test_examples)
    return {
        f"{name}_status": cell.status,
        name: None if point is None else point.test,
        f"{name}_low": low,
        f"{name}_high": high,
    }


def _agreement(
    before: Cell, now: Cell, was: Point | None, again: Point | None, count: int
) -> Agreement:
    if before.status != now.status or (was is None) != (again is None):
        return "differs"
    if was is None or again is None or was.test == again.test:
        return "identical"
    bound = TOLERANCE
    if before.utility == "accuracy":
        p = (was.test + again.test) / 2
        bound = _z(count) * math.sqrt(2 * p * (1 - p) / before.test_examples)
    return "agrees" if abs(was.test - again.test) <= bound else "differs"


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count``."""
    z = _z(1)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _z(comparisons: int) -> float:
    """The normal quantile of a 95 % interval over so many comparisons."""
    from scipy.special import ndtri

    return float(ndtri(1 - 0.025 / comparisons))
