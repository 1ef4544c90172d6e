"""What the page shows, section by section, ready for its template: texts, tables and figures."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.analysis.images import Made
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import (
    attack_tables,
    bars,
    cards,
    columns,
    figures,
    gallery,
    overhead,
    score_tables,
    tables,
    vega,
)
from sophon_bench.leaderboard.attack_tables import Line
from sophon_bench.leaderboard.columns import (
    NOTHING,
    Column,
    Row,
    frame,
    percent,
    records,
    shown_in,
    span,
)
from sophon_bench.leaderboard.figures import in_steps, short_count
from sophon_bench.leaderboard.names import Attacks, Legend, is_envelope
from sophon_bench.leaderboard.page import data, provenance
from sophon_bench.leaderboard.page.data import Part, Rows, Submission
from sophon_bench.leaderboard.render import Table
from sophon_bench.leaderboard.tables import Key
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results.pictures import data_uri

PROTECTED = "protected"
SIDES = (PROTECTED, vega.UNDEFENDED, vega.SCRATCH)
"""Columns of `analysis.curves`, and what lines are called: the card says which defense it is."""

STYLES = vega.styles([PROTECTED])

UNCHANGED = Legend({}, {})
"""Calls defenses by their labels: what heads a card has room for them."""

NOT_ATTACKED = "no scores: only fresh weights were trained here"


@dataclass(frozen=True)
class Drawing:
    """A figure under its caption."""

    title: str
    figure: vega.Figure


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Images that a model made.

    Args:
        title: Which model's, and after what.
        alt: The same for who sees no pictures.
        address: A ``data:`` URI.
    """

    title: str
    alt: str
    address: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A defense in one place: its row in the table of scores, and its details.

    Args:
        id: Of its element.
        name: Unique in its place.
        submission: Whose it is.
        control: Whether it is pinned.
        row: Its row of scores.
        line: Texts of that by the key of the column.
        marks: Words that a reader must not miss, and what each means.
        fidelity: Terms and texts of what the code says of it.
        facts: Those of where its numbers come from.
        spent: Those of what protecting took.
        trouble: Trials that did not run, or not to their end, and why.
        command: Makes its records again.
        curves: Figures by budget.
        sweeps: Figures by learning rate.
        winners: Which attack won, by budget.
        levels: What the curves show, in numbers.
        makes: Whether there are images that its model makes from noise.
    """

    id: str
    name: str
    submission: Submission
    control: bool
    row: Row
    line: Mapping[str, str]
    marks: Sequence[tuple[str, str]]
    fidelity: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    spent: Sequence[tuple[str, str]]
    trouble: Sequence[str]
    command: str
    curves: Sequence[Drawing]
    sweeps: Sequence[Drawing]
    winners: Table | None
    levels: Sequence[Table]
    makes: bool

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the score's interval in [0, 100], if there is a score."""
        score, half = self.row["score"], self.row["score_half_width"]
        if score is None:
            return None
        low, high = max(0.0, score - (half or 0)), min(100.0, score + (half or 0))
        return round(low, 2), round(high, 2)


@dataclass(frozen=True, kw_only=True)
class HeatCell:
    """What an attack reached against a defense: in words, and as a fraction if it reached any."""

    text: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Attacks (lines) by defenses (columns); ``envelopes`` are lines too."""

    title: str
    defenses: Sequence[str]
    envelopes: Sequence[tuple[str, Sequence[HeatCell]]]
    attacks: Sequence[tuple[str, Sequence[HeatCell]]]
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Everything about one scenario, backbone and budget."""

    id: str
    scenario: str
    backbone: str
    utility: str
    heading: str
    tiles: Sequence[tuple[str, str]]
    columns: Sequence[Column]
    scratch: Sequence[Mapping[str, str]]
    notes: Sequence[str]
    cards: Sequence[Card]
    heat_maps: Sequence[HeatMap]
    quality: Sequence[Table]
    costs: Sequence[Table]
    cost_figures: Sequence[Drawing]
    made: Sequence[Picture]
    picture: str | None = field(default=None)

    @property
    def controls(self) -> list[Card]:
        """Pinned above all sorting."""
        return [card for card in self.cards if card.control]

    @property
    def defenses(self) -> list[Card]:
        """What is judged, the best first."""
        return [card for card in self.cards if not card.control]


