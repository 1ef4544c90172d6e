"""What protecting costs beside pre-training, and what attacking costs to get half of its worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sophon_bench.analysis.case import CONTRAST, PROTECTED, SCRATCH, Case, Reached, reached
from sophon_bench.analysis.envelope import (
    ENVELOPE,
    HEAD,
    RAN,
    Outcomes,
    multiples,
    outcomes,
)
from sophon_bench.analysis.frozen import Frozen
from sophon_bench.analysis.score import cases
from sophon_bench.analysis.statistics import Floats, Groups, Positions, table, table_of
from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame

PRETRAINING = "pre-training"
"""Name of the row of what protecting is a multiple of."""

SPENT = {
    "seconds": "seconds",
    "flops": "flops",
    "peak_memory": "peak_bytes",
    "examples": "examples",
}
"""What making a model takes, by the name that rows give it; memory in bytes."""

OF_THE_MACHINE = ("seconds", "peak_memory")
"""What two models can be compared by on one machine only."""

MACHINE = ["made_device", "made_threads", "made_compiled"]


def protection(results: Results) -> DataFrame:
    """What making each released model took: one row per place and defense, pre-training first.

    ``protect_seconds``, ``protect_flops``, ``protect_peak_memory`` (bytes) and
    ``protect_examples`` are means over seeds; with ``_times`` at the end they are multiples of
    what pre-training took on the same seed, again means over seeds. Seconds and memory are
    multiples over those seeds alone whose models were both made on one kind of device with as many
    threads; null where there is none. The row of pre-training is a ``control``, and stands for the
    undefended model, which costs no more.
    """
    found = outcomes(results)
    pairs = _pairs(found)
    groups = Groups(pairs.groupby(["place", "model"]).ngroup().to_numpy())
    model, place = (pairs[name].iloc[groups.first].tolist() for name in ("model", "place"))
    in_place = Groups(found.cells["place"].to_numpy())
    first = found.cells.iloc[in_place.first[place]]
    suites = found.suites(in_place)
    names = found.models["defense_label"].tolist()
    return table(
        {
            **{name: first[name] for name in HEAD},
            "suite": [suites[number] for number in place],
            "defense": [PRETRAINING if number < 0 else names[number] for number in model],
            "control": [number < 0 for number in model],
            "seeds": [len(seeds) for seeds in groups.split(pairs["seed"])],
            **_spent(found, pairs, groups),
        }
    )


def _pairs(found: Outcomes) -> DataFrame:
    """By place, model and seed, the pre-trained model ``before`` and ``after`` it the one made.

    ``model`` is -1 for pre-training.
    """
    import pandas as pd

    of = ["place", "model", "seed"]
    cells = found.cells[[*of, "before", "after"]]
    pretrained = cells.assign(model=-1, after=cells["before"])
    protected = cells[~found.cells["defense_control"]]
    pairs = pd.concat([pretrained, protected]).drop_duplicates(of, keep="last")
    return pairs.sort_values(of, ignore_index=True)


def _spent(found: Outcomes, pairs: DataFrame, groups: Groups) -> dict[str, list[float | None]]:
    machine = found.stages.groupby(MACHINE).ngroup().to_numpy()
    same = machine[pairs["before"]] == machine[pairs["after"]]
    spent = {}
    for name, column in SPENT.items():
        amounts = found.stages[column].to_numpy(dtype=float)
        before, after = (amounts[pairs[side]] for side in ("before", "after"))
        comparable = (before > 0) & (same | (name not in OF_THE_MACHINE))
        times = np.divide(after, before, out=np.full(len(pairs), np.nan), where=comparable)
        spent[f"protect_{name}"] = groups.means(after)
        spent[f"protect_{name}_times"] = groups.means(times)
    return spent


def half_costs(results: Results, frozen: Frozen | Sequence[Frozen] | None = None) -> DataFrame:
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
    that is not finite from its first update counts as the undefended model's, as in `trials`.
    """
    found = outcomes(results)
    rows = [
        row
        for case in cases(found, frozen)
        for setting, half in case.halves().items()
        for row in _half_costs(case, setting, half)
    ]
    return table_of(rows, HALF_COSTS)


