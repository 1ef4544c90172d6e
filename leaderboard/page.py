"""The page that people come to: submissions as a static site, derived from their records alone.

Names, titles and links are data of strangers. They reach the page through jinja2 with escaping on,
a link only if it is one of the web, and figures through `charts`, which escapes too. Of pictures
only the pixels do, encoded anew.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from sophon_bench import metrics
from sophon_bench.files import write_atomic
from sophon_bench.leaderboard import analysis_seam as analysis
from sophon_bench.leaderboard import (
    attack_tables,
    cards,
    charts,
    columns,
    gallery,
    overhead,
    score_tables,
    tables,
)
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
from sophon_bench.leaderboard.names import Attacks, Legend, is_envelope
from sophon_bench.leaderboard.plots import in_steps, short_count
from sophon_bench.leaderboard.render import Table
from sophon_bench.leaderboard.tables import Gaps, Key
from sophon_bench.pictures import data_uri
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.records import Cell

if TYPE_CHECKING:
    from pandas import DataFrame

TEMPLATES = Path(__file__).parent / "site"
ASSETS = ("style.css", "page.js")
LIBRARY = "plotly.min.js"

Label = Literal["self-reported", "spot-checked", "reproduced"]


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

    cells: Sequence[Cell]
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


def write(
    submissions: Sequence[Submission],
    out: Path,
    *,
    subjects: Iterable[cards.Subject] = (),
    sheets: Mapping[str, bytes] | None = None,
    frozen: Gaps = None,
) -> Path:
    """Write the site into the directory ``out``, which is made; returns its ``index.html``.

    Args:
        submissions: At least one; each is scored against its own controls.
        out: Files of the same names are replaced.
        subjects: What the code says of defenses; those of other names are left out.
        sheets: Pictures of scenarios by label, as PNG.
        frozen: Which budgets and n count, as for `metrics.scores`.

    Raises:
        OSError: ``out`` cannot be made or written.
        PictureError: A record has a picture that is none; nothing is written.
    """
    files = site(submissions, subjects=subjects, sheets=sheets, frozen=frozen)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(out.absolute() / name, content)
    return out / "index.html"


def site(
    submissions: Sequence[Submission],
    *,
    subjects: Iterable[cards.Subject] = (),
    sheets: Mapping[str, bytes] | None = None,
    frozen: Gaps = None,
) -> dict[str, bytes]:
    """The site's files by name, the page last: the same bytes for the same records.

    Arguments are those of `write`.
    """
    known = {subject.name: subject for subject in subjects}
    figures = Figures()
    pictures = {
        scenario: (f"scenario-{number}.png", content)
        for number, (scenario, content) in enumerate(sorted((sheets or {}).items()), 1)
    }
    sections = [
        _section(number, key, parts, known, figures, pictures)
        for number, (key, parts) in enumerate(_by_place(submissions, frozen), 1)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    utilities = sorted({section.utility for section in sections})
    html = environment.get_template("index.html").render(
        sections=sections,
        utilities=" or ".join(utilities),
        plurals=" or ".join(map(score_tables.plural, utilities)),
        meanings=[
            (name, attack_tables.MEANINGS[name])
            for name in utilities
            if name in attack_tables.MEANINGS
        ],
        labels=sorted({s.label for s in submissions if s.label is not None}),
        figures={"figures": figures.found, "themes": charts.themes()},
        versions=cards.distinct(
            cell.provenance.version for submission in submissions for cell in submission.cells
        ),
    )
    return {
        **dict(pictures.values()),
        **{name: (TEMPLATES / name).read_bytes() for name in ASSETS},
        LIBRARY: charts.library(),
        "index.html": html.encode(),
    }


KINDS: Mapping[str, Callable[[Any, Gaps], DataFrame]] = {
    "releases": lambda places, _: analysis.releases(places),
    "scores": analysis.scores,
    "attacks": lambda places, _: analysis.trials(places),
    "winners": lambda places, _: analysis.winners(places),
    "curves": analysis.curves,
    "sweeps": lambda places, _: analysis.sweeps(places),
    "protection": lambda places, _: analysis.protection(places),
    "half_costs": analysis.half_costs,
    "images": lambda places, _: analysis.images(places),
}
"""Frames that the page shows, by name."""

UNCHANGED = Legend({}, {})
"""Calls defenses by their labels: what heads a card has room for them."""

Rows = Mapping[str, Sequence[Row]]
"""Rows by their kind."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one submission says in one place.

    Args:
        submission: Whose it is.
        rows: Its rows there.
        cells: Its records there, by defense.
        made: Images that models made there, of one seed.
    """

    submission: Submission
    rows: Rows
    cells: Mapping[str, Sequence[Cell]]
    made: Sequence[metrics.Made]

    @property
    def controls(self) -> set[str]:
        """Names of the undefended model, and of pre-training, which stands for it."""
        made = self.rows["releases"]
        return {metrics.PRETRAINING, *(row["defense"] for row in made if row["control"])}

    @property
    def control_seeds(self) -> int:
        """Seeds on which the undefended model was attacked."""
        return max((row["seeds"] for row in self.rows["scores"] if row["control"]), default=-1)


def _by_place(submissions: Iterable[Submission], frozen: Gaps) -> list[tuple[Key, list[Part]]]:
    found: dict[Key, list[Part]] = {}
    for submission in submissions:
        for key, part in _parts(submission, frozen):
            found.setdefault(key, []).append(part)
    return sorted(found.items(), key=lambda pair: tuple(map(str, pair[0])))


def _parts(submission: Submission, frozen: Gaps) -> Iterator[tuple[Key, Part]]:
    places = metrics.places(submission.cells)
    rows = {kind: tables.by_place(find(places, frozen)) for kind, find in KINDS.items()}
    for key, sides in zip(rows["releases"], places, strict=True):
        cells = {
            defense: [cell for here in own.values() for cell in here]
            for defense, own in sides.models.items()
        }
        own_rows = {kind: records(known.get(key, frame([]))) for kind, known in rows.items()}
        made = gallery.of_one_seed(metrics.makers(metrics.Places([sides])))
        yield key, Part(submission=submission, rows=own_rows, cells=cells, made=made)


class Figures:
    """Figures of a page by their keys."""

    def __init__(self) -> None:
        self.found: dict[str, charts.Figure] = {}

    def add(self, title: str, figure: charts.Figure | None) -> list[dict[str, str]]:
        """What a template needs to place a figure; nothing if there is none."""
        if figure is None:
            return []
        key = f"f{len(self.found) + 1}"
        self.found[key] = figure
        return [{"key": key, "title": title}]


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
    curves: Sequence[Mapping[str, str]]
    sweeps: Sequence[Mapping[str, str]]
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
    cost_figures: Sequence[Mapping[str, str]]
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


def _section(
    number: int,
    key: Key,
    parts: Sequence[Part],
    subjects: Mapping[str, cards.Subject],
    figures: Figures,
    pictures: Mapping[str, tuple[str, bytes]],
) -> Section:
    """One place: the defenses of all parts, and the controls of the one that has most seeds."""
    home = max(parts, key=lambda part: part.control_seeds)
    names = _names(parts, home)
    origin = {name: (parts[i], defense) for (i, defense), name in names.items()}
    merged = _merged(parts, names)
    rows = {**merged, "scores": metrics.ranked(merged["scores"])}
    trials, scores, images = (frame(rows[kind]) for kind in ("attacks", "scores", "images"))
    called = Attacks(trials, {})
    legend = Legend.of([scores, trials], {}, "defense")
    table = score_tables.score_table(scores, UNCHANGED)
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
            _of(name, rows),
            scored[name],
            lines[name],
            called,
            subjects,
            figures,
        )
        for i, name in enumerate((name for name in lines if name in scored), 1)
    ]
    made_of = {cell.key for part, defense in origin.values() for cell in part.cells[defense]}
    controls = [row for row in rows["scores"] if row["control"]]
    return Section(
        id=f"place-{number}",
        scenario=at["scenario"],
        backbone=at["backbone"],
        utility=rows["releases"][0]["utility"],
        heading=tables.heading(key, trials),
        tiles=[
            *_bars(controls),
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
        costs=overhead.cost_tables(
            frame(rows["protection"]), frame(rows["half_costs"]), legend, {}
        ),
        cost_figures=[
            *figures.add("Protecting", charts.protection(rows["protection"])),
            *figures.add("A tuned attacker's cost to half", charts.half_costs(rows["half_costs"])),
        ],
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


def _bars(controls: Sequence[Row]) -> list[tuple[str, str]]:
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


def _names(parts: Sequence[Part], home: Part) -> dict[tuple[int, str], str]:
    """Unique names of what is shown, by number of the part and its own name there."""
    shown = [
        (number, defense)
        for number, part in enumerate(parts)
        for defense in part.cells
        if part is home or defense not in part.controls
    ]
    often = Counter(defense for _, defense in shown)
    found: dict[tuple[int, str], str] = {}
    for number, defense in shown:
        whose = parts[number].submission.name or f"records {number + 1}"
        name = f"{defense} ({whose})" if often[defense] > 1 else defense
        taken = name in found.values()
        found[number, defense] = f"{name}, {number + 1}" if taken else name
    return found


def _merged(parts: Sequence[Part], names: Mapping[tuple[int, str], str]) -> Rows:
    """Rows of what is shown, under the names there; pre-training's of the part with controls."""
    home = next((n for n, d in names if d in parts[n].controls), 0)
    known = {**names, (home, metrics.PRETRAINING): metrics.PRETRAINING}
    return {
        kind: [
            {**row, "defense": known[number, row["defense"]]}
            for number, part in enumerate(parts)
            for row in part.rows[kind]
            if (number, row["defense"]) in known
        ]
        for kind in KINDS
    }


