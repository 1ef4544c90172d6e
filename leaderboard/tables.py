"""What records say, as tables for the console, Markdown, CSV and JSON."""

from __future__ import annotations

import io
import itertools
import json
import math
import multiprocessing
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from csv import reader, writer
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import click
import msgspec

from sophon_bench import metrics
from sophon_bench.metrics import ENVELOPE, PLACE
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.records import SCHEMA, Cell, digest
from sophon_bench.selectors import format_selector
from sophon_bench.store import Store

Row = Mapping[str, Any]
Key = tuple[Any, ...]

NOTHING = "·"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
PROVISIONAL = "†"
WHY_PROVISIONAL = "fewer than five seeds, or no frozen list of budgets and n that count"
ROLLED_BACK = "‡"
MARGIN = 2
"""Width that the console puts between columns."""

WHERE = tuple(key for key in PLACE if key != "samples")
"""What two rows must have in common to stand under one heading."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a table is made of: flat rows, derived from records and never stored.

    Args:
        rows: Restricted utility by attack and defense, envelopes included (`metrics.rows`).
        scores: One row per defense (`metrics.scores`).
        winners: Which attack the envelope picked, by defense, n and budget (`metrics.winners`).
        images: How good the images are that models make of noise (`metrics.images`).
    """

    rows: Sequence[Row]
    scores: Sequence[Row]
    winners: Sequence[Row]
    images: Sequence[Row] = ()


def report(
    cells: Sequence[Cell], frozen: metrics.Frozen | Sequence[metrics.Frozen] | None = None
) -> Report:
    """What ``cells`` say; with ``frozen``, scores count the budgets and n that it lists."""
    places = metrics.places(cells)
    return Report(
        rows=metrics.rows(places),
        scores=metrics.scores(places, frozen),
        winners=metrics.winners(places),
        images=metrics.images(places),
    )


MANY = 20_000
"""Records from which on several processes take less time than one."""


def report_of(
    store: Store, frozen: metrics.Frozen | Sequence[metrics.Frozen] | None, processes: int
) -> Report:
    """`report` of all cells in a store; of many, scenarios and backbones are shared out."""
    alone = "fork" not in multiprocessing.get_all_start_methods() or store.count() < MANY
    if processes == 1 or alone:
        return report(list(store.cells()), frozen)
    context = multiprocessing.get_context("fork")
    with context.Pool(processes) as pool:
        shares = [(store, frozen, part, processes) for part in range(processes)]
        found = pool.starmap(_part, shares)
    return Report(
        rows=_merged(part.rows for part in found),
        scores=_merged(part.scores for part in found),
        winners=_merged(part.winners for part in found),
        images=_merged(part.images for part in found),
    )


def _part(
    store: Store,
    frozen: metrics.Frozen | Sequence[metrics.Frozen] | None,
    part: int,
    parts: int,
) -> Report:
    return report(list(store.cells(part, parts)), frozen)


def _merged(parts: Iterable[Sequence[Row]]) -> list[Row]:
    """Rows in the order of their places, which is the same in every part."""
    rows = itertools.chain.from_iterable(parts)
    return sorted(rows, key=lambda row: tuple(str(row[key]) for key in PLACES))


def united(reports: Iterable[Report]) -> Report:
    """Several reports as one: a control that more than one has is told once, and ranks are of all.

    Of reports that tell the same defense or control of a place, the first tells it.
    """
    rows: list[Row] = []
    scores: list[Row] = []
    winners: list[Row] = []
    images: list[Row] = []
    told: set[tuple[Key, str]] = set()
    for report in reports:
        new = {_teller(row) for row in [*report.rows, *report.scores]} - told
        for found, more in (
            (rows, report.rows), (scores, report.scores), (winners, report.winners),
            (images, report.images),
        ):  # fmt: skip
            found += [row for row in more if _teller(row) in new]
        told |= new
    return Report(rows=rows, scores=metrics.ranked(scores), winners=winners, images=images)


def renamed(report: Report, names: Mapping[str, str]) -> Report:
    """The report with other names for some defenses."""

    def each(rows: Sequence[Row]) -> list[Row]:
        return [{**row, "defense": names.get(row["defense"], row["defense"])} for row in rows]

    return Report(
        rows=each(report.rows),
        scores=each(report.scores),
        winners=each(report.winners),
        images=each(report.images),
    )


def _teller(row: Row) -> tuple[Key, str]:
    return tuple(str(row[key]) for key in PLACES), row["defense"]


PLACES = ("scenario", "revision", "backbone", "precision", "budget", "protocol")
"""What rows are grouped by first, in order (`metrics.place`)."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Lines of text cells; ``quiet`` lines come first, ``loud`` ones last."""

    title: str
    columns: list[str]
    quiet: list[list[str]] = field(default_factory=list)
    body: list[list[str]]
    loud: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The tables of one scenario, backbone and budget."""

    title: str
    tables: list[Table]


def places(report: Report) -> list[Place]:
    """Per place: the scores, who won, and one matrix per sample count.

    Where utility follows from a loss, that in matrices of its own; and where models make images,
    how good they are.
    """
    kinds = [by_place(r) for r in (report.rows, report.scores, report.winners, report.images)]
    return [
        _place(where, *(found.get(where, []) for found in kinds))
        for where in dict.fromkeys([*kinds[0], *kinds[1]])
    ]


def by_place(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """Rows by their values of `WHERE`."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in WHERE), []).append(row)
    return found


