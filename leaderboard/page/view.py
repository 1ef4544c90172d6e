"""What the page shows of submissions, place by place, ready for its template.

Submissions have their own controls; a place shows those of the one that has most seeds.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

from sophon_bench.analysis.cost import PRETRAINING
from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.images import Made, makers
from sophon_bench.analysis.verdict import verdict
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import (
    bars,
    cards,
    columns,
    figures,
    finding,
    gallery,
    layout,
    overhead,
    vega,
)
from sophon_bench.leaderboard.columns import NOTHING, Column, Row, frame, records, span
from sophon_bench.leaderboard.layout import HEAD, Key, from_random
from sophon_bench.leaderboard.names import Attacks, Legend
from sophon_bench.leaderboard.render import Table
from sophon_bench.leaderboard.tables import Gaps
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results import Results
from sophon_bench.results.frames import PLACE
from sophon_bench.results.pictures import data_uri
from sophon_bench.results.records import Records, content_key

if TYPE_CHECKING:
    from pandas import DataFrame

PROTECTED = "protected"
SIDES = (PROTECTED, vega.UNDEFENDED, vega.SCRATCH)
"""Columns of `analysis.curves`, and what lines are called: the card says which defense it is."""

STYLES = vega.styles([PROTECTED])

UNCHANGED = Legend({}, {})
"""Calls defenses by their labels: what heads a card has room for them."""

NOT_ATTACKED = "no scores: only random initialisations were trained here"

Drawing = tuple[str, vega.Figure]
"""A caption, and the figure under it."""

Label = Literal["self-reported", "spot-checked", "reproduced"]

Rows = Mapping[str, Sequence[Row]]
"""Rows by their kind."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Records, and who stands for them.

    Args:
        cells: Records of any places: defenses and their controls.
        name: Tells submissions apart; empty: nobody submitted these.
        title: Of what is submitted, for people.
        authors: Who stands for it.
        link: Where it is described.
        label: Who has seen that the records can be made again.
        submitted: The day, as ``2026-01-31``.
    """

    cells: Records
    name: str = ""
    title: str = ""
    authors: Sequence[str] = ()
    link: str = ""
    label: Label | None = None
    submitted: str = ""

    @property
    def safe_link(self) -> str | None:
        """The link if a browser may follow it: what runs in the page instead is none."""
        return self.link if re.match(r"https?://", self.link) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What one submission says in one place: rows, `Outcomes.cells`, and images of one seed."""

    submission: Submission
    rows: Rows
    cells: DataFrame
    made: Sequence[Made]

    @property
    def control_seeds(self) -> int:
        """Seeds on which the undefended model was attacked."""
        return max((row["seeds"] for row in self.rows["scores"] if row["control"]), default=-1)


def by_place(submissions: Iterable[Submission], frozen: Gaps) -> list[tuple[Key, list[Part]]]:
    """What there is to show in every place: of pre-trained models first, then by name."""
    found: dict[Key, list[Part]] = {}
    for submission in submissions:
        for key, part in _parts(submission, frozen):
            found.setdefault(key, []).append(part)
    backbone = PLACE.index("backbone")
    return sorted(
        found.items(), key=lambda pair: (from_random(pair[0][backbone]), *map(str, pair[0]))
    )


def _parts(submission: Submission, frozen: Gaps) -> Iterator[tuple[Key, Part]]:
    results = Results.of(submission.cells)
    found = {
        "releases": analysis.releases(results),
        "scores": finding.recipe_beside(analysis.scores(results, frozen), results),
        "attacks": analysis.trials(results),
        "winners": analysis.winners(results),
        "curves": analysis.curves(results, frozen),
        "sweeps": analysis.sweeps(results),
        "protection": analysis.protection(results),
        "half_costs": analysis.half_costs(results, frozen),
        "images": analysis.images(results),
    }
    rows = {kind: layout.by_place(df) for kind, df in found.items()}
    made: dict[Key, list[Made]] = {}
    for one in makers(results):
        made.setdefault(tuple(one.place[name] for name in PLACE), []).append(one)
    for key, cells in layout.by_place(outcomes(results).cells).items():
        here = {kind: records(of[key]) if key in of else [] for kind, of in rows.items()}
        images = gallery.of_one_seed(made.get(key, []))
        yield key, Part(submission=submission, rows=here, cells=cells, made=images)


