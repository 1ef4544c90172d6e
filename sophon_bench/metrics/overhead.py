"""What protecting costs beside pre-training, and what attacking costs to get half of its worth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sophon_bench.metrics.envelopes import (
    Open,
    Places,
    Sides,
    Where,
    budgets,
    head,
    places,
    stretch_of,
    suites,
)
from sophon_bench.metrics.frozen import Frozen, utilities
from sophon_bench.metrics.scoring import Case, Reached, document, reached
from sophon_bench.metrics.trials import ENVELOPE
from sophon_bench.records import Cell, Cost, StageRecord

PRETRAINING = "pre-training"
"""Name of the row of what protecting is a multiple of."""

SPENT: Mapping[str, Callable[[Cost], float | None]] = {
    "seconds": lambda cost: cost.seconds,
    "flops": lambda cost: cost.flops,
    "peak_memory": lambda cost: cost.peak_bytes,
    "examples": lambda cost: cost.examples,
}
"""What a stage takes, by the name that rows give it; memory in bytes."""

OF_THE_MACHINE = ("seconds", "peak_memory")
"""What two stages can be compared by on one machine only."""


def protection(cells: Iterable[Cell] | Places) -> list[dict[str, Any]]:
    """What making each released model took: one row per place and defense, pre-training first.

    ``protect_seconds``, ``protect_flops``, ``protect_peak_memory`` (bytes) and
    ``protect_examples`` are means over seeds; with ``_times`` at the end they are multiples of
    what pre-training took on the same seed, again means over seeds. Seconds and memory are
    multiples over those seeds alone whose models were both made on one kind of device with as many
    threads; null where there is none. The row of pre-training is a ``control``, and stands for the
    undefended model, which costs no more.
    """
    found = []
    for sides in places(cells):
        before = {cell.seed: cell.pretrained for cell in sides.cells}
        made = {PRETRAINING: before}
        for defense, groups in sides.models.items():
            own = [cell for here in groups.values() for cell in here]
            if not own[0].defense.control:
                made[defense] = {cell.seed: cell.released for cell in own}
        for name, after in made.items():
            pairs = [(before[seed], after[seed]) for seed in sorted(after)]
            found.append(
                {
                    **head(sides.cells[0]),
                    "suite": suites(sides.cells),
                    "defense": name,
                    "control": name == PRETRAINING,
                    "seeds": len(pairs),
                    **_spent(pairs),
                }
            )
    return found


def _spent(pairs: Sequence[tuple[StageRecord, StageRecord]]) -> dict[str, float | None]:
    """Of pre-trained and released models, by seed."""
    found = {}
    for name, of in SPENT.items():
        amounts, times = [], []
        for before, after in pairs:
            base, amount = (None if s.cost is None else of(s.cost) for s in (before, after))
            if amount is not None:
                amounts.append(amount)
                if base and (name not in OF_THE_MACHINE or _same_machine(before, after)):
                    times.append(amount / base)
        found[f"protect_{name}"] = _mean(amounts)
        found[f"protect_{name}_times"] = _mean(times)
    return found


def _same_machine(one: StageRecord, other: StageRecord) -> bool:
    made = [
        (s.provenance.device, s.provenance.threads, s.provenance.compiled) for s in (one, other)
    ]
    return made[0] == made[1]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def half_costs(
    cells: Iterable[Cell] | Places, frozen: Frozen | Sequence[Frozen] | None = None
) -> list[dict[str, Any]]:
    """What it costs to get half of what pre-training is worth: a row per trial and defense.

    **Half** is the middle of the undefended model's and of scratch's envelopes at the regular
    budget, on the seeds that the defense and both controls have, for each n whose regular budget
    counts. A trial is there at the cost where the test utility of its selected checkpoints, a mean
    over those seeds, first is: read at the budgets of the protocol, log-linear between them. This
    is the rule of B50 (`scores`), and in the row of the envelope, which comes last,
    ``times_undefended`` is B50 of one n.

    ``half`` is that utility. ``half_cost`` is the cost in units, ``undefended_cost`` that of the
    same trial against the undefended model, ``scratch_cost`` that of scratch's envelope;
    ``times_undefended`` and ``times_scratch`` are the first as a multiple of the others. Each has a
    ``_bound``: ``>`` where half was not reached, and the number says how far the trial went;
    ``<=`` where it was at the first budget that is looked at; ``<`` where the other was not there
    in a multiple; else ``=``. Null is a multiple of two that were not there, and of a trial that
    the undefended model did not meet on every one of the seeds.

    Trials that ran on some of the seeds only, or were skipped or failed on one, have no row. One
    that is not finite from its first update counts as the undefended model's, as in `rows`.
    """
    found = []
    for sides in places(cells):
        for defense in sides.defenses:
            case = Case(sides, defense, document(sides, frozen))
            for at, half in case.halves().items():
                found += _half_costs(sides, defense, case, at, half)
    return found


def _half_costs(
    sides: Sides, defense: str, case: Case, at: Where, half: float
) -> list[dict[str, Any]]:
    """The rows of one defense and n."""
    mine = sides.defenses[defense][at]
    own, undefended = (_trials(sides, side[at], case.seeds) for side in case.cells_of[:2])
    costs = budgets(mine[0].budget, stretch_of(sides.fresh[at]))
    scratch = reached(_levels(sides.of_scratch[at], costs, case.seeds), half)
    common = {
        **head(mine[0]),
        "suite": suites(mine),
        "defense": defense,
        "control": case.control,
        "samples": at.samples,
        "seeds": len(case.seeds),
        "half": half,
    }
    found = []
    for (attack, stretch), like in sorted(own.items()):
        other = undefended.get((attack, stretch))
        cost = _reached(sides, like, half)
        base = None if other is None else _reached(sides, other, half)
        trial = {"attack": attack, "parameters": like[0].attack.parameters, "stretch": stretch}
        found.append({**common, **trial, **_costs(cost, base, scratch)})
    cost, base = (reached(case.levels(side, at), half) for side in (0, 1))
    trial = {"attack": ENVELOPE, "parameters": None, "stretch": 1}
    return [*found, {**common, **trial, **_costs(cost, base, scratch)}]


Trials = Mapping[tuple[str, int], Sequence[Cell]]
"""Cells of all seeds in order, by label of the attack and by stretch."""


def _trials(sides: Sides, cells: Iterable[Cell], seeds: Sequence[int]) -> Trials:
    """Those that ran on every seed."""
    found: dict[tuple[str, int], dict[int, Cell]] = defaultdict(dict)
    for cell in cells:
        if cell.status in ("ok", "diverged") and cell.seed in seeds:
            found[sides.names.attack(cell), cell.stretch][cell.seed] = cell
    return {
        key: [by_seed[seed] for seed in seeds]
        for key, by_seed in found.items()
        if len(by_seed) == len(seeds)
    }


def _reached(sides: Sides, like: Sequence[Cell], half: float) -> Reached:
    """Where the selected checkpoints of one trial, a mean over seeds, are at ``half``."""
    costs = budgets(like[0].budget, like[0].stretch)
    levels = []
    for cost in costs:
        picks = [sides.stand_ins.best(cell, cost) for cell in like]
        tests = [pick[1].test for pick in picks if pick is not None]
        if len(tests) == len(like):
            levels.append((cost, math.fsum(tests) / len(tests)))
    return reached(levels, half) if levels else Reached(costs[-1], ">")


def _levels(
    open_to: Mapping[int, Open], costs: Iterable[float], seeds: Sequence[int]
) -> list[tuple[float, float]]:
    """An envelope by cost, where it reaches something on every seed."""
    found = []
    for cost in costs:
        tests = utilities(open_to, cost)
        if all(seed in tests for seed in seeds):
            found.append((cost, math.fsum(tests[seed] for seed in seeds) / len(seeds)))
    return found


def _costs(mine: Reached, undefended: Reached | None, scratch: Reached) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sides = {"half": mine, "undefended": undefended, "scratch": scratch}
    for name, side in sides.items():
        found[f"{name}_cost"] = None if side is None else side.cost
        found[f"{name}_cost_bound"] = None if side is None else side.bound
    for name in ("undefended", "scratch"):
        value, bound = _times(mine, sides[name])
        found[f"times_{name}"], found[f"times_{name}_bound"] = value, bound
    return found


def _times(one: Reached, other: Reached | None) -> tuple[float | None, str | None]:
    """The one as a multiple of the other; nothing is known of two that were not there."""
    if other is None or one.bound == other.bound == ">":
        return None, None
    bound = ">" if one.bound == ">" else "<" if other.bound == ">" else "="
    return one.cost / other.cost, bound
