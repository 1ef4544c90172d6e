"""What protecting and attacking cost, as tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sophon_bench import metrics
from sophon_bench.leaderboard import tables
from sophon_bench.leaderboard.tables import (
    NOTHING,
    Key,
    Place,
    Row,
    Table,
    Trials,
    by_place,
    heading,
    multiple,
    percent,
    printed,
    span,
    to_console,
)
from sophon_bench.metrics import ENVELOPE
from sophon_bench.protocol import FLOOR, REFERENCE_BATCH
from sophon_bench.records import Cell

UNITS: Mapping[str, tuple[str, float]] = {
    "seconds": ("seconds", 1),
    "flops": ("TFLOP", 1e12),
    "peak_memory": ("peak MB", 1e6),
    "examples": ("examples", 1),
}
"""Title and unit of each cost of protecting, by its name in rows."""


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Flat rows, derived from records.

    Args:
        protection: One per defense (`metrics.protection`).
        half_costs: One per trial and defense (`metrics.half_costs`).
    """

    protection: Sequence[Row]
    half_costs: Sequence[Row]


def overhead(
    cells: Sequence[Cell], frozen: metrics.Frozen | Sequence[metrics.Frozen] | None = None
) -> Overhead:
    """What ``cells`` say; with ``frozen``, that says for which n half is defined."""
    places = metrics.places(cells)
    return Overhead(
        protection=metrics.protection(places), half_costs=metrics.half_costs(places, frozen)
    )


def places(found: Overhead) -> list[Place]:
    """Per place: what protecting took, and per n what attacking takes to get half."""
    half_costs = by_place(found.half_costs)
    return [
        _place(where, rows, half_costs.get(where, []))
        for where, rows in by_place(found.protection).items()
    ]


def _place(where: Key, protection: Sequence[Row], half_costs: Sequence[Row]) -> Place:
    trials = Trials(half_costs)
    tables = [
        _half_costs(samples, [row for row in half_costs if row["samples"] == samples], trials)
        for samples in dict.fromkeys(row["samples"] for row in half_costs)
    ]
    notes = [] if half_costs else [NO_HALF]
    return Place(title=heading(where, protection), tables=[_protection(protection, notes), *tables])


NO_HALF = (
    "no cost to half: where both controls were attacked on one seed, the undefended model is not "
    f"{100 * FLOOR:.0f} points above scratch"
)


def _protection(rows: Sequence[Row], notes: list[str]) -> Table:
    return Table(
        title="Protecting: what it took, and that as a multiple of pre-training; means over seeds",
        columns=["", "seeds", *(title for title, _ in UNITS.values())],
        quiet=[_protection_line(row) for row in rows if row["control"]],
        body=[_protection_line(row) for row in rows if not row["control"]],
        notes=notes,
    )


def _protection_line(row: Row) -> list[str]:
    return [row["defense"], str(row["seeds"]), *(spent(row, name) for name in UNITS)]


def spent(row: Row, name: str) -> str:
    """What protecting took of one of `UNITS`, and that as a multiple of pre-training."""
    amount, times = row[f"protect_{name}"], row[f"protect_{name}_times"]
    if amount is None:
        return NOTHING
    text = _amount(amount / UNITS[name][1])
    return text if row["control"] or times is None else f"{text} ({multiple(times)})"


def _amount(value: float) -> str:
    """Three digits, or all of a whole number that has more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _half_costs(samples: int, rows: Sequence[Row], trials: Trials) -> Table:
    """Costs to half by attack (lines) and defense (columns)."""
    by_attack: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        by_attack.setdefault((row["attack"], row["stretch"]), {})[row["defense"]] = row
    best = by_attack.pop((ENVELOPE, 1))
    tried = sorted(by_attack, key=lambda key: (trials.order(key[0]), key[1]))
    utility = rows[0]["utility"]

    def line(name: str, found: Mapping[str, Row], cell: Callable[[Row], str]) -> list[str]:
        return [name, *(cell(found[d]) if d in found else NOTHING for d in best)]

    return Table(
        title=f"n = {samples}, {span(row['seeds'] for row in best.values())}: steps of "
        f"{REFERENCE_BATCH} examples to half of undefended minus scratch, as a multiple of those "
        "against the undefended model, and of those of scratch's envelope",
        columns=["", *best],
        quiet=[
            line(f"half: restricted {utility}, %", best, lambda row: percent(row["half"])),
            line("scratch's envelope", best, lambda row: _steps(row, "scratch_cost")),
        ],
        body=[
            line(trials.name(key[0]) + (f" ×{key[1]}" if key[1] > 1 else ""), by_attack[key], _cell)
            for key in tried
        ],
        loud=[line("tuned envelope", best, _cell)],
        notes=[
            f"> not there by then; < what it is a multiple of is not; ≤ there at the first budget; "
            f"{NOTHING} not run on every seed, or neither is there"
        ],
    )


def _cell(row: Row) -> str:
    multiples = [bounded(row, f"times_{of}") for of in ("undefended", "scratch")]
    return f"{_steps(row, 'half_cost')} ({', '.join(multiples)})"


def _steps(row: Row, key: str) -> str:
    return _sign(row, key) + _amount(row[key] / REFERENCE_BATCH)


def bounded(row: Row, key: str) -> str:
    """A multiple of `metrics.half_costs` with the sign of its bound."""
    return NOTHING if row[key] is None else multiple(row[key], _sign(row, key))


def _sign(row: Row, key: str) -> str:
    return {"=": "", "<=": "≤", "<": "<", ">": ">"}[row[f"{key}_bound"]]


def flat_rows(found: Overhead) -> list[Row]:
    """Rows of protecting, which have no ``attack``, and then those of attacking."""
    return [*found.protection, *found.half_costs]


def _printed(form: str, found: Overhead) -> str:
    return printed(form, places(found), flat_rows(found))


FORMATS: dict[str, Callable[[Overhead], str]] = {
    form: functools.partial(_printed, form) for form in tables.FORMATS
}
"""How to print it; csv and json are flat rows with stable keys."""


def growth(title: str, updates: Sequence[Row], exponents: Sequence[Row]) -> str:
    """How the cost of protecting grows with the backbone, as tables for the console.

    Args:
        title: Where and how it was measured.
        updates: One row per backbone and defense, with the fields of `speed.Update`.
        exponents: One row per defense, with those of `speed.Exponents`.
    """
    found = [
        Table(
            title=f"{fit['defense']}: one update beside one of pre-training",
            columns=[
                "",
                "parameters",
                "FLOP per unit",
                "units",
                "seconds",
                "pre-training",
                "times",
            ],
            body=[_update(row) for row in updates if row["defense"] == fit["defense"]],
            loud=[
                _exponent("exponent by parameters", fit, "by_parameters"),
                _exponent("exponent by FLOP", fit, "by_flops"),
            ],
        )
        for fit in exponents
    ]
    return to_console([Place(title=title, tables=found)])


def _update(row: Row) -> list[str]:
    return [
        row["backbone"],
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['flops'] / 1e6:.1f} M",
        f"{row['units']:.0f}",
        f"{row['seconds']:.4f}",
        f"{row['pretrain_seconds']:.4f}",
        multiple(row["times"]),
    ]


def _exponent(name: str, fit: Row, key: str) -> list[str]:
    values: tuple[Any, ...] = (fit[key], fit[f"pretrain_{key}"])
    return [name, "", "", "", *(f"{value:.2f}" for value in values), ""]
