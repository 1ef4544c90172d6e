"""Images that models made from noise: their order, the words for them, and their figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sophon_bench.analysis.images import Made
from sophon_bench.leaderboard import vega
from sophon_bench.leaderboard.vega import Figure
from sophon_bench.plugins.failures import BadInput
from sophon_bench.plugins.registry import unknown
from sophon_bench.plugins.selectors import parse, scalar
from sophon_bench.results.pictures import data_uri, pixels_of
from sophon_bench.results.records import Records

STEPS = ("released", "attacked", "scratch")
STRIP, CAPTION, LINE = 430, 270, 13
"""Pixels: width of a row of images and of the words beside it, height of a line of these."""


def of_one_seed(found: Iterable[Made], seed: int | None = None) -> list[Made]:
    """Those of a seed, the lowest if none is named, in the order of `ordered`."""
    made = list(found)
    lowest = min((one.seed for one in made), default=None) if seed is None else seed
    return ordered(one for one in made if one.seed == lowest)


def ordered(found: Iterable[Made]) -> list[Made]:
    """By place; the undefended model first, each model and then the same attacked, scratch last."""

    def order(made: Made) -> tuple[Any, ...]:
        whose = made.maker == "scratch", not made.control, made.defense
        return place(made), *whose, STEPS.index(made.maker), made.samples or 0

    return sorted(found, key=order)


def title(made: Made) -> str:
    """Which model made them, after what, and of which domain they should be."""
    name = "undefended" if made.control else made.defense
    if made.maker == "released":
        return f"{name}: original domain"
    way = f"from {made.attack}" if made.maker == "scratch" else f"{name}, after {made.attack}"
    return f"{way}, n = {made.samples}: restricted domain"


def place(made: Made) -> str:
    """Where they were made."""
    return f"{made.place['scenario']}, {made.place['backbone']}, {made.place['precision']}"


def images(found: Sequence[Made]) -> Figure:
    """Images that models made, at least one, a row per model, beside what made them.

    Raises:
        PictureError: If one has a picture that is none.
    """
    places = [place(made) for made in found]
    rows = [_row(made) for made in found]
    first = {where: places.index(where) for where in places}
    lines = vega.folded(places[0], 100)
    if len(first) > 1:
        lines = []
        for where, index in first.items():
            rows[index]["title"] = vega.folded(where, 100)
    heading = f"Images made from noise, seed {found[0].seed}"
    return vega.titled({"vconcat": rows, "spacing": 6}, heading, lines)


def _row(made: Made) -> Figure:
    """Images of one model, each picture as wide, so that the same noise stands in one column."""
    height, width, _ = pixels_of(made.generated.picture).shape
    words = [*vega.folded(title(made), 40), f"Fréchet distance {made.generated.frechet:.1f}"]
    size = {"width": STRIP, "height": STRIP * height / width}
    tall = max(size["height"], LINE * len(words))
    first = tall / 2 - LINE * (len(words) - 1) / 2  # Vega puts the first line there, not the block
    text = {"type": "text", "align": "right", "lineBreak": "\n", "lineHeight": LINE}
    picture = {"type": "image", "align": "left", "smooth": False, **size}

    def layer(mark: Figure, x: float, y: float, channel: str, field: str) -> Figure:
        where = {"x": {"value": x}, "y": {"value": y}}
        mark = {**mark, "baseline": "middle"}
        return {"mark": mark, "encoding": {**where, channel: {"field": field}}}

    cell = {"words": "\n".join(words), "picture": data_uri(made.generated.picture)}
    return {
        "width": CAPTION + STRIP,
        "height": tall,
        "data": {"values": [cell]},
        "layer": [
            layer(text, CAPTION - 10, first, "text", "words"),
            layer(picture, CAPTION, tall / 2, "url", "picture"),
        ],
    }


def fitting(selector: str, cells: Records) -> set[str]:
    """Keys of the records whose attack a selector fits.

    Raises:
        BadInput: If no record has one.
    """
    wanted = parse(selector)
    tried = [cell for cell in cells.cells if not cell.attack.control]
    found = {
        cell.key
        for cell in tried
        if cell.attack.name == wanted.name
        and wanted.parameters.keys() <= cell.attack.parameters.keys()
        and all(_equal(cell.attack.parameters[k], v) for k, v in wanted.parameters.items())
    }
    if not found:
        raise BadInput(unknown("attack", selector, {cell.attack.label for cell in tried}))
    return found


def _equal(value: Any, text: Any) -> bool:
    """Whether a hyperparameter is what a selector says; numbers may be written in any way."""
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return bool(value == scalar(text))