def _of(name: str, rows: Rows) -> Rows:
    """A defense's own rows, and the undefended model's sweeps, to compare."""
    found = {kind: [row for row in own if row["defense"] == name] for kind, own in rows.items()}
    return {**found, "usual": [row for row in rows["sweeps"] if row["control"]]}


def _card(
    element: str,
    part: Part,
    defense: str,
    rows: Rows,
    row: Row,
    line: Mapping[str, str],
    called: Attacks,
    subjects: Mapping[str, cards.Subject],
    figures: Figures,
) -> Card:
    (made,) = rows["releases"]
    cells = part.cells[defense]
    several = len(rows["curves"]) > 1
    curves = []
    for curve in rows["curves"]:
        at = f", n = {curve['samples']}" if several else ""
        curves += figures.add(f"What a tuned attacker reaches{at}", charts.envelopes(curve))
        curves += figures.add(f"Resistance by budget{at}", charts.resistance(curve))
    usual = {(found["samples"], found["family"]): found for found in rows["usual"]}
    sweeps = []
    for found in rows["sweeps"]:
        at = f", n = {found['samples']}" if several else ""
        other = usual.get((found["samples"], found["family"]))
        sweeps += figures.add(f"{found['family']}{at}", charts.sweep(found, other))
    return Card(
        id=element,
        name=row["defense"],
        submission=part.submission,
        control=row["control"],
        row=row,
        line=line,
        marks=_marks(row),
        fidelity=_fidelity(subjects.get(made["plugin"])),
        facts=_facts(cells, made, subjects.get(made["plugin"])),
        spent=[
            (column.title, column.text(found))
            for found in rows["protection"]
            for column in columns.SPENT
        ],
        trouble=_trouble(cells),
        command=reproduction(cells),
        curves=curves,
        sweeps=sweeps,
        winners=attack_tables.winner_table(frame(rows["winners"]), called, UNCHANGED)
        if rows["winners"]
        else None,
        levels=[_levels(curve) for curve in rows["curves"]],
        makes=any(made.defense == defense for made in part.made),
    )


