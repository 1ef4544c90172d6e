"""Conformance checks for anyone's plugin: does it keep the contract of `sophon_bench.api`?

`check_attack`, `check_defense` and `check_scenario` return sentences that say what is wrong and how
to mend it; an empty list is a pass. `check_file` runs them on every plugin of a file, on a small
bench of its own, and says how each check went: ``sophon-bench check FILE.py`` prints that.

What is looked for is found on the CPU, on a backbone without dropout; a pass proves no more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sophon_bench.api import Attack, Defense, Incompatible
from sophon_bench.data.scenario import Scenario
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.models.architecture import Architecture
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry
from sophon_bench.plugins.failures import sentence
from sophon_bench.plugins.registry import BrokenPlugin, Entry, UnknownName
from sophon_bench.plugins.selectors import construct
from sophon_bench.testing.declarations import declaration_problem, undocumented
from sophon_bench.testing.runs import (
    ATTACK,
    COMMON,
    DEFENSE,
    Problems,
    attack_problems,
    defense_problems,
)
from sophon_bench.testing.scenarios import SCENARIO, scenario_problems
from sophon_bench.testing.spies import Watched
from sophon_bench.testing.toy import BACKBONE, BUDGET, SAMPLES
from sophon_bench.testing.toy import small_bench as small_bench

DEFENSE_UPDATES = 24
DEFENSE_SECONDS = 15.0
"""A defense of a file is followed this far only: its defaults may take hours."""

CHECKS = {
    "attack": tuple(dict.fromkeys(check.name for check in (*ATTACK, *COMMON))),
    "defense": tuple(dict.fromkeys(check.name for check in (*DEFENSE, *COMMON))),
    "scenario": SCENARIO,
}
"""The names of all checks of a kind, in order."""


@dataclass(frozen=True)
class Finding:
    """How one check of one plugin went.

    Attributes:
        plugin: Kind and name, ``attack finetune``.
        check: What was looked at.
        outcome: A warning is no failure; skipped is what could not be looked at.
        words: What is wrong and how to mend it; empty if the check passed.
    """

    plugin: str
    check: str
    outcome: Literal["passed", "FAILED", "warning", "skipped"]
    words: str = ""

    def __str__(self) -> str:
        return f"{self.plugin}: {self.check}: {self.outcome}" + f": {self.words}" * bool(self.words)


def check_attack(
    attack: Attack, bench: Bench, weights: Weights, *, samples: int, budget: int
) -> list[str]:
    """Run an attack twice on a small bench.

    Raises:
        Incompatible: If it cannot apply to the bench's backbone.
    """
    return _said(attack_problems(attack, bench, weights, samples=samples, budget=budget))


def check_defense(defense: Defense, bench: Bench, weights: Weights) -> list[str]:
    """Run a defense twice on a small bench.

    Raises:
        Incompatible: If it cannot apply to the bench's backbone.
    """
    return _said(defense_problems(Watched(defense), bench, weights))


def check_scenario(scenario: Scenario, backbone: Architecture = BACKBONE) -> list[str]:
    """Build a scenario twice, look at its splits, and train on it for two updates."""
    return _said(scenario_problems(scenario, backbone))


def _said(problems: Problems) -> list[str]:
    return [problem for problem in problems.values() if problem]


def check_file(
    path: Path, *, name: str | None = None, backbone: Architecture = BACKBONE
) -> Iterator[Finding]:
    """Check every plugin that a file registers, with its default hyperparameters.

    Args:
        name: Only the plugin of this name.
        backbone: What to check attacks, defenses and the training on a scenario with.

    Raises:
        BrokenPlugin: If the file cannot be loaded or registers nothing.
        DuplicateName: If it claims a name that exists.
        UnknownName: If it registers no plugin called ``name``.
        BackboneError: If the backbone does not exist, cannot be trained on 32x32 images, or its
            pre-trained weights cannot be had.
    """
    entries = _entries_of(path)
    if name is not None:
        known = {entry.name for entry in entries}
        entries = [entry for entry in entries if entry.name == name]
        if not entries:
            raise UnknownName(registry.unknown(f"plugin of {path.name}", name, known))
    if isinstance(backbone, Backbone):
        backbone.check_weights()
    for entry in entries:
        yield from _findings(entry, path, backbone)


def _findings(entry: Entry, path: Path, backbone: Architecture) -> Iterator[Finding]:
    label = f"{entry.kind} {entry.name}"
    missed = [Finding(label, "documentation", "warning", words) for words in undocumented(entry)]
    documentation = missed or [Finding(label, "documentation", "passed")]
    problems: Problems = {"declaration": declaration_problem(entry)}
    reason = "the declaration is wrong"
    if problems["declaration"] is None:
        bench, weights = small_bench(backbone)
        reason = "the run ended before"
        try:
            problems |= _problems(entry, construct(entry, {}), bench, weights)
        except Incompatible as error:
            reason = f"cannot apply to {backbone.label}: {error}; try another --backbone"
            yield Finding(label, "declaration", "passed")
            yield Finding(label, "run", "skipped", reason)
            yield from missed
            return
        # sys.exit in a plugin is no reason to leave without a word
        except (Exception, SystemExit) as error:
            hint = "; install it, or raise Incompatible" if isinstance(error, ImportError) else ""
            own = path.resolve()
            problems["run"] = sentence(error, lambda file: file.resolve() == own) + hint
    first = [check for check in ("declaration", "run") if check in problems]
    for check in dict.fromkeys([*first, *CHECKS[entry.kind], *problems]):
        if check not in problems:
            yield Finding(label, check, "skipped", reason)
        elif words := problems[check]:
            yield Finding(label, check, "FAILED", words)
        else:
            yield Finding(label, check, "passed")
    yield from documentation


def _problems(entry: Entry, plugin: Any, bench: Bench, weights: Weights) -> Problems:
    if entry.kind == "attack":
        return attack_problems(plugin, bench, weights, samples=SAMPLES, budget=BUDGET)
    if entry.kind == "scenario":
        return scenario_problems(plugin, bench.backbone)
    short = Watched(plugin, updates=DEFENSE_UPDATES, seconds=DEFENSE_SECONDS)
    return defense_problems(short, bench, weights)


def _entries_of(path: Path) -> list[Entry]:
    """What a file registers: installed or not, loaded or not."""
    registry.discover()
    if not _registered_in(path):
        registry.load_file(path)
    if entries := _registered_in(path):
        return entries
    raise BrokenPlugin(
        f"plugin file {str(path)!r} registers no class of its own; decorate a dataclass that "
        f"is defined in it"
    )


def _registered_in(path: Path) -> list[Entry]:
    holders = (registry.attacks, registry.defenses, registry.scenarios)
    entries = [holder.get(name) for holder in holders for name in holder.names(hidden=True)]
    return [entry for entry in entries if _file_of(entry) == path.resolve()]


def _file_of(entry: Entry) -> Path | None:
    file = vars(sys.modules[entry.cls.__module__]).get("__file__")
    return None if file is None else Path(file).resolve()
