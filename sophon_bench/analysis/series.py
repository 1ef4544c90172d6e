"""What plots and tables show over budgets, learning rates and trials: rows with lists."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sophon_bench.analysis.case import Case
from sophon_bench.analysis.envelope import HEAD, RAN, Outcomes, multiples, outcomes
from sophon_bench.analysis.frozen import Frozen
from sophon_bench.analysis.score import cases, scores
from sophon_bench.analysis.statistics import (
    Bools,
    Floats,
    Groups,
    Positions,
    interval,
    mean,
    table,
    table_of,
    votes,
)
from sophon_bench.analysis.trials import endings
from sophon_bench.plugins.selectors import SelectorError, format_selector, parse
from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame

Level = tuple[float, float, float | None]
"""A budget in units or a learning rate, the mean test utility, and its half-width."""

SIDES = ("protected", "undefended", "scratch")
"""What columns of the models that a case compares begin with."""

BLOCK = (*HEAD, "suite", "defense", "control", "samples", "seeds")
"""What rows of one defense and n begin with."""


class Block(NamedTuple):
    """A defense attacked in one restricted setting, that is with one n.

    Attributes:
        model: A row of `Outcomes.models`.
        setting: A number of `Outcomes.settings`.
        cells: The rows of `Outcomes.cells`, control attacks not among them.
        seeds: Of the cells, in order.
        head: The columns `BLOCK`.
    """

    model: int
    setting: int
    cells: Positions
    seeds: list[int]
    head: dict[str, Any]


def _blocks(found: Outcomes) -> list[Block]:
    """By place, then setting, then defense in the order of tables."""
    models = found.models.to_dict("list")
    keys = [
        (model, setting)
        for model, setting in found.attacks
        if models["kind"][model] == "defense" and found.restricted[setting]
    ]
    keys.sort(key=lambda key: (models["place"][key[0]], key[1], key[0]))
    groups = Groups.of(found.attacks[key] for key in keys)
    heads = found.cells[list(HEAD)].iloc[groups.first].to_dict("records")
    blocks = []
    for (model, setting), head, suite, seeds in zip(
        keys, heads, found.suites(groups), groups.distinct(found.cells["seed"]), strict=True
    ):
        head |= {"suite": suite, "samples": found.settings[setting].samples, "seeds": len(seeds)}
        head |= {"defense": models["defense_label"][model], "control": models["control"][model]}
        blocks.append(Block(model, setting, found.attacks[model, setting], seeds, head))
    return blocks


def curves(results: Results, frozen: Frozen | Sequence[Frozen] | None = None) -> DataFrame:
    """Envelopes over the budget, one row per place, n and defense.

    ``protected``, ``undefended`` and ``scratch`` are lists of (budget in units, mean, half-width)
    over the seeds that the defense has; ``resistance`` is a list of (budget in units, R) of this n
    alone, and ``resistance_all`` of all n together, unclipped, where cells count.
    """
    found = outcomes(results)
    of_model = {case.models[0]: case for case in cases(found, frozen)}
    rows = []
    for block in _blocks(found):
        case = of_model[block.model]
        sides = zip(SIDES, case.models, strict=True)
        levels = {side: _levels(found, model, block) for side, model in sides}
        alone = case.counted & (case.setting == block.setting)
        resistance = {"resistance": alone, "resistance_all": case.counted}
        known = {name: _resistance(case, among) for name, among in resistance.items()}
        rows.append({**block.head, **levels, **known})
    return table_of(rows, (*BLOCK, *SIDES, "resistance", "resistance_all"))


def _resistance(case: Case, among: Bools) -> list[tuple[float, float]]:
    costs, found = case.at_costs(among)
    pairs = zip(costs.tolist(), found[:, 0].tolist(), strict=True)
    return [(cost, level) for cost, level in pairs if not math.isnan(level)]


def _levels(found: Outcomes, model: int, block: Block) -> list[Level]:
    """The envelope of a model where all of a block's seeds that it has reach something."""
    own = model, block.setting
    times = multiples(int(found.stretches[own]) or 1)
    seeds = found.ran[own] & np.isin(found.seeds, block.seeds)
    by_times = found.reached[own][seeds][:, found.at(times)].T.tolist()
    budget = found.models["budget"].to_list()[model]
    levels: list[Level] = []
    for multiple, tests in zip(times, by_times, strict=True):
        if tests and not any(map(math.isnan, tests)):
            level = interval(tests)
            levels.append((budget * multiple, level.mean, level.half_width))
    return levels


