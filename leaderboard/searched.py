"""Whether a search was finished, going by its records: nobody drops what did too well.

Which of equal trials a search took for the better one is not in records, since keys decide it and a
later version has others. So a trial is missing if it is whichever of equals was taken.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sophon_bench.execution.plan import level, neighbours
from sophon_bench.plugins.selectors import SelectorError, Trial, vary
from sophon_bench.plugins.suites import Rules
from sophon_bench.protocol import ENDED, REFINEMENTS
from sophon_bench.results.records import Cell


def unfinished(rules: Rules, listed: Sequence[Trial], cells: Iterable[Cell]) -> list[str]:
    """What one search would have added and is not there, in words.

    Args:
        rules: How it goes on after the listed trials.
        listed: Those; others of the suite may be among them.
        cells: Of one attacker against one model with one n and seed.
    """
    regular, longer = [], set()
    for cell in cells:
        if cell.stretch == 1:
            regular.append(cell)
        elif cell.stretch == rules.times:
            longer.add(identity(cell.attack.name, cell.attack.parameters))
    families = {_family(trial.name, trial.parameters): trial for trial in listed}
    return [
        *_unrefined(rules, listed, families, regular),
        *_not_continued(rules, families, regular, longer),
    ]


def identity(name: str, parameters: Mapping[str, Any]) -> str:
    """What a trial is: a label leaves out defaults, which another version may have changed."""
    return json.dumps([name, parameters], sort_keys=True)


def _unrefined(
    rules: Rules, listed: Sequence[Trial], families: Mapping[str, Trial], cells: Sequence[Cell]
) -> Iterator[str]:
    """Step sizes next to the best one of a family, as the rounds of the search add them.

    The families that grow are those whose listed trials are best, since no other one grows.
    """
    reached: dict[str, dict[float, float]] = {}
    for cell in cells:
        if (lr := cell.attack.lr) is not None:
            own = reached.setdefault(_family(cell.attack.name, cell.attack.parameters), {})
            own[lr] = level(cell)
    begun: dict[str, dict[float, float]] = {}
    for trial in listed:
        family, lr = _family(trial.name, trial.parameters), trial.parameters.get("lr")
        if lr in (known := reached.get(family, {})):
            begun.setdefault(family, {})[lr] = known[lr]
    best = {family: max(own.values()) for family, own in begun.items()}
    for family, own in begun.items():
        if sum(other >= best[family] for other in best.values()) <= rules.refine:
            yield from _ungrown(families[family], own, reached[family], REFINEMENTS)


def _ungrown(
    trial: Trial, tried: Mapping[float, float], reached: Mapping[float, float], rounds: int
) -> list[str]:
    """What so many rounds add to the step sizes that were tried, and was never reached.

    Where several step sizes are equally good, the search may have taken any for the best.
    """
    courses = []
    for best in (lr for lr in tried if tried[lr] == max(tried.values())) if rounds else ():
        added = [
            (lr, label) for lr in neighbours(best, tried) for label in _accepted(trial, "lr", [lr])
        ]
        missing = [label for lr, label in added if lr not in reached]
        if added and not missing:
            grown = {**tried, **{lr: reached[lr] for lr, _ in added}}
            missing = _ungrown(trial, grown, reached, rounds - 1)
        courses.append(missing)
    return min(courses, key=len, default=[])


def _family(name: str, parameters: Mapping[str, Any]) -> str:
    return identity(name, {key: value for key, value in parameters.items() if key != "lr"})


def _accepted(trial: Trial, name: str, values: Iterable[float]) -> Iterator[str]:
    """The trial with each of the values that its plugin takes."""
    for value in values:
        with contextlib.suppress(SelectorError):
            yield vary(trial, {name: value}).label


def _not_continued(
    rules: Rules, families: Mapping[str, Trial], cells: Sequence[Cell], longer: set[str]
) -> Iterator[str]:
    """Trials that belong to the best and have no longer run; ``longer`` are those that have."""
    able: dict[str, Cell] = {}
    for cell in cells:
        parameters = cell.attack.parameters
        if (steps := parameters.get("steps")) is not None:
            listed = families.get(_family(cell.attack.name, parameters))
            if listed and not [*_accepted(listed, "steps", [steps * rules.times])]:
                continue
            parameters = {**parameters, "steps": steps * rules.times}
        elif cell.cost is None or cell.cost.units <= ENDED * cell.budget:
            continue
        able[identity(cell.attack.name, parameters)] = cell
    best = sorted(map(level, able.values()), reverse=True)[: rules.continued]
    if not best:
        return
    gone = [cell for trial, cell in able.items() if trial not in longer]
    missing = [cell for cell in gone if level(cell) > best[-1]]
    there = sum(level(cell) >= best[-1] for trial, cell in able.items() if trial in longer)
    if there < len(best) and not missing:
        missing = [cell for cell in gone if level(cell) == best[-1]]
    yield from (f"{cell.attack.label} ×{rules.times}" for cell in missing)
