"""Pictures of what records say: a file per place, n and figure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sophon_bench.analysis.frozen import Frozen
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import figures, vega
from sophon_bench.leaderboard.columns import records
from sophon_bench.leaderboard.vega import Figure
from sophon_bench.results import Results
from sophon_bench.results.frames import PLACE
from sophon_bench.results.records import Records, content_key

if TYPE_CHECKING:
    from pandas import DataFrame

PICTURED = (*PLACE, "samples")
"""What all rows of one picture have in common."""


def write(
    cells: Records,
    out: Path,
    formats: Sequence[str],
    frozen: Frozen | Sequence[Frozen] | None = None,
) -> list[Path]:
    """Draw all that ``cells`` say into the directory ``out``, which is made; returns the files.

    Args:
        cells: Records of any places.
        out: Files of the same names are replaced.
        formats: Some of `vega.FORMATS`.
        frozen: Which budgets and n count, as in `analysis.scores`.

    Raises:
        OSError: ``out`` cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = Results.of(cells)
    curves, sweeps = analysis.curves(results, frozen), analysis.sweeps(results)
    written = []
    for name, figure in pictures(curves, sweeps):
        for form in formats:
            written.append(out / f"{name}.{form}")
            vega.write(figure, written[-1])
    return written


def pictures(curves: DataFrame, sweeps: DataFrame) -> Iterator[tuple[str, Figure]]:
    """Names of files without suffix, and figures, per place and n; a defense has one style in all.

    Args:
        curves: Rows of `analysis.curves`.
        sweeps: Rows of `analysis.sweeps`.
    """
    rows = [*records(curves), *records(sweeps)]
    styles = vega.styles(row["defense"] for row in rows if not row["control"])
    for kind, found, draw in (
        ("envelopes", curves, figures.envelopes),
        ("resistance", curves, figures.resistance),
        ("lr-sweep", sweeps, figures.sweeps),
    ):
        places = [] if found.empty else found.groupby(list(PICTURED), sort=False)
        for place, own in places:
            figure = draw(own, styles)
            if figure is not None:
                yield _file_name(dict(zip(PICTURED, place, strict=True)), kind), figure


def _file_name(place: Mapping[str, Any], kind: str) -> str:
    """Letters, digits, ``.``, ``-`` and ``_`` only; a hash tells alike places apart."""
    words = [place["scenario"], place["backbone"], f"n{place['samples']}", kind]
    safe = [re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.")[:60] for word in words]
    return "_".join([*safe, content_key({"place": [str(part) for part in place.values()]})[:6]])
