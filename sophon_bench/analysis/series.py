"""What plots and tables show over budgets, learning rates and trials: rows with lists."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sophon_bench.analysis.case import Case
from sophon_bench.analysis.envelope import HEAD, RAN, Outcomes, Setting, multiples, outcomes
from sophon_bench.analysis.frozen import Frozen
from sophon_bench.analysis.score import cases, scores
from sophon_bench.analysis.statistics import Groups, Positions, interval, mean, table
from sophon_bench.analysis.trials import endings
from sophon_bench.plugins.selectors import SelectorError, format_selector, parse
from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame

Level = tuple[float, float, float | None]
"""A budget in units or a learning rate, the mean test utility, and its half-width."""

SIDES = ("protected", "undefended", "scratch")
"""What columns of the models that a case compares begin with."""


@dataclass(frozen=True)
class Block:
    """A defense attacked in one restricted setting, that is with one n.

    Attributes:
        model: A row of `Outcomes.models`.
        setting: What is attacked.
        cells: The rows of `Outcomes.cells`, control attacks not among them.
        seeds: Of the cells, in order.
        head: The columns that its rows begin with.
    """

    model: int
    setting: Setting
    cells: Positions
    seeds: list[int]
    head: dict[str, Any]


def _blocks(found: Outcomes) -> list[Block]:
    """By place, then setting, then defense in the order of tables."""
    defenses = (found.models["kind"] == "defense").tolist()
    place, label, control = (
        found.models[n].tolist() for n in ("place", "defense_label", "control")
    )
    keys = [
        (model, setting)
        for model, setting in found.attacks
        if defenses[model] and setting.role == "restricted"
    ]
    keys.sort(key=lambda key: (place[key[0]], key[1], key[0]))
    groups = Groups.of(found.attacks[key] for key in keys)
    heads = found.cells[list(HEAD)].iloc[groups.first].to_dict("records")
    seeds = groups.distinct(found.cells["seed"])
    return [
        Block(
            model,
            setting,
            found.attacks[model, setting],
            own,
            {
                **head,
                "suite": suite,
                "defense": label[model],
                "control": control[model],
                "samples": setting.samples,
                "seeds": len(own),
            },
        )
        for (model, setting), head, suite, own in zip(
            keys, heads, found.suites(groups), seeds, strict=True
        )
    ]


def curves(results: Results, frozen: Frozen | Sequence[Frozen] | None = None) -> DataFrame:
    """Envelopes over the budget, one row per place, n and defense.

    ``protected``, ``undefended`` and ``scratch`` are lists of (budget in units, mean, half-width)
    over the seeds that the defense has; ``resistance`` is a list of (budget in units, R) of this n
    alone, and ``resistance_all`` of all n together, unclipped, where cells count.
    """
    found = outcomes(results)
    of_model = {case.models[0]: case for case in cases(found, frozen)}
    rows = [_curve(found, block, of_model[block.model]) for block in _blocks(found)]
    return _table(rows, (*SIDES, "resistance", "resistance_all"))


def _curve(found: Outcomes, block: Block, case: Case) -> dict[str, Any]:
    alone = [slot for slot in case.counted if slot[0] == block.setting]
    levels = {
        side: _levels(found, model, block) for side, model in zip(SIDES, case.models, strict=True)
    }
    return {
        **block.head,
        **levels,
        "resistance": list(case.at_costs(alone).items()),
        "resistance_all": list(case.at_costs(case.counted).items()),
    }


def _levels(found: Outcomes, model: int, block: Block) -> list[Level]:
    """The envelope of a model where all of a block's seeds that it has reach something."""
    levels: list[Level] = []
    seeds = set(block.seeds) & set(found.seeds(model, block.setting))
    for times in multiples(found.stretches.get((model, block.setting), 1)):
        reached = found.utilities(model, block.setting, times)
        if seeds and seeds <= reached.keys():
            level = interval([reached[seed] for seed in sorted(seeds)])
            levels.append((found.budgets[model] * times, level.mean, level.half_width))
    return levels