def _picture(made: metrics.Made) -> Picture:
    return Picture(
        title=gallery.title(made),
        alt=f"Images that a model made from noise: {gallery.title(made)}, seed {made.seed}",
        address=data_uri(made.generated.picture),
    )


def _marks(row: Row) -> list[tuple[str, str]]:
    found = []
    if row["unscored"]:
        found.append(("no score", row["unscored"]))
    if row["provisional"]:
        found.append(("provisional", score_tables.WHY_PROVISIONAL))
    if row["rolled_back"]:
        often = f"{row['rolled_back']} of {span([row['released_seeds']])}"
        found.append(("rolled back", f"protection went back to its last good state on {often}"))
    found += [
        (status, f"some trials are {status}: they protect nothing")
        for status in row["status"].split()
        if status != "ok"
    ]
    return found


def _fidelity(subject: cards.Subject | None) -> list[tuple[str, str]]:
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


def _facts(
    cells: Sequence[Cell], made: Row, subject: cards.Subject | None
) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    statuses = Counter(cell.status for cell in cells)
    other = (
        ", another version than the description is of"
        if subject is not None and subject.source != made["source"]
        else ""
    )
    ended = "; ".join(f"{words} ({count} of {made['seeds']})" for words, count in made["ended"])
    return [
        ("Made with", "; ".join(sorted({cards.made_on(cell) for cell in cells}))),
        ("Finished", cards.days(cell.provenance.finished[:10] for cell in cells)),
        ("Seeds", cards.distinct(cell.seed for cell in cells)),
        ("Records", ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))),
        ("Suite", made["suite"] or "none: single attacks"),
        (
            "Protocol, schema",
            f"{cards.distinct(cell.protocol for cell in cells)}, "
            f"{cards.distinct(cell.schema_version for cell in cells)}",
        ),
        ("Data", cells[0].scenario.revision),
        (
            "Source",
            f"{made['plugin']} {made['source'][:12]} of {cells[0].defense.distribution}{other}",
        ),
        ("Roll-backs and failures of protecting", ended or "none"),
    ]


