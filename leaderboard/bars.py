"""Figures of costs: multiples of what protecting and attacking takes, as bars from 1 on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.leaderboard import vega
from sophon_bench.leaderboard.columns import multiple, records
from sophon_bench.leaderboard.layout import by_place
from sophon_bench.leaderboard.overhead import bounded
from sophon_bench.leaderboard.vega import Figure, Point, Row

if TYPE_CHECKING:
    from pandas import DataFrame

SPENT = {"flops": "FLOPs", "seconds": "seconds", "peak_memory": "peak memory"}
"""What protecting takes, and the word for it."""

TIMES = "times_undefended"
PROTECTING = "protecting, × pre-training"
ATTACKING = "tuned attacker to half of U − S, × undefended"


def overhead(protection: DataFrame, half_costs: DataFrame) -> Figure | None:
    """What protecting costs beside pre-training, and a tuned attacker half beside undefended.

    One line of two panels per place, of `analysis.protection` and of the envelope's rows of
    `analysis.half_costs`; None if there is no defense.
    """
    attacking = by_place(half_costs)
    apart = {"resolve": {"scale": dict.fromkeys(("color", "stroke", "yOffset"), "independent")}}
    lines = []
    for place, df in by_place(protection).items():
        rows = records(df)
        if names := [row["defense"] for row in rows if not row["control"]]:
            halves = records(attacking[place]) if place in attacking else []
            panels = [
                _bars(_protection(rows), names, PROTECTING),
                _bars(_half_costs(halves), names, ATTACKING),
            ]
            height = max(panel["height"] for panel in panels)
            aligned = [{**panel, "height": height} for panel in panels]
            where = vega.folded(f"{rows[0]['scenario']}, {rows[0]['backbone']}", 90)
            lines.append({"title": where, "hconcat": aligned, **apart})
    title = "What protecting costs, and what it makes attacking cost"
    return vega.titled({"vconcat": lines, **apart}, title) if lines else None


def protection(found: DataFrame) -> Figure | None:
    """What protecting took as a multiple of pre-training, in one place; None if nobody did."""
    return _alone(_protection(records(found)), PROTECTING)


def half_costs(found: DataFrame) -> Figure | None:
    """What a tuned attacker needs to half, as a multiple of undefended, in one place."""
    return _alone(_half_costs(records(found)), ATTACKING)


def _alone(bars: Sequence[Point], title: str) -> Figure | None:
    names = list(dict.fromkeys(bar["defense"] for bar in bars))
    return _bars(bars, names, title) if bars else None


def _protection(rows: Iterable[Row]) -> list[Point]:
    return [
        _bar(row, word, times, multiple(times))
        for key, word in SPENT.items()
        for row in rows
        if not row["control"] and (times := vega.number(row[f"protect_{key}_times"])) is not None
    ]


def _half_costs(rows: Iterable[Row]) -> list[Point]:
    best = [row for row in rows if row["attack"] == ENVELOPE and not row["control"]]
    return [
        {
            **_bar(row, f"n = {row['samples']}", times, bounded(row, TIMES)),
            "open": row[f"{TIMES}_bound"] in ("<", ">"),
        }
        for row in sorted(best, key=lambda row: int(row["samples"]))
        if (times := vega.number(row[TIMES])) is not None
    ]


def _bar(row: Row, series: str, times: float, text: str) -> Point:
    own = {"defense": row["defense"], "series": series}
    return {**own, "times": times, "text": text, "tip": f"{series}: {text}"}


def _bars(bars: Sequence[Point], names: Sequence[str], title: str) -> Figure:
    """Bars of ``names``, side by side where there are several series; open ones are pale."""
    series = list(dict.fromkeys(bar["series"] for bar in bars))
    ends = [end for bar in bars if (t := bar["times"]) > 0 for end in (t / 1.3, 2 * t)]
    x = {"type": "quantitative", **vega.decades([0.8, 8, *ends], title)}
    low = x["scale"]["domain"][0]
    drawn = [  # a multiple of 0 would be infinitely far to the left
        {**bar, "end": max(bar["times"], low), "right": max(bar["times"], 1)} for bar in bars
    ]
    below = vega.legend(series) if series else None
    colour = vega.nominal("series", series, vega.COLOURS, legend=below)
    defense = {"field": "defense", "type": "nominal", "scale": {"domain": list(names)}}
    rows = {
        "y": {**defense, "axis": {"title": None, "labelLimit": 200}},
        "yOffset": {"field": "series", "type": "nominal", "scale": {"domain": series}},
    }
    bar = {
        "x": {**x, "field": "end"},
        "x2": {"datum": 1},
        "color": colour,
        "stroke": colour,
        "fillOpacity": {"condition": {"test": "datum.open", "value": 0.25}, "value": 1},
        "tooltip": {"field": "tip", "type": "nominal"},
    }
    text = {"type": "text", "align": "left", "dx": 4, "baseline": "middle"}
    words = {"x": {**x, "field": "right"}, "text": {"field": "text", "type": "nominal"}}
    return {
        "width": vega.WIDTH,
        "height": (14 * len(series) + 8) * len(names),
        "data": {"values": drawn},
        "encoding": rows,
        "layer": [
            {"mark": {"type": "bar", "strokeWidth": 1}, "encoding": bar},
            {"mark": text, "encoding": words},
        ],
    }
