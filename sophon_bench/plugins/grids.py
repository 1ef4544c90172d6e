"""Which configurations a search over hyperparameters tries: the same rule for every plugin."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sophon_bench.plugins.registry import Registry
from sophon_bench.plugins.selectors import (
    SelectorError,
    Trial,
    check_parameters,
    expand,
    parse,
    split_name,
    vary,
)

DRAWN_WITH = 0
"""Seed of the draw from a grid."""


@dataclass(frozen=True)
class Search:
    """What a search over one plugin's hyperparameters tries.

    Attributes:
        grid: The values of each hyperparameter that is searched.
        trials: The configurations that are tried, distinct.
    """

    grid: Mapping[str, Sequence[Any]]
    trials: list[Trial]

    @property
    def name(self) -> str:
        """The plugin's."""
        return self.trials[0].name


def search(registry: Registry, text: str, count: int) -> Search:
    """What a selector says, and ``count`` - 1 other configurations of the grid.

    The grid is what the selector lists, as in ``sophon-ice[alpha=[1e-3,4e-3],iterations=60]``, and
    the first of each list is tried first; where it lists nothing, the grid is what the plugin
    declares, without the hyperparameters that the selector gives a value. Configurations are drawn
    without replacement with a fixed seed, and a larger count adds to those of a smaller one; fewer
    if the grid has fewer.

    Args:
        text: A selector; of a plugin whose class declares ``tuning``, unless it lists values. Each
            value goes with every value of the others.
        count: At least 1.

    Raises:
        SelectorError: If there is no grid, or it names a parameter or a value that the plugin does
            not take.
        UnknownName: If there is no such plugin.
    """
    base, *others = expand(registry, text)
    if others:
        grid: Mapping[str, Sequence[Any]] = _listed([base, *others])
    else:
        held = parse(split_name(text)[1]).parameters
        grid = {key: values for key, values in _declared(base).items() if key not in held}
        others = _crossed(base, grid)
    random.Random(DRAWN_WITH).shuffle(others)
    return Search(grid, [base, *others[: count - 1]])


def _listed(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """The values of the hyperparameters that trials differ in."""
    values = {
        key: [*dict.fromkeys(getattr(trial.plugin, key) for trial in trials)]
        for key in trials[0].parameters
    }
    return {key: several for key, several in values.items() if len(several) > 1}


def _declared(base: Trial) -> Mapping[str, Sequence[Any]]:
    """The grid that the plugin declares."""
    entry, grid = base.entry, base.entry.declared.tuning
    if not grid:
        raise SelectorError(
            f"{entry.kind} {entry.name!r} declares no grid to search; add one to the body of its "
            "class, values by hyperparameter, such as "
            "'tuning: ClassVar[dict[str, tuple[Any, ...]]] = {\"lr\": (1e-3, 1e-2)}', or list "
            f"values: '{entry.name}[lr=[1e-3,1e-2]]'"
        )
    return grid


def _crossed(base: Trial, grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """The other configurations of a declared grid."""
    entry = base.entry
    try:
        check_parameters(entry, grid)
        axes = [[(key, v) for v in _values(base, key, grid[key])] for key in grid]
        return [
            vary(base, dict(choice))
            for choice in itertools.product(*axes)
            if any(getattr(base.plugin, key) != value for key, value in choice)
        ]
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
