"""Figures of the leaderboard's page: made here as plotly's JSON, drawn by its JavaScript.

What is measured on a defense is blue, on the undefended model vermilion, on fresh weights grey and
dashed, in every figure. Names of attacks and defenses come from records, which anybody may submit,
and plotly reads text as HTML: they are escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sophon_bench import metrics
from sophon_bench.leaderboard.columns import Row, multiple
from sophon_bench.leaderboard.overhead import bounded
from sophon_bench.leaderboard.plots import COLOURS, SKILLS, Level, in_steps, short_count
from sophon_bench.protocol import REFERENCE_BATCH

Figure = dict[str, Any]
"""``data`` and ``layout``, as plotly.js takes them."""

GREY = "#808080"
STYLES: Mapping[str, Mapping[str, Any]] = {
    "protected": {"line": {"color": COLOURS[0]}, "marker": {"symbol": "circle"}},
    "undefended": {"line": {"color": COLOURS[1]}, "marker": {"symbol": "square"}},
    "scratch": {"line": {"color": GREY, "dash": "dash"}, "marker": {"symbol": "diamond"}},
}
BUDGET = f"attack budget (steps of {REFERENCE_BATCH} examples)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def library() -> bytes:
    """plotly.js, minified, as plotly's Python package ships it."""
    return str(get_plotlyjs()).encode()


def themes() -> dict[str, Figure]:
    """Templates of figures on a light and on a dark page."""
    return {
        "light": _theme(ink="#3b4048", lines="#dfe2e6"),
        "dark": _theme(ink="#c3c8d0", lines="#343a43"),
    }


def _theme(*, ink: str, lines: str) -> Figure:
    axis = {
        "gridcolor": lines,
        "linecolor": lines,
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
        "title": {"font": {"size": 12}, "standoff": 8},
    }
    layout = {
        "font": {"family": FONT, "size": 12, "color": ink},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": axis,
        "yaxis": axis,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "dragmode": False,
    }
    found: Figure = go.layout.Template(layout=layout).to_plotly_json()
    return found


def _figure(traces: Iterable[Figure], layout: Figure) -> Figure:
    """Checked by plotly; its default template is ours to choose."""
    found: Figure = go.Figure(list(traces), layout).to_plotly_json()
    found["layout"].pop("template", None)
    return found


def envelopes(row: Row) -> Figure | None:
    """What a tuned attacker reaches for a budget; None if nothing was reached.

    Args:
        row: A row of `metrics.curves`.
    """
    sides = ("undefended", "scratch") if row["control"] else ("protected", "undefended", "scratch")
    lines = {side: in_steps(row[side], 100) for side in sides}
    if not any(lines.values()):
        return None
    traces = [t for side, points in lines.items() for t in _line(points, side, side, unit=" %")]
    layout = _over_budget(row, lines.values())
    layout["yaxis"] = {"title": {"text": f"restricted {row['utility']} (%)"}, "rangemode": "tozero"}
    return _figure(*_by_error(traces, layout))


def resistance(row: Row) -> Figure | None:
    """R by budget, of this n, and dotted of all n together if it is another; None if there is none.

    Args:
        row: A row of `metrics.curves`.
    """
    alone, together = in_steps(row["resistance"]), in_steps(row["resistance_all"])
    if row["control"] or not alone:
        return None
    traces = _line(alone, f"n = {row['samples']}", "protected", digits=2)
    if together != alone:
        dotted = _line(together, "all n", "protected", digits=2)
        dotted[-1]["line"] = {**dotted[-1]["line"], "dash": "dot"}
        traces += dotted
    low = min(y for _, y, _ in [*alone, *together])
    high = max(y for _, y, _ in [*alone, *together])
    layout = _over_budget(row, [alone, together])
    layout["yaxis"] = {
        "title": {"text": "resistance R(b)"},
        "range": [min(low - 0.05, -0.05), max(high + 0.05, 1.05)],
    }
    return _figure(traces, {**layout, "showlegend": together != alone})


def sweep(row: Row, undefended: Row | None) -> Figure:
    """Restricted utility by learning rate of one family of attacks.

    Args:
        row: A row of `metrics.sweeps`.
        undefended: The same family's against the undefended model, if it is another.
    """
    sides = {"undefended" if row["control"] else "protected": row}
    if undefended is not None and not row["control"]:
        sides["undefended"] = undefended
    traces = [
        trace
        for side, found in sides.items()
        for trace in _line(
            [(lr, 100 * mean, None if half is None else 100 * half)
             for lr, mean, half in found["levels"]],
            side, side, unit=" %",
        )
    ]  # fmt: skip
    layout = {
        "xaxis": {
            "type": "log",
            "dtick": 1,
            "tickformat": "~g",
            "title": {"text": "learning rate"},
        },
        "yaxis": {"title": {"text": "%"}, "range": [0, 102]},
        "height": 220,
        "showlegend": False,
    }
    traces, layout = _by_error(traces, layout)
    return _figure(traces, layout)


def _by_error(traces: list[Figure], layout: Figure) -> tuple[list[Figure], Figure]:
    """As `plots` does: skill that falls below 0 at heights of the logarithm of the error."""
    if all(y >= 0 for trace in traces if trace["mode"] != "lines" for y in trace["y"]):
        return traces, layout
    axis = {
        "title": layout["yaxis"]["title"],
        "type": "log",
        "autorange": "reversed",
        "tickvals": [100 - skill for skill in SKILLS],
        "ticktext": [str(skill) for skill in SKILLS],
    }
    moved = [
        {
            **trace,
            "y": [max(100 - y, 0.1) for y in trace["y"]],
            "text": [f"{y:.1f}" for y in trace["y"]],
            "hovertemplate": trace.get("hovertemplate", "").replace("%{y:.1f}", "%{text}"),
        }
        for trace in traces
    ]
    return moved, {**layout, "yaxis": axis}


