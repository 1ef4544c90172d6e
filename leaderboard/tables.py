"""Rows of `sophon_bench.metrics` as tables for the console, Markdown, CSV and JSON."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sophon_bench.metrics import ENVELOPE, PLACE, pivot
from sophon_bench.records import SCHEMA, Cell
from sophon_bench.scenarios import REFERENCE_BATCH
from sophon_bench.selectors import format_selector

Row = Mapping[str, Any]
NOTHING = "·"


@dataclass(frozen=True)
class Matrix:
    """Restricted accuracy by attack (rows) and defense (columns), in one place."""

    title: str
    columns: list[str]
    head: list[list[str]]
    body: list[list[str]]
    notes: list[str] = field(default_factory=list)


def matrices(rows: Iterable[Row]) -> list[Matrix]:
    """One matrix per scenario, backbone, sample count and budget."""
    return [_matrix(place, by_attack) for place, by_attack in pivot(rows).items()]


def _matrix(place: tuple[str, ...], by_attack: Mapping[str, Mapping[str, Row]]) -> Matrix:
    at = dict(zip(PLACE, place, strict=True))
    defenses = list(by_attack[ENVELOPE])
    best = by_attack[ENVELOPE]
    seeds = sorted({row["seeds"] for row in best.values()})
    steps = int(at["budget"]) / REFERENCE_BATCH
    title = (
        f"{at['scenario']} (data {at['revision'][:8]}), {at['backbone']}, {at['precision']}, "
        f"protocol {at['protocol']}, n = {at['samples']}, {steps:g} steps, "
        f"{'–'.join(str(s) for s in (seeds if len(seeds) == 1 else [seeds[0], seeds[-1]]))} "
        f"seed{'s' if seeds[-1] > 1 else ''}: restricted accuracy after the attack, in %"
    )
    head = [
        ["original accuracy", *(_percent(best[d]["original_after"]) for d in defenses)],
        ["cost of protection", *(_times(best[d]["protect_cost"]) for d in defenses)],
    ]
    body = [
        [name, *(_cell(by_attack[attack].get(d)) for d in defenses)]
        for attack, name in _names(by_attack)
    ]
    flags = [f"{d}: {', '.join(best[d]['flags'])}" for d in defenses if best[d]["flags"]]
    return Matrix(title, ["", *defenses], head, body, flags)


def _names(by_attack: Mapping[str, Mapping[str, Row]]) -> list[tuple[str, str]]:
    """Attacks with the hyperparameters that vary in this table, sorted by them; envelope last."""
    parameters = {
        attack: next(iter(rows.values()))["parameters"]
        for attack, rows in by_attack.items()
        if attack != ENVELOPE
    }
    values: dict[tuple[str, str], set[str]] = {}
    for attack, chosen in parameters.items():
        for key, value in chosen.items():
            values.setdefault((_plugin(attack), key), set()).add(repr(value))
    named = []
    for attack, chosen in parameters.items():
        varied = {k: v for k, v in chosen.items() if len(values[_plugin(attack), k]) > 1}
        order = [_order(value) for value in varied.values()]
        control = not next(iter(by_attack[attack].values()))["control"]
        version = attack[attack.rindex("@") :] if "@" in attack.rpartition("]")[2] else ""
        name = format_selector(_plugin(attack), varied) + version if varied else attack
        named.append(((control, _plugin(attack), order, attack), attack, name))
    ordered = [(attack, name) for _, attack, name in sorted(named)]
    return [*ordered, (ENVELOPE, "tuned envelope")]


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, "" if number else repr(value))


def _plugin(attack: str) -> str:
    return attack.split("[")[0].split("@")[0]


def _cell(row: Row | None) -> str:
    if row is None:
        return NOTHING
    if row["restricted_after"] is None:
        return str(row["status"])
    text = _percent(row["restricted_after"])
    if row["restricted_after_half_width"] is not None:
        text += f" ± {100 * row['restricted_after_half_width']:.1f}"
    marks = [] if row["status"] == "ok" else [row["status"]]
    if row["seeds_reached"] < row["seeds"]:
        marks.append(f"{row['seeds_reached']} of {row['seeds']} seeds")
    return f"{text} ({', '.join(marks)})" if marks else text


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _times(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}× pre-training"


def console(rows: Sequence[Row]) -> str:
    """Tables drawn by rich, as wide as the terminal; with colours only on one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = sys.stdout.isatty()
    width = shutil.get_terminal_size((120, 40)).columns
    screen = Console(width=width, record=True, file=io.StringIO(), force_terminal=colours)
    for matrix in matrices(rows):
        screen.print(Text(matrix.title, style="bold"))
        table = Table()
        table.add_column("")
        for name in matrix.columns[1:]:
            table.add_column(Text(name), justify="right")
        for line in matrix.head:
            table.add_row(*map(Text, line), style="dim", end_section=line is matrix.head[-1])
        for line in matrix.body[:-1]:
            table.add_row(*map(Text, line), end_section=line is matrix.body[-2])
        table.add_row(*map(Text, matrix.body[-1]), style="bold")
        screen.print(table)
        for note in matrix.notes:
            screen.print(f"note: {note}", markup=False, highlight=False)
    return screen.export_text(styles=colours)