def section(
    number: int,
    key: Key,
    parts: Sequence[Part],
    subjects: Mapping[str, cards.Subject],
    pictures: Mapping[str, tuple[str, bytes]],
) -> Section:
    """One place: the defenses of all parts, and the controls of the one that has most seeds."""
    home = max(parts, key=lambda part: part.control_seeds)
    names = data.names(parts, home)
    origin = {name: (parts[i], defense) for (i, defense), name in names.items()}
    merged = data.merged(parts, names)
    trials, images = (frame(merged[kind]) for kind in ("attacks", "images"))
    scores = frame(merged["scores"])
    table = Table(title="", columns=columns.SCORES, body=scores, notes=[NOT_ATTACKED])
    if len(scores):
        scores = analysis.ranked(scores)
        table = score_tables.score_table(scores, UNCHANGED)
    rows = {**merged, "scores": records(scores)}
    called = Attacks(trials, {})
    legend = Legend.of([scores, trials], {}, "defense")
    shown = shown_in("page", table.columns)
    at = dict(zip(tables.WHERE, key, strict=True))
    scored = {row["defense"]: row for row in rows["scores"]}
    lines = {
        row["defense"]: {column.key: column.text(row) for column in shown}
        for row in [*records(table.quiet), *records(table.body)]
    }
    found = [
        _card(
            f"place-{number}-defense-{i}",
            *origin[name],
            data.of_defense(name, rows),
            scored[name],
            lines[name],
            called,
            subjects,
        )
        for i, name in enumerate((name for name in lines if name in scored), 1)
    ]
    protection, half_costs = (frame(rows[kind]) for kind in ("protection", "half_costs"))
    made_of = {cell.key for part, defense in origin.values() for cell in part.cells[defense].cells}
    controls = [row for row in rows["scores"] if row["control"]]
    return Section(
        id=f"place-{number}",
        scenario=at["scenario"],
        backbone=at["backbone"],
        utility=rows["releases"][0]["utility"],
        heading=tables.heading(key, trials),
        tiles=[
            *_controls(controls),
            ("defenses", str(sum(not card.control for card in found))),
            ("seeds", span(row["seeds"] for row in rows["scores"]).split()[0])
            if rows["scores"]
            else ("seeds", NOTHING),
            ("records", str(len(made_of))),
        ],
        columns=shown[1:],
        scratch=[lines["scratch"]] if "scratch" in lines and "scratch" not in scored else [],
        notes=table.notes,
        cards=found,
        heat_maps=_heat_maps(rows["attacks"], [card.name for card in found], called, legend),
        quality=[
            *attack_tables.loss_tables(trials, called, legend),
            *([attack_tables.image_table(images, called, legend)] if len(images) else []),
        ],
        costs=overhead.cost_tables(protection, half_costs, legend, {}),
        cost_figures=_drawings(
            ("Protecting", bars.protection(protection)),
            ("A tuned attacker's cost to half", bars.half_costs(half_costs)),
        ),
        made=[
            _picture(made)
            for made in gallery.ordered(
                replace(made, defense=name)
                for name, (part, defense) in origin.items()
                for made in part.made
                if made.defense == defense
            )
        ],
        picture=pictures[at["scenario"]][0] if at["scenario"] in pictures else None,
    )


def _controls(controls: Sequence[Row]) -> list[tuple[str, str]]:
    """What a tuned attacker reaches without a defense, and without pre-training."""
    return [
        (words, f"{percent(row[key])} %")
        for row in controls[:1]
        for words, key in (
            ("undefended, tuned attacker", "undefended_after"),
            ("from scratch", "scratch_after"),
        )
        if row[key] is not None
    ]


def _card(
    element: str,
    part: Part,
    defense: str,
    rows: Rows,
    row: Row,
    line: Mapping[str, str],
    called: Attacks,
    subjects: Mapping[str, cards.Subject],
) -> Card:
    (made,) = rows["releases"]
    cells = part.cells[defense]
    subject = subjects.get(made["plugin"])
    curves: list[tuple[str, vega.Figure | None]] = []
    sweeps: list[tuple[str, vega.Figure | None]] = []
    of_n = ", n = {}" if len(rows["curves"]) > 1 else ""
    for curve in rows["curves"]:
        own, at = frame([{**curve, "defense": PROTECTED}]), of_n.format(curve["samples"])
        curves.append((f"What a tuned attacker reaches{at}", figures.envelopes(own, STYLES)))
        curves.append((f"Resistance by budget{at}", figures.resistance(own, STYLES)))
    usual = {(row["samples"], row["family"]): [row] for row in rows["usual"]}
    for found in rows["sweeps"]:
        beside = usual.get((found["samples"], found["family"]), [])
        own = frame([{**found, "defense": PROTECTED}, *(beside if not found["control"] else [])])
        title = found["family"] + of_n.format(found["samples"])
        sweeps.append((title, figures.sweep(own, STYLES)))
    return Card(
        id=element,
        name=row["defense"],
        submission=part.submission,
        control=row["control"],
        row=row,
        line=line,
        marks=provenance.marks(row),
        fidelity=provenance.fidelity(subject),
        facts=provenance.facts(cells, made, subject),
        spent=[
            (column.title, column.text(found))
            for found in rows["protection"]
            for column in columns.SPENT
        ],
        trouble=provenance.trouble(cells),
        command=provenance.reproduction(cells),
        curves=_drawings(*curves),
        sweeps=_drawings(*sweeps),
        winners=attack_tables.winner_table(frame(rows["winners"]), called, UNCHANGED)
        if rows["winners"]
        else None,
        levels=[_levels(curve) for curve in rows["curves"]],
        makes=any(made.defense == defense for made in part.made),
    )


