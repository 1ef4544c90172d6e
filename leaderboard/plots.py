"""Pictures of what records say: envelopes and resistance by budget, sweeps, costs; and of growth.

They are drawn through matplotlib's objects, not through pyplot's state, and are the same bytes for
the same records. Colours are Okabe and Ito's, which the colour-blind tell apart; markers repeat
what colours say. Legends stand below the axes, where they hide no data.
"""

from __future__ import annotations

import io
import re
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sophon_bench import metrics
from sophon_bench.files import write_atomic
from sophon_bench.leaderboard import gallery
from sophon_bench.leaderboard.tables import WHERE
from sophon_bench.metrics import PLACE
from sophon_bench.pictures import pixels_of
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.records import Cell, content_key

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Key = tuple[Any, ...]
Style = Mapping[str, Any]
Level = tuple[float, float, float | None]
"""x, y and the half-width of y, if it has one."""

FORMATS = ("png", "svg")
COLUMN = 3.5
"""Width of a paper's column in inches."""
LINE, HANDLE, LETTER = 0.16, 0.5, 0.055
"""Height of a legend's entry, width of its line and of each letter, in inches."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
UNDEFENDED: Style = {"color": "#000000", "linewidth": 1.8}
SCRATCH: Style = {"color": "#777777", "linestyle": "--"}
SETTINGS: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "figure.titlesize": 7.5,
    "figure.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "savefig.dpi": 300,
    "svg.hashsalt": "sophon-bench",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure and the name of its file, without the suffix."""

    name: str
    figure: Figure


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a plot, in order of x."""

    label: str
    points: Sequence[Level]
    style: Style


def write(
    cells: Sequence[Cell],
    out: Path,
    formats: Sequence[str],
    frozen: metrics.Frozen | Sequence[metrics.Frozen] | None = None,
) -> list[Path]:
    """Draw all that ``cells`` say into the directory ``out``, which is made; returns the files.

    Args:
        cells: Records of any places.
        out: Files of the same names are replaced.
        formats: Some of `FORMATS`.
        frozen: Which budgets and n count, as in `metrics.scores`.

    Raises:
        OSError: ``out`` cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with drawing():
        for picture in pictures(metrics.curves(cells, frozen), metrics.sweeps(cells)):
            for form in formats:
                written.append(out / f"{picture.name}.{form}")
                write_atomic(written[-1], encode(picture.figure, form))
    return written


def write_overhead(protection: Sequence[Row], half_costs: Sequence[Row], file: Path) -> bool:
    """Draw `overhead` to ``file``, which ends in one of `FORMATS`; False if there is nothing."""
    with drawing():
        figure = overhead(protection, half_costs)
        if figure is not None:
            _save(figure, file)
    return figure is not None


def write_growth(updates: Sequence[Row], exponents: Sequence[Row], title: str, file: Path) -> None:
    """Draw `growth` to ``file``, which ends in one of `FORMATS`."""
    with drawing():
        _save(growth(updates, exponents, title), file)


def write_gallery(made: Sequence[metrics.Made], file: Path) -> None:
    """Draw `images` to ``file``, which ends in one of `FORMATS`."""
    with drawing():
        _save(images(made), file)


def _save(figure: Figure, file: Path) -> None:
    write_atomic(file.absolute(), encode(figure, file.suffix.removeprefix(".")))


def drawing() -> AbstractContextManager[None]:
    """Our settings over matplotlib's defaults: the user's own do not show in a picture."""
    from matplotlib import style

    return style.context(SETTINGS, after_reset=True)


def encode(figure: Figure, form: str) -> bytes:
    """The figure as a file of one of `FORMATS`, without the date."""
    stream = io.BytesIO()
    figure.savefig(stream, format=form, metadata={"Date": None} if form == "svg" else None)
    return stream.getvalue()


def pictures(curves: Sequence[Row], sweeps: Sequence[Row]) -> Iterator[Picture]:
    """Per place and n: envelopes and resistance by budget, restricted utility by step size.

    A defense has one colour in all of them. A picture without a single point is left out.

    Args:
        curves: Rows of `metrics.curves`.
        sweeps: Rows of `metrics.sweeps`.
    """
    styles = _styles([*curves, *sweeps])
    for kind, rows, draw in (
        ("envelopes", curves, envelopes),
        ("resistance", curves, resistance),
        ("lr-sweep", sweeps, sweep),
    ):
        for place, found in _by(PLACE, rows).items():
            figure = draw(found, styles)
            if figure is not None:
                yield Picture(name=_file_name(place, kind), figure=figure)