def _names(parts: Sequence[Part], home: Part) -> list[dict[str, str]]:
    """Unique names of the defenses that are shown of each part, by what they are called there.

    Controls, and pre-training, are shown of the part ``home`` alone.
    """
    shown = [
        [row["defense"] for row in part.rows["releases"] if part is home or not row["control"]]
        for part in parts
    ]
    often = Counter(itertools.chain.from_iterable(shown))
    taken: set[str] = set()
    found: list[dict[str, str]] = []
    for number, (part, defenses) in enumerate(zip(parts, shown, strict=True), 1):
        found.append({PRETRAINING: PRETRAINING} if part is home else {})
        for defense in defenses:
            whose = part.submission.name or f"records {number}"
            name = f"{defense} ({whose})" if often[defense] > 1 else defense
            found[-1][defense] = f"{name}, {number}" if name in taken else name
            taken.add(found[-1][defense])
    return found


def section(
    key: Key,
    parts: Sequence[Part],
    subjects: Mapping[str, cards.Subject],
    pictures: Mapping[str, tuple[str, bytes]],
) -> SimpleNamespace:
    """One place: the defenses of all parts, and the controls of the one that has most seeds."""
    home = max(parts, key=lambda part: part.control_seeds)
    shown_of = [*zip(parts, _names(parts, home), strict=True)]
    origin = {name: (part, own) for part, names in shown_of for own, name in names.items()}
    rows = {
        kind: [
            {**row, "defense": names[row["defense"]]}
            for part, names in shown_of
            for row in part.rows[kind]
            if row["defense"] in names
        ]
        for kind in home.rows
    }
    trials, images, scores = (frame(rows[kind]) for kind in ("attacks", "images", "scores"))
    table = Table(title="", columns=columns.SCORES, body=[], notes=[NOT_ATTACKED])
    if len(scores):
        scores = analysis.ranked(scores)
        table = layout.score_table(scores, UNCHANGED)
    called = Attacks(trials, {})
    legend = Legend.of([scores, trials], {}, "defense")
    at = dict(zip(PLACE, key, strict=True))
    protection, half_costs = (frame(rows[kind]) for kind in ("protection", "half_costs"))
    scored = {row["defense"]: row for row in records(scores)}
    hero = finding.dumbbells(scores) if len(scores) else None
    shown = columns.shown_in("page", table.columns)
    lines = {
        row["defense"]: {column.key: column.text(row) for column in shown}
        for row in [*table.quiet, *table.body]
    }
    element = _anchor(at["scenario"], at["backbone"], content_key({"place": [*map(str, key)]})[:6])
    found = [
        _card(anchor, *origin[name], scored[name], rows, called, subjects)
        for name, anchor in _anchors(element, (name for name in lines if name in scored)).items()
    ]
    for card in found:
        card.line = lines[card.name]
    return SimpleNamespace(
        id=element,
        scenario=at["scenario"],
        backbone=at["backbone"],
        utility=rows["releases"][0]["utility"],
        heading=layout.heading(key, trials),
        hero=_drawings(("The paper's recipe, and a tuned attacker", hero)),
        verdict=verdict(records(scores)) if len(scores) else None,
        seeds=span(row["seeds"] for row in scored.values()).split()[0] if scored else NOTHING,
        records=len({key for card in found for key in card.cells["key"]}),
        columns=shown[1:],
        scratch=[lines["scratch"]] if "scratch" in lines and "scratch" not in scored else [],
        notes=table.notes,
        cards=found,
        controls=[card for card in found if card.control],
        defenses=[card for card in found if not card.control],
        heat_maps=_heat_maps(rows["attacks"], [card.name for card in found], called, legend),
        quality=[
            *layout.loss_tables(trials, called, legend),
            *([layout.image_table(images, called, legend)] if len(images) else []),
        ],
        costs=overhead.cost_tables(protection, half_costs, legend, {}),
        cost_figures=_drawings(
            ("Protecting", bars.protection(protection)),
            ("A tuned attacker's cost to half", bars.half_costs(half_costs)),
        ),
        made=[
            (gallery.title(made), made.seed, data_uri(made.generated.picture))
            for made in gallery.ordered(
                replace(made, defense=name)
                for name, (part, defense) in origin.items()
                for made in _made(part, defense)
            )
        ],
        picture=pictures[at["scenario"]][0] if at["scenario"] in pictures else None,
    )


def _anchor(*parts: str) -> str:
    """What a link leads to: the same as long as the parts are, whatever else is on the page."""
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-")[:40] for part in parts).lower()


def _anchors(element: str, defenses: Iterable[str]) -> dict[str, str]:
    """An anchor per defense of a place; those that would be one end in a hash of the label."""
    names = list(defenses)
    plain = {name: _anchor(element, name) for name in names}
    often = Counter(plain.values())
    return {
        name: f"{anchor}-{content_key({'defense': name})[:6]}" if often[anchor] > 1 else anchor
        for name, anchor in plain.items()
    }


def _made(part: Part, defense: str) -> list[Made]:
    return [made for made in part.made if made.defense == defense]