def _drawings(*figures: tuple[str, vega.Figure | None]) -> list[Drawing]:
    """Those of titles and figures that there is something in."""
    return [Drawing(title, vega.on_page(figure)) for title, figure in figures if figure is not None]


def _picture(made: Made) -> Picture:
    return Picture(
        title=gallery.title(made),
        alt=f"Images that a model made from noise: {gallery.title(made)}, seed {made.seed}",
        address=data_uri(made.generated.picture),
    )


def _levels(curve: Row) -> Table:
    """What the curves show, in numbers."""
    sides = SIDES[1:] if curve["control"] else SIDES
    levels = {
        side: {
            steps: columns.number(mean, half_width, ".1f")
            for steps, mean, half_width in in_steps(curve[side], 100)
        }
        for side in sides
    }
    if not curve["control"]:
        levels["resistance"] = {
            steps: columns.number(value, None, ".2f")
            for steps, value, _ in in_steps(curve["resistance"])
        }
    budgets = sorted({steps for found in levels.values() for steps in found})
    return Table(
        title=f"n = {curve['samples']}: restricted {curve['utility']} of the envelopes in %, and "
        f"resistance, by budget in steps of {REFERENCE_BATCH} examples",
        columns=[
            attack_tables.HEAD,
            *(Column(key=str(steps), header=short_count(steps)) for steps in budgets),
        ],
        body=frame(
            {"": name, **{str(steps): text for steps, text in found.items()}}
            for name, found in levels.items()
        ),
    )


def _heat_maps(
    rows: Sequence[Row], order: Sequence[str], called: Attacks, legend: Legend
) -> list[HeatMap]:
    """One per n: what every attack reached against every defense."""
    found = []
    for samples in dict.fromkeys(row["samples"] for row in rows):
        lines: dict[Line, dict[str, Row]] = {}
        for row in rows:
            if row["samples"] == samples:
                lines.setdefault((row["attack"], row["stretch"]), {})[row["defense"]] = row
        seeds = {name: row["seeds"] for name, row in lines[ENVELOPE, 1].items()}
        names = [name for name in order if name in seeds]
        tried = {key: line for key, line in lines.items() if not is_envelope(_first(line))}
        order_of = functools.partial(_order, tried, called)
        found.append(
            HeatMap(
                title=f"n = {samples}, {span(seeds.values())}",
                defenses=[legend(name) for name in names],
                envelopes=[
                    (f"tuned envelope{attack_tables.longer(key)}", _heat(lines[key], names, seeds))
                    for key in sorted(lines.keys() - tried.keys(), key=lambda key: key[1])
                ],
                attacks=[
                    (
                        called.name(key[0]) + attack_tables.longer(key),
                        _heat(tried[key], names, seeds),
                    )
                    for key in sorted(tried, key=order_of)
                ],
                notes=[*legend.notes(names), *called.notes(attack for attack, _ in lines)],
            )
        )
    return found


def _first(line: Mapping[str, Row]) -> Row:
    return next(iter(line.values()))


def _order(lines: Mapping[Line, Mapping[str, Row]], called: Attacks, key: Line) -> Key:
    """Fresh weights last."""
    return (_first(lines[key])["control"], called.order(key[0]), key[1])


def _heat(
    found: Mapping[str, Row], names: Iterable[str], seeds: Mapping[str, int]
) -> list[HeatCell]:
    rows = [found.get(name) for name in names]
    return [
        HeatCell(
            text=attack_tables.attack_cell(row, seeds[name]),
            value=None if row is None else row["restricted_after"],
        )
        for name, row in zip(names, rows, strict=True)
    ]