def sweeps(results: Results) -> DataFrame:
    """Learning-rate sweeps at the whole budget: one row per place, n, defense and family.

    A family is an attack with all its parameters but ``lr``; ``levels`` is a list of (lr, mean,
    half-width) over seeds. Only rates that reached something on every seed, so that neighbours
    differ in nothing else, and families with at least two of them.
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
    rows = []
    for plugin, levels in zip(
        rates.loc[list(families)].itertuples(), families.values(), strict=True
    ):
        if len(levels) > 1:
            label = family_label(plugin.attack, plugin.attack_name)
            told = {"attack": plugin.attack_name, "family": label, "levels": levels}
            rows.append((plugin.block, label, {**blocks[plugin.block].head, **told}))
    rows.sort(key=lambda row: row[:2])
    return _table([row for *_, row in rows], ("attack", "family", "levels"))


def _rates(found: Outcomes, blocks: Sequence[Block]) -> DataFrame:
    """Test utility at the whole budget by ``block``, ``family``, ``lr`` and ``seed``.

    ``first`` is the first row of each family of a block. Those of random initialisation are with
    the undefended model.
    """
    cells = [block.cells for block in blocks]
    for number, block in enumerate(blocks):
        _, scratch = found.controls(block.model)
        if block.head["control"] and (scratch, block.setting) in found.attacks:
            cells[number] = np.append(block.cells, found.attacks[scratch, block.setting])
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
    rows = []
    for block in _blocks(found):
        known = found.envelopes.get((block.model, block.setting))
        picks = found.best[:0] if known is None else known.picks
        for times in multiples(found.stretches[block.model, block.setting]):
            cost = found.budgets[block.model] * times
            rows.append(
                {
                    **block.head,
                    "cost": cost,
                    "times": cost / found.budgets[block.model],
                    **_winners(found, picks[:, found.times.index(times)]),
                }
            )
    columns = ("cost", "times", "attacks", "restricted_after", "restricted_after_half_width")
    return _table(rows, columns)


def _winners(found: Outcomes, picks: Positions) -> dict[str, Any]:
    reached = picks[picks >= 0]
    level = interval(found.tests(reached).tolist()) if len(reached) else None
    return {
        "attacks": _votes(found, reached),
        "restricted_after": None if level is None else level.mean,
        "restricted_after_half_width": None if level is None else level.half_width,
    }


def _votes(found: Outcomes, picks: Positions) -> list[tuple[str, int]]:
    """Trials by how often they are picked, the most frequent first."""
    votes = Counter(found.cells["attack_label"].to_numpy()[found.picked(picks)].tolist())
    return sorted(votes.items(), key=lambda vote: (-vote[1], vote[0]))


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
    rows = []
    for block in _blocks(found):
        row = dict(block.head)
        for side, model in zip(SIDES, (block.model, *found.controls(block.model)), strict=True):
            cells = found.attacks.get((model, block.setting), block.cells[:0])
            seeds = found.cells["seed"].to_numpy()[cells]
            ran = usable[cells] & np.isin(seeds, block.seeds)
            tried = found.with_stand_ins(Groups(seeds[ran], cells[ran]))
            told = _winners(found, found.envelope(tried)[:, found.times.index(1)])
            row |= {
                f"{side}_after": told["restricted_after"],
                f"{side}_half_width": told["restricted_after_half_width"],
                f"{side}_seeds": sum(seeds for _, seeds in told["attacks"]),
                f"{side}_trials": found.cells["attack"].iloc[cells[ran]].nunique(),
                f"{side}_attacks": told["attacks"],
            }
        rows.append(row)
    ends = ("after", "half_width", "seeds", "trials", "attacks")
    return _table(rows, [f"{side}_{end}" for side in SIDES for end in ends])


def ablation(
    results: Results, axis: str, frozen: Frozen | Sequence[Frozen] | None = None
) -> DataFrame:
    """Scores by the value of one hyperparameter of the defenses: one row per place and defense.

    Rows of `scores` with ``axis``; its ``value`` (null for a defense that does not have it);
    ``family``, the defense's selector without it; and ``listed_after``, what the best of the
    listed trials gets out of the model itself at the whole budget, a mean over n and seeds: no
    search, no random initialisation. In order of family and value, the undefended model first.
    """
    found = outcomes(results)
    listed = cases(found, frozen)
    first = found.cells.iloc[[case.positions[0] for case in listed]]
    values = np.empty(len(first), dtype=object)
    values[:] = [parameters.get(axis) for parameters in first["defense_parameters"]]
    families = [
        family_label(selector, name, axis)
        for selector, name in zip(first["defense"], first["defense_name"], strict=True)
    ]
    rows = (
        scores(results, frozen)
        .drop(columns="rank")
        .assign(
            axis=axis,
            value=values,
            family=families,
            listed_after=np.array([_listed_after(case) for case in listed], dtype="float64"),
        )
    )
    by_value = list(
        zip(first["place"], ~rows["control"], families, map(_size, values), strict=True)
    )
    return rows.iloc[sorted(range(len(rows)), key=by_value.__getitem__)].reset_index(drop=True)


def _size(value: Any) -> tuple[bool, float, str]:
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
    found, cells = case.outcomes, case.cells
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


BLOCK = (*HEAD, "suite", "defense", "control", "samples", "seeds")
"""What the rows of a `Block` begin with."""


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> DataFrame:
    return table({name: [row[name] for row in rows] for name in (*BLOCK, *columns)})