def markdown(rows: Sequence[Row]) -> str:
    """Tables in GitHub's Markdown."""
    from tabulate import tabulate

    parts = []
    for matrix in matrices(rows):
        body = [*matrix.head, *matrix.body[:-1], [f"**{cell}**" for cell in matrix.body[-1]]]
        align = ["left", *("right" for _ in matrix.columns[1:])]
        table = tabulate(
            body, matrix.columns, tablefmt="pipe", colalign=align, disable_numparse=True
        )
        parts.append("\n\n".join([f"**{matrix.title}**", table, *matrix.notes]))
    return "\n\n".join(parts) + "\n"


def csv(rows: Sequence[Row]) -> str:
    """Flat rows with stable keys; flags are joined by semicolons."""
    import pandas as pd

    flat = [{**row, "flags": "; ".join(row["flags"])} for row in rows]
    for row in flat:
        del row["parameters"]
    return pd.DataFrame(flat).to_csv(index=False)


def as_json(rows: Sequence[Row]) -> str:
    """Flat rows with stable keys."""
    return json.dumps(list(rows), indent=1) + "\n"


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "console": console,
    "md": markdown,
    "csv": csv,
    "json": as_json,
}


def document(cells: Sequence[Cell], rows: Sequence[Row]) -> str:
    """What ``run --json`` writes: every record and the summary."""
    content = {
        "schema": SCHEMA,
        "cells": [cell.model_dump(mode="json") for cell in cells],
        "summary": list(rows),
    }
    return json.dumps(content, indent=1) + "\n"


def meaning(rows: Iterable[Row]) -> str:
    """What the table says, in two sentences per place."""
    return "\n".join(_meaning(by_attack) for by_attack in pivot(rows).values())


def _meaning(by_attack: Mapping[str, Mapping[str, Row]]) -> str:
    envelopes = by_attack[ENVELOPE]
    reached = [
        f"{_percent(row['restricted_after'])} % against {defense} (best of {row['trials']} trials: "
        f"{row['best']})"
        for defense, row in envelopes.items()
        if row["restricted_after"] is not None
    ]
    if not reached:
        return "No attack produced a predictor, so nothing can be said about any defense."
    listed = reached[0] if len(reached) == 1 else f"{', '.join(reached[:-1])} and {reached[-1]}"
    fresh = [
        row["restricted_after"]
        for attack in by_attack.values()
        for row in attack.values()
        if row["control"] and row["restricted_after"] is not None
    ]
    bar = f"the {_percent(max(fresh))} % of fresh weights" if fresh else "that of fresh weights"
    return (
        f"An attacker who chooses trial and checkpoint on a hidden split reaches {listed}. "
        f"A defense keeps its word if that falls to {bar} while the original accuracy stays: "
        f"judge it by this envelope, not by one recipe."
    )
