"""Whether work that was done again came out as it was reported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sophon_bench import protocol
from sophon_bench.analysis.envelope import multiples, outcomes
from sophon_bench.analysis.statistics import Floats, wilson, z95
from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame

Agreement = Literal["identical", "agrees", "differs"]

CELL = ("key", "utility", "defense", "attack", "domain", "samples", "seed", "stretch")
"""What a row says of the cell."""

SIDES = ("reported", "again")
COLUMNS = (
    *CELL,
    *(f"{side}{part}" for side in SIDES for part in ("_status", "", "_low", "_high")),
    "agreement",
    "differing",
)

FACTS = ("status", "role", "utility", "test_examples", "nonfinite_step")
"""What has to be the same wherever a cell is made; a non-finite step may be another later one."""

Utilities = Mapping[str, Sequence[float | None]]
"""What a score goes by, of one cell; None for what there is not.

``test`` and ``selection``: of the checkpoint that selection picks at each budget; ``original``: of
the pre-trained and of the released model.
"""


def agreements(
    reported: Results, again: Results, examples: Mapping[str, Mapping[str, int]]
) -> DataFrame:
    """One row per cell that was reported and made again, in the order of ``reported``.

    What is compared is all that a score goes by: `FACTS` and `Utilities`. Other processors round
    otherwise, and a training run takes another path from there: accuracies agree if they differ by
    no more than two samples of their images would, at 95 % over all cells together (Bonferroni).
    The images are the same, so that the bound is a wide one. Other utilities are no shares of
    images, and agree within `protocol.TOLERANCE`; they have no interval. ``differing`` names what
    does not agree. What is shown is the test utility at the whole budget.

    Args:
        reported: What somebody says.
        again: What came out now.
        examples: By key of a cell, how many images each of its `Utilities` is measured on.
    """
    import pandas as pd

    before, now = _selected(reported), _selected(again)
    keys = [key for key in reported.cells.index if key in now]
    rows = [_row(before[key], now[key], examples[key], len(keys)) for key in keys]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _selected(results: Results) -> dict[str, dict[str, Any]]:
    """Cells by key, with `FACTS` and `Utilities`."""
    found = outcomes(results)
    tests, selections = found.tests(found.selected), found.selections(found.selected)
    original = found.stages["original"].to_numpy()
    stages = original[found.cells[["before", "after"]].to_numpy()]
    cells = found.cells[[*dict.fromkeys((*CELL, *FACTS))]].to_dict("records")
    return {
        cell["key"]: {
            **cell,
            # None, the first or a later one: which of those it is, rounding may decide
            "nonfinite_step": min(step, 2) if (step := cell["nonfinite_step"]) > 0 else None,
            "utilities": {
                "test": _known(tests[at, found.at(multiples(cell["stretch"]))]),
                "selection": _known(selections[at, found.at(multiples(cell["stretch"]))]),
                "original": _known(stages[at]),
            },
        }
        for at, cell in enumerate(cells)
    }


def _known(values: Floats) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _row(
    before: dict[str, Any], now: dict[str, Any], examples: Mapping[str, int], count: int
) -> dict[str, Any]:
    row = {name: before[name] for name in CELL}
    for side, cell in zip(SIDES, (before, now), strict=True):
        low, high, test = None, None, cell["utilities"]["test"][-1]
        if test is not None and cell["utility"] == "accuracy":
            low, high = wilson(test, examples["test"])
        row |= {f"{side}_status": cell["status"], side: test}
        row |= {f"{side}_low": low, f"{side}_high": high}
    differing = [name for name in FACTS if before[name] != now[name]]
    for name, values in now["utilities"].items():
        pairs = zip(before["utilities"][name], values, strict=True)
        if not all(_agree(*pair, now["utility"], examples[name], count) for pair in pairs):
            differing.append(name)
    same: Agreement = "identical" if before["utilities"] == now["utilities"] else "agrees"
    agreement = "differs" if differing else same
    return {**row, "agreement": agreement, "differing": ", ".join(differing) or None}


def _agree(was: float | None, now: float | None, utility: str, examples: int, count: int) -> bool:
    if was is None or now is None:
        return was is now
    bound = protocol.TOLERANCE
    if utility == "accuracy":
        p = (was + now) / 2
        bound = z95(count) * math.sqrt(max(0.0, 2 * p * (1 - p)) / examples)
    return abs(was - now) <= bound
