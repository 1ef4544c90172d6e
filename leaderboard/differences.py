"""How much more every defense has than one of them, as the command line prints it."""

from __future__ import annotations

from collections.abc import Sequence

from sophon_bench.analysis.frozen import Frozen
from sophon_bench.leaderboard import answers, tables
from sophon_bench.leaderboard.columns import DIFFERENCES
from sophon_bench.leaderboard.render import Flat, printed
from sophon_bench.plugins.failures import BadInput
from sophon_bench.plugins.registry import unknown
from sophon_bench.results import Results
from sophon_bench.results.records import Records


def show(form: str, cells: Records, against: str, frozen: Sequence[Frozen]) -> str:
    """What every defense has more than ``against``, in one of `render.FORMATS`.

    Raises:
        BadInput: If there is no such defense, or no other one beside it.
    """
    if against not in (known := {cells.defense(cell).label for cell in cells.cells}):
        raise BadInput(unknown("defense", against, known))
    found = answers.differences(Results.of(cells), against, frozen)
    if found.empty:
        raise BadInput(f"no other defense was attacked beside {against!r}")
    return printed(
        form, lambda: tables.differences(found), Flat(frames=[found], columns=DIFFERENCES)
    )