def sweeps(results: Results) -> DataFrame:
    """Learning-rate sweeps at the whole budget: one row per place, n, defense and family.

    A family is an attack with all its parameters but ``lr``; ``levels`` is a list of (lr, mean,
    half-width) over seeds. Only rates that reached something on every seed, so that neighbours
    differ in nothing else, and families with at least two of them. Those of random initialisation
    are with the undefended model.
    """
    found = outcomes(results)
    blocks = _blocks(found)
    rates = _rates(found, blocks)
    groups = Groups(rates.groupby(["first", "lr"]).ngroup().to_numpy())
    families: dict[int, list[Level]] = {}
    for row, seeds, tests in zip(
        rates.iloc[groups.first].itertuples(),
        groups.split(rates["seed"]),
        groups.split(rates["test"]),
        strict=True,
    ):
        if seeds == blocks[row.block].seeds:
            level = interval(tests)
            families.setdefault(row.first, []).append((row.lr, level.mean, level.half_width))
    several = {first: levels for first, levels in families.items() if len(levels) > 1}
    rows = []
    for plugin, levels in zip(rates.loc[[*several]].itertuples(), several.values(), strict=True):
        label = family_label(plugin.attack, plugin.attack_name)
        told = {"attack": plugin.attack_name, "family": label, "levels": levels}
        rows.append((plugin.block, label, {**blocks[plugin.block].head, **told}))
    rows.sort(key=lambda row: row[:2])
    return table_of([row for *_, row in rows], (*BLOCK, "attack", "family", "levels"))


def _rates(found: Outcomes, blocks: Sequence[Block]) -> DataFrame:
    """Test utility at the whole budget by ``block``, ``family``, ``lr`` and ``seed``.

    ``first`` is the first row of each family of a block.
    """
    nothing = np.empty(0, dtype=np.intp)
    cells = [
        np.append(
            block.cells, found.attacks.get((found.sides(block.model)[2], block.setting), nothing)
        )
        if block.head["control"]
        else block.cells
        for block in blocks
    ]
    groups = Groups.of(cells)
    names = ["attack", "attack_name", "family", "lr", "seed", "stretch"]
    rows = found.cells[names].iloc[groups.rows].reset_index(drop=True)
    rows["block"] = groups.of_rows
    rows["test"] = found.tests(found.counted[groups.rows, found.times.index(1)])
    rows = rows[rows["lr"].notna() & rows["test"].notna() & (rows["stretch"] == 1)]
    rows = rows.drop_duplicates(["block", "family", "lr", "seed"], keep="last")
    order = rows.index.to_series()
    return rows.assign(first=order.groupby([rows["block"], rows["family"]]).transform("min"))


@functools.cache
def family_label(selector: str, name: str, without: str = "lr") -> str:
    """A plugin's selector without one hyperparameter, or its name if the selector is none."""
    try:
        found = parse(selector)
    except SelectorError:
        return name
    return format_selector(found.name, {k: v for k, v in found.parameters.items() if k != without})


def winners(results: Results) -> DataFrame:
    """Which trials the envelope picked: one row per place, n, defense and budget.

    ``cost`` is the budget in units and ``times`` the same as a multiple of the whole one;
    ``attacks`` is a list of (label, seeds), the most frequent first.
    """
    found = outcomes(results)
    budgets = found.models["budget"].tolist()
    labels = np.array([*found.cells["attack_label"], None], dtype=object)[found.picked(found.picks)]
    rows = []
    for block in _blocks(found):
        own, budget = (block.model, block.setting), budgets[block.model]
        for times in multiples(int(found.stretches[own])):
            column, told = found.times.index(times), {"times": budget * times / budget}
            told |= _winners(labels[own][:, column], found.reached[own][:, column])
            rows.append({**block.head, "cost": budget * times, **told})
    return table_of(rows, (*BLOCK, "cost", "times", "attacks", *REACHED))


REACHED = ("restricted_after", "restricted_after_half_width")


def _winners(labels: Any, tests: Floats) -> dict[str, Any]:
    """Picked trials by how often, the most frequent first, and what they reach."""
    reached = [test for test in tests.tolist() if not math.isnan(test)]
    ends = interval(reached) if reached else (None, None)
    return {"attacks": votes(labels.tolist()), **dict(zip(REACHED, ends, strict=True))}