def _card(
    element: str,
    part: Part,
    defense: str,
    row: Row,
    all_rows: Rows,
    called: Attacks,
    subjects: Mapping[str, cards.Subject],
) -> SimpleNamespace:
    """A defense in one place: its row in the table of scores, and its details.

    It is called ``defense`` in ``part``, where it is from; in its row, and among all rows of the
    place, it has a name that is unique there.
    """
    rows = {
        kind: [each for each in own if each["defense"] == row["defense"]]
        for kind, own in all_rows.items()
    }
    cells = part.cells[part.cells["defense_label"] == defense]
    (made,) = rows["releases"]
    of_n = ", n = {}" if len(rows["curves"]) > 1 else ""
    curves: list[tuple[str, vega.Figure | None]] = []
    for curve in rows["curves"]:
        own, at = frame([{**curve, "defense": PROTECTED}]), of_n.format(curve["samples"])
        curves.append((f"What a tuned attacker reaches{at}", figures.envelopes(own, STYLES)))
        curves.append((f"Resistance by budget{at}", figures.resistance(own, STYLES)))
    sweeps: list[tuple[str, vega.Figure | None]] = []
    for found in rows["sweeps"]:
        same = ("samples", "family")
        beside = [
            each
            for each in all_rows["sweeps"]
            if each["control"] and not row["control"] and all(each[k] == found[k] for k in same)
        ]
        own = frame([{**found, "defense": PROTECTED}, *beside[-1:]])
        title = found["family"] + of_n.format(found["samples"])
        sweeps.append((title, figures.sweep(own, STYLES)))
    winners = rows["winners"]
    return SimpleNamespace(
        id=element,
        name=row["defense"],
        submission=part.submission,
        control=row["control"],
        row=row,
        cells=cells,
        made=made,
        subject=subjects.get(made["plugin"]),
        marks=_marks(row),
        spent=[(c.title, c.text(spent)) for spent in rows["protection"] for c in columns.SPENT],
        curves=_drawings(*curves),
        sweeps=_drawings(*sweeps),
        winners=layout.winner_table(winners, called, UNCHANGED) if winners else None,
        levels=[_levels(curve) for curve in rows["curves"]],
        makes=bool(_made(part, defense)),
    )


def _marks(row: Row) -> list[tuple[str, str]]:
    """Words that a reader of a row of scores must not miss, and what each means."""
    often = f"{row['rolled_back']} of {span([row['released_seeds']])}"
    found = {
        "no score": row["unscored"],
        "provisional": layout.WHY_PROVISIONAL if row["provisional"] else None,
        "rolled back": f"protection went back to its last good state on {often}"
        if row["rolled_back"]
        else None,
        **{
            status: f"some trials are {status}: they protect nothing"
            for status in row["status"].split()
            if status != "ok"
        },
    }
    return [(words, why) for words, why in found.items() if why]


def _drawings(*figures: tuple[str, vega.Figure | None]) -> list[Drawing]:
    """Those of titles and figures that there is something in."""
    return [(title, vega.on_page(figure)) for title, figure in figures if figure is not None]


def _levels(curve: Row) -> Table:
    """What the curves show, in numbers."""
    levels = {
        side: {
            steps: columns.number(mean, half_width, ".1f")
            for steps, mean, half_width in figures.in_steps(curve[side], 100)
        }
        for side in (SIDES[1:] if curve["control"] else SIDES)
    }
    if not curve["control"]:
        levels["resistance"] = {
            steps: columns.number(value, None, ".2f")
            for steps, value, _ in figures.in_steps(curve["resistance"])
        }
    budgets = sorted({steps for found in levels.values() for steps in found})
    return Table(
        title=f"n = {curve['samples']}: restricted {curve['utility']} of the envelopes in %, and "
        f"resistance, by budget in steps of {REFERENCE_BATCH} examples",
        columns=[
            HEAD,
            *(Column(key=str(steps), header=figures.short_count(steps)) for steps in budgets),
        ],
        body=[
            {"": name, **{str(steps): text for steps, text in found.items()}}
            for name, found in levels.items()
        ],
    )


def _heat_maps(
    rows: Sequence[Row], order: Sequence[str], called: Attacks, legend: Legend
) -> list[Table]:
    """One per n: what every attack reached against every defense; scratch last."""
    found = []
    for samples in dict.fromkeys(row["samples"] for row in rows):
        own = [row for row in rows if row["samples"] == samples]
        best = {row["defense"]: row for row in layout.envelopes(own)}
        title = f"n = {samples}, {span(row['seeds'] for row in best.values())}"
        listed = [best[name] for name in order if name in best]
        table = layout.cross(title, own, listed, called, legend, quiet={}, scratch_last=True)
        found.append(table)
    return found
