"""What a defense takes from other tasks, beside what it takes from the restricted one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sophon_bench.leaderboard import layout, vega
from sophon_bench.leaderboard.columns import Column, Row, number, percent, records, span
from sophon_bench.leaderboard.names import Legend
from sophon_bench.leaderboard.render import Place, Table
from sophon_bench.leaderboard.vega import Figure

if TYPE_CHECKING:
    from pandas import DataFrame

SIMILARITY = (
    "similarity: twice the error of a linear classifier that tells a domain from the restricted "
    "one by the undefended model's features, 0 for never wrong, 1 for guessing (1 minus half of "
    "the proxy A-distance)"
)
LOST = "in brackets: points lost to the undefended model, paired by seed, with 95 % intervals"


def with_similarity(found: DataFrame, similarities: Iterable[Row]) -> DataFrame:
    """Rows of `analysis.domains` with ``similarity``, a mean over seeds; null if not measured."""
    known: dict[tuple[Any, ...], list[float]] = {}
    for row in similarities:
        known.setdefault(_where(row), []).append(row["similarity"])
    means = {where: fmean(values) for where, values in known.items()}
    return found.assign(similarity=[means.get(_where(row)) for row in records(found)])


def _where(row: Row) -> tuple[Any, ...]:
    return row["scenario"], row["backbone"], row["domain"]


def places(found: DataFrame, scores: DataFrame, notes: Sequence[str]) -> list[Place]:
    """One table per place: domains in lines, the closest to the restricted one first.

    Args:
        found: Rows of `with_similarity`.
        scores: Rows of `analysis.scores`, for the original domain.
        notes: Lines below.
    """
    return layout.places(found, partial(_tables, scores=scores, notes=notes))


def _tables(found: DataFrame, scores: DataFrame, notes: Sequence[str]) -> list[Table]:
    rows = records(found)
    legend = Legend.of([found], {}, "defense")
    defenses = [*dict.fromkeys(row["defense"] for row in rows if not row["control"])]
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for row in sorted(rows, key=_order):
        line = lines.setdefault((row["domain"], row["samples"]), {})
        line.update({key: row[key] for key in ("domain", "samples", "similarity", "role")})
        line.update({key: row[key] for key in ("scratch", "undefended") if row[key] is not None})
        line[row["defense"]] = row
    for line in lines.values():
        line["domain"] += " (restricted)" if line["role"] == "restricted" else ""
    place = {"scenario": rows[0]["scenario"], "backbone": rows[0]["backbone"]}
    released = [r for r in records(scores) if all(r[key] == place[key] for key in place)]
    original: dict[str, Any] = {"domain": "original, as released"}
    for row in released:
        before, after = row["original_before"], row["original_after"]
        original |= {"undefended": before}
        original[row["defense"]] = {"protected": after, "lost": before - after}
    measured = any(row["similarity"] is not None for row in rows)
    columns = [
        Column(key="domain", header=""),
        Column(key="samples", header="n", format=lambda line: number(line.get("samples"))),
        *([Column(key="similarity", format=_similarity)] if measured else []),
        Column(key="scratch", format=lambda line: percent(line.get("scratch"))),
        Column(key="undefended", format=lambda line: percent(line.get("undefended"))),
        *(Column(key=d, header=legend(d), format=partial(_cell, d)) for d in defenses),
    ]
    title = (
        f"{layout.plural(rows[0]['utility']).capitalize()} in % on every domain after the tuned "
        f"attack there, {span(row['seeds'] for row in rows)}"
        + ("; closest to the restricted domain first" if measured else "")
    )
    words = [*([SIMILARITY] if measured else []), LOST, *notes, *legend.notes(defenses)]
    return [
        Table(title=title, columns=columns, quiet=[original], body=[*lines.values()], notes=words)
    ]


def _order(row: Row) -> tuple[Any, ...]:
    similarity = row["similarity"]
    return row["role"] != "restricted", similarity is None, -(similarity or 0), row["domain"]


def _similarity(line: Row) -> str:
    return number(line.get("similarity"), None, ".2f")


def _cell(defense: str, line: Mapping[str, Any]) -> str:
    row = line.get(defense)
    if row is None or row["protected"] is None:
        return percent(None)
    return f"{percent(row['protected'])} ({percent(row['lost'], row.get('lost_half_width'))})"


def figure(found: DataFrame) -> Figure | None:
    """Utility lost to the undefended model by similarity to the restricted domain.

    Of rows of `with_similarity` of one place; None where no similarity is known.
    """
    rows = [
        row
        for row in records(found)
        if not row["control"] and row["similarity"] is not None and row["lost"] is not None
    ]
    if not rows:
        return None
    points = []
    for row in rows:
        half = row["lost_half_width"]
        about = "" if half is None else f" ± {100 * half:.1f}"
        points.append(
            {
                "name": vega.label(row["defense"]),
                "x": row["similarity"],
                "y": 100 * row["lost"],
                "domain": row["domain"],
                "tip": f"{row['domain']}: {100 * row['lost']:.1f}{about} points lost",
            }
        )
    first = points[0]["name"]
    words = {
        "transform": [{"filter": {"field": "name", "equal": first}}],
        "mark": {"type": "text", "align": "left", "dx": 7, "dy": -6, "fontSize": 10},
        "encoding": {"text": {"field": "domain", "type": "nominal"}},
    }
    looks = vega.present(vega.styles(row["defense"] for row in rows), points)
    drawn = vega.lines(
        points,
        looks,
        x={
            "scale": {"domain": [0, 1.15]},
            "axis": {"title": "similarity to the restricted domain"},
        },
        y={"axis": {"title": f"{rows[0]['utility']} lost (points)"}},
        width=460,
        height=300,
        joined=False,
        under=[words],
    )
    one = rows[0]
    seeds = span(row["seeds"] for row in rows)
    place = f"{one['scenario']}, {one['backbone']}, n = {one['samples']}, {seeds}"
    title = "What a defense takes from tasks, by their similarity to the restricted one"
    return vega.titled(drawn, title, vega.folded(place, 80))
