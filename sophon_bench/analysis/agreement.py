"""Whether work that was done again came out as it was reported."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sophon_bench import protocol
from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.statistics import wilson, z95
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
)


def agreements(reported: Results, again: Results) -> DataFrame:
    """One row per cell that was reported and made again, in the order of ``reported``.

    What is compared is the test utility of the checkpoint that selection picks. Other processors
    round otherwise, and a training run takes another path from there: accuracies ``agree`` if they
    differ by no more than two samples of test images would, at 95 % over all cells together
    (Bonferroni). The images are the same, so that the bound is a wide one. Other utilities are no
    shares of images, and agree within `protocol.TOLERANCE`; they have no interval. Statuses have
    to be the same.
    """
    import pandas as pd

    before, now = _selected(reported), _selected(again)
    keys = [key for key in reported.cells.index if key in now]
    rows = [_row(before[key], now[key], len(keys)) for key in keys]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _selected(results: Results) -> dict[str, dict[str, Any]]:
    """Cells by key, with the test utility of the selected checkpoint, None if there is none."""
    found = outcomes(results)
    whole = np.searchsorted(found.times, found.cells["stretch"])
    tests = found.tests(found.selected[range(len(whole)), whole]).tolist()
    cells = found.cells[[*CELL, "status", "test_examples"]].to_dict("records")
    return {
        cell["key"]: {**cell, "test": None if math.isnan(test) else test}
        for cell, test in zip(cells, tests, strict=True)
    }


def _row(before: dict[str, Any], now: dict[str, Any], count: int) -> dict[str, Any]:
    row = {name: before[name] for name in CELL}
    for side, cell in zip(SIDES, (before, now), strict=True):
        low, high = None, None
        if cell["test"] is not None and cell["utility"] == "accuracy":
            low, high = wilson(cell["test"], cell["test_examples"])
        row |= {f"{side}_status": cell["status"], side: cell["test"]}
        row |= {f"{side}_low": low, f"{side}_high": high}
    return {**row, "agreement": _agreement(before, now, count)}


def _agreement(before: dict[str, Any], now: dict[str, Any], count: int) -> Agreement:
    was, is_now = before["test"], now["test"]
    if before["status"] != now["status"] or (was is None) != (is_now is None):
        return "differs"
    if was == is_now:
        return "identical"
    bound = protocol.TOLERANCE
    if before["utility"] == "accuracy":
        p = (was + is_now) / 2
        bound = z95(count) * math.sqrt(2 * p * (1 - p) / before["test_examples"])
    return "agrees" if abs(was - is_now) <= bound else "differs"
