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
        else:
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
    """Step sizes next to the best one of a family.

    A family that is among the best at the end was so from the beginning, since no other one grows.
    So each round has added to it, until its best step size had neighbours.
    """
    members: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.attack.lr is not None:
            members.setdefault(_family(cell.attack.name, cell.attack.parameters), []).append(cell)
    best = {family: max(map(level, own)) for family, own in members.items()}
    known = {identity(trial.name, trial.parameters) for trial in listed}
    for family, own in members.items():
        added = sum(identity(c.attack.name, c.attack.parameters) not in known for c in own)
        ahead = sum(other >= best[family] for other in best.values())
        if family in families and added < REFINEMENTS and ahead <= rules.refine:
            rates = {cell.attack.lr or 0.0: level(cell) for cell in own}
            missing = [
                [*_accepted(families[family], "lr", neighbours(lr, rates))]
                for lr, reached in rates.items()
                if reached == best[family]
            ]
            yield from missing[0] if all(missing) else ()


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
