"""What all figures share: parts of Vega-Lite, styles and themes, and files made of them.

A figure is a Vega-Lite specification with its data inside. `encode` renders it without a browser; a
page hands the same specification to Vega's JavaScript (`library`).

Names of attacks and defenses come from records, which anybody may submit. They stand in data, scale
domains and titles alone, which Vega takes as text; fields have fixed names, and expressions are
constants of this package.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sophon_bench.results.files import write_atomic

Row = Mapping[str, Any]
Figure = dict[str, Any]
Point = dict[str, Any]
Theme = Literal["light", "dark"]

FORMATS = ("png", "svg")
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
VERSION = "6.4"
"""Vega-Lite's, of those that vl-convert has."""

WIDTH, HEIGHT = 300, 200
"""Pixels of a panel in a picture; on a page it is as wide as its column."""

LONGEST = 500
"""Pixels of a name in a legend or beside an axis, which may come from anybody."""

RESOLUTION = 2
"""Pixels of a PNG per pixel of a specification."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
STATIC = {"font": "'Liberation Sans', Arial, Helvetica, sans-serif", "padding": 20}
"""Of an SVG: fonts of one width, which its layout is made for, and room for wider ones."""

COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which the colour-blind tell apart; vermilion is the undefended model's."""

SHAPES = ("circle", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left")
"""Their number and that of `COLOURS` have no common divisor, so that pairs come again late."""


class Style(NamedTuple):
    """How a line is drawn; ``dash`` is in pixels, on and off."""

    colour: str
    shape: str
    dash: Sequence[int] = (1, 0)


UNDEFENDED, SCRATCH = "undefended", "scratch"
CONTROLS: Mapping[str, Style] = {
    UNDEFENDED: Style("#D55E00", "square"),
    SCRATCH: Style("#808080", "diamond", (5, 3)),
}
GREY = CONTROLS[SCRATCH].colour


def styles(defenses: Iterable[str]) -> dict[str, Style]:
    """By label, the controls last; the same defenses get the same styles in any order."""
    names = sorted(set(map(label, defenses)))
    looks = [Style(COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i in range(len(names))]
    return {**dict(zip(names, looks, strict=True)), **CONTROLS}


def present(looks: Mapping[str, Style], points: Iterable[Point]) -> dict[str, Style]:
    """Styles of the names that points have."""
    names = {point["name"] for point in points}
    return {name: look for name, look in looks.items() if name in names}


def label(defense: str) -> str:
    """A defense's name in a legend, never a control's."""
    return f"{defense} (defense)" if defense in CONTROLS else defense


def folded(text: str, width: int) -> list[str]:
    """Lines of a text from records, broken after commas too, and not too many of them."""
    spaced = re.sub(",(?! )", ", ", text)
    return textwrap.wrap(spaced, width, max_lines=8, placeholder=" …")


def number(value: Any) -> float | None:
    """A finite number; None for what is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def config(theme: Theme) -> Figure:
    """Vega-Lite's configuration on light or dark paper, which stays unpainted."""
    ink, rule = {"light": ("#3b4048", "#dfe2e6"), "dark": ("#c3c8d0", "#343a43")}[theme]
    axis = {"domainColor": rule, "gridColor": rule, "tickColor": rule}
    sizes = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"}
    text = {"labelColor": ink, "titleColor": ink, **sizes}
    title = {"color": ink, "subtitleColor": ink, "anchor": "start", "frame": "group"}
    return {
        "background": "transparent",
        "font": FONT,
        "padding": 8,
        "view": {"stroke": None},
        "axis": {**axis, **text, "titleLimit": LONGEST},
        "legend": {"symbolOpacity": 1, **text},
        "title": {**title, "fontSize": 12, "subtitleFontSize": 11, "offset": 12, "limit": 800},
        "text": {"color": ink},
        "rule": {"color": GREY},
    }


THEMES: Mapping[Theme, str] = {"light": "#ffffff", "dark": "#14171c"}
"""The colour of paper by theme."""


def encode(figure: Figure, form: str, theme: Theme = "light") -> bytes:
    """The figure as a file of one of `FORMATS`: the same bytes for the same figure."""
    import vl_convert

    painted = {**config(theme), "background": THEMES[theme]}
    if form == "svg":
        painted |= STATIC
        return vl_convert.vegalite_to_svg(whole(figure), VERSION, config=painted).encode()
    return vl_convert.vegalite_to_png(whole(figure), VERSION, scale=RESOLUTION, config=painted)


def write(figure: Figure, file: Path, theme: Theme = "light") -> None:
    """Render to ``file``, which ends in one of `FORMATS`."""
    write_atomic(file.absolute(), encode(figure, file.suffix.removeprefix("."), theme))


@functools.cache
def library() -> bytes:
    """The JavaScript that draws figures in a browser: ``vegaEmbed``, with Vega inside."""
    import vl_convert

    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VERSION)
    # in a function, so that its names are not the page's
    return f"(() => {{\n{code}\n}})();\n".encode()


def on_page(figure: Figure) -> Figure:
    """The figure under a caption of the page's: without its title, as wide as its column."""
    bare = {key: value for key, value in figure.items() if key != "title"}
    fitted = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return whole({**bare, **fitted})


def titled(figure: Figure, title: str, lines: Sequence[str] = ()) -> Figure:
    """The figure under a title, and more lines of it."""
    return {"title": {"text": title, "subtitle": lines}, **figure}


def whole(figure: Figure) -> Figure:
    """The figure as Vega takes it: names its schema, and holds no text that a file could not."""
    found: Figure = _printable({"$schema": SCHEMA, **figure})
    return found


def _printable(part: Any) -> Any:
    """The same without what XML or UTF-8 cannot hold, or would turn the direction of writing."""
    if isinstance(part, dict):
        return {key: _printable(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_printable(value) for value in part]
    if isinstance(part, str) and not part.isprintable():
        return "".join(
            "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c)[0] == "C" and c != "\n" else c
            for c in part
        )
    return part


def logarithmic(values: Iterable[float]) -> Figure:
    """A logarithmic scale with some room around all values, which are positive."""
    found = list(values)
    low, high = min(found), max(found)
    room = max(high / low, 10) ** 0.04
    return {"type": "log", "domain": [low / room, high * room], "nice": False}


def decades(values: Iterable[float], title: str, form: str = "~g") -> Figure:
    """A logarithmic scale, and its axis with ticks at 1 and 3 of every decade."""
    scale = logarithmic(values)
    low, high = scale["domain"]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**power for power in powers for m in (1, 3)]
    inside = [tick for tick in ticks if low <= tick <= high]
    axis = {"title": title, "values": inside, "format": form, "labelOverlap": True}
    return {"scale": scale, "axis": axis}


def legend(names: Iterable[str], width: int = WIDTH) -> Figure:
    """Below the figure, in as many columns as fit."""
    columns = max(1, width // (30 + 6 * max(map(len, names))))
    return {"orient": "bottom", "title": None, "columns": columns, "labelLimit": LONGEST}


def nominal(field: str, values: Iterable[Any], looks: Iterable[Any], **more: Any) -> Figure:
    """A channel that gives each value of a field its look."""
    domain = list(values)
    scale = {"domain": domain, "range": list(looks)[: len(domain)]}
    return {"field": field, "type": "nominal", "scale": scale, **more}


def lines(
    points: Sequence[Point],
    looks: Mapping[str, Style],
    *,
    x: Figure,
    y: Figure,
    width: int = WIDTH,
    height: int = HEIGHT,
    parts: Sequence[str] = (),
    named: bool = True,
    joined: bool = True,
    under: Sequence[Figure] = (),
) -> Figure:
    """Lines with markers, over bands where there are half-widths.

    Args:
        points: Of all lines, in order: ``name``, ``x``, ``y`` and ``tip``, what a pointer over it
            shows; ``low`` and ``high`` of a band.
        looks: Styles by name, in the order of the legend; panels that share one share all of these.
        x, y: Scales and axes.
        width, height: Pixels.
        parts: Values of ``part``, if points have it: of two lines with one name, solid and dotted.
        named, joined: Whether there is a legend, and lines between markers.
        under: Other layers, below.
    """
    below = {"legend": legend(looks, width) if named else None}
    colour, shape, dash = (
        nominal("name", looks, of, **below) for of in zip(*looks.values(), strict=True)
    )
    if parts:
        dash = nominal("part", parts, [[1, 0], [2, 2]], legend=legend(parts))
    band = {
        "transform": [{"filter": {"field": "low", "valid": True}}],
        "mark": {"type": "area", "opacity": 0.15},
        "encoding": {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}},
    }
    line = {"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": {"strokeDash": dash}}
    marker = {
        "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
        "encoding": {"shape": shape, "tooltip": {"field": "tip", "type": "nominal"}},
    }
    banded = any("low" in point for point in points)
    return {
        "width": width,
        "height": height,
        "data": {"values": list(points)},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", **x},
            "y": {"field": "y", "type": "quantitative", **y},
            "color": colour,
        },
        "layer": [*under, *[band] * banded, *[line] * joined, marker],
    }
