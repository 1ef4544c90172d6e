"""Fidelity cards: what a defense is, what its paper claims, and what the records say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import layout, provenance
from sophon_bench.leaderboard.columns import NOTHING, Column, Row, frame, percent, records, span
from sophon_bench.leaderboard.layout import HEAD, Key
from sophon_bench.leaderboard.names import Attacks, Legend
from sophon_bench.leaderboard.recipe import Recipe
from sophon_bench.leaderboard.render import Place, Table, markdown_text, to_markdown
from sophon_bench.leaderboard.tables import Gaps
from sophon_bench.leaderboard.templates import rendered
from sophon_bench.results import Results
from sophon_bench.results.records import Records

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
        hyperparameters, presets: Defaults by name, and named sets of them, as they are written.
    """

    name: str
    description: str
    reference: str
    claim: str
    source: str
    hyperparameters: Mapping[str, str]
    presets: Mapping[str, str]

    def passages(self) -> tuple[str, list[str], str]:
        """Summary, further paragraphs, and what is different, in Markdown."""
        text = self.description.partition("\nArgs:")[0].replace("``", "`")
        summary, *others = (" ".join(part.split()) for part in text.strip().split("\n\n"))
        found = [part.partition(DIFFERENT) for part in others]
        different = " ".join(after.strip() for _, _, after in found).strip()
        formulas = [before.strip() for before, _, _ in found if before.strip()]
        return summary, formulas, different


def cards(
    subjects: Iterable[Subject],
    cells: Records,
    *,
    recipe: Recipe,
    command: str,
    frozen: Gaps = None,
) -> str:
    """One card per subject, in their order, and below what they rest on, in GitHub's Markdown.

    Without ``cells`` nothing is measured yet; ``command`` is what makes this page.
    """
    results = Results.of(cells)
    measured = _Measured(results, recipe, frozen)
    suites = {suite for of in provenance.suites(results.cells) for suite in of or [SINGLE]}
    return rendered(
        "cards.md",
        cards=[(subject, list(measured.places(subject.name))) for subject in subjects],
        cells=results.cells,
        suites=suites,
        recipe=recipe,
        command=command,
        provenance=provenance,
        span=span,
        text=markdown_text,
        unmeasured=UNMEASURED,
    )


SINGLE = "none (single attacks)"
"""What stands for the suites of a record that no suite asked for."""


class _Measured:
    """Frames that cards show, by place."""

    def __init__(self, results: Results, recipe: Recipe, frozen: Gaps) -> None:
        listed = {*recipe.trials, *recipe.controls}
        trials = analysis.trials(results)
        scores = analysis.scores(results, frozen)
        self.recipe = recipe
        self.legend = Legend.of([scores, trials], {}, "defense")
        self._releases = layout.by_place(analysis.releases(results))
        self._trials = layout.by_place(trials[trials["attack"].isin(listed)])
        self._recipes = layout.by_place(analysis.recipe(results, listed))
        self._curves = layout.by_place(analysis.curves(results, frozen))
        self._scores = layout.by_place(scores)

    def places(self, name: str) -> Iterator[tuple[Sequence[Row], str]]:
        """How one plugin made its models in each place, and its tables there in Markdown."""
        for where in self._scores:
            made = [row for row in records(self._releases[where]) if row["plugin"] == name]
            if made:
                place = self._place(where, {row["defense"] for row in made})
                yield made, to_markdown([place]).rstrip()

    def _place(self, where: Key, labels: Collection[str]) -> Place:
        known = self._scores[where]
        scores = known[known["control"].astype(bool) | known["defense"].isin(labels)]
        called = Attacks(self._trials.get(where, frame([])), {})
        # both have one row per defense and n, in one order
        found = (records(each.get(where, frame([]))) for each in (self._recipes, self._curves))
        both = zip(*found, strict=True)
        shown = [(row, curve) for row, curve in both if row["defense"] in labels]
        utilities = Table(
            title=f"Restricted {scores['utility'].iloc[0]} in %, at the whole budget: best of the "
            f"trials of {self.recipe.name} that were run, and of all (the tuned envelope, with "
            "scratch as a further candidate), both picked on the selection split",
            columns=[HEAD, Column(key="samples", header="n"), *(Column(key=s) for s in SIDES)],
            body=[line for row, curve in shown for line in self._lines(row, curve, called)],
            notes=self.legend.notes(row["defense"] for row, _ in shown),
        )
        tables = [utilities, layout.score_table(scores, self.legend)]
        return Place(title=layout.heading(where, scores), tables=tables)

    def _lines(self, row: Row, curve: Row, called: Attacks) -> list[Row]:
        defense = self.legend(row["defense"])
        cells = {
            f"{defense}: {self.recipe.name}": {side: _reached(row, side) for side in SIDES},
            "trial picked": {side: _picked(row, side, called) for side in SIDES},
            f"{defense}: tuned envelope, {span([row['seeds']])}": {
                side: _level(curve, side) for side in SIDES
            },
        }
        return [{"": name, "samples": row["samples"], **texts} for name, texts in cells.items()]


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
    levels = {cost: (mean, half_width) for cost, mean, half_width in curve[side]}
    reached = levels.get(curve["budget"])
    return UNMEASURED if reached is None else percent(*reached)