def _place(
    where: Key,
    rows: Sequence[Row],
    scores: Sequence[Row],
    winners: Sequence[Row],
    images: Sequence[Row],
) -> Place:
    trials = Trials(rows)
    told = {row["defense"]: set(row["flags"]) for row in scores}
    matrices = [
        _matrix(samples, [row for row in rows if row["samples"] == samples], trials, told)
        for samples in dict.fromkeys(row["samples"] for row in rows)
    ]
    tables = [score_table(scores)] if scores else []
    tables += [winner_table(winners, trials)] if winners else []
    tables += [*matrices, *loss_tables(rows, trials)]
    tables += [image_table(images, trials)] if images else []
    return Place(title=heading(where, rows), tables=tables)


def heading(where: Key, rows: Iterable[Row]) -> str:
    """The place with these values of `WHERE`, and the suites that its rows are of."""
    at = dict(zip(WHERE, where, strict=True))
    suites = sorted({row["suite"] for row in rows if row["suite"]})
    return ", ".join(
        [
            f"{at['scenario']} (data {at['revision'][:8]})",
            at["backbone"],
            at["precision"],
            f"protocol {at['protocol']}",
            f"{at['budget'] / REFERENCE_BATCH:g} steps",
            *suites,
        ]
    )


def plural(utility: str) -> str:
    """Several of a utility: ``accuracies``."""
    return f"{utility.removesuffix('y')}ies" if utility.endswith("y") else f"{utility}s"


MEANINGS = {
    "denoising skill": "1 - MSE / MSE₀ of the noise that a model predicts in noisy images, where "
    "MSE₀ is that of the best guess by the mean and the variance of pixels alone: at most 1, and 0 "
    "for that guess."
}
"""What utilities are that need words."""


SCORE_COLUMNS = (
    "score", "resistance", "worst n", "intact", "trainable", "B50 (search)",
    "original (was)", "restricted", "cost", "flags",
)  # fmt: skip


def score_table(scores: Sequence[Row]) -> Table:
    """The scores of one place, controls first, with what has to be said about them.

    Two ranked defenses or more have a column of ranks.
    """
    ordered = sorted(scores, key=_rank)
    reasons = list(dict.fromkeys(row["unscored"] for row in ordered if row["unscored"]))
    controls = [row for row in ordered if row["control"]]
    others = [row for row in ordered if not row["control"]]
    quiet = [_score_line(row, reasons) for row in controls]
    fresh = {row["scratch_after"]: None for row in controls if row["scratch_after"] is not None}
    quiet += [["scratch", *_only("restricted", percent(value))] for value in fresh]
    notes = [
        *_score_notes(ordered, reasons),
        *(
            f"{ROLLED_BACK} {row['defense']}: protection was rolled back on "
            f"{row['rolled_back']} of {span([row['released_seeds']])}"
            for row in ordered
            if row["rolled_back"]
        ),
    ]
    known = {(row["undefended_after"], row["scratch_after"]) for row in controls}
    against: dict[tuple[Any, Any], list[str]] = {}
    for row in others:
        reached = row["undefended_after"], row["scratch_after"]
        if reached not in known:
            against.setdefault(reached, []).append(row["defense"])
    notes += [
        f"{', '.join(names)}: on {'its' if len(names) == 1 else 'their'} seeds the undefended "
        f"model reaches {percent(undefended)}, scratch {percent(scratch)}"
        for (undefended, scratch), names in against.items()
    ]
    notes += _flag_notes(ordered)
    columns, body = ["", *SCORE_COLUMNS], [_score_line(row, reasons) for row in others]
    if sum(row["rank"] is not None for row in others) > 1:
        notes.append("rank: one more than the defenses whose whole interval is above; ties overlap")
        columns.insert(1, "rank")
        for line in quiet:
            line.insert(1, NOTHING)
        for line, row in zip(body, others, strict=True):
            line.insert(1, NOTHING if row["rank"] is None else str(row["rank"]))
    return Table(title=_score_title(ordered), columns=columns, quiet=quiet, body=body, notes=notes)


def _score_notes(scores: Sequence[Row], reasons: Sequence[str]) -> list[str]:
    notes = [f"{_superscript(i)} {reason}" for i, reason in enumerate(reasons, 1)]
    if any(row["provisional"] for row in scores):
        notes.append(f"{PROVISIONAL} provisional: {WHY_PROVISIONAL}")
    return notes


def _flag_notes(scores: Iterable[Row]) -> list[str]:
    return [f"{row['defense']}: {', '.join(row['flags'])}" for row in scores if row["flags"]]


ABLATION_COLUMNS = (
    "score",
    "resistance",
    "original (was)",
    "restricted",
    "listed",
    "cost",
    "flags",
)


def ablation(rows: Sequence[Row], notes: Sequence[str]) -> list[Place]:
    """Scores by the value of a hyperparameter, one table per place.

    Args:
        rows: Rows of `metrics.ablation`, at least one.
        notes: Lines that go below each table.
    """
    return [
        Place(
            title=heading(where, found),
            tables=[_ablation_table(found, notes)],
        )
        for where, found in by_place(rows).items()
    ]


