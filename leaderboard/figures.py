"""Figures of lines: envelopes and resistance by budget, sweeps, ablations, and growth.

Each is a function from frames of the analysis to a Vega-Lite specification (`vega`). What is
measured on one defense is blue, on the undefended model vermilion, from scratch grey and dashed, in
every figure; of several defenses each has a colour, the same in all figures that share their
`vega.styles`.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sophon_bench.analysis.cost import PRETRAINING
from sophon_bench.analysis.series import magnitude, shown
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import finding, vega
from sophon_bench.leaderboard.columns import records, span
from sophon_bench.leaderboard.vega import GREY, SCRATCH, UNDEFENDED, Figure, Point, Row, Style
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results import Results
from sophon_bench.results.frames import PLACE
from sophon_bench.results.records import content_key

if TYPE_CHECKING:
    from pandas import DataFrame

    from sophon_bench.leaderboard.tables import Gaps
    from sophon_bench.results.records import Records

Styles = Mapping[str, Style]
Level = tuple[float, float, float | None]
"""x, y and the half-width of y, if it has one."""

BUDGET = f"attack budget (steps of {REFERENCE_BATCH} examples)"
SHORT_COUNT = (
    "datum.value >= 10000 ? format(datum.value / 1000, '.3~r') + 'k'"
    " : format(datum.value, datum.value >= 100 ? '.0f' : '.3~r')"
)
"""`short_count` in Vega's language."""

SKILLS = (-9900, -900, -300, -100, 0, 30, 50, 70, 80, 90, 95, 99)
"""Ticks, in %, where equal heights are equal ratios of error."""

PICTURED = (*PLACE, "samples")
"""What all rows of one picture have in common."""


