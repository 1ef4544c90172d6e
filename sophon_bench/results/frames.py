"""Records as pandas frames: one row per model, per cell, and per scored checkpoint.

Utilities are fractions, higher is better; costs are counted in units, one forward and backward pass
of the undefended backbone on one example. Labels are selectors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sophon_bench.records import Cell, Cost, PluginId, Provenance, StageRecord

if TYPE_CHECKING:
    from pandas import DataFrame

PLACE = ("scenario", "revision", "backbone", "precision", "budget", "protocol")
"""What two cells must have in common to stand in one score: all but defense, attack and n."""

COSTS = ("seconds", "steps", "examples", "units", "flops", "peak_bytes", "together")
MADE = (
    "status", "reason", "note", "original", "original_second", "original_validation",
    "restricted", "trivial_loss", "generated", "weights", "sigma_ratios", "gradient_ratios",
)  # fmt: skip
PLUGIN = ("name", "parameters", "source", "distribution", "control", "mechanism", "version")
POINT = ("steps", "units", "seconds", "fit", "validation", "selection", "test", "second_test")
PROVENANCE = (
    "version", "commit", "dirty", "python", "torch", "timm", "cuda", "device", "threads",
    "compiled", "finished",
)  # fmt: skip
CELL = (
    "domain", "role", "suite", "derived", "samples", "seed", "stretch", "status", "reason",
    "test_examples", "utility", "trivial_loss", "nonfinite_step", "generated",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Results:
    """The records of one or several runs.

    Attributes:
        models: One row per pre-trained or released model, by its content key (the index).

            ``kind`` is ``pretrained`` or ``released``; ``defense`` the selector, null for a
            pre-trained model; `PLACE` without the budget, and ``seed``, say where it was made;
            `MADE` what came out, ``original`` and ``restricted`` being test utilities before any
            attack; `COSTS` what making it took; `PROVENANCE`, each with ``made_`` before it, by
            what.
        cells: One row per cell, by its content key, in the order of seeds and keys.

            `PLACE` and `CELL` say what was done and how it ended; ``defense`` and ``attack`` are
            selectors, and of each plugin there is `PLUGIN` (``attack_mechanism``); ``lr`` is the
            trial's learning rate and ``family`` a hash of all its other parameters; ``pretrained``
            and ``released`` are keys of `models`; `COSTS` is what the attack took; `PROVENANCE`,
            each with ``made_`` before it, by what.
        points: One row per scored checkpoint, in the order of `cells` and of cost: ``cell`` is the
            key, ``number`` counts from 0; `POINT` has costs so far and utilities by split.
    """

    models: DataFrame
    cells: DataFrame
    points: DataFrame

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Results:
        """The frames of records; a record that is there twice counts once."""
        ordered = sorted({c.key: c for c in cells}.values(), key=lambda cell: (cell.seed, cell.key))
        return cls(_models(ordered), _cells(ordered), _points(ordered))


def _frame(rows: dict[str, list[Any]], dtypes: dict[str, Any]) -> DataFrame:
    """Columns as lists in a frame; None becomes NaN where a column is of numbers."""
    import pandas as pd

    return pd.DataFrame(
        {name: pd.Series(values, dtype=dtypes.get(name, object)) for name, values in rows.items()}
    )


NUMBERS = dict.fromkeys(
    (
        "seconds", "units", "flops", "peak_bytes", "original", "original_second",
        "original_validation", "restricted", "trivial_loss", "lr", "nonfinite_step", "fit",
        "validation", "selection", "test", "second_test",
    ),
    "float64",
)  # fmt: skip
WHOLE = dict.fromkeys(("budget", "samples", "seed", "stretch", "test_examples", "number"), "int64")
TRUTH = dict.fromkeys(("derived", "defense_control", "attack_control"), "bool")
DTYPES: dict[str, Any] = {**NUMBERS, **WHOLE, **TRUTH}
"""Of columns that are no text; ``steps``, ``examples`` and ``together`` are float64 where a cost
may be missing."""


def _costs(costs: Iterable[Cost | None]) -> dict[str, list[Any]]:
    found = list(costs)
    return {name: [None if c is None else getattr(c, name) for c in found] for name in COSTS}


def _provenances(made: Iterable[Provenance]) -> dict[str, list[Any]]:
    found = list(made)
    return {f"made_{name}": [getattr(p, name) for p in found] for name in PROVENANCE}


def _plugins(kind: str, plugins: Iterable[PluginId]) -> dict[str, list[Any]]:
    found = list(plugins)
    columns = {f"{kind}_{name}": [getattr(p, name) for p in found] for name in PLUGIN}
    return {kind: [p.label for p in found], **columns}


def _places(cells: Iterable[Cell]) -> dict[str, list[Any]]:
    found = list(cells)
    columns = {name: [getattr(c, name) for c in found] for name in PLACE[2:]}
    return {
        "scenario": [c.scenario.label for c in found],
        "revision": [c.scenario.revision for c in found],
        **columns,
    }


def _cells(cells: list[Cell]) -> DataFrame:
    attacks = [cell.attack for cell in cells]
    columns = {
        "key": [cell.key for cell in cells],
        **_places(cells),
        **_plugins("defense", (cell.defense for cell in cells)),
        **_plugins("attack", attacks),
        "lr": [attack.lr for attack in attacks],
        "family": [attack.family for attack in attacks],
        **{name: [getattr(cell, name) for cell in cells] for name in CELL},
        "pretrained": [cell.pretrained.key for cell in cells],
        "released": [cell.released.key for cell in cells],
        **_costs(cell.cost for cell in cells),
        **_provenances(cell.provenance for cell in cells),
    }
    floats = dict.fromkeys(("steps", "examples", "together"), "float64")
    return _frame(columns, {**DTYPES, **floats}).set_index("key", drop=False)


def _models(cells: list[Cell]) -> DataFrame:
    found: dict[str, tuple[Cell, StageRecord, str | None]] = {}
    for cell in cells:
        found.setdefault(cell.pretrained.key, (cell, cell.pretrained, None))
        found.setdefault(cell.released.key, (cell, cell.released, cell.defense.label))
    owners, records, defenses = ([made[i] for made in found.values()] for i in range(3))
    columns: dict[str, list[Any]] = {
        "key": list(found),
        "kind": ["pretrained" if defense is None else "released" for defense in defenses],
        **_places(owners),  # type: ignore[arg-type]
        "seed": [cell.seed for cell in owners],  # type: ignore[union-attr]
        "defense": defenses,
        **{name: [getattr(record, name) for record in records] for name in MADE},
        **_costs(record.cost for record in records),  # type: ignore[union-attr]
        **_provenances(record.provenance for record in records),  # type: ignore[union-attr]
    }
    del columns["budget"]
    floats = dict.fromkeys(("steps", "examples", "together"), "float64")
    return _frame(columns, {**DTYPES, **floats}).set_index("key", drop=False)


def _points(cells: list[Cell]) -> DataFrame:
    scored = [(cell.key, number, p) for cell in cells for number, p in enumerate(cell.curve)]
    columns: dict[str, list[Any]] = {
        "cell": [key for key, _, _ in scored],
        "number": [number for _, number, _ in scored],
        **{name: [getattr(p, name) for _, _, p in scored] for name in POINT},
    }
    return _frame(columns, {**DTYPES, "steps": "int64"})
