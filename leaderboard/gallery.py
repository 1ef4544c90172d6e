"""Images that models made from noise, in the order and the words that they are shown in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sophon_bench.metrics import Made

STEPS = ("released", "attacked", "scratch")


def of_one_seed(found: Iterable[Made], seed: int | None = None) -> list[Made]:
    """Those of a seed, the lowest if none is named, by place.

    The undefended model first, each model and then the same attacked, fresh weights last.
    """
    made = list(found)
    lowest = min((one.seed for one in made), default=None) if seed is None else seed
    return ordered(one for one in made if one.seed == lowest)


def ordered(found: Iterable[Made]) -> list[Made]:
    """In the order of `of_one_seed`."""
    return sorted(found, key=_order)


def _order(made: Made) -> tuple[Any, ...]:
    return (
        place(made),
        made.maker == "scratch",
        not made.control,
        made.defense,
        STEPS.index(made.maker),
        made.samples or 0,
    )


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