def _ablation_table(rows: Sequence[Row], notes: Sequence[str]) -> Table:
    reasons = list(dict.fromkeys(row["unscored"] for row in rows if row["unscored"]))
    several = len({row["family"] for row in rows if not row["control"]}) > 1

    def line(row: Row) -> list[str]:
        texts = dict(zip(SCORE_COLUMNS, _score_line(row, reasons)[1:], strict=True))
        texts["listed"] = percent(row["listed_after"])
        name = row["defense"] if row["control"] else metrics.shown(row["value"])
        family = [NOTHING if row["control"] else row["family"]] if several else []
        return [name, *family, *(texts[column] for column in ABLATION_COLUMNS)]

    fresh = {row["scratch_after"]: None for row in rows if row["scratch_after"] is not None}
    blank = [NOTHING] * (len(ABLATION_COLUMNS) + several)
    at = ABLATION_COLUMNS.index("restricted") + several
    scratch = [["scratch", *blank[:at], percent(value), *blank[at + 1 :]] for value in fresh]
    return Table(
        title=f"Scores{_over(rows)}, by {rows[0]['axis']}: {plural(rows[0]['utility'])} in %, "
        "restricted after the tuned attack and after the best of the listed trials alone; "
        "cost of protection as a multiple of pre-training",
        columns=[rows[0]["axis"], *(["defense"] if several else []), *ABLATION_COLUMNS],
        quiet=[line(row) for row in rows if row["control"]] + scratch,
        body=[line(row) for row in rows if not row["control"]],
        notes=[*_score_notes(rows, reasons), *_flag_notes(rows), *notes],
    )


CRITERION_COLUMNS = (
    "criterion", "resistance", "intact", "original (was)", "restricted", "cost",
)  # fmt: skip


def tuning(rows: Sequence[Row], notes: Sequence[str]) -> Place:
    """All configurations of one defense by what they are chosen by, the chosen one last.

    Args:
        rows: Rows of `metrics.criteria` of one place, in the order drawn, at least one.
        notes: Lines that go below the table.
    """
    reasons = list(dict.fromkeys(row["unscored"] for row in rows if row["unscored"]))
    best = metrics.chosen(rows)

    def line(row: Row, mark: str) -> list[str]:
        unscored = _superscript(reasons.index(row["unscored"]) + 1) if row["unscored"] else ""
        return [
            mark + row["defense"],
            _decimals(row["criterion"], 1) + unscored,
            _decimals(row["resistance"], 3),
            _decimals(row["intactness"], 2),
            f"{percent(row['original_after'])} ({percent(row['original_before'])})",
            percent(row["restricted_after"]),
            _times(row["protect_cost"]),
        ]

    spare = [NOTHING] * len(CRITERION_COLUMNS)
    at = CRITERION_COLUMNS.index("restricted")
    bars = {"undefended": rows[0]["undefended_after"], "scratch": rows[0]["scratch_after"]}
    return Place(
        title=heading(tuple(rows[0][key] for key in WHERE), rows),
        tables=[
            Table(
                title=f"Configurations{_over(rows)}: criterion = 100 · resistance · intactness on "
                f"validation data alone; {plural(rows[0]['utility'])} in % of the selection and "
                "validation splits",
                columns=["", *CRITERION_COLUMNS],
                quiet=[
                    [name, *spare[:at], percent(value), *spare[at + 1 :]]
                    for name, value in bars.items()
                ],
                body=[line(row, "") for row in rows],
                loud=[] if best is None else [line(best, "chosen: ")],
                notes=[f"{_superscript(i)} {why}" for i, why in enumerate(reasons, 1)] + [*notes],
            )
        ],
    )


DIFFERENCE_COLUMNS = ("seeds", "resistance", "score", "")


def differences(rows: Sequence[Row]) -> list[Place]:
    """How much more each defense has than one of them, one table per place.

    Args:
        rows: Rows of `metrics.differences`, at least one.
    """
    return [
        Place(title=heading(where, found), tables=[_difference_table(found)])
        for where, found in by_place(rows).items()
    ]


def _difference_table(rows: Sequence[Row]) -> Table:
    reasons = list(dict.fromkeys(row["unscored"] for row in rows if row["unscored"]))

    def line(row: Row) -> list[str]:
        mark = _superscript(reasons.index(row["unscored"]) + 1) if row["unscored"] else ""
        resistance, score = (
            with_half_width(row[key], row[f"{key}_half_width"], digits)
            for key, digits in (("resistance_difference", 2), ("score_difference", 1))
        )
        clear = "clear of zero" if row["clear"] else NOTHING
        return [row["defense"], str(row["seeds"]), resistance, score + mark, clear]

    return Table(
        title=f"More than {rows[0]['other']} has, paired by seed, with 95 % intervals; resistance "
        "not clipped",
        columns=["", *DIFFERENCE_COLUMNS],
        body=[line(row) for row in rows],
        notes=[f"{_superscript(i)} {why}" for i, why in enumerate(reasons, 1)],
    )