def _styles(rows: Iterable[Row]) -> dict[str, Style]:
    """One colour and one marker per defense; their periods differ, so that pairs come late."""
    names = sorted({row["defense"] for row in rows if not row["control"]})
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }


def _by(keys: Sequence[str], rows: Iterable[Row]) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _file_name(place: Key, kind: str) -> str:
    """Letters, digits, ``.``, ``-`` and ``_`` only; a hash tells alike places apart."""
    at = dict(zip(PLACE, place, strict=True))
    words = [at["scenario"], at["backbone"], f"n{at['samples']}", kind]
    safe = [re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.")[:60] for word in words]
    return "_".join([*safe, content_key({"place": [str(part) for part in place]})[:6]])


def envelopes(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """What a tuned attacker gets for a budget: against each defense, undefended, fresh weights."""
    lines = [
        Line(label=label, points=in_steps(_longest(rows, label), 100), style=style)
        for label, style in (("undefended", UNDEFENDED), ("scratch", SCRATCH))
    ]
    for row in _defenses(rows):
        points = in_steps(row["protected"], 100)
        lines.append(Line(label=row["defense"], points=points, style=styles[row["defense"]]))
    label = f"restricted {rows[0]['utility']} (%)"
    figure = _budget_figure(rows, lines, "What a tuned attacker reaches", label)
    if figure is not None:
        _by_error(figure.axes[0], lines)
    return figure


SKILLS = (-9900, -900, -300, -100, 0, 30, 50, 70, 80, 90, 95, 99)
"""Ticks, in %, where equal heights are equal ratios of error."""


def _by_error(axes: Axes, lines: Iterable[Line]) -> None:
    """Where skill falls below 0, let equal heights be equal ratios of error, ``1 - skill``.

    An error has no upper bound, and would press all that matters into the uppermost line.
    """
    import numpy as np
    from matplotlib.ticker import FixedLocator, NullLocator

    points = [(y, half or 0.0) for line in lines for _, y, half in line.points]
    if not points or min(points)[0] >= 0:
        return
    low, high = min(y - half for y, half in points), max(y + half for y, half in points)

    def up(skill: Any) -> Any:
        return -np.log10(np.maximum(1 - np.asarray(skill) / 100, 1e-3))

    def down(height: Any) -> Any:
        return 100 * (1 - 10.0 ** -np.asarray(height))

    axes.set_yscale("function", functions=(up, down))
    ends = up(np.array([low, high]))
    axes.set_ylim(*down(ends + np.array([-0.05, 0.05]) * np.ptp(ends)))
    axes.yaxis.set_major_locator(FixedLocator(SKILLS))
    axes.yaxis.set_minor_locator(NullLocator())


def resistance(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """The part of the undefended model's advantage over fresh weights that a defense takes."""
    lines = []
    for row in _defenses(rows):
        name, style = row["defense"], styles[row["defense"]]
        of_all = {**style, "linestyle": ":", "marker": ""}
        # matplotlib's legends leave out what begins with an underscore
        lines.append(Line(label=f"_{name}", points=in_steps(row["resistance_all"]), style=of_all))
        lines.append(Line(label=name, points=in_steps(row["resistance"]), style=style))
    title = "Resistance by budget (dotted: of all n together)"
    figure = _budget_figure(rows, lines, title, "resistance R(b)")
    if figure is not None:
        _whole_range(figure.axes[0])
    return figure


def _whole_range(axes: Axes) -> None:
    """Let an axis of resistance show all of [0, 1]."""
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.03), max(high, 1.03))


def sweep(rows: Sequence[Row], styles: Mapping[str, Style]) -> Figure | None:
    """Restricted utility by learning rate; one panel per attack without its learning rate."""
    panels: dict[str, list[Line]] = {family: [] for family in sorted({r["family"] for r in rows})}
    for row in sorted(rows, key=lambda row: (not row["control"], row["defense"])):
        label = "undefended" if row["control"] else row["defense"]
        style = UNDEFENDED if row["control"] else styles[row["defense"]]
        points = [_scaled(level, 1, 100) for level in row["levels"]]
        panels[row["family"]].append(Line(label=label, points=points, style=style))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = _figure(width=max(COLUMN, 2.3 * columns), height=0.9 + 1.5 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel().tolist()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("learning rate")
    for axes, (family, drawn) in zip(grid, panels.items(), strict=False):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
        axes.set_title("\n".join(textwrap.wrap(family.replace(",", ", "), 34)))
        _draw(axes, drawn)
    low, high = grid[0].get_ylim()
    grid[0].set_ylim(max(low, 0.0), min(100.0, high))
    _by_error(grid[0], [line for drawn in panels.values() for line in drawn])
    utility = rows[0]["utility"]
    figure.supylabel(f"restricted {utility} (%)")
    _finish(figure, rows, f"Restricted {utility} by learning rate at the regular budget")
    return figure


def overhead(protection: Sequence[Row], half_costs: Sequence[Row]) -> Figure | None:
    """What protecting costs beside pre-training, and a tuned attacker half beside undefended.

    One line of two panels per place; None if there is no defense.

    Args:
        protection: Rows of `metrics.protection`.
        half_costs: Rows of `metrics.half_costs`, of which the envelope's are drawn.
    """
    places = _by(WHERE, [row for row in protection if not row["control"]])
    if not places:
        return None
    envelopes = [r for r in half_costs if r["attack"] == metrics.ENVELOPE and not r["control"]]
    halves = _by(WHERE, envelopes)
    most = max(map(len, places.values()))
    figure = _figure(width=2 * COLUMN, height=0.9 + len(places) * (0.7 + 0.36 * most))
    grid = figure.subplots(len(places), 2, squeeze=False, sharey="row")
    for (place, rows), (left, right) in zip(places.items(), grid, strict=True):
        names = [row["defense"] for row in rows]
        found = halves.get(place, [])
        costs = {
            label: {row["defense"]: (row[f"protect_{key}_times"], "=") for row in rows}
            for label, key in (("FLOPs", "flops"), ("seconds", "seconds"))
        }
        by_n: dict[str, dict[str, Bar]] = {
            f"n = {samples}": {
                row["defense"]: (row["times_undefended"], row["times_undefended_bound"])
                for row in found
                if row["samples"] == samples
            }
            for samples in sorted({row["samples"] for row in found})
        }
        _bars(left, names, costs, COLOURS)
        _bars(right, names, by_n, COLOURS[2:])
        left.set_title(
            "\n".join(textwrap.wrap(f"{rows[0]['scenario']}, {rows[0]['backbone']}", 48))
        )
        left.set_yticks(range(len(names)), ["\n".join(textwrap.wrap(name, 32)) for name in names])
        left.invert_yaxis()
    for axes, label in zip(
        grid[-1],
        ("protecting, × pre-training", "tuned attacker to half of U − S, × undefended"),
        strict=True,
    ):
        axes.set_xlabel(label)
    _legend(figure)
    figure.suptitle("What protecting costs, and what it makes attacking cost")
    return figure


Bar = tuple[float | None, str | None]
"""A multiple and its bound, as rows have them."""


def _bars(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Mapping[str, Bar]],
    colours: Sequence[str],
) -> None:
    """Bars from 1 on a logarithmic axis, several per name; what was not reached is hatched."""
    height = 0.8 / max(1, len(series))
    axes.set_xscale("log")
    axes.axvline(1, color="#000000", linewidth=0.8)
    for number, (label, bars) in enumerate(series.items()):
        colour = colours[number % len(colours)]
        for place, name in enumerate(names):
            value, bound = bars.get(name, (None, None))
            if value is None:
                continue
            y = place - 0.4 + height * (number + 0.5)
            axes.barh(
                y,
                value - 1,
                left=1,
                height=height,
                color=colour if bound != ">" else "#ffffff",
                edgecolor=colour,
                hatch="////" if bound == ">" else None,
                label=label,
            )
            text = f" {'' if bound == '=' else bound}{value:.3g}× "
            axes.text(max(1.0, value), y, text, va="center", fontsize=6.5)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high * 2, 12))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(visible=False, axis="y")


