"""What plots and tables show over budgets, learning rates and trials: flat rows with lists."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sophon_bench.metrics.envelopes import (
    Open,
    Pick,
    Places,
    Sides,
    Where,
    budgets,
    envelope,
    family_label,
    head,
    interval,
    places,
    stretch_of,
    suites,
)
from sophon_bench.metrics.frozen import Frozen, utilities
from sophon_bench.metrics.masking import swept
from sophon_bench.metrics.scoring import Case, document, score_row
from sophon_bench.metrics.trials import endings
from sophon_bench.records import Cell

Level = tuple[float, float, float | None]
"""A budget in units or a learning rate, the mean test utility, and its half-width."""


def curves(
    cells: Iterable[Cell] | Places, frozen: Frozen | Sequence[Frozen] | None = None
) -> list[dict[str, Any]]:
    """Envelopes over the budget, one row per place, n and defense.

    ``protected``, ``undefended`` and ``scratch`` are lists of (budget in units, mean, half-width)
    over the seeds that the defense has; ``resistance`` is a list of (budget in units, R) of this n
    alone, and ``resistance_all`` of all n together, unclipped, where cells count.
    """
    found = []
    for sides, at, defense in _groups(cells):
        mine = sides.defenses[defense][at]
        seeds = sorted({cell.seed for cell in mine})
        sources = {
            "protected": (sides.of(defense), sides.defenses[defense]),
            "undefended": (sides.of_undefended, sides.undefended),
            "scratch": (sides.of_scratch, sides.fresh),
        }
        levels = {
            name: _levels(open_to.get(at, {}), seeds, mine[0].budget, stretch_of(own.get(at, ())))
            for name, (open_to, own) in sources.items()
        }
        case = Case(sides, defense, document(sides, frozen))
        alone = [slot for slot in case.counted if slot[0] == at]
        found.append(
            {
                **_head(mine, defense, at),
                **levels,
                "resistance": list(case.at_costs(alone).items()),
                "resistance_all": list(case.at_costs(case.counted).items()),
            }
        )
    return found


def sweeps(cells: Iterable[Cell] | Places) -> list[dict[str, Any]]:
    """Learning-rate sweeps at the whole budget: one row per place, n, defense and family.

    A family is an attack with all its parameters but ``lr``; ``levels`` is a list of (lr, mean,
    half-width) over seeds. Only rates that reached something on every seed, so that neighbours
    differ in nothing else, and families with at least two of them.
    """
    found = []
    for sides, at, defense in _groups(cells):
        mine = sides.defenses[defense][at]
        fresh = sides.fresh.get(at, ()) if _control(mine) else ()
        families = swept([*mine, *fresh], sides.stand_ins).values()
        seeds = {cell.seed for cell in mine}
        for plugin, rates in sorted(families, key=lambda found: family_label(found[0])):
            levels: list[Level] = []
            for lr, by_seed in sorted(rates.items()):
                if by_seed.keys() == seeds:
                    level = interval([by_seed[seed] for seed in sorted(by_seed)])
                    levels.append((lr, level.mean, level.half_width))
            if len(levels) < 2:
                continue
            found.append(
                {
                    **_head(mine, defense, at),
                    "attack": plugin.name,
                    "family": family_label(plugin),
                    "levels": levels,
                }
            )
    return found


def winners(cells: Iterable[Cell] | Places) -> list[dict[str, Any]]:
    """Which trials the envelope picked: one row per place, n, defense and budget.

    ``cost`` is the budget in units and ``times`` the same as a multiple of the whole one;
    ``attacks`` is a list of (label, seeds), the most frequent first.
    """
    found = []
    for sides, at, defense in _groups(cells):
        mine = sides.defenses[defense][at]
        open_to = sides.of(defense).get(at, {})
        budget = mine[0].budget
        for units in budgets(budget, stretch_of(mine)):
            picks = [open_to[seed].best(units) for seed in sorted(open_to)]
            reached = [pick for pick in picks if pick is not None]
            level = interval([point.test for _, point in reached]) if reached else None
            found.append(
                {
                    **_head(mine, defense, at),
                    "cost": units,
                    "times": units / budget,
                    "attacks": _votes(sides, (cell for cell, _ in reached)),
                    "restricted_after": None if level is None else level.mean,
                    "restricted_after_half_width": None if level is None else level.half_width,
                }
            )
    return found


def ablation(
    cells: Iterable[Cell] | Places, axis: str, frozen: Frozen | Sequence[Frozen] | None = None
) -> list[dict[str, Any]]:
    """Scores by the value of one hyperparameter of the defenses: one row per place and defense.

    Rows of `scores` with ``axis``; its ``value`` (null for a defense that does not have it);
    ``family``, the defense's label without it; and ``listed_after``, what the best of the listed
    trials gets out of the model itself at the whole budget, a mean over n and seeds: no search, no
    fresh weights. In order of family and value, the undefended model first.
    """
    found = []
    for sides in places(cells):
        rows = []
        for defense, own in sides.defenses.items():
            plugin = next(cell.defense for here in own.values() for cell in here)
            rows.append(
                {
                    **score_row(sides, defense, document(sides, frozen)),
                    "axis": axis,
                    "value": plugin.parameters.get(axis),
                    "family": family_label(plugin, axis),
                    "listed_after": _listed_after(sides, defense),
                }
            )
        found += sorted(rows, key=_by_value)
    return found


def _by_value(row: Mapping[str, Any]) -> tuple[bool, str, bool, float, str]:
    level = magnitude(row["value"])
    return (not row["control"], row["family"], level is None, level or 0.0, str(row["value"]))


def magnitude(value: Any) -> float | None:
    """A hyperparameter's value as a number, a list by its length; None for words and nothing."""
    if isinstance(value, list | tuple):
        return float(len(value))
    return float(value) if isinstance(value, int | float) else None


