"""Where a defense's numbers come from, in words: its code, its records, and their command."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable

from sophon_bench.leaderboard import cards
from sophon_bench.leaderboard.columns import Row, span
from sophon_bench.leaderboard.score_tables import WHY_PROVISIONAL
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results.records import SCHEMA, Records


def marks(row: Row) -> list[tuple[str, str]]:
    """Words that a reader of a row of scores must not miss, and what each means."""
    found = []
    if row["unscored"]:
        found.append(("no score", row["unscored"]))
    if row["provisional"]:
        found.append(("provisional", WHY_PROVISIONAL))
    if row["rolled_back"]:
        often = f"{row['rolled_back']} of {span([row['released_seeds']])}"
        found.append(("rolled back", f"protection went back to its last good state on {often}"))
    found += [
        (status, f"some trials are {status}: they protect nothing")
        for status in row["status"].split()
        if status != "ok"
    ]
    return found


def fidelity(subject: cards.Subject | None) -> list[tuple[str, str]]:
    """Terms and texts of what the code says of a defense."""
    if subject is None:
        return []
    summary, _, different = cards.passages(subject.description)
    found = {
        "What it does": summary,
        "Reference": subject.reference,
        "Different from the original": different,
        "What its paper claims": subject.claim,
    }
    return [(term, text) for term, text in found.items() if text]


def facts(cells: Records, made: Row, subject: cards.Subject | None) -> list[tuple[str, str]]:
    """Terms and texts of where the numbers come from."""
    own = cells.cells
    model, defense = cells.model(own[0]), cells.defense(own[0])
    statuses = Counter(cell.status for cell in own)
    other = (
        ", another version than the description is of"
        if subject is not None and subject.source != made["source"]
        else ""
    )
    ended = "; ".join(f"{words} ({count} of {made['seeds']})" for words, count in made["ended"])
    return [
        ("Made with", "; ".join(sorted({cards.made_on(cell) for cell in own}))),
        ("Finished", cards.days(cell.provenance.finished[:10] for cell in own)),
        ("Seeds", cards.distinct(cells.seeds)),
        ("Records", ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))),
        ("Suite", made["suite"] or "none: single attacks"),
        (
            "Protocol, schema",
            f"{cards.distinct(cell.protocol for cell in own)}, {SCHEMA}",
        ),
        ("Data", model.scenario.revision),
        (
            "Source",
            f"{made['plugin']} {made['source'][:12]} of {defense.distribution}{other}",
        ),
        ("Roll-backs and failures of protecting", ended or "none"),
    ]


def trouble(cells: Records) -> list[str]:
    """Trials that did not run, or not to their end, and why."""
    votes = Counter(
        f"{cell.attack.label}, n = {cell.samples}: {cell.status}"
        + (f", {cell.reason}" if cell.reason else "")
        for cell in cells.cells
        if cell.status != "ok"
    )
    return [
        words if count == 1 else f"{words} ({count} records)"
        for words, count in sorted(votes.items())
    ]


def reproduction(cells: Records) -> str:
    """The command that makes records of one place again, those of the undefended model included.

    What a search added is not named: it follows from the suite. Plugins of a single file are: by
    its name, which is all that a record knows of where it was. So is an audited checkpoint.
    """
    first = cells.cells[0]
    model, defense = cells.model(first), cells.defense(first)
    asked = [c for c in cells.cells
             if not cells.who(c).derived and c.stretch == 1 and c.role == "restricted"]  # fmt: skip
    suites = [(c.attack, [suite.split()[0] for suite in cells.who(c).suites]) for c in asked]
    listed = {name for attack, known in suites if known or not attack.control
              for name in known or [attack.label]}  # fmt: skip
    audited = defense.name == f"checkpoint-{defense.source[:12]}"
    made = ["audit", "MODEL.safetensors"] if audited else ["run"]
    defenses = [each.defense for each in cells.models.values() if each.defense is not None]
    defended = sorted({each.label for each in defenses if not each.control})
    plugins = [*defenses, *(cell.attack for cell in cells.cells)]
    distributions = {plugin.distribution for plugin in plugins}
    options = {
        "--scenario": [model.scenario.label],
        "--backbone": [model.backbone],
        "--sha256": [defense.source] if audited else [],
        "--prefix": [defense.parameters["prefix"]]
        if audited and "prefix" in defense.parameters
        else [],
        "--defense": [] if audited else defended or [defense.label],
        "--attack": sorted(listed),
        "--samples": [",".join(map(str, sorted({cell.samples for cell in asked})))],
        "--seeds": [_ranges(cells.seeds)],
        "--steps": [f"{first.budget / REFERENCE_BATCH:g}"],
        "--precision": [model.precision],
        "--plugin": sorted(name for name in distributions if name.endswith(".py")),
    }
    words = [word for name, values in options.items() for value in values for word in (name, value)]
    return shlex.join(["sophon-bench", *made, *words])


def _ranges(numbers: Iterable[int]) -> str:
    """``0-2,7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