STRIP = 4.5
"""Width of images in a row, in inches."""


def images(made: Sequence[metrics.Made]) -> Figure:
    """Images that models made, a line per model.

    Args:
        made: At least one, in the order of `gallery.of_one_seed`.

    Raises:
        PictureError: If one has a picture that is none.
    """
    rows = [pixels_of(one.generated.picture) for one in made]
    words = [
        [
            *textwrap.wrap(_foldable(gallery.title(one)), 40),
            f"Fréchet distance {one.generated.frechet:.1f}",
        ]
        for one in made
    ]
    heights = [
        max(STRIP * row.shape[0] / row.shape[1], 0.12 * len(lines)) + 0.12
        for row, lines in zip(rows, words, strict=True)
    ]
    places = [gallery.place(one) for one in made]
    several = len(set(places)) > 1
    figure = _figure(
        width=STRIP + 2.5, height=0.6 + sum(heights) + 0.2 * several * len(set(places))
    )
    grid = figure.subplots(len(made), 1, squeeze=False, height_ratios=heights).ravel()
    told: set[str] = set()
    for axes, row, lines, place in zip(grid, rows, words, places, strict=True):
        axes.imshow(row, interpolation="nearest")
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_anchor("W")
        text = "\n".join(lines)
        axes.set_ylabel(text, rotation=0, ha="right", va="center", parse_math=False)
        if several and place not in told:
            axes.set_title(place, loc="left", parse_math=False)
        told.add(place)
    where = [] if several else textwrap.wrap(places[0], 100)
    title = "\n".join([f"Images made from noise, seed {made[0].seed}", *where])
    figure.suptitle(title, parse_math=False)
    return figure


