"""Which configurations a search over hyperparameters tries: the same rule for every plugin."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from sophon_bench.plugins.registry import Entry
from sophon_bench.plugins.selectors import SelectorError, Trial, check_parameters, construct, vary

DRAWN_WITH = 0
"""Seed of the draw from a grid."""


def configurations(entry: Entry, count: int) -> list[Trial]:
    """The plugin's defaults and ``count`` - 1 other configurations of the grid that it declares.

    They are drawn without replacement with a fixed seed, and a larger count adds to those of a
    smaller one; fewer if the grid has fewer.

    Args:
        entry: Its class declares ``tuning``. Each value goes with the defaults of all others.
        count: At least 1.

    Raises:
        SelectorError: If there is no grid, or it names a parameter or a value that the plugin does
            not take.
    """
    grid = entry.declared.tuning
    if not grid:
        raise SelectorError(
            f"{entry.kind} {entry.name!r} declares no grid to search; add one to the body of its "
            "class, values by hyperparameter, such as "
            "'tuning: ClassVar[dict[str, tuple[Any, ...]]] = {\"lr\": (1e-3, 1e-2)}'"
        )
    base = Trial(entry, construct(entry, {}))
    try:
        check_parameters(entry, grid)
        axes = [[(key, v) for v in _values(base, key, grid[key])] for key in grid]
        others = [
            dict(choice)
            for choice in itertools.product(*axes)
            if any(getattr(base.plugin, key) != value for key, value in choice)
        ]
        random.Random(DRAWN_WITH).shuffle(others)
        return [base, *(vary(base, choice) for choice in others[: count - 1])]
    except SelectorError as error:
        raise SelectorError(f"tuning grid of {entry.kind} {entry.name!r}: {error}") from error


def _values(base: Trial, key: str, declared: Sequence[Any]) -> list[Any]:
    """The distinct values of one hyperparameter, as the plugin holds them."""
    if isinstance(declared, str) or not declared:
        raise SelectorError(f"{key} should have a tuple of values, got {declared!r}")
    found: list[Any] = []
    for value in declared:
        taken = getattr(vary(base, {key: value}).plugin, key)
        if taken not in found:
            found.append(taken)
    return found
