"""One row per attack trial, and the tuned envelope of them all."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from sophon_bench.analysis.case import intactness
from sophon_bench.analysis.envelope import (
    HEAD,
    Outcomes,
    envelope_name,
    outcomes,
)
from sophon_bench.analysis.flags import notes, raised
from sophon_bench.analysis.statistics import Groups, Interval, Positions, table
from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame

ROLLED_BACK = "rolled back"
"""Begins what a defense says that went back to an earlier state (`api.Defense`)."""

ROW = ("place", "samples", "model", "setting", "envelope", "attacker", "attack_label", "stretch")
"""What tells rows apart, in the order of tables; ``attacker`` is false for control attacks."""


def trials(results: Results) -> DataFrame:
    """Rows for tables, seeds averaged: one per attack trial, then the envelope.

    Of the restricted domain only. Grouped by scenario, backbone, budget, samples and defense, in
    an order that does not depend on the order of the records. Keys are stable and lower-case;
    numbers are numbers, utilities fractions, costs as multiples or in the unit that the key names.
    ``utility`` says what the utilities are; ``_loss`` keys are the task's loss where a utility
    follows from it, null for accuracy.
    What needs several budgets and benign domains (``score``, ``resistance``, ``trainability``) is
    null in these rows: `scores` has it.

    Only checkpoints within the budget count; a trial that went on to ``stretch`` budgets has a row
    of its own, with all of them, and so has the envelope then. A trial that is not finite from its
    first update against a defense counts as the undefended model's: protection by crash is no
    protection.
    """
    found = outcomes(results)
    members = _members(found)
    rows = members.drop_duplicates("row").sort_values("row").reset_index(drop=True)
    cells = Groups(members["row"].to_numpy(), members["cell"].to_numpy())
    names = ["defense_label", "attack_parameters", "attack_control", *HEAD]
    first = found.cells[names].iloc[cells.first]
    is_envelope = rows["envelope"].to_numpy()
    reached, picks = _picks(found, members)
    picked, tests = found.picked(picks), found.tests(picks)
    losses = (1 - tests) * found.cells["trivial_loss"].reindex(picked).to_numpy()
    selectors = found.cells["attack"].reindex(picked).to_numpy(dtype=object)
    return table(
        {
            **{name: first[name] for name in ("scenario", "backbone")},
            "defense": first["defense_label"],
            "attack": rows["attack_label"].mask(is_envelope, rows["stretch"].map(envelope_name)),
            "parameters": first["attack_parameters"].mask(is_envelope, None),
            "control": first["attack_control"].to_numpy() & ~is_envelope,
            "trials": _tried(found, members, rows),
            "best": reached.join(selectors, " or "),
            "samples": rows["samples"],
            "stretch": rows["stretch"],
            **{name: first[name] for name in HEAD if name not in ("scenario", "backbone")},
            "suite": found.suites(cells),
            "seeds": cells.counts(found.cells["seed"]),
            "seeds_reached": [sum(counts) for counts in reached.split(picks >= 0)],
            **made(found, cells),
            **spread("restricted_after", reached.intervals(tests)),
            **spread("restricted_loss", reached.intervals(losses)),
            **dict.fromkeys(("score", "resistance", "trainability"), [None] * len(rows)),
            **spent(found, cells),
            "flags": _flags(found, rows, cells),
        }
    )


def _members(found: Outcomes) -> DataFrame:
    """The cells of each row, by their position, with what tells rows apart (`ROW`)."""
    import pandas as pd

    names = ["place", "samples", "model", "setting", "attack_label", "stretch", "seed"]
    restricted = (found.cells["role"] == "restricted").to_numpy()
    cells = found.cells.loc[restricted, names].reset_index(names="cell")
    trial = cells.assign(
        envelope=False, attacker=~found.cells["attack_control"].to_numpy()[cells["cell"]]
    )
    longest = cells.groupby(["model", "setting"])["stretch"].transform("max")
    regular = cells.assign(envelope=True, attacker=False, attack_label="", stretch=1)
    stretched = regular.assign(stretch=longest)[longest > 1]
    members = pd.concat([trial, regular, stretched], ignore_index=True)
    members["row"] = members.groupby(list(ROW)).ngroup()
    return members


def _picks(found: Outcomes, members: DataFrame) -> tuple[Groups, Positions]:
    """The checkpoints that count in each row: by cell for a trial, by seed for an envelope."""
    trials = members[~members["envelope"]]
    seeds = members[members["envelope"]].drop_duplicates(["row", "seed"])
    times, whole = (np.searchsorted(found.times, rows["stretch"]) for rows in (trials, seeds))
    seed = np.searchsorted(found.seeds, seeds["seed"])
    best = found.best[seeds["model"], seeds["setting"], seed, whole]
    picks = np.append(found.counted[trials["cell"], times], best)
    return Groups(np.append(trials["row"], seeds["row"])), picks


def _tried(found: Outcomes, members: DataFrame, rows: DataFrame) -> list[int]:
    """How many trials each row is of: for the envelope, random initialisation among them."""
    import pandas as pd

    fresh = found.cells.loc[found.cells["attack_control"], ["place", "setting"]]
    envelopes = rows[rows["envelope"]].drop(columns="cell")
    more = envelopes.merge(fresh.reset_index(names="cell"), on=["place", "setting"])
    tried = pd.concat([members[members["envelope"]], more])
    names = ["attack_label", "stretch"]
    trial = found.cells[names].iloc[tried["cell"]].assign(row=tried["row"].to_numpy())
    trial = trial[(trial["stretch"] <= tried["stretch"].to_numpy()).to_numpy()].drop_duplicates()
    counts = trial.groupby("row").size().reindex(rows["row"], fill_value=0).to_numpy()
    return [int(count) for count in np.where(rows["envelope"], counts, 1)]


def _flags(found: Outcomes, rows: DataFrame, cells: Groups) -> list[list[str]]:
    """What is to be noted of the cells of a trial; for envelopes, the flags that are raised."""
    flags = raised(found)
    return [
        flags.get((row.model, row.setting), []) if row.envelope else noted
        for row, noted in zip(rows.itertuples(), notes(found, cells), strict=True)
    ]


def spread(name: str, intervals: list[Interval | None]) -> dict[str, list[float | None]]:
    """Means and half-widths as two columns."""
    ends = [level or (None, None) for level in intervals]
    return {name: [mean for mean, _ in ends], f"{name}_half_width": [half for _, half in ends]}


def made(found: Outcomes, groups: Groups) -> dict[str, list[float | None]]:
    """What the released models of cells are worth before any attack: means over seeds.

    ``original_loss_before`` and ``original_loss`` are the task's losses there, before and after
    protecting, null for accuracy.
    """
    models = _models(found, groups)
    before, after = (found.cells[name].to_numpy() for name in ("before", "after"))
    original, restricted, trivial = (
        found.stages[name].to_numpy() for name in ("original", "restricted", "trivial_loss")
    )
    loss = (1 - original) * trivial
    return {
        "original_before": models.means(original[before]),
        "original_after": models.means(original[after]),
        "restricted_before": models.means(restricted[after]),
        "original_loss_before": models.means(loss[before]),
        "original_loss": models.means(loss[after]),
        "intactness": models.means(intactness(original[before], original[after])),
    }


def _models(found: Outcomes, groups: Groups) -> Groups:
    """One cell per released model, that is per group and seed."""
    seeds, seed = np.unique(found.cells["seed"].to_numpy(), return_inverse=True)
    by_seed = Groups(groups.of_rows * max(1, len(seeds)) + seed[groups.rows], groups.rows)
    return Groups(by_seed.numbers // max(1, len(seeds)), by_seed.last)


def endings(found: Outcomes, groups: Groups) -> list[list[tuple[str, int]]]:
    """How making the released models ended where it was not to plan: words, and on how many seeds.

    What the defense said, or the status of its stage and the reason.
    """
    stages = (found.stages[name] for name in ("status", "reason", "note"))
    words = [
        note if status == "ok" else f"{status}: {reason}"
        for status, reason, note in zip(*stages, strict=True)
    ]
    said = _models(found, groups).split(np.array(words, dtype=object)[found.cells["after"]])
    return [sorted(Counter(word for word in each if word is not None).items()) for each in said]


def rolled_back(ended: list[tuple[str, int]]) -> int:
    """On how many seeds the defense went back to an earlier state."""
    return sum(count for words, count in ended if words.startswith(ROLLED_BACK))


def spent(found: Outcomes, groups: Groups) -> dict[str, list[Any]]:
    """What protecting and attacking took, a mean over cells, and how it ended.

    ``protect_cost`` is the defense's cost as a multiple of pre-training, by units (FLOPs).
    """
    units = found.stages["units"].to_numpy()
    before, after = (units[found.cells[name]] for name in ("before", "after"))
    multiple = np.divide(after, before, out=np.full(len(before), np.nan), where=before != 0)
    return {
        "protect_cost": groups.means(multiple),
        "peak_memory": groups.means(found.cells["peak_bytes"]),
        "seconds": groups.means(found.cells["seconds"]),
        "status": groups.join(found.cells["status"], " "),
    }