def _foldable(title: str) -> str:
    """With spaces after all commas, and none around ``=`` that a line could end at."""
    return re.sub(r", ?", ", ", title).replace(" = ", "\u00a0=\u00a0")


def growth(updates: Sequence[Row], exponents: Sequence[Row], title: str) -> Figure:
    """Seconds per update by parameters and by FLOPs, with the fitted lines.

    Args:
        updates: Rows with the fields of `speed.Update`.
        exponents: Rows with those of `speed.Exponents`, one per defense.
        title: Where it was measured.
    """
    figure = _figure(width=2 * COLUMN, height=2.6)
    panels = figure.subplots(1, 2, sharey=True)
    styles = _styles({**fit, "control": False} for fit in exponents)
    first = exponents[0]["defense"]
    drawn = [("pre-training", first, "pretrain_", {**UNDEFENDED, "marker": "x"})]
    drawn += [(name, name, "", {**style}) for name, style in styles.items()]
    for axes, size, by, label in (
        (panels[0], "parameters", "by_parameters", "parameters"),
        (panels[1], "flops", "by_flops", "FLOPs of a forward and backward pass"),
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        for name, defense, side, style in drawn:
            points = sorted(
                (row[size], row[f"{side}seconds"]) for row in updates if row["defense"] == defense
            )
            (fit,) = (fit for fit in exponents if fit["defense"] == defense)
            _fitted(axes, points, fit[f"{side}{by}"], name, style)
    panels[0].set_ylabel("seconds per update")
    _legend(figure)
    figure.suptitle("\n".join(["Protecting by size of the model", *textwrap.wrap(title, 130)]))
    return figure


def _fitted(
    axes: Axes, points: Sequence[tuple[float, float]], slope: float, label: str, style: Style
) -> None:
    """Points, and the line with this slope through the middle of their logarithms."""
    xs, ys = zip(*points, strict=True)
    x, y = statistics.geometric_mean(xs), statistics.geometric_mean(ys)
    axes.plot(xs, ys, **{**style, "linestyle": ""}, label=label)
    ends = (xs[0], xs[-1])
    line = [y * (end / x) ** slope for end in ends]
    axes.plot(ends, line, color=style["color"], linewidth=0.9, linestyle="--")
    axes.annotate(f"{slope:.2f}", (ends[1], line[1]), color=style["color"], fontsize=6.5)


def ablation(rows: Sequence[Row]) -> Figure | None:
    """Resistance and the cost of protection by the value of a hyperparameter; a line per family.

    None if no model could be made.

    Args:
        rows: Rows of `metrics.ablation` of one place, at least one of a defense.
    """
    tried = [row for row in rows if not row["control"]]
    if all(row["protect_cost"] is None for row in tried):
        return None
    styles = _styles({"defense": row["family"], "control": False} for row in tried)
    at = _positions([row["value"] for row in tried])
    figure = _figure(width=COLUMN, height=3.4)
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, label, key in (
        (above, "resistance R", "resistance"),
        (below, "cost of protection\n(× pre-training)", "protect_cost"),
    ):
        axes.set_ylabel(label)
        lines = []
        for family, style in styles.items():
            own = [row for row in tried if row["family"] == family and row[key] is not None]
            points = [
                (at[metrics.shown(r["value"])], r[key], r.get(f"{key}_half_width")) for r in own
            ]
            lines.append(Line(label=family, points=points, style=style))
        _draw(axes, lines)
    _whole_range(above)
    below.set_ylim(bottom=0)
    if min(at.values()) > 0:
        below.set_xscale("log")
    below.set_xticks(list(at.values()), list(at))
    below.minorticks_off()
    below.set_xlabel(rows[0]["axis"])
    _finish(figure, tried, f"Resistance and cost by {rows[0]['axis']}")
    return figure


def _positions(values: Sequence[Any]) -> dict[str, float]:
    """Where each value stands on an axis: at its own number, or all in order if one has none."""
    levels = {metrics.shown(value): metrics.magnitude(value) for value in values}
    return {
        text: float(i) if None in levels.values() or level is None else level
        for i, (text, level) in enumerate(levels.items())
    }


def _defenses(rows: Iterable[Row]) -> list[Row]:
    return sorted((row for row in rows if not row["control"]), key=lambda row: str(row["defense"]))


def _longest(rows: Iterable[Row], key: str) -> Sequence[Sequence[Any]]:
    """A control's levels, which stand in the row of every defense, as far as that went."""
    levels: Iterable[Sequence[Sequence[Any]]] = (row[key] for row in rows)
    return max(levels, key=len)


def in_steps(levels: Iterable[Sequence[Any]], scale: float = 1) -> list[Level]:
    """Levels by budget in steps instead of units, their values times ``scale``."""
    return [_scaled(level, 1 / REFERENCE_BATCH, scale) for level in levels]


def _scaled(level: Sequence[Any], over: float, scale: float) -> Level:
    x, y, half_width = (*level, None)[:3]
    return x * over, y * scale, None if half_width is None else half_width * scale


def _budget_figure(
    rows: Sequence[Row], lines: Sequence[Line], title: str, label: str
) -> Figure | None:
    if not any(line.points for line in lines):
        return None
    figure = _figure(width=COLUMN, height=2.5)
    axes = figure.subplots()
    axes.set_xscale("log")
    _draw(axes, lines)
    budgets = sorted({x for line in lines for x, _, _ in line.points})
    axes.set_xticks(budgets, [short_count(budget) for budget in budgets])
    axes.minorticks_off()
    longest = rows[0]["budget"] / REFERENCE_BATCH
    axes.axvline(longest, color="#777777", linewidth=0.8, linestyle=":")
    top = axes.get_xaxis_transform()
    axes.text(longest, 1, r"$b_\mathrm{max}$", transform=top, ha="center", va="bottom")
    axes.set_xlabel(f"attack budget (steps of {REFERENCE_BATCH} examples)")
    axes.set_ylabel(label)
    _finish(figure, rows, title)
    return figure


def short_count(steps: float) -> str:
    """Three digits, or all of a whole number below ten thousand."""
    if steps >= 10_000:
        return f"{steps / 1000:.3g}k"
    return f"{steps:.0f}" if steps >= 100 else f"{steps:.3g}"


def _figure(*, width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _draw(axes: Axes, lines: Iterable[Line]) -> None:
    for line in lines:
        if not line.points:
            continue
        x, y, half_widths = zip(*line.points, strict=True)
        axes.plot(x, y, label=line.label, **line.style)
        if None not in half_widths:
            low = [a - b for a, b in zip(y, half_widths, strict=True)]
            high = [a + b for a, b in zip(y, half_widths, strict=True)]
            axes.fill_between(x, low, high, color=line.style["color"], alpha=0.15, linewidth=0)


def _legend(figure: Figure) -> None:
    """Below the axes, each label once."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    width = figure.get_figwidth()
    entry = HANDLE + LETTER * max(map(len, handles))
    columns = min(len(handles), max(1, int(width / entry)))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
    figure.set_figheight(figure.get_figheight() + LINE * -(-len(handles) // columns))


def _finish(figure: Figure, rows: Sequence[Row], title: str) -> None:
    """Title and legend."""
    _legend(figure)
    first = rows[0]
    seeds = sorted({row["seeds"] for row in rows})
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"
    where = ", ".join(
        [
            first["scenario"],
            first["backbone"],
            f"n = {first['samples']}",
            f"{many} seed{'s' if seeds[-1] > 1 else ''}",
            f"protocol {first['protocol']}",
        ]
    )
    bands = " (bands: 95 % intervals)" if any(axes.collections for axes in figure.axes) else ""
    lines = textwrap.wrap(where, int(figure.get_figwidth() * 19))
    figure.suptitle("\n".join([title + bands, *lines]))
