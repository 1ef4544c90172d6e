"""Fidelity cards: what a defense is, what its paper claims, and what the records say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard.attack_tables import HEAD
from sophon_bench.leaderboard.columns import (
    NOTHING,
    Column,
    Row,
    frame,
    percent,
    records,
    span,
)
from sophon_bench.leaderboard.names import Attacks, Legend
from sophon_bench.leaderboard.render import Place, Table, to_markdown
from sophon_bench.leaderboard.score_tables import score_table
from sophon_bench.leaderboard.tables import Gaps, Key, by_place, heading
from sophon_bench.results import Results
from sophon_bench.results.records import Cell, Records

DIFFERENT = "Different from the original:"
"""Begins the passage of a class docstring that says so."""

UNMEASURED = "not measured yet"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the code says of a defense.

    Args:
        name: The name that it is registered under.
        description: The class docstring, without indentation.
        reference: The publication.
        claim: What that measured.
        source: Hash of the plugin's source.
        hyperparameters: Defaults by name, as they are written.
        presets: Named sets of them, as they are written.
    """

    name: str
    description: str
    reference: str
    claim: str
    source: str
    hyperparameters: Mapping[str, str]
    presets: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The trials that a paper would attack with.

    Args:
        name: The suite and its version.
        trials: Labels of its attacks.
        controls: Labels of the control attacks that run beside them.
    """

    name: str
    trials: Collection[str]
    controls: Collection[str]


def cards(
    subjects: Iterable[Subject],
    cells: Records,
    *,
    recipe: Recipe,
    command: str,
    frozen: Gaps = None,
) -> str:
    """One card per subject, in their order, and below what they rest on, in GitHub's Markdown.

    Args:
        subjects: What there are cards of.
        cells: Records; none: nothing is measured yet.
        recipe: What stands for the paper's attacks.
        command: What makes this page.
        frozen: As for `analysis.scores`.
    """
    measured = _Measured(cells, recipe, frozen)
    parts = [TITLE, *(_card(subject, measured) for subject in subjects)]
    return "\n\n".join([*parts, _origin(cells, recipe, command)]) + "\n"


TITLE = "# Defenses: a card of each"


class _Measured:
    """Frames that cards show, by place."""

    def __init__(self, cells: Records, recipe: Recipe, frozen: Gaps) -> None:
        results = Results.of(cells)
        listed = {*recipe.trials, *recipe.controls}
        trials = analysis.trials(results)
        scores = analysis.scores(results, frozen)
        self.recipe = recipe
        self.legend = Legend.of([scores, trials], {}, "defense")
        self._releases = by_place(analysis.releases(results))
        self._trials = by_place(trials[trials["attack"].isin(listed)])
        self._recipes = by_place(analysis.recipe(results, listed))
        self._curves = by_place(analysis.curves(results, frozen))
        self._scores = by_place(scores)

    def places(self, name: str) -> Iterator[tuple[Place, Sequence[Row]]]:
        """Tables of one plugin by place, and how it made its models there."""
        for where in self._scores:
            made = [row for row in records(self._releases[where]) if row["plugin"] == name]
            if made:
                yield self._place(where, {row["defense"] for row in made}), made

    def _place(self, where: Key, labels: Collection[str]) -> Place:
        nothing = frame([])
        known = self._scores[where]
        scores = known[known["control"].astype(bool) | known["defense"].isin(labels)]
        recipes = [r for r in records(self._recipes.get(where, nothing)) if r["defense"] in labels]
        curves = {(row["defense"], row["samples"]): row
                  for row in records(self._curves.get(where, nothing))}  # fmt: skip
        called = Attacks(self._trials.get(where, nothing), {})
        lines = [
            line
            for row in recipes
            for line in self._lines(row, curves[row["defense"], row["samples"]], called)
        ]
        utilities = Table(
            title=f"Restricted {scores['utility'].iloc[0]} in %, at the whole budget: best of the "
            f"trials of {self.recipe.name} that were run, and of all (the tuned envelope, with "
            "scratch as a further candidate), both picked on the selection split",
            columns=[HEAD, Column(key="samples", header="n"), *(Column(key=s) for s in SIDES)],
            body=frame(lines),
            notes=self.legend.notes(row["defense"] for row in recipes),
        )
        tables = [utilities, score_table(scores, self.legend)]
        return Place(title=heading(where, scores), tables=tables)

    def _lines(self, row: Row, curve: Row, called: Attacks) -> Iterator[Row]:
        defense = self.legend(row["defense"])
        envelope = f"{defense}: tuned envelope, {span([row['seeds']])}"
        cells = {
            f"{defense}: {self.recipe.name}": [_reached(row, side) for side in SIDES],
            "trial picked": [_picked(row, side, called) for side in SIDES],
            envelope: [_level(curve, side) for side in SIDES],
        }
        for name, texts in cells.items():
            yield {"": name, "samples": row["samples"], **dict(zip(SIDES, texts, strict=True))}


SIDES = ("protected", "undefended", "scratch")


def _reached(row: Row, side: str) -> str:
    if row[f"{side}_after"] is None:
        return UNMEASURED
    text = percent(row[f"{side}_after"], row[f"{side}_half_width"])
    seeds = row[f"{side}_seeds"]
    return text if seeds == row["seeds"] else f"{text} ({seeds} of {span([row['seeds']])})"


def _picked(row: Row, side: str, called: Attacks) -> str:
    """The trial that was picked on most seeds, and among how many."""
    if not row[f"{side}_attacks"]:
        return NOTHING
    (attack, votes), *_ = row[f"{side}_attacks"]
    count, seeds = row[f"{side}_trials"], row[f"{side}_seeds"]
    often = "" if votes == seeds else f", {votes}/{seeds}"
    return f"{called.short(attack)} (of {count}{often})"


def _level(curve: Row, side: str) -> str:
    for cost, mean, half_width in curve[side]:
        if cost == curve["budget"]:
            return percent(mean, half_width)
    return UNMEASURED


def _card(subject: Subject, measured: _Measured) -> str:
    summary, formulas, different = passages(subject.description)
    facts = {
        "Source": subject.reference or "none named",
        "Different from the original": different or "not stated",
        "What its paper claims": subject.claim or "no figure on record",
        "Hyperparameters": _values(subject.hyperparameters) or "none",
        **{f"Preset `{name}`": text for name, text in subject.presets.items()},
    }
    lines = [f"- **{name}**: {text}" for name, text in facts.items()]
    found = list(measured.places(subject.name))
    if not found:
        lines.append(f"- **What we measure**: {UNMEASURED}")
    parts = [f"## {subject.name}", summary, *formulas, "\n".join(lines)]
    for place, made in found:
        parts.append("\n".join(f"- {_made(row, subject)}" for row in made))
        parts.append(to_markdown([place]).rstrip())
    return "\n\n".join(parts)


def passages(description: str) -> tuple[str, list[str], str]:
    """Summary, further paragraphs, and what is different, of a class docstring in Markdown."""
    text = description.partition("\nArgs:")[0].replace("``", "`")
    summary, *others = (" ".join(part.split()) for part in text.strip().split("\n\n"))
    found = [part.partition(DIFFERENT) for part in others]
    different = " ".join(after.strip() for _, _, after in found).strip()
    formulas = [before.strip() for before, _, _ in found if before.strip()]
    return summary, formulas, different


def _values(hyperparameters: Mapping[str, str]) -> str:
    return ", ".join(f"`{name} = {value}`" for name, value in hyperparameters.items())


def _made(row: Row, subject: Subject) -> str:
    """How the models of these records were made."""
    ended = "; ".join(f"{words} ({count} of {row['seeds']})" for words, count in row["ended"])
    other = (
        ""
        if row["source"] == subject.source
        else f". These records are of another version of its source ({row['source'][:8]}) than "
        f"this card ({subject.source[:8]})"
    )
    return (
        f"**What we measure** of {row['defense']}, {span([row['seeds']])}; roll-backs and failures "
        f"of protecting: {ended or 'none'}{other}"
    )


SINGLE = "none (single attacks)"
"""What stands for the suites of a record that no suite asked for."""


def _origin(cells: Records, recipe: Recipe, command: str) -> str:
    """What the page rests on."""
    lines = [
        f"- Made by `{command}`.",
        f"- The paper's recipe: {recipe.name}, {len(recipe.trials)} trials; beside it "
        f"{distinct(recipe.controls)}, with its defaults.",
    ]
    if made := cells.cells:
        suites = (suite for cell in made for suite in cells.who(cell).suites or [SINGLE])
        lines += [
            f"- {len(made)} records, of protocol {distinct(cell.protocol for cell in made)}, "
            f"seeds {distinct(cells.seeds)}, suites {distinct(suites)}.",
            f"- They are from {'; '.join(sorted({made_on(cell) for cell in made}))}; finished "
            f"{days(cell.provenance.finished[:10] for cell in made)}.",
        ]
    else:
        lines.append("- No records.")
    return "\n".join(["## What this page rests on", "", *lines])


def made_on(cell: Cell) -> str:
    """Package, commit, torch and device that a record was made with, in words."""
    where = cell.provenance
    commit = "an unknown commit" if where.commit is None else f"commit {where.commit[:8]}"
    return (
        f"sophon-bench {where.version} at {commit}{' with changes' if where.dirty else ''}, "
        f"torch {where.torch}, {where.device}, {where.threads} "
        f"thread{'' if where.threads == 1 else 's'}"
    )


def distinct(values: Iterable[Any]) -> str:
    """Each once, in order."""
    return ", ".join(map(str, sorted(set(values))))


def days(found: Iterable[str]) -> str:
    """The first and the last of them."""
    first, *others = sorted(set(found))
    return f"{first} to {others[-1]}" if others else first