def shown(value: Any) -> str:
    """A hyperparameter's value as tables and pictures show it: a list is as long as it is."""
    level = magnitude(value)
    return str(value) if level is None else f"{level:g}"


def _listed_after(sides: Sides, defense: str) -> float | None:
    picks: dict[tuple[Where, int], list[Pick]] = {}
    for at, own in sides.defenses[defense].items():
        for cell in own:
            if at.role == "restricted" and not cell.derived:
                pick = sides.stand_ins.best(cell, cell.budget)
                picks.setdefault((at, cell.seed), []).extend([pick] if pick else [])
    best = [envelope(tried) for tried in picks.values()]
    found = [pick[1].test for pick in best if pick is not None]
    return math.fsum(found) / len(found) if found else None


def recipe(cells: Iterable[Cell] | Places, trials: Collection[str]) -> list[dict[str, Any]]:
    """What some trials alone reach at the whole budget: one row per place, n and defense.

    For each side (``protected``, ``undefended``, ``scratch``), on the seeds that the defense has
    and without fresh weights as a candidate: ``_after``, the test utility of the trial and
    checkpoint with the best selection utility, a mean over seeds, null if there is none;
    ``_half_width``; ``_seeds``; ``_trials``, how many ran; ``_attacks``, those picked as in
    `winners`. A trial that is not finite from its first update counts as in `rows`.

    Args:
        cells: Records; the order does not matter.
        trials: Labels of attacks, control attacks too.
    """
    found = []
    for sides, at, defense in _groups(cells):
        mine = sides.defenses[defense][at]
        seeds = {cell.seed for cell in mine}
        sources = {
            "protected": mine,
            "undefended": sides.undefended.get(at, ()),
            "scratch": sides.fresh.get(at, ()),
        }
        row = _head(mine, defense, at)
        for side, own in sources.items():
            ran = [
                cell
                for cell in own
                if cell.attack.label in trials
                and cell.seed in seeds
                and cell.stretch == 1
                and cell.status in ("ok", "diverged")
            ]
            best = {
                seed: envelope(
                    pick
                    for cell in ran
                    if cell.seed == seed
                    and (pick := sides.stand_ins.best(cell, cell.budget)) is not None
                )
                for seed in sorted(seeds)
            }
            picks = [pick for pick in best.values() if pick is not None]
            level = interval([point.test for _, point in picks]) if picks else None
            row |= {
                f"{side}_after": None if level is None else level.mean,
                f"{side}_half_width": None if level is None else level.half_width,
                f"{side}_seeds": len(picks),
                f"{side}_trials": len({cell.attack.label for cell in ran}),
                f"{side}_attacks": _votes(sides, (cell for cell, _ in picks)),
            }
        found.append(row)
    return found


def releases(cells: Iterable[Cell] | Places) -> list[dict[str, Any]]:
    """The models that defenses made: one row per place and defense.

    ``plugin`` is the defense's name and ``source`` the hash of its source; ``ended`` is a list of
    (words, seeds), as `endings` has it.
    """
    found = []
    for sides in places(cells):
        for defense, groups in sides.models.items():
            own = [cell for here in groups.values() for cell in here]
            found.append(
                {
                    **head(own[0]),
                    "suite": suites(own),
                    "defense": defense,
                    "control": _control(own),
                    "plugin": own[0].defense.name,
                    "source": own[0].defense.source,
                    "seeds": len({cell.seed for cell in own}),
                    "ended": endings(own),
                }
            )
    return found


def _votes(sides: Sides, cells: Iterable[Cell]) -> list[tuple[str, int]]:
    """Trials by how often they are among ``cells``, the most frequent first."""
    votes = Counter(map(sides.names.attack, cells))
    return sorted(votes.items(), key=lambda vote: (-vote[1], vote[0]))


def _groups(cells: Iterable[Cell] | Places) -> Iterator[tuple[Sides, Where, str]]:
    """Restricted domain, n and defense of every place, in the order of tables."""
    for sides in places(cells):
        found = {at for own in sides.defenses.values() for at in own if at.role == "restricted"}
        for at in sorted(found):
            for defense, own in sides.defenses.items():
                if at in own:
                    yield sides, at, defense


def _levels(
    open_to: Mapping[int, Open], seeds: Sequence[int], budget: int, stretch: int
) -> list[Level]:
    """The envelope where all of ``seeds`` that this side has reach something."""
    found: list[Level] = []
    own = {seed: open_to[seed] for seed in seeds if seed in open_to}
    for units in budgets(budget, stretch):
        reached = utilities(own, units)
        if own and len(reached) == len(own):
            level = interval([reached[seed] for seed in sorted(reached)])
            found.append((units, level.mean, level.half_width))
    return found


def _head(cells: Sequence[Cell], defense: str, at: Where) -> dict[str, Any]:
    return {
        **head(cells[0]),
        "suite": suites(cells),
        "defense": defense,
        "control": _control(cells),
        "samples": at.samples,
        "seeds": len({cell.seed for cell in cells}),
    }


def _control(cells: Sequence[Cell]) -> bool:
    return cells[0].defense.control
