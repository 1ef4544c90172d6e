"""What a search over a defense's hyperparameters found, kept as a document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sophon_bench import metrics
from sophon_bench.files import write_atomic
from sophon_bench.records import Cell

CRITERION = (
    "100 x resistance x intactness; resistance from utilities on the selection split, clipped to "
    "[0, 1], intactness from the original utility on the validation split; among equals the "
    "highest resistance before it is clipped, then the first drawn"
)


class Occupied(ValueError):
    """A document is there that another search made, or the same one with other results."""


def rows_of(cells: Sequence[Cell], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of `metrics.criteria` of one defense's configurations, in the order of ``labels``.

    Args:
        cells: Records of one place: of all configurations, and of the controls.
        labels: The configurations' selectors.
    """
    mine = [c for c in cells if c.defense.control or c.defense.label in labels]
    return sorted(metrics.criteria(mine), key=lambda row: labels.index(row["defense"]))


def document(
    cells: Sequence[Cell],
    rows: Sequence[Mapping[str, Any]],
    *,
    defense: str,
    grid: Mapping[str, Sequence[Any]],
    drawn_with: int,
    command: str,
) -> bytes:
    """Everything about one defense's search, as JSON: the same for the same records."""
    best = metrics.chosen(rows)
    of_defense = [c for c in cells if c.defense.control or c.defense.name == defense]
    content = {
        "defense": defense,
        "chosen": None
        if best is None
        else {"selector": best["defense"], "parameters": best["parameters"]},
        "criterion": CRITERION,
        "command": command,
        "grid": grid,
        "drawn_with": drawn_with,
        "seeds": sorted({cell.seed for cell in of_defense}),
        "versions": _versions(of_defense),
        "rows": rows,
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _versions(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What the stages ran with, each once, without the time."""
    ran = (p for c in cells for p in (c.provenance, c.released.provenance, c.pretrained.provenance))
    found = {}
    for provenance in ran:
        plain = msgspec.to_builtins(provenance)
        del plain["finished"]
        found[json.dumps(plain)] = plain
    return [found[key] for key in sorted(found)]


def check(file: Path, command: str) -> None:
    """Nothing, if ``file`` is free or ``command`` made it.

    Raises:
        Occupied: If it is there and another command made it.
    """
    if not file.exists():
        return
    try:
        made = json.loads(file.read_bytes())["command"]
    except (ValueError, KeyError, TypeError):
        made = None
    if made != command:
        by = "something else" if made is None else repr(made)
        raise Occupied(f"{str(file)!r} is there, made by {by}; --force replaces it")


def write(content: bytes, file: Path, *, force: bool) -> None:
    """Write a document; its directory is made.

    Raises:
        Occupied: If ``file`` is there with other content, and ``force`` is not given.
        OSError: If it cannot be written.
    """
    if file.exists() and not force and file.read_bytes() != content:
        raise Occupied(f"{str(file)!r} is there with other results; --force replaces it")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file.absolute(), content)