def write(cells: Records, out: Path, formats: Sequence[str], frozen: Gaps) -> list[Path]:
    """Draw all that ``cells`` say into the directory ``out``, which is made; returns the files.

    Raises:
        OSError: ``out`` cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = Results.of(cells)
    written = []
    scores = finding.recipe_beside(analysis.scores(results, frozen), results)
    found = pictures(analysis.curves(results, frozen), analysis.sweeps(results))
    for name, figure in itertools.chain(_findings(scores), found):
        for form in formats:
            written.append(out / f"{name}.{form}")
            vega.write(figure, written[-1])
    return written


def _findings(scores: DataFrame) -> Iterator[tuple[str, Figure]]:
    """Names of files without suffix, and the picture of `finding`, per place."""
    for place, own in scores.groupby(list(PLACE), sort=False) if len(scores) else ():
        figure = finding.dumbbells(own)
        if figure is not None:
            yield _file_name(dict(zip(PLACE, place, strict=True)), "finding"), figure


def pictures(curves: DataFrame, sweeps: DataFrame) -> Iterator[tuple[str, Figure]]:
    """Names of files without suffix, and figures, per place and n; a defense has one style."""
    rows = [*records(curves), *records(sweeps)]
    styles = vega.styles(row["defense"] for row in rows if not row["control"])
    for kind, found, draw in (
        ("envelopes", curves, envelopes),
        ("resistance", curves, resistance),
        ("lr-sweep", sweeps, families),
    ):
        places = [] if found.empty else found.groupby(list(PICTURED), sort=False)
        for place, own in places:
            figure = draw(own, styles)
            if figure is not None:
                yield _file_name(dict(zip(PICTURED, place, strict=True)), kind), figure


def _file_name(place: Mapping[str, Any], kind: str) -> str:
    """Letters, digits, ``.``, ``-`` and ``_`` only; a hash tells alike places apart."""
    samples = [f"n{place['samples']}"] if "samples" in place else []
    words = [place["scenario"], place["backbone"], *samples, kind]
    safe = [re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.")[:60] for word in words]
    return "_".join([*safe, content_key({"place": [str(part) for part in place.values()]})[:6]])


def in_steps(levels: Iterable[Sequence[Any]], scale: float = 1) -> list[Level]:
    """Levels by budget in steps instead of units, their values times ``scale``."""
    return _scaled(levels, 1 / REFERENCE_BATCH, scale)


def _scaled(levels: Iterable[Sequence[Any]], over: float, scale: float) -> list[Level]:
    padded = ((*level, None)[:3] for level in levels)
    return [(x * over, y * scale, None if w is None else w * scale) for x, y, w in padded]


def short_count(steps: float) -> str:
    """Three digits, or all of a whole number below ten thousand."""
    if steps >= 10_000:
        return f"{float(f'{steps / 1000:.3g}'):g}k"
    return f"{steps:.0f}" if steps >= 100 else f"{steps:.3g}"


def envelopes(curves: DataFrame, styles: Styles) -> Figure | None:
    """What a tuned attacker gets for a budget: against each defense, undefended, from scratch.

    Args:
        curves: Rows of one place and n. A control's line, which every row has, is the longest.
        styles: `vega.styles` of these defenses, and maybe of others.
    """
    rows = records(curves)
    levels = {vega.label(row["defense"]): row["protected"] for row in _defended(rows)}
    for control in (UNDEFENDED, SCRATCH):
        levels[control] = max((row[control] for row in rows), key=len)
    points = [p for name, own in levels.items() for p in _points(name, in_steps(own, 100), " %")]
    if not points:
        return None
    y = _utility_axis(points, f"restricted {rows[0]['utility']} (%)")
    return _by_budget(points, rows, styles, y, "What a tuned attacker reaches")


def resistance(curves: DataFrame, styles: Styles) -> Figure | None:
    """The part of the undefended model's advantage over scratch that a defense takes, by budget.

    Dotted that of all n together, where it is another. Arguments are those of `envelopes`.
    """
    rows = _defended(records(curves))
    points = []
    for row in rows:
        alone, together = in_steps(row["resistance"]), in_steps(row["resistance_all"])
        parts = {f"n = {row['samples']}": alone, "all n": together if together != alone else []}
        for part, levels in parts.items():
            own = _points(vega.label(row["defense"]), levels, digits=2)
            points += [{**point, "part": part} for point in own]
    if not points:
        return None
    both = (f"n = {rows[0]['samples']}", "all n") if "all n" in (p["part"] for p in points) else ()
    y, title = _resistance_axis(points, "resistance R(b)"), "Resistance by budget"
    return _by_budget(points, rows, styles, y, title, both)


def _resistance_axis(points: Sequence[Point], title: str) -> Figure:
    """All of [0, 1], and what lies beyond."""
    values = [point[end] for point in points for end in ("y", "low", "high") if end in point]
    ends = [min([-0.05, *values]), max([1.05, *values])]
    return {"scale": {"domain": ends}, "axis": {"title": title}}


def families(sweeps: DataFrame, styles: Styles) -> Figure | None:
    """Restricted utility by learning rate at the regular budget, a panel per family of attacks."""
    rows = records(sweeps)
    rows.sort(key=lambda row: (row["family"], row["control"], row["defense"]))
    by_family = {family: _swept(own) for family, own in _by("family", rows).items()}
    panels = {family: points for family, points in by_family.items() if points}
    if not panels:
        return None
    points = [point for own in panels.values() for point in own]
    utility = f"restricted {rows[0]['utility']}"
    y, looks = _utility_axis(points, f"{utility} (%)", top=100), vega.present(styles, points)
    drawn = [
        {**_sweep(own, looks, y), "title": vega.folded(family, 38)}
        for family, own in panels.items()
    ]
    title = f"{utility[0].upper()}{utility[1:]} by learning rate at the regular budget"
    width = 50 * min(3, len(drawn))
    return vega.titled({"concat": drawn, "columns": 3}, title, _place(rows, points, width))


def sweep(sweeps: DataFrame, styles: Styles) -> Figure | None:
    """One panel of `families`, without a legend; rows of one place, n and family."""
    points = _swept(records(sweeps))
    if not points:
        return None
    looks, y = vega.present(styles, points), _utility_axis(points, "%", top=100)
    return _sweep(points, looks, y, named=False)


def _swept(rows: Iterable[Row]) -> list[Point]:
    return [
        point
        for row in rows
        for name in [UNDEFENDED if row["control"] else vega.label(row["defense"])]
        for point in _points(name, _scaled(row["levels"], 1, 100), " %")
    ]


def _sweep(points: Sequence[Point], styles: Styles, y: Figure, *, named: bool = True) -> Figure:
    rates = sorted({point["x"] for point in points})
    axis = {"title": "learning rate", "values": rates, "format": "~g", "labelOverlap": True}
    x = {"scale": vega.logarithmic(rates), "axis": axis}
    return vega.lines(points, styles, x=x, y=y, width=230, height=150, named=named)


def _defended(rows: Iterable[Row]) -> list[Row]:
    return sorted((row for row in rows if not row["control"]), key=lambda row: str(row["defense"]))


def _points(
    name: str, levels: Iterable[Level], unit: str = "", *, digits: int = 1, above: float = 0
) -> list[Point]:
    """Points of a line right of ``above``, with a band if all of it has half-widths.

    A learning rate of 0 has no place on a logarithmic axis, and nothing that is not finite has one.
    """
    known = [
        (x, y, vega.number(half))
        for x, y, half in levels
        if vega.number(x) is not None and vega.number(y) is not None and x > above
    ]
    banded = all(half is not None for _, _, half in known)
    points = []
    for x, y, half in known:
        about = "" if half is None else f" ± {half:.{digits}f}"
        tip = f"{name}: {y:.{digits}f}{about}{unit} at {x:.3g}"
        band = {"low": y - half, "high": y + half} if banded and half is not None else {}
        points.append({"name": name, "x": x, "y": y, **band, "tip": tip})
    return points


def _utility_axis(points: Sequence[Point], title: str, top: float | None = None) -> Figure:
    """An axis of utilities in %, from 0 to ``top``; ``points`` are moved to where they stand on it.

    A denoiser's skill has no lower bound, and would press all that matters into the uppermost line.
    Where one is below 0, points become errors, 100 - skill, and equal heights are equal ratios of
    them.
    """
    if min(point["y"] for point in points) >= 0:
        highest = max(point["high" if "high" in point else "y"] for point in points)
        domain = [0, top or min(100, max(1, 1.05 * highest))]
        return {"scale": {"domain": domain, "clamp": True}, "axis": {"title": title}}
    mirrored = {"y": "y", "low": "high", "high": "low"}
    for point in points:
        point.update({e: max(100 - point[of], 0.1) for e, of in mirrored.items() if of in point})
    scale = vega.logarithmic(point[end] for point in points for end in mirrored if end in point)
    low, high = scale["domain"]
    axis = {
        "title": title,
        "values": [100 - skill for skill in SKILLS if low <= 100 - skill <= high],
        "labelExpr": "format(100 - datum.value, 'd')",
    }
    return {"scale": {**scale, "reverse": True}, "axis": axis}


def _by_budget(
    points: Sequence[Point],
    rows: Sequence[Row],
    styles: Styles,
    y: Figure,
    title: str,
    parts: Sequence[str] = (),
) -> Figure:
    """Lines over the budget, and a mark at the regular one."""
    regular = rows[0]["budget"] / REFERENCE_BATCH
    budgets = sorted({point["x"] for point in points})
    axis = {"title": BUDGET, "values": budgets, "labelExpr": SHORT_COUNT}
    x = {"scale": vega.logarithmic([*budgets, regular]), "axis": axis}
    only = {"data": {"values": [{"x": regular}]}}
    top = {"color": {"value": GREY}, "y": {"value": 0}}
    tall = {**top, "y2": {"value": vega.HEIGHT}}
    words = {"type": "text", "text": "b max", "baseline": "bottom", "dy": -2}
    under = [
        {**only, "mark": {"type": "rule", "strokeDash": [2, 2]}, "encoding": tall},
        {**only, "mark": words, "encoding": top},
    ]
    looks = vega.present(styles, points)
    drawn = vega.lines(points, looks, x=x, y=y, parts=parts, under=under)
    return vega.titled(drawn, title, _place(rows, points))


def _place(rows: Sequence[Row], points: Iterable[Point], width: int = 60) -> list[str]:
    """Lines that say where it was measured, and what bands are."""
    first = rows[0]
    words = [
        first["scenario"],
        first["backbone"],
        f"n = {first['samples']}",
        span(row["seeds"] for row in rows),
        f"protocol {first['protocol']}",
        *(["bands: 95 % intervals"] if any("low" in point for point in points) else []),
    ]
    return vega.folded(", ".join(words), width)


def ablation(found: DataFrame) -> Figure | None:
    """Resistance and the cost of protection by the value of a hyperparameter; a line per family.

    Of rows of `analysis.ablation` of one place; None if no model could be made.
    """
    tried = [row for row in records(found) if not row["control"]]
    if all(vega.number(row["protect_cost"]) is None for row in tried):
        return None
    name = str(tried[0]["axis"])
    numbers = {shown(row["value"]): magnitude(row["value"]) for row in tried}
    x: Figure
    if None in numbers.values():  # side by side, and numbers among them too
        x = {"type": "ordinal", "scale": {"domain": [*numbers]}, "axis": {"title": name}}
        numbers = {text: float(i) for i, text in enumerate(numbers)}
    else:
        values = [level for level in numbers.values() if level is not None]
        scale = vega.logarithmic(values) if min(values) > 0 else {"type": "linear"}
        x = {"scale": scale, "axis": {"title": name, "values": values, "format": "~g"}}
    found_by = {key: _ablated(tried, key, numbers) for key in ("resistance", "protect_cost")}
    drawn = [point for points in found_by.values() for point in points]
    for point in drawn if x.get("type") == "ordinal" else []:
        point["x"] = [*numbers][int(point["x"])]
    ys = {
        "resistance": _resistance_axis(found_by["resistance"], "resistance R"),
        "protect_cost": {"scale": {"domainMin": 0}, "axis": {"title": "cost (× pre-training)"}},
    }
    looks = vega.present(vega.styles(row["family"] for row in tried), drawn)
    panels = [
        vega.lines(points, looks, x=x, y=ys[key], height=130)
        for key, points in found_by.items()
        if points
    ]
    title = f"Resistance and cost of protection by {name}"
    return vega.titled({"vconcat": panels}, title, _place(tried, drawn))


def _ablated(rows: Iterable[Row], key: str, where: Mapping[str, float | None]) -> list[Point]:
    """What each family shows of a column, at the values of its rows."""
    points = []
    for family, own in _by("family", rows).items():
        levels: Any = [
            (where[shown(row["value"])], row[key], row.get(f"{key}_half_width")) for row in own
        ]
        points += _points(vega.label(family), levels, digits=2, above=-math.inf)
    return points


def _by(key: str, rows: Iterable[Row]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def growth(updates: DataFrame, exponents: DataFrame, title: str) -> Figure:
    """Seconds per update by parameters and by FLOPs, with the fitted lines.

    Rows have the fields of `speed.Update`, and of `speed.Exponents` one per defense.
    """
    measured, fits = records(updates), records(exponents)
    looks = vega.styles(fit["defense"] for fit in fits)
    looks[PRETRAINING] = looks.pop(UNDEFENDED)
    del looks[SCRATCH]
    lines = [(PRETRAINING, fits[0], "pretrain_")]
    lines += [(vega.label(fit["defense"]), fit, "") for fit in fits]
    panels = []
    for size, by, label in (
        ("parameters", "by_parameters", "parameters"),
        ("flops", "by_flops", "FLOPs of a forward and backward pass"),
    ):
        points, ends = [], []
        for name, fit, prefix in lines:
            own = sorted(
                (row[size], row[f"{prefix}seconds"], None)
                for row in measured
                if row["defense"] == fit["defense"]
            )
            points += _points(name, own, " s", digits=4)
            ends += _fitted(name, own, fit[f"{prefix}{by}"])
        x = vega.decades((p["x"] for p in points), label, "~s")
        y = vega.decades((p["y"] for p in [*points, *ends]), "seconds per update")
        under = {"data": {"values": ends}}
        slope = {"type": "text", "align": "left", "dx": 4}
        fitted = [
            {**under, "mark": {"type": "line", "strokeDash": [5, 3], "strokeWidth": 1}},
            {**under, "mark": slope, "encoding": {"text": {"field": "slope"}}},
        ]
        panels.append(vega.lines(points, looks, x=x, y=y, joined=False, under=fitted))
    where = vega.folded(title, 110)
    return vega.titled({"hconcat": panels}, "Protecting by size of the model", where)


def _fitted(name: str, points: Sequence[Level], slope: float) -> list[Point]:
    """Ends of the line with this slope through the middle of the points' logarithms."""
    xs, ys, _ = zip(*points, strict=True)
    x, y = statistics.geometric_mean(xs), statistics.geometric_mean(ys)
    return [
        {"name": name, "x": end, "y": y * (end / x) ** slope, "slope": text}
        for end, text in ((xs[0], ""), (xs[-1], f"{slope:.2f}"))
    ]