def agreements(name: str, rows: Sequence[Row]) -> Place:
    """What an entry reports beside what came out now.

    Args:
        name: The entry's.
        rows: Rows of `metrics.agreements`, at least one.
    """

    def side(row: Row, key: str) -> str:
        if row[key] is None:
            return str(row[f"{key}_status"])
        if row[f"{key}_low"] is None:
            return percent(row[key])
        low, high = percent(row[f"{key}_low"]), percent(row[f"{key}_high"])
        return f"{percent(row[key])} ({low}–{high})"

    sampled = any(row[f"{key}_low"] is not None for row in rows for key in ("reported", "again"))
    return Place(
        title=f"{name}: test {' or '.join(sorted({row['utility'] for row in rows}))} in %"
        + (", with 95 % intervals over test images" if sampled else ""),
        tables=[
            Table(
                title="Records made again",
                columns=["", "defense", "n", "seed", "reported", "again", ""],
                body=[
                    [
                        row["attack"] + (f" ×{row['stretch']}" if row["stretch"] > 1 else ""),
                        row["defense"],
                        str(row["samples"]),
                        str(row["seed"]),
                        side(row, "reported"),
                        side(row, "again"),
                        row["agreement"],
                    ]
                    for row in rows
                ],
            )
        ],
    )


def _score_title(scores: Sequence[Row]) -> str:
    return (
        f"Scores{_over(scores)}: 100 · resistance · intactness · trainability; "
        f"{plural(scores[0]['utility'])} in % after the tuned attack, cost of protection as a "
        "multiple of pre-training"
    )


def _over(scores: Sequence[Row]) -> str:
    samples = max((row["samples"] for row in scores), key=len).replace(",", ", ")
    return f", n = {samples}, {span(row['seeds'] for row in scores)}" if samples else ""


def _rank(row: Row) -> tuple[bool, bool, float, str]:
    unscored = row["score"] is None
    return (not row["control"], unscored, 0.0 if unscored else -row["score"], row["defense"])


def _score_line(row: Row, reasons: Sequence[str]) -> list[str]:
    if row["score"] is None:
        mark = _superscript(reasons.index(row["unscored"]) + 1) if row["unscored"] else ""
        score = NOTHING + mark
    else:
        score = with_half_width(row["score"], row["score_half_width"], 1)
    return [
        row["defense"],
        score
        + (PROVISIONAL if row["provisional"] else "")
        + (ROLLED_BACK if row["rolled_back"] else ""),
        with_half_width(row["resistance"], row["resistance_half_width"], 2),
        _decimals(row["worst_resistance"], 2),
        _decimals(row["intactness"], 2),
        _decimals(row["trainability"], 2),
        _overheads(row),
        f"{percent(row['original_after'])} ({percent(row['original_before'])})",
        percent(row["restricted_after"]),
        _times(row["protect_cost"]),
        str(len(row["flags"])),
    ]


def _only(column: str, text: str) -> list[str]:
    return [text if name == column else NOTHING for name in SCORE_COLUMNS]


def _superscript(number: int) -> str:
    return str(number).translate(SUPERSCRIPTS)


def _overheads(row: Row) -> str:
    if row["b50"] is None:
        return NOTHING
    alone = multiple(row["b50"], ">" if row["b50_censored"] else "")
    if row["b50_search"] is None:
        return alone
    searched = multiple(row["b50_search"], ">" if row["b50_search_censored"] else "")
    return f"{alone} ({searched})"


def multiple(value: float, bound: str = "") -> str:
    """Two digits and a sign before them: ``>16×``."""
    text = f"{value:.0f}" if value >= 10 else f"{value:.2g}"
    return f"{bound}{text}×"


def winner_table(winners: Sequence[Row], trials: Trials) -> Table:
    """Rows of `metrics.winners` of one place: a line per defense and n, a column per budget."""
    budgets = sorted({row["times"] for row in winners})
    lines: dict[tuple[bool, str, int], dict[float, str]] = {}
    for row in winners:
        line = lines.setdefault((not row["control"], row["defense"], row["samples"]), {})
        line[row["times"]] = _winner(row, trials)
    return Table(
        title=f"Who won: restricted {winners[0]['utility']} in %, and the attack picked on most "
        "seeds (how many, if not all), by budget as a multiple of the regular one",
        columns=["", "n", *(f"{Fraction(times).limit_denominator(64)}×" for times in budgets)],
        body=[
            [defense, str(samples), *(cells.get(times, NOTHING) for times in budgets)]
            for (_, defense, samples), cells in sorted(lines.items())
        ],
    )


def _winner(row: Row, trials: Trials) -> str:
    if not row["attacks"]:
        return NOTHING
    return f"{percent(row['restricted_after'])} {_voted(row['attacks'], trials)}"


def _voted(attacks: Sequence[tuple[str, int]], trials: Trials) -> str:
    """The attack picked on most seeds, and on how many if not on all."""
    (attack, count), *_ = attacks
    seeds = sum(votes for _, votes in attacks)
    part = "" if count == seeds else f" ({count}/{seeds})"
    return trials.short(attack) + part


