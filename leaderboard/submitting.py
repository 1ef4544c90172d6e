"""What records have to have before they are published: nothing left out, nothing of another suite.

A score of a few chosen attacks is worth nothing. Every defense has to have met the whole suite, its
search and its recipes for benign domains, on the same seeds as the controls.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.frozen import Frozen
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard.columns import records
from sophon_bench.leaderboard.entries import Entry, EntryError
from sophon_bench.plugins.registry import attacks
from sophon_bench.plugins.selectors import Arsenal, Trial, arsenal, load_suite
from sophon_bench.results import Results
from sophon_bench.results.records import Cell

SHOWN = 3
"""Examples that a fault names."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite as it is installed: its label with the version, and all that it asks for."""

    label: str
    arsenal: Arsenal


def installed(selector: str) -> Suite:
    """The suite that ``@NAME`` stands for."""
    label = load_suite(selector.removeprefix("@")).label
    return Suite(label=label, arsenal=arsenal(attacks, [selector]))


def chosen(cells: Sequence[Cell], defenses: Collection[str]) -> list[Cell]:
    """The cells of the defenses with these labels, and of the controls; of all if none is named.

    Raises:
        EntryError: If a defense has no records.
    """
    known = {cell.defense.label for cell in cells if not cell.defense.control}
    for label in defenses:
        if label not in known:
            raise EntryError(f"no records of {label!r}; there are {', '.join(sorted(known))}")
    return [c for c in cells if not defenses or c.defense.control or c.defense.label in defenses]


def entry(cells: Sequence[Cell], *, authors: str, **about: str) -> Entry:
    """An entry of these records, of the day of the last one.

    Args:
        authors: Names, separated by commas.
        about: Other fields of the entry: ``name``, ``title``, ``link``.

    Raises:
        EntryError: If a field is not what it has to be.
    """
    fields = {
        **about,
        "authors": [author.strip() for author in authors.split(",") if author.strip()],
        "submitted": max(cell.provenance.finished for cell in cells)[:10],
        "cells": cells,
    }
    try:
        return msgspec.convert(fields, Entry, from_attributes=True)
    except msgspec.ValidationError as error:
        raise EntryError(f"the entry is not well-formed: {error}") from error


def faults(cells: Sequence[Cell], suite: Suite, frozen: Sequence[Frozen]) -> list[str]:
    """Everything that stands against publishing ``cells``, in words; nothing if they may be.

    Args:
        cells: Records of defenses and of their controls.
        suite: What every defense has to have met.
        frozen: What budgets and n count.
    """
    results = Results.of(cells)
    found = [*_of_suite(cells, suite), *_failed(cells), *_left_out(cells, results, suite)]
    scores = records(analysis.scores(results, frozen))
    if not any(not row["control"] for row in scores):
        found.append("no defense is among the records, only controls")
    found += [f"{row['defense']} has no score: {row['unscored']}" for row in scores
              if row["unscored"]]  # fmt: skip
    return found


def _of_suite(cells: Iterable[Cell], suite: Suite) -> Iterator[str]:
    others = Counter(
        " or ".join(cell.suites) for cell in cells if cell.suites and suite.label not in cell.suites
    )
    for other, count in sorted(others.items()):
        yield f"{count} records are of {other}, and what is published is of {suite.label}"
    installed = {_identity(t.entry.name, t.parameters): t.entry.source for t in _trials(suite)}
    changed = {
        cell.attack.label
        for cell in cells
        if not cell.derived and installed.get(_of(cell), cell.attack.source) != cell.attack.source
    }
    if changed:
        yield f"made with another version of {_some(changed)} than is installed; run them again"


def _failed(cells: Iterable[Cell]) -> Iterator[str]:
    failed = [cell for cell in cells if cell.status == "failed"]
    if failed:
        names = (f"{c.attack.label} against {c.defense.label}, seed {c.seed}: {c.reason}"
                 for c in failed)  # fmt: skip
        yield f"{len(failed)} records failed ({_some(names)}); 'run --retry-failed' does them again"


def _left_out(cells: Iterable[Cell], results: Results, suite: Suite) -> Iterator[str]:
    by_key = {cell.key: cell for cell in cells}
    for _, place in outcomes(results).cells.groupby("place"):
        seeds = sorted(set(place["seed"]))
        benign = sorted(set(place.loc[place["role"] == "benign", "domain"]))
        samples = sorted(set(place.loc[place["role"] == "restricted", "samples"]))
        targets: list[tuple[str, str | None, int | None, list[Trial]]]
        targets = [("restricted", None, n, suite.arsenal.trials) for n in samples]
        targets += [("benign", domain, None, suite.arsenal.trainability) for domain in benign]
        for _, model in place.groupby("model"):
            defense = model["defense_label"].iloc[0]
            own = [by_key[key] for key in model["key"]]
            control = own[0].defense.control
            for role, domain, n, trials in targets:
                wanted = {
                    _identity(t.entry.name, t.parameters): t.label
                    for t in trials
                    if control or not t.entry.control
                }
                here = [
                    cell
                    for cell in own
                    if cell.role == role
                    and domain in (None, cell.domain)
                    and n in (None, cell.samples)
                ]
                where = f"on {domain}" if domain else f"with n={n}"
                yield from _missing(defense, where, seeds, wanted, here)
                if role == "restricted" and suite.arsenal.rules.continued:
                    longer = {cell.seed for cell in here if cell.stretch > 1}
                    for seed in sorted(set(seeds) - longer):
                        yield (
                            f"{defense} {where}, seed {seed}: no trial went on to the longer "
                            "budget; the run was not finished"
                        )


def _missing(
    defense: str, where: str, seeds: Iterable[int], wanted: Mapping[str, str], here: Sequence[Cell]
) -> Iterator[str]:
    for seed in seeds:
        met = {_of(c) for c in here if c.seed == seed and c.stretch == 1}
        if left := [label for identity, label in wanted.items() if identity not in met]:
            yield f"{defense} {where}, seed {seed}: {len(left)} trials are missing ({_some(left)})"


def _of(cell: Cell) -> str:
    return _identity(cell.attack.name, cell.attack.parameters)


def _identity(name: str, parameters: Mapping[str, Any]) -> str:
    """What a trial is: a label leaves out defaults, which another version may have changed."""
    return json.dumps([name, parameters], sort_keys=True)


def _trials(suite: Suite) -> list[Trial]:
    return [*suite.arsenal.trials, *suite.arsenal.trainability]


def _some(names: Iterable[str]) -> str:
    listed = sorted(set(names))
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
