"""Conformance checks for anyone's plugin: does it keep the contract of `sophon_bench.api`?

Each check returns sentences that say what is wrong and how to mend it; an empty list is a pass.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

from sophon_bench import stages
from sophon_bench.api import Attack, Defense, Model

SEEDING = ((torch, "manual_seed"), (torch, "seed"), (random, "seed"), (np.random, "seed"))


def check_attack(
    attack: Attack, bench: stages.Bench, weights: stages.Weights, *, samples: int, budget: int
) -> list[str]:
    """Run an attack twice on a small bench.

    Raises:
        Incompatible: If it cannot apply to the bench's backbone.
    """

    def once() -> stages.Attacked:
        return stages.attack(
            bench, weights, watched, samples=samples, seed=0, budget=budget, tick=_quiet
        )

    watched = _Watched(attack)
    with _seedings() as seeded:
        try:
            first, second = once(), once()
        except stages.NoUpdate as error:
            return [str(error)]
    problems = _common(watched, seeded)
    if _scores(first) != _scores(second):
        problems.append(
            "two runs with one seed differ; draw every random number from view.rng, "
            "and order nothing by a set or by time"
        )
    if first.cost.units > 2 * budget:
        problems.append(
            f"one update cost so much that {first.cost.units:.0f} units were spent of {budget}; "
            f"yield after every update"
        )
    return problems


def check_defense(defense: Defense, bench: stages.Bench, weights: stages.Weights) -> list[str]:
    """Run a defense twice on a small bench.

    Raises:
        Incompatible: If it cannot apply to the bench's backbone.
    """
    watched = _Watched(defense)
    with _seedings() as seeded:
        try:
            first, second = (
                stages.protect(bench, weights, watched, 0, _quiet).weights for _ in range(2)
            )
        except ValueError as error:
            return [str(error)]
    problems = _common(watched, seeded)
    if any(not torch.equal(t, second[name]) for name, t in first.items()):
        problems.append(
            "two runs with one seed release different weights; draw every random number "
            "from view.rng"
        )
    return problems


class _Watched:
    """A plugin that remembers what it did to the model it was given."""

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin
        self.spoiled = False
        self.steps = getattr(plugin, "steps", None)

    def run(self, model: Model, view: Any) -> Iterator[Any]:
        kind = type(model)
        for made in self.plugin.run(model, view):
            self.spoiled |= type(model) is not kind or "forward" in vars(model)
            yield made


def _common(watched: _Watched, seeded: list[str]) -> list[str]:
    problems = []
    if watched.spoiled:
        problems.append(
            "the class or the forward of the given model was replaced; wrap the model instead"
        )
    if seeded:
        problems.append(
            f"{', '.join(sorted(set(seeded)))} was called; draw from view.rng and leave the "
            f"global random state alone"
        )
    return problems


@contextlib.contextmanager
def _seedings() -> Iterator[list[str]]:
    """Names of the global seeding functions that are called inside."""
    called: list[str] = []

    def spy(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def seed(*arguments: Any) -> Any:
            called.append(name)
            return original(*arguments)

        return seed

    with contextlib.ExitStack() as stack:
        for module, name in SEEDING:
            label = f"{module.__name__}.{name}"
            spied = spy(label, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, spied))
        yield called


def _scores(found: stages.Attacked) -> list[tuple[float, ...]]:
    return [(p.steps, p.units, p.validation, p.selection, p.test) for p in found.curve]


def _quiet(_fraction: float | None, _words: str) -> None:
    pass