class Trials:
    """Attacks of one place, named by the hyperparameters that vary there."""

    def __init__(self, rows: Iterable[Row]) -> None:
        tried = [row for row in rows if not _is_envelope(row)]
        self._parameters = {row["attack"]: row["parameters"] for row in tried}
        self._trials = Counter(map(_plugin, self._parameters))
        self._values: dict[tuple[str, str], Counter[str]] = {}
        for attack, chosen in self._parameters.items():
            for key, value in chosen.items():
                self._values.setdefault((_plugin(attack), key), Counter())[repr(value)] += 1

    def varied(self, attack: str) -> dict[str, Any]:
        """What varies there, without the defaults that most trials leave alone."""
        plugin = _plugin(attack)
        found = {}
        for key, value in self._parameters.get(attack, {}).items():
            values = self._values[plugin, key]
            varies = value is not None and len(values) > 1
            often = 2 * values[repr(value)] > self._trials[plugin]
            if varies and (f"{key}=" in attack or not often):
                found[key] = value
        return found

    def name(self, attack: str) -> str:
        """As a selector."""
        varied = self.varied(attack)
        version = attack[attack.rindex("@") :] if "@" in attack.rpartition("]")[2] else ""
        return format_selector(_plugin(attack), varied) + version if varied else attack

    def short(self, attack: str) -> str:
        """In words: ``finetune adam lr=0.01``."""
        told = self.varied(attack).items()
        values = (v if isinstance(v, str) else f"{k}={v}" for k, v in told)
        return " ".join([_plugin(attack), *values])

    def order(self, attack: str) -> tuple[str, list[tuple[bool, float, str]], str]:
        return (_plugin(attack), [_order(v) for v in self.varied(attack).values()], attack)


def _is_envelope(row: Row) -> bool:
    return bool(row["attack"].split(",")[0] == ENVELOPE)


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, "" if number else repr(value))


def _plugin(attack: str) -> str:
    return attack.split("[")[0].split("@")[0]


def _matrix(
    samples: int, rows: Sequence[Row], trials: Trials, told: Mapping[str, set[str]]
) -> Table:
    """Restricted utility by attack (lines) and defense (columns); flags not ``told`` already."""
    best, body, loud = _crossed(rows, trials, reached_utility)
    flags = {d: [f for f in row["flags"] if f not in told.get(d, ())] for d, row in best.items()}
    utility = rows[0]["utility"]
    return Table(
        title=f"n = {samples}, {span(row['seeds'] for row in best.values())}: "
        f"restricted {utility} after the attack, in %; cost as a multiple of pre-training",
        columns=["", *best],
        quiet=[
            [f"original {utility}", *(percent(row["original_after"]) for row in best.values())],
            ["cost of protection", *(_times(row["protect_cost"]) for row in best.values())],
        ],
        body=body,
        loud=loud,
        notes=[f"{d}: {', '.join(found)}" for d, found in flags.items() if found],
    )


LOSSES = {"denoising skill": "Noise MSE"}
"""What the loss is called that a utility follows from."""


def loss_tables(rows: Sequence[Row], trials: Trials) -> list[Table]:
    """The loss in place of utility, as papers on generation print it: one matrix per n.

    Nothing where utility does not follow from a loss.
    """
    return [
        _losses(samples, [row for row in rows if row["samples"] == samples], trials)
        for samples in dict.fromkeys(
            row["samples"] for row in rows if row["restricted_loss"] is not None
        )
    ]


def _losses(samples: int, rows: Sequence[Row], trials: Trials) -> Table:
    best, body, loud = _crossed(rows, trials, _reached_loss)
    utility = rows[0]["utility"]
    return Table(
        title=f"{LOSSES.get(utility, 'Loss')} (lower is better), n = {samples}, "
        f"{span(row['seeds'] for row in best.values())}: original before the attack, restricted "
        "after it",
        columns=["", *best],
        quiet=[
            ["original, unprotected", *(loss(r["original_loss_before"]) for r in best.values())],
            ["original", *(loss(r["original_loss"]) for r in best.values())],
        ],
        body=body,
        loud=loud,
        notes=[f"{utility}: {MEANINGS[utility]}"] if utility in MEANINGS else [],
    )


def _crossed(
    rows: Sequence[Row], trials: Trials, reached: Callable[[Row], str | None]
) -> tuple[Mapping[str, Row], list[list[str]], list[list[str]]]:
    """Attacks by defenses, of one n: the envelope's rows by defense, lines of trials, of envelopes.

    Args:
        rows: Rows of `metrics.rows`.
        trials: Names of the attacks.
        reached: What an attack reached in words, None if nothing.
    """
    by_attack: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        by_attack.setdefault((row["attack"], row["stretch"]), {})[row["defense"]] = row
    best = by_attack[ENVELOPE, 1]

    def line(key: tuple[str, int], name: str) -> list[str]:
        longer = f" ×{key[1]}" if key[1] > 1 else ""
        found = by_attack[key]
        cells = (attack_cell(found.get(d), row["seeds"], reached) for d, row in best.items())
        return [name + longer, *cells]

    envelopes = sorted((k for k, at in by_attack.items() if _is_envelope(_any(at))), key=_stretch)
    tried = sorted(
        by_attack.keys() - set(envelopes),
        key=lambda key: (not _any(by_attack[key])["control"], trials.order(key[0]), key[1]),
    )
    return (
        best,
        [line(key, trials.name(key[0])) for key in tried],
        [line(key, "tuned envelope") for key in envelopes],
    )


