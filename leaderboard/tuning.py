"""What a search over a defense's hyperparameters found, kept as a document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sophon_bench.analysis.tuning import chosen as chosen
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import columns, layout
from sophon_bench.leaderboard.columns import Row, records
from sophon_bench.leaderboard.names import Legend
from sophon_bench.leaderboard.render import Flat, Place, Table, flat_rows
from sophon_bench.plugins import grids
from sophon_bench.plugins.failures import BadInput
from sophon_bench.results import Results
from sophon_bench.results.files import write_atomic
from sophon_bench.results.frames import PLACE, PROVENANCE
from sophon_bench.results.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame

    from sophon_bench.plugins.grids import Search

CRITERION = (
    "100 x resistance x intactness; resistance from utilities on the selection split, clipped to "
    "[0, 1], intactness from the original utility on the validation split; among equals the "
    "highest resistance before it is clipped, then the first drawn"
)


class Occupied(BadInput, ValueError):
    """A document is there that another search made, or the same one with other results."""


def rows_of(cells: Records, labels: Sequence[str]) -> DataFrame:
    """Rows of `analysis.criteria` of a defense's configurations, in the order of ``labels``."""
    own = cells.of_defenses(lambda defense: defense.label in labels)
    rows = analysis.criteria(Results.of(own))
    return rows.sort_values("defense", key=lambda known: known.map(labels.index), kind="stable")


def table(rows: DataFrame, notes: Sequence[str]) -> Place:
    """All configurations of one defense by what they are chosen by, the chosen one last.

    Args:
        rows: Rows of `analysis.criteria` of one place, in the order drawn, at least one.
        notes: Lines that go below the table.
    """
    legend = Legend.of([rows], {}, "defense")
    marked, reasons = layout.footnotes(records(rows))
    best = chosen(rows)
    first = marked[0]
    loud = [] if best is None else [{**best, "defense": f"chosen: {legend(best['defense'])}"}]
    configurations = Table(
        title=f"Configurations{layout.over(marked)}: criterion = 100 · resistance · intactness on "
        f"validation data alone; {layout.plural(first['utility'])} in % of the selection and "
        "validation splits",
        columns=columns.CRITERIA,
        quiet=[
            {"defense": side, "restricted_after": first[f"{side}_after"]}
            for side in ("undefended", "scratch")
        ],
        body=legend.rows(marked),
        loud=loud,
        notes=[*reasons, *notes, *legend.notes(rows["defense"])],
    )
    return Place(
        title=layout.heading(tuple(first[key] for key in PLACE), rows), tables=[configurations]
    )


def document(
    cells: Records,
    rows: DataFrame,
    *,
    search: Search,
    command: str,
) -> bytes:
    """Everything about one defense's search, as JSON: the same for the same records."""
    best = chosen(rows)
    results = Results.of(cells)
    named = results.cells["defense_name"] == search.name
    own = results.cells[results.cells["defense_control"] | named]
    content = {
        "defense": search.name,
        "chosen": None
        if best is None
        else {"selector": best["defense"], "parameters": best["parameters"]},
        "criterion": CRITERION,
        "command": command,
        "grid": search.grid,
        "drawn_with": grids.DRAWN_WITH,
        "seeds": sorted(set(own["seed"].tolist())),
        "versions": _versions(own, results.models.loc[[*own["pretrained"], *own["released"]]]),
        "rows": flat_rows(Flat(frames=[rows], columns=columns.CRITERIA)),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _versions(*stages: DataFrame) -> list[Row]:
    """What stages ran with, each once, without the time."""
    ran = {f"made_{name}": name for name in PROVENANCE if name != "finished"}
    found = {
        json.dumps(row): row
        for df in stages
        for row in records(df[[*ran]].rename(columns=ran).drop_duplicates())
    }
    return [found[text] for text in sorted(found)]


def check(file: Path, command: str) -> None:
    """Nothing, if ``file`` is free or ``command`` made it.

    Raises:
        Occupied: If it is there and another command made it.
    """
    if not file.exists():
        return
    try:
        made = json.loads(file.read_bytes())["command"]
    except (ValueError, KeyError, TypeError):
        made = None
    if made != command:
        by = "something else" if made is None else repr(made)
        raise Occupied(f"{str(file)!r} is there, made by {by}; --force replaces it")


def write(content: bytes, file: Path, *, force: bool) -> None:
    """Write a document; its directory is made.

    Raises:
        Occupied: If ``file`` is there with other content, and ``force`` is not given.
        OSError: If it cannot be written.
    """
    if file.exists() and not force and file.read_bytes() != content:
        raise Occupied(f"{str(file)!r} is there with other results; --force replaces it")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file.absolute(), content)