def _line(
    points: Sequence[Level], name: str, style: str, *, unit: str = "", digits: int = 1
) -> list[Figure]:
    """A band of half-widths, if every point has one, and the line over it."""
    if not points:
        return []
    x, y, half_widths = (list(values) for values in zip(*points, strict=True))
    found = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "name": name,
        "legendgroup": name,
        **{key: dict(value) for key, value in STYLES[style].items()},
        "hovertemplate": f"{name}: %{{y:.{digits}f}}{unit} at %{{x:.3~g}}<extra></extra>",
    }
    if None in half_widths:
        return [found]
    found["customdata"] = half_widths
    found["hovertemplate"] = (
        f"{name}: %{{y:.{digits}f}} ± %{{customdata:.{digits}f}}{unit} at %{{x:.3~g}}"
        "<extra></extra>"
    )
    band = {
        "type": "scatter",
        "x": [*x, *reversed(x)],
        "y": [
            *(a + b for a, b in zip(y, half_widths, strict=True)),
            *reversed([a - b for a, b in zip(y, half_widths, strict=True)]),
        ],
        "fill": "toself",
        "fillcolor": STYLES[style]["line"]["color"],
        "opacity": 0.18,
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": name,
    }
    return [band, found]


def _over_budget(row: Row, lines: Iterable[Sequence[Level]]) -> Figure:
    """An axis of budgets, and a line at the regular one."""
    budgets = sorted({x for points in lines for x, _, _ in points})
    regular = row["budget"] / REFERENCE_BATCH
    return {
        "xaxis": {
            "type": "log",
            "tickvals": budgets,
            "ticktext": [short_count(budget) for budget in budgets],
            "title": {"text": BUDGET},
        },
        "height": 320,
        "shapes": [
            {
                "type": "line",
                "x0": regular,
                "x1": regular,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": GREY, "width": 1, "dash": "dot"},
            }
        ],
    }


SYMBOLS = {"=": "circle", "<=": "circle", "<": "triangle-left-open", ">": "triangle-right-open"}
"""Markers of a multiple by its bound: open triangles point to where it is."""

TIMES = "times_undefended"


def protection(rows: Sequence[Row]) -> Figure | None:
    """What protecting took as a multiple of pre-training; None if nobody protected.

    Args:
        rows: Rows of `metrics.protection` of one place.
    """
    series = {"FLOPs": "flops", "seconds": "seconds", "peak memory": "peak_memory"}
    return _multiples(
        {
            label: [
                Dot(row["defense"], value, "=", multiple(value))
                for row in rows
                if not row["control"] and (value := row[f"protect_{key}_times"]) is not None
            ]
            for label, key in series.items()
        },
        "× pre-training",
    )


def half_costs(rows: Sequence[Row]) -> Figure | None:
    """What a tuned attacker needs to half, as a multiple of undefended; None if there is no half.

    Args:
        rows: Rows of `metrics.half_costs` of one place, of which the envelope's are drawn.
    """
    best = [row for row in rows if row["attack"] == metrics.ENVELOPE and not row["control"]]
    return _multiples(
        {
            f"n = {samples}": [
                Dot(row["defense"], value, row["times_undefended_bound"], bounded(row, TIMES))
                for row in best
                if row["samples"] == samples and (value := row[TIMES]) is not None
            ]
            for samples in sorted({row["samples"] for row in best})
        },
        "× undefended",
    )


class Dot(NamedTuple):
    """A multiple, its bound as rows have it, and both in words."""

    defense: str
    times: float
    bound: str
    text: str


def _multiples(series: Mapping[str, Sequence[Dot]], title: str) -> Figure | None:
    """Dots on a logarithmic axis, one line per defense, in the order of the first series."""
    names = list(dict.fromkeys(dot.defense for dots in series.values() for dot in dots))
    values = [dot.times for dots in series.values() for dot in dots]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [dot.times for dot in dots],
            "y": [names.index(dot.defense) for dot in dots],
            "name": label,
            "marker": {
                "size": 11,
                "color": COLOURS[number % len(COLOURS)],
                "symbol": [SYMBOLS[dot.bound] for dot in dots],
                "line": {"width": 1.5, "color": COLOURS[number % len(COLOURS)]},
            },
            "text": [dot.text for dot in dots],
            "hovertemplate": f"{label}: %{{text}}<extra></extra>",
        }
        for number, (label, dots) in enumerate(series.items())
    ]
    if not values:
        return None
    low, high = math.log10(min(values) / 1.6), math.log10(max(values) * 1.6)
    layout = {
        "xaxis": {
            "type": "log",
            "range": [min(low, -0.3), max(high, 1)],
            "title": {"text": title},
            "tickvals": [m * 10.0**e for e in range(-3, 6) for m in (1, 3)],
        },
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [html.escape(_short(name)) for name in names],
            "range": [len(names) - 0.5, -0.5],
        },
        "height": 110 + 34 * len(names),
        "showlegend": len(series) > 1,
        "shapes": [
            {
                "type": "line",
                "x0": 1,
                "x1": 1,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": GREY, "width": 1.5},
            }
        ],
    }
    return _figure(traces, layout)


LONGEST = 28
"""Letters of a name beside an axis."""


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