def recipe(results: Results, trials: Collection[str]) -> DataFrame:
    """What some trials alone reach at the whole budget: one row per place, n and defense.

    For each side (``protected``, ``undefended``, ``scratch``), on the seeds that the defense has
    and without random initialisation as a candidate: ``_after``, the test utility of the trial and
    checkpoint with the best selection utility, a mean over seeds, null if there is none;
    ``_half_width``; ``_seeds``; ``_trials``, how many ran; ``_attacks``, those picked as in
    `winners`. A trial that is not finite from its first update counts as in `trials`.

    Args:
        results: Records.
        trials: Selectors of attacks, control attacks too.
    """
    found = outcomes(results)
    listed = found.cells["attack"].isin(trials) & found.cells["status"].isin(RAN)
    usable = (listed & (found.cells["stretch"] == 1)).to_numpy()
    all_seeds, labels = (found.cells[name].to_numpy() for name in ("seed", "attack_label"))
    rows = []
    for block in _blocks(found):
        row = dict(block.head)
        for side, model in zip(SIDES, found.sides(block.model), strict=True):
            cells = found.attacks.get((model, block.setting), block.cells[:0])
            cells = cells[usable[cells] & np.isin(all_seeds[cells], block.seeds)]
            picks = found.envelope(found.with_stand_ins(Groups(all_seeds[cells], cells)))
            reached = (whole := picks[:, found.times.index(1)])[whole >= 0]
            told = _winners(labels[found.picked(reached)], found.tests(reached))
            row |= {
                f"{side}_after": told["restricted_after"],
                f"{side}_half_width": told["restricted_after_half_width"],
                f"{side}_seeds": len(reached),
                f"{side}_trials": found.cells["attack"].iloc[cells].nunique(),
                f"{side}_attacks": told["attacks"],
            }
        rows.append(row)
    ends = ("after", "half_width", "seeds", "trials", "attacks")
    return table_of(rows, (*BLOCK, *(f"{side}_{end}" for side in SIDES for end in ends)))


def ablation(
    results: Results, axis: str, frozen: Frozen | Sequence[Frozen] | None = None
) -> DataFrame:
    """Scores by the value of one hyperparameter of the defenses: one row per place and defense.

    Rows of `scores` with ``axis``; its ``value`` (null for a defense that does not have it);
    ``family``, the defense's selector without it; and ``listed_after``, what the best of the
    listed trials gets out of the model itself at the whole budget, a mean over n and seeds: no
    search, no random initialisation. In order of family and value, the undefended model first.
    """
    import pandas as pd

    found = outcomes(results)
    listed = cases(found, frozen)
    first = found.cells.iloc[[case.positions[0] for case in listed]]
    rows = scores(results, frozen).drop(columns="rank")
    rows["axis"] = axis
    values = [parameters.get(axis) for parameters in first["defense_parameters"]]
    rows["value"] = pd.Series(values, dtype=object)
    plugins = zip(first["defense"], first["defense_name"], strict=True)
    rows["family"] = [family_label(selector, name, axis) for selector, name in plugins]
    rows["listed_after"] = np.array([_listed_after(case) for case in listed], dtype="float64")
    columns = first["place"], ~rows["control"], rows["family"], map(order, values)
    by_value = list(zip(*columns, strict=True))
    return rows.iloc[sorted(range(len(rows)), key=by_value.__getitem__)].reset_index(drop=True)


def order(value: Any) -> tuple[bool, float, str]:
    """What the values of a hyperparameter are ordered by, words last."""
    level = magnitude(value)
    return level is None, level or 0.0, str(value)


def magnitude(value: Any) -> float | None:
    """A hyperparameter's value as a number, a list by its length; None for words and nothing."""
    if isinstance(value, list | tuple):
        return float(len(value))
    return float(value) if isinstance(value, int | float) else None


def shown(value: Any) -> str:
    """A hyperparameter's value as tables and pictures show it: a list is as long as it is."""
    level = magnitude(value)
    return str(value) if level is None else f"{level:g}"


def _listed_after(case: Case) -> float | None:
    found = case.found
    cells = found.cells.loc[case.positions, ["role", "derived", "setting", "seed"]]
    listed = ((cells["role"] == "restricted") & ~cells["derived"]).to_numpy()
    number = cells.groupby(["setting", "seed"]).ngroup().to_numpy()
    tried = found.with_stand_ins(Groups(number[listed], case.positions[listed]))
    return mean(found.tests(found.envelope(tried)[:, found.times.index(1)]).tolist())


def releases(results: Results) -> DataFrame:
    """The models that defenses made: one row per place and defense.

    ``plugin`` is the defense's name and ``source`` the hash of its source; ``ended`` is a list of
    (words, seeds), as `endings` has it.
    """
    found = outcomes(results)
    cells = found.cells.sort_values(["model", "setting"], kind="stable")
    groups = Groups(cells["model"].to_numpy(), cells.index.to_numpy())
    first = found.cells.iloc[groups.first]
    return table(
        {
            **{name: first[name] for name in HEAD},
            "suite": found.suites(groups),
            "defense": first["defense_label"],
            "control": first["defense_control"],
            "plugin": first["defense_name"],
            "source": first["defense_source"],
            "seeds": groups.counts(found.cells["seed"]),
            "ended": endings(found, groups),
        }
    )
