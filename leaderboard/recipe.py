"""What a paper would attack with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sophon_bench.plugins.registry import attacks
from sophon_bench.plugins.suites import load_suite, trials


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The trials that a paper would attack with.

    Args:
        name: The suite and its version.
        trials, controls: Labels of its attacks, and of the control attacks beside them.
    """

    name: str
    trials: Collection[str]
    controls: Collection[str]


def paper_recipe() -> Recipe:
    """What a paper would attack with: ``@paper``."""
    return Recipe(
        name=load_suite("paper").label,
        trials=[trial.label for trial in trials(attacks, ["@paper"])],
        controls=[trial.label for trial in trials(attacks, attacks.controls())],
    )