BOUNDED = ("half_cost", "undefended_cost", "scratch_cost", "times_undefended", "times_scratch")

HALF_COSTS = (
    *HEAD, "suite", "defense", "control", "samples", "seeds", "half", "attack", "parameters",
    "stretch", *(name for cost in BOUNDED for name in (cost, f"{cost}_bound")),
)  # fmt: skip
"""Columns of `half_costs`."""


def _half_costs(case: Case, setting: int, half: float) -> Iterator[dict[str, Any]]:
    """The rows of one defense and n."""
    found = case.found
    cells = found.attacks[case.models[PROTECTED], setting]
    (suite,) = found.suites(Groups.of([cells]))
    common = {
        **found.head(cells[0]),
        "suite": suite,
        "defense": case.defense,
        "control": case.control,
        "samples": found.settings[setting].samples,
        "seeds": len(case.seeds),
        "half": half,
    }
    own, undefended = (_trials(case, case.models[s], setting) for s in CONTRAST)
    fresh = case.models[SCRATCH]
    envelope = found.reached[fresh, setting, np.isin(found.seeds, case.seeds)]
    scratch = _reached(case, envelope, int(found.stretches[fresh, setting]), half)
    tests = found.tests(found.counted)
    for (attack, stretch), trial in own.items():
        cost, usual = _reached(case, tests[trial], stretch, half), None
        if (attack, stretch) in undefended:
            usual = _reached(case, tests[undefended[attack, stretch]], stretch, half)
        parameters = found.cells["attack_parameters"][trial[0]]
        told = {"attack": attack, "parameters": parameters, "stretch": stretch}
        yield {**common, **told, **_costs(cost, usual, scratch)}
    cost, usual = (reached(case.levels(side, setting), half) for side in CONTRAST)
    yield {**common, "attack": ENVELOPE, "stretch": 1, **_costs(cost, usual, scratch)}


def _trials(case: Case, model: int, setting: int) -> Mapping[tuple[str, int], Positions]:
    """Those that ran on every seed: cells in order of seeds, by label of the attack and stretch."""
    of = ["attack_label", "stretch"]
    cells = case.found.cells.loc[case.found.attacks[model, setting], [*of, "seed", "status"]]
    cells = cells[cells["status"].isin(RAN) & cells["seed"].isin(case.seeds)]
    cells = cells.drop_duplicates([*of, "seed"], keep="last")
    return {
        trial: seeds.to_numpy()
        for trial, seeds in cells.groupby(of).groups.items()
        if len(seeds) == len(case.seeds)
    }


def _reached(case: Case, tests: Floats, stretch: int, half: float) -> Reached:
    """Where a mean over seeds is at ``half``; ``tests`` is (seeds, times)."""
    times = multiples(stretch)
    by_times = tests.T[case.found.at(times)].tolist()
    levels = [
        (case.budget * multiple, math.fsum(level) / len(level))
        for multiple, level in zip(times, by_times, strict=True)
        if not any(map(math.isnan, level))
    ]
    return reached(levels, half) if levels else Reached(case.budget * times[-1], ">")


def _costs(own: Reached, undefended: Reached | None, scratch: Reached) -> dict[str, Any]:
    sides = {"half_cost": own, "undefended_cost": undefended, "scratch_cost": scratch}
    sides["times_undefended"], sides["times_scratch"] = (
        _times(own, undefended),
        _times(own, scratch),
    )
    costs: dict[str, Any] = {}
    for name, side in sides.items():
        costs[name], costs[f"{name}_bound"] = (side.cost, side.bound) if side else (None, None)
    return costs


def _times(one: Reached, other: Reached | None) -> Reached | None:
    """The one as a multiple of the other; nothing is known of two that were not there."""
    if other is None or one.bound == other.bound == ">":
        return None
    bound: Literal[">", "<", "="] = "="
    if ">" in (one.bound, other.bound):
        bound = ">" if one.bound == ">" else "<"
    return Reached(one.cost / other.cost, bound)