MAKERS = {"released": "", "attacked": ", attacked", "scratch": ""}
"""What a line of images says after the model's name, by `metrics.Made.maker`."""


def image_table(rows: Sequence[Row], trials: Trials) -> Table:
    """How good the images are that models make of noise.

    Args:
        rows: Rows of `metrics.images` of one place, at least one.
        trials: Names of the attacks.
    """
    order = ("released", "attacked", "scratch")
    ordered = sorted(rows, key=lambda row: (order.index(row["maker"]), row["samples"] or 0))
    inception = ["FID (Inception)"] if any(row["fid"] is not None for row in rows) else []
    return Table(
        title=f"Images made from noise, {span(row['seeds'] for row in rows)}: Fréchet distance to "
        "test images (lower is better; of real images in brackets), classifier score (higher is "
        "better)",
        columns=["", "domain", "n", "attack", "Fréchet distance", "classifier score", *inception],
        body=[_image_line(row, trials) + [_fid(row)] * len(inception) for row in ordered],
        notes=[
            "attacked: the model at the end of the trial that the selection split picks at the "
            "whole budget, fresh weights left out; named is the one picked on most seeds (how "
            "many, if not all)"
        ],
    )


def _image_line(row: Row, trials: Trials) -> list[str]:
    name = "scratch" if row["maker"] == "scratch" else row["defense"]
    frechet = with_half_width(row["frechet"], row["frechet_half_width"], 1)
    score = with_half_width(row["classifier_score"], row["classifier_score_half_width"], 2)
    return [
        name + MAKERS[row["maker"]],
        "original" if row["maker"] == "released" else "restricted",
        NOTHING if row["samples"] is None else str(row["samples"]),
        _voted(row["attacks"], trials) if row["attacks"] else NOTHING,
        f"{frechet} ({_decimals(row['frechet_real'], 1)})",
        score,
    ]


def _fid(row: Row) -> str:
    fid = with_half_width(row["fid"], row["fid_half_width"], 1)
    return f"{fid} ({_decimals(row['fid_real'], 1)})" if row["fid"] is not None else NOTHING


def _any(by_defense: Mapping[str, Row]) -> Row:
    return next(iter(by_defense.values()))


def _stretch(key: tuple[str, int]) -> int:
    return key[1]


def span(seeds: Iterable[int]) -> str:
    """Numbers of seeds in words: ``3–5 seeds``."""
    counts = sorted(set(seeds))
    listed = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{listed} seed{'' if counts[-1] == 1 else 's'}"


def reached_utility(row: Row) -> str | None:
    """The restricted utility after an attack in %, if it reached any."""
    if row["restricted_after"] is None:
        return None
    half_width = row["restricted_after_half_width"]
    return with_half_width(
        100 * row["restricted_after"], None if half_width is None else 100 * half_width, 1
    )


def _reached_loss(row: Row) -> str | None:
    if row["restricted_loss"] is None:
        return None
    return loss(row["restricted_loss"], row["restricted_loss_half_width"])


def attack_cell(
    row: Row | None, seeds: int, reached: Callable[[Row], str | None] = reached_utility
) -> str:
    """What a trial ``reached``, and on how many of the defense's ``seeds`` if not on all."""
    if row is None:
        return NOTHING
    text = reached(row)
    if text is None:
        return str(row["status"])
    marks = [] if row["status"] == "ok" or _is_envelope(row) else [row["status"]]
    if row["seeds_reached"] < seeds:
        marks.append(f"{row['seeds_reached']} of {seeds} seeds")
    return f"{text} ({', '.join(marks)})" if marks else text


def with_half_width(value: float | None, half_width: float | None, digits: int) -> str:
    """A number with its interval: ``12.3 ± 4.1``."""
    text = _decimals(value, digits)
    return text if value is None or half_width is None else f"{text} ± {half_width:.{digits}f}"


