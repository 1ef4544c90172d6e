"""What protecting and attacking cost, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import columns, layout
from sophon_bench.leaderboard.columns import (
    NOTHING,
    Row,
    amount,
    frame,
    multiple,
    percent,
    records,
    span,
)
from sophon_bench.leaderboard.names import Attacks, Legend, with_names
from sophon_bench.leaderboard.render import Flat, Place, Table, printed, to_console
from sophon_bench.leaderboard.tables import Gaps
from sophon_bench.protocol import FLOOR, REFERENCE_BATCH
from sophon_bench.results import Results
from sophon_bench.results.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True, eq=False)
class Overhead:
    """Frames, derived from records.

    ``protection`` has one row per defense, ``half_costs`` one per trial and defense; ``names`` are
    those that the user gave to defenses and attacks, by label.
    """

    protection: DataFrame
    half_costs: DataFrame
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def flat(self) -> Flat:
        """Rows of protecting, which have no ``attack``, and then those of attacking."""
        frames = [with_names(df, self.names) for df in (self.protection, self.half_costs)]
        return Flat(frames=frames, columns=columns.PROTECTION)


def overhead(cells: Records, frozen: Gaps = None) -> Overhead:
    """What ``cells`` say; with ``frozen``, that says for which n half is defined."""
    results = Results.of(cells)
    return Overhead(
        protection=analysis.protection(results), half_costs=analysis.half_costs(results, frozen)
    )


def show(form: str, costs: Overhead) -> str:
    """The overhead in one of `render.FORMATS`."""
    return printed(form, lambda: places(costs), costs.flat)


def places(costs: Overhead) -> list[Place]:
    """Per place: what protecting took, and per n what attacking takes to get half."""
    legend = Legend.of([costs.protection], costs.names, "defense")
    half_costs = layout.by_place(costs.half_costs)
    return [
        Place(
            title=layout.heading(where, protection),
            tables=cost_tables(protection, half_costs.get(where, frame([])), legend, costs.names),
        )
        for where, protection in layout.by_place(costs.protection).items()
    ]


def cost_tables(
    protection: DataFrame, half_costs: DataFrame, legend: Legend, names: Mapping[str, str]
) -> list[Table]:
    """The tables of one place."""
    called = Attacks(half_costs, names)
    halves = [_half_costs(n, df, called, legend) for n, df in layout.by_samples(half_costs)]
    rows = legend.rows(records(protection))
    protecting = Table(
        title="Protecting: what it took, and that as a multiple of pre-training; means over seeds",
        columns=columns.PROTECTION,
        quiet=[row for row in rows if row["control"]],
        body=[row for row in rows if not row["control"]],
        notes=[*([] if halves else [NO_HALF]), *legend.notes(protection["defense"])],
    )
    return [protecting, *halves]


NO_HALF = (
    "no cost to half: where both controls were attacked on one seed, the undefended model is not "
    f"{100 * FLOOR:.0f} points above scratch"
)


def _half_costs(samples: int, df: DataFrame, called: Attacks, legend: Legend) -> Table:
    """Costs to half by attack (lines) and defense (columns)."""
    # of the attack, where `cross` asks for it, and not of the defense
    rows = [{**row, "control": False} for row in records(df)]
    best = layout.envelopes(rows)
    title = (
        f"n = {samples}, {span(row['seeds'] for row in best)}: steps of "
        f"{REFERENCE_BATCH} examples to half of undefended minus scratch, as a multiple of those "
        "against the undefended model, and of those of scratch's envelope"
    )
    meaning = (
        f"> not there by then; < what it is a multiple of is not; ≤ there at the first budget; "
        f"{NOTHING} not run on every seed, or neither is there"
    )
    quiet = {
        f"half: restricted {best[0]['utility']}, %": lambda row: percent(row["half"]),
        "scratch's envelope": lambda row: _steps(row, "scratch_cost"),
    }
    return layout.cross(title, rows, best, called, legend, _half_cost, quiet=quiet, notes=[meaning])


def _half_cost(row: Row, _seeds: int) -> str:
    multiples = [bounded(row, f"times_{of}") for of in ("undefended", "scratch")]
    return f"{_steps(row, 'half_cost')} ({', '.join(multiples)})"


def _steps(row: Row, key: str) -> str:
    return BOUNDS[row[f"{key}_bound"]] + amount(row[key] / REFERENCE_BATCH)


def bounded(row: Row, key: str) -> str:
    """A multiple of `half_costs` with the sign of its bound."""
    return NOTHING if row[key] is None else multiple(row[key], BOUNDS[row[f"{key}_bound"]])


BOUNDS = {"=": "", "<=": "≤", "<": "<", ">": ">"}


def growth(
    title: str,
    updates: Sequence[Row],
    exponents: Sequence[Row],
    names: Mapping[str, str] | None = None,
) -> str:
    """How the cost of protecting grows with the backbone, as tables for the console.

    ``updates`` are rows with the fields of `speed.Update`, one per backbone and defense, and
    ``exponents`` with those of `speed.Exponents`, one per defense.
    """
    legend = Legend({}, names or {})
    tables = [
        Table(
            title=f"{legend(fit['defense'])}: one update beside one of pre-training",
            columns=columns.GROWTH,
            body=[row for row in updates if row["defense"] == fit["defense"]],
            loud=[
                {"backbone": f"exponent by {words}", "seconds": fit[key],
                 "pretrain_seconds": fit[f"pretrain_{key}"]}
                for words, key in (("parameters", "by_parameters"), ("FLOP", "by_flops"))
            ],
            notes=legend.notes([fit["defense"]]),
        )
        for fit in exponents
    ]  # fmt: skip
    return to_console([Place(title=title, tables=tables)])