def _trouble(cells: Iterable[Cell]) -> list[str]:
    """Trials that did not run, or not to their end, and why."""
    votes = Counter(
        f"{cell.attack.label}, n = {cell.samples}: {cell.status}"
        + (f", {cell.reason}" if cell.reason else "")
        for cell in cells
        if cell.status != "ok"
    )
    return [
        words if count == 1 else f"{words} ({count} records)"
        for words, count in sorted(votes.items())
    ]


def _levels(curve: Row) -> Table:
    """What the curves show, in numbers."""
    sides = ("undefended", "scratch") if curve["control"] else SIDES
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


SIDES = ("protected", "undefended", "scratch")


def reproduction(cells: Sequence[Cell]) -> str:
    """The command that makes records of one place again, those of the undefended model included.

    What a search added is not named: it follows from the suite. Plugins of a single file are: by
    its name, which is all that a record knows of where it was. So is an audited checkpoint.
    """
    first = cells[0]
    asked = [c for c in cells if not c.derived and c.stretch == 1 and c.role == "restricted"]
    listed = [name for c in asked if c.suites or not c.attack.control
              for name in [suite.split()[0] for suite in c.suites] or [c.attack.label]]  # fmt: skip
    audited = first.defense.name == f"checkpoint-{first.defense.source[:12]}"
    made = ["audit", "MODEL.safetensors"] if audited else ["run"]
    defended = sorted({c.defense.label for c in cells if not c.defense.control})
    distributions = {plugin.distribution for c in cells for plugin in (c.defense, c.attack)}
    options = {
        "--scenario": [first.scenario.label],
        "--backbone": [first.backbone],
        "--sha256": [first.defense.source] if audited else [],
        "--prefix": [first.defense.parameters["prefix"]]
        if audited and "prefix" in first.defense.parameters
        else [],
        "--defense": [] if audited else defended or [first.defense.label],
        "--attack": sorted(set(listed)),
        "--samples": [",".join(map(str, sorted({cell.samples for cell in asked})))],
        "--seeds": [_ranges({cell.seed for cell in cells})],
        "--steps": [f"{first.budget / REFERENCE_BATCH:g}"],
        "--precision": [first.precision],
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


def _heat_maps(
    rows: Sequence[Row], order: Sequence[str], called: Attacks, legend: Legend
) -> list[HeatMap]:
    """One per n: what every attack reached against every defense."""
    found = []
    for samples in dict.fromkeys(row["samples"] for row in rows):
        lines: dict[tuple[str, int], dict[str, Row]] = {}
        for row in rows:
            if row["samples"] == samples:
                lines.setdefault((row["attack"], row["stretch"]), {})[row["defense"]] = row
        seeds = {name: row["seeds"] for name, row in lines[metrics.ENVELOPE, 1].items()}
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


def _order(
    lines: Mapping[tuple[str, int], Mapping[str, Row]], called: Attacks, key: tuple[str, int]
) -> Key:
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
