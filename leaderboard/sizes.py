"""What attacking and protecting take on backbones of any size, as table and picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sophon_bench.execution.sizing import BATCH, INNER, VARIANTS, Size
from sophon_bench.leaderboard import vega
from sophon_bench.leaderboard.columns import NOTHING, Column, Row, amount, number
from sophon_bench.leaderboard.render import Place, Table
from sophon_bench.leaderboard.studies import Findings
from sophon_bench.leaderboard.vega import Figure, Point

GIB = 2**30
MEMORIES = (8, 16, 24, 48, 80)
"""GiB that accelerators commonly have."""

UPDATES = ("attack", "protect")
COMPUTED = "≈"
"""Before seconds that were not measured."""


def findings(sizes: Sequence[Size], notes: Sequence[str]) -> Findings:
    """Rows, tables and picture of the sizes of some backbones, at least one."""
    rows = [dataclasses.asdict(size) for size in sizes]
    size = sizes[0].image_size
    place = Place(
        title=f"What backbones take at {size}x{size} pixels, {BATCH} images per pass",
        tables=[_sizes(rows, notes), _largest(rows)],
    )
    return Findings(rows, [place], figure(rows))


def _sizes(rows: Sequence[Row], notes: Sequence[str]) -> Table:
    memory = [
        Column(key=f"{update} {how}", header=f"{update} {how}, GiB", format=_gib(update, how))
        for update in UPDATES
        for how in VARIANTS
    ]
    resident = [
        Column(key=f"{update}, measured", header=f"{update}, measured GiB", format=_held(update))
        for update in UPDATES
    ]
    seconds = [
        Column(key=f"{update} seconds", header=f"{update}, s", format=_seconds(update))
        for update in UPDATES
    ]
    return Table(
        title="One update of an attack (Adam on all weights) and one of SOPHON (order 1, "
        f"{INNER} inner steps, one reinforcement step)",
        columns=[
            Column(key="backbone", header=""),
            Column(key="parameters", unit="M", format=".1f"),
            Column(
                key="flops", header="GFLOP per image", format=lambda r: amount(r["flops"] / 1e9)
            ),
            *memory,
            *resident,
            *seconds,
        ],
        body=rows,
        notes=[
            "GiB: peak memory of an update, computed from shapes alone (weights, gradients, both "
            "optimizers, activations); checkpointed: timm's gradient checkpointing; measured GiB: "
            "fp32, above what was held before; on a CPU a lower bound, since a process keeps what "
            "it freed",
            f"{COMPUTED} seconds computed: FLOPs by the rate of the backbones that were measured",
            *notes,
        ],
    )


def _gib(update: str, how: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        found = row["computed"][update][how]
        return number(None if found is None else found / GIB, None, ".2f")

    return text


def _held(update: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        found = row["resident"].get(update)
        return number(None if found is None else found / GIB, None, ".2f")

    return text


def _seconds(update: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        found = row["seconds"].get(update)
        if found is None:
            return NOTHING
        return ("" if row["measured"] else COMPUTED) + amount(found)

    return text


def _largest(rows: Sequence[Row]) -> Table:
    """The backbone of most parameters whose update fits, by memory, update and variant."""
    ways = [(update, how) for update in UPDATES for how in VARIANTS]
    body = [
        {"memory": f"{memory} GiB", **{f"{u} {h}": largest(rows, memory, u, h) for u, h in ways}}
        for memory in MEMORIES
    ]
    columns = [Column(key=f"{update} {how}") for update, how in ways]
    return Table(
        title="The largest of these backbones whose update fits into a given memory, by parameters",
        columns=[Column(key="memory", header=""), *(_word(column) for column in columns)],
        body=body,
    )


def _word(column: Column) -> Column:
    return dataclasses.replace(column, format=lambda row: row[column.key] or NOTHING)


def largest(rows: Sequence[Row], memory: float, update: str, how: str) -> str | None:
    """The backbone of most parameters whose update takes at most so many GiB; None if none does."""
    fitting = [
        row for row in rows if (row["computed"][update][how] or float("inf")) <= memory * GIB
    ]
    return max(fitting, key=lambda row: row["parameters"])["backbone"] if fitting else None


def figure(rows: Sequence[Row]) -> Figure | None:
    """Peak memory by parameters, of attacking and of protecting."""
    points: list[Point] = []
    for how in VARIANTS:
        for update in UPDATES:
            for row in sorted(rows, key=lambda row: row["parameters"]):
                if (found := row["computed"][update][how]) is not None:
                    point: dict[str, Any] = {"name": f"{update}, {how}", "y": found / GIB}
                    point["x"] = row["parameters"] / 1e6
                    point["tip"] = f"{row['backbone']}: {found / GIB:.2f} GiB"
                    points.append(point)
    if not points:
        return None
    looks = vega.present(vega.styles({point["name"] for point in points}), points)
    drawn = vega.lines(
        points,
        looks,
        x=vega.decades([p["x"] for p in points], "parameters (millions)"),
        y=vega.decades([p["y"] for p in points], "peak memory of an update (GiB)"),
        width=420,
        height=280,
        joined=False,
    )
    size = rows[0]["image_size"]
    lines = [f"{size}x{size} pixels, {BATCH} images per pass; computed"]
    return vega.titled(drawn, "Memory of attacking and protecting, by backbone", lines)