def _decimals(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def loss(value: float | None, half_width: float | None = None) -> str:
    """Four decimals and no zero before them, as papers have it: ``.0372 ± .0011``."""
    if value is None:
        return NOTHING
    found = (f"{v:.4f}".removeprefix("0") for v in (value, half_width) if v is not None)
    return " ± ".join(found)


def percent(value: float | None) -> str:
    """A fraction in percent, without the sign."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def _times(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}×"


def console(report: Report) -> str:
    """The report's tables, to be read in a terminal."""
    return to_console(places(report))


def to_console(found: Iterable[Place]) -> str:
    """Tables as wide as the terminal, or as numbers need; colours only on one.

    Names and attacks fold where the terminal is narrow; a number with its interval never does.
    """
    colours = sys.stdout.isatty()
    width = shutil.get_terminal_size((120, 40)).columns
    lines: list[str] = []

    def write(text: str, **style: bool) -> None:
        found = text.splitlines() if len(text) <= width else textwrap.wrap(text, width)
        lines.extend(click.style(line, **style) if colours else line for line in found)

    for place in found:
        write(place.title, bold=True)
        for table in place.tables:
            write(table.title, italic=True)
            widths = _widths(table, width)
            rule = "─" * (sum(widths) + MARGIN * (len(widths) - 1))
            lines += ["", *_drawn([table.columns], widths), rule]
            for group, style in (
                (table.quiet, {"dim": True}),
                (table.body, {}),
                (table.loud, {"bold": True}),
            ):
                drawn = _drawn(group, widths)
                lines += [click.style(line, **style) for line in drawn] if colours else drawn
                lines += [""] if group else []
            for note in table.notes:
                write(note)
        lines.append("")
    return "\n".join(lines) + "\n"


def _drawn(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Rows of cells as lines of text, the first column to the left, the others to the right."""
    found = []
    margin = " " * MARGIN
    for row in rows:
        folded = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
        for number in range(max(map(len, folded))):
            parts = [cell[number] if number < len(cell) else "" for cell in folded]
            first, *others = zip(parts, widths, strict=True)
            line = [first[0].ljust(first[1]), *(part.rjust(width) for part, width in others)]
            found.append(margin.join(line).rstrip())
    return found


def _folded(cell: str, width: int) -> list[str]:
    """A cell in lines of at most ``width``; a number and its interval stay together."""
    if len(cell) <= width:
        return [cell]
    found = textwrap.wrap(cell.replace(" ± ", "_±_"), width, break_on_hyphens=False)
    return [line.replace("_±_", " ± ") for line in found]


def _widths(table: Table, width: int) -> list[int]:
    """Widths of the columns: of whole cells, or what there is but at least the longest words."""
    lines = (table.columns, *table.quiet, *table.body, *table.loud)
    first, *others = ([*cells] for cells in zip(*lines, strict=True))
    names = min(max(map(len, first)), int(0.4 * width))
    whole = [max(map(len, cells)) for cells in others]
    found = [max(len(word) for cell in cells for word in _words(cell)) for cells in others]
    for _ in range(width - names - sum(found) - MARGIN * len(table.columns)):
        missing = [most - has for most, has in zip(whole, found, strict=True)]
        found[missing.index(max(missing))] += max(missing) > 0
    return [names, *found]


def _words(cell: str) -> list[str]:
    """Where a cell may be broken; a number and its interval are one word."""
    return cell.replace(" ± ", "_±_").split()


def markdown(report: Report) -> str:
    """The report's tables in GitHub's Markdown."""
    return to_markdown(places(report))


def to_markdown(found: Iterable[Place]) -> str:
    """Tables in GitHub's Markdown."""
    return "\n\n".join(part for place in found for part in _markdown(place)) + "\n"


def _markdown(place: Place) -> Iterator[str]:
    from tabulate import tabulate

    yield f"### {place.title}"
    for table in place.tables:
        yield f"**{table.title}**"
        loud = [[f"**{cell}**" for cell in line] for line in table.loud]
        yield tabulate(
            [*table.quiet, *table.body, *loud],
            table.columns,
            tablefmt="pipe",
            colalign=["left", *("right" for _ in table.columns[1:])],
            disable_numparse=True,
        )
        yield from table.notes


def latex(report: Report) -> str:
    """The report's tables for LaTeX with ``booktabs``; the best of a column of scores in bold."""
    return to_latex(places(report))


def to_latex(found: Iterable[Place]) -> str:
    """Tables for LaTeX with ``booktabs``, each in a ``table`` with its title as the caption."""
    return "\n".join(_latex(place, table) for place in found for table in place.tables)


def _latex(place: Place, table: Table) -> str:
    columns = [(*cells,) for cells in zip(*table.body, strict=True)]
    highest = {
        number: max(cells, key=_first_number)
        for number, cells in enumerate(columns)
        if table.columns[number] in ("score", "resistance") and len(cells) > 1
    }

    def line(cells: Sequence[str], *, bold: bool = False) -> str:
        texts = [
            rf"\textbf{{{_escaped(cell)}}}" if bold or highest.get(number) == cell
            else _escaped(cell)
            for number, cell in enumerate(cells)
        ]  # fmt: skip
        return " & ".join(texts) + r" \\"

    groups = [
        [line(cells) for cells in table.quiet],
        [line(cells) for cells in table.body],
        [line(cells, bold=True) for cells in table.loud],
    ]
    caption = ". ".join([f"{place.title}. {table.title}", *table.notes])
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escaped(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            line(table.columns),
            r"\midrule",
            "\n\\midrule\n".join("\n".join(group) for group in groups if group),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _first_number(cell: str) -> float:
    text = cell.split()[0].rstrip(f"{PROVISIONAL}{ROLLED_BACK}")
    try:
        return float(text)
    except ValueError:
        return -math.inf


LATEX = {
    "\\": r"\textbackslash{}", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "†": r"$\dagger$",
    "‡": r"$\ddagger$", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "→": r"$\to$", "≤": r"$\le$", "₀": "$_0$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{chr(sign): f"$^{chr(digit)}$" for digit, sign in SUPERSCRIPTS.items()},
}  # fmt: skip
"""What LaTeX does not print as it is."""


def _escaped(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def csv(report: Report) -> str:
    """Flat rows with stable keys, scores first (no attack)."""
    return to_csv(flat_rows(report), [*report.rows, *report.scores])


def to_csv(rows: Iterable[Row], like: Iterable[Row]) -> str:
    """Flat rows, their columns in the order of the keys of ``like``.

    Flags are joined by semicolons; parameters are left out. Text that a spreadsheet would take for
    a formula has an apostrophe before it, as has text that begins with one: `from_csv` takes it
    away again.
    """
    keys = [key for key in dict.fromkeys(k for row in like for k in row) if key != "parameters"]
    lines = [_csv_line(keys)]
    for row in rows:
        flags = {"flags": "; ".join(row["flags"])} if "flags" in row else {}
        cells = {**row, **flags}
        lines.append(_csv_line([cells.get(key) for key in keys]))
    return "".join(lines)


def from_csv(text: str) -> list[dict[str, str]]:
    """The rows that `to_csv` wrote, by their keys: text as it was, numbers as text, None as ``""``.

    Other readers find an apostrophe before text that begins with one of `FORMULA`.
    """
    lines = [
        [cell.removeprefix("'") for cell in line] for line in reader(io.StringIO(text, newline=""))
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
"""Beginnings of text that get an apostrophe: of formulas, and the apostrophe itself."""


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    # the default line terminator makes Python 3.11 quote carriage returns too
    writer(line).writerow([_harmless(cell) for cell in cells])
    return line.getvalue().removesuffix("\r\n") + "\n"


def _harmless(cell: Any) -> Any:
    if cell is None or isinstance(cell, int | float):
        return cell
    text = str(cell)
    return f"'{text}" if text.startswith(FORMULA) else text


def flat_rows(report: Report) -> list[Row]:
    """Score rows, which have no ``attack``, and then the rows of attacks and envelopes."""
    return [*report.scores, *report.rows]


def as_json(report: Report) -> str:
    """Flat rows with stable keys, scores first."""
    return to_json(flat_rows(report))


def to_json(rows: Sequence[Row]) -> str:
    """Flat rows as JSON."""
    return msgspec.json.format(msgspec.json.encode(rows), indent=1).decode() + "\n"


def printed(form: str, found: Iterable[Place], rows: Sequence[Row]) -> str:
    """Tables, or the flat rows that they are of, in one of `FORMATS`."""
    forms: dict[str, Callable[[], str]] = {
        "console": lambda: to_console(found),
        "md": lambda: to_markdown(found),
        "latex": lambda: to_latex(found),
        "csv": lambda: to_csv(rows, rows),
        "json": lambda: to_json(rows),
    }
    return forms[form]()


FORMATS: dict[str, Callable[[Report], str]] = {
    "console": console,
    "md": markdown,
    "latex": latex,
    "csv": csv,
    "json": as_json,
}


def document(cells: Sequence[Cell], report: Report) -> str:
    """What ``run --json`` writes: every record, its hash by its key, and the summary."""
    content = {
        "schema": SCHEMA,
        "cells": msgspec.to_builtins(cells),
        "hashes": {cell.key: digest(cell) for cell in cells},
        "summary": flat_rows(report),
    }
    return json.dumps(content, indent=1) + "\n"


def meaning(report: Report) -> str:
    """What the scores say, in two sentences per place; without a score, what the envelopes say."""
    scores, rows = by_place(report.scores), by_place(report.rows)
    said = []
    for where in dict.fromkeys([*rows, *scores]):
        scored = [
            row
            for row in sorted(scores.get(where, []), key=_rank)
            if row["score"] is not None and not row["control"]
        ]
        said += [_scored(scored)] if scored else _unscored(rows.get(where, []))
    return "\n".join(said)


def _scored(defenses: Sequence[Row]) -> str:
    listed = _listed(
        f"{row['defense']} scores {with_half_width(row['score'], row['score_half_width'], 1)} "
        f"of 100 ({'provisional; ' if row['provisional'] else ''}"
        f"{percent(row['restricted_after'])} % reached)"
        for row in defenses
    )
    first = defenses[0]
    return (
        f"Against a tuned attacker, who reaches {percent(first['undefended_after'])} % from the "
        f"undefended model and {percent(first['scratch_after'])} % from fresh weights, {listed}. "
        "0 protects like no defense; 100 gives the attacker nothing over fresh weights at any "
        f"budget, keeps the original {first['utility']} and stays trainable on other tasks."
    )


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _unscored(rows: Sequence[Row]) -> list[str]:
    by_samples: dict[int, list[Row]] = {}
    for row in rows:
        by_samples.setdefault(row["samples"], []).append(row)
    return [_envelopes(found) for found in by_samples.values()]


def _envelopes(rows: Sequence[Row]) -> str:
    reached = [
        f"{percent(row['restricted_after'])} % against {row['defense']} (best of {row['trials']} "
        f"trials: {row['best']})"
        for row in rows
        if row["attack"] == ENVELOPE and row["restricted_after"] is not None
    ]
    if not reached:
        return "No attack produced a predictor, so nothing can be said about any defense."
    fresh = [
        row["restricted_after"]
        for row in rows
        if row["control"] and not _is_envelope(row) and row["restricted_after"] is not None
    ]
    bar = f"the {percent(max(fresh))} % of fresh weights" if fresh else "that of fresh weights"
    return (
        "An attacker who chooses trial and checkpoint on a hidden split reaches "
        f"{_listed(reached)}. A defense keeps its word if that falls to {bar} while the original "
        f"{rows[0]['utility']} stays: judge it by this envelope, not by one recipe."
    )
