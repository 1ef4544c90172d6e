"""The tables of one place: scores, who won, what each attack reached, losses, and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.leaderboard import columns
from sophon_bench.leaderboard.columns import (
    NOTHING,
    PROVISIONAL,
    ROLLED_BACK,
    Column,
    Row,
    loss,
    number,
    percent,
    records,
    span,
    superscript,
)
from sophon_bench.leaderboard.names import Attacks, Legend, is_envelope
from sophon_bench.leaderboard.render import Place, Table
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results.frames import PLACE
from sophon_bench.results.records import OR

if TYPE_CHECKING:
    from pandas import DataFrame

Key = tuple[Any, ...]
"""The values of `PLACE`."""

HEAD = Column(key="", header="")
"""The first column of a matrix, whose other columns are defenses or budgets."""

WHY_PROVISIONAL = "fewer than five seeds, or no frozen list of budgets and n that count"


def from_random(backbone: str) -> bool:
    """Whether models of a backbone start from random weights: places of others come first."""
    return not any(given in backbone for given in ("pretrained=true", "weights="))


def by_place(df: DataFrame) -> dict[Key, DataFrame]:
    """A frame by its values of `PLACE`, in order."""
    return dict(iter(df.groupby([*PLACE], sort=False))) if len(df) else {}


def by_samples(df: DataFrame) -> list[tuple[int, DataFrame]]:
    """The rows of one place by n, in their order."""
    return list(df.groupby("samples", sort=False)) if len(df) else []


def heading(where: Key, df: DataFrame) -> str:
    """The place with these values of `PLACE`, and the suites that its rows are of."""
    at = dict(zip(PLACE, where, strict=True))
    named = df["suite"].dropna() if len(df) else []
    suites = OR.join(sorted({label for each in named for label in each.split(OR)}))
    return ", ".join(
        [
            f"{at['scenario']} (data {at['revision'][:8]})",
            at["backbone"],
            at["precision"],
            f"protocol {at['protocol']}",
            f"{at['budget'] / REFERENCE_BATCH:g} steps",
            *filter(None, [suites]),
        ]
    )


def places(df: DataFrame, tables: Callable[[DataFrame], Sequence[Table]]) -> list[Place]:
    """The tables that are made of the rows of each place, where there are some."""
    return [
        Place(title=heading(where, own), tables=made)
        for where, own in by_place(df).items()
        if (made := tables(own))
    ]


def plural(utility: str) -> str:
    """Several of a utility: ``accuracies``."""
    return f"{utility.removesuffix('y')}ies" if utility.endswith("y") else f"{utility}s"


def over(scores: Sequence[Row]) -> str:
    """Over which n and how many seeds scores are."""
    samples = max((row["samples"] for row in scores), key=len).replace(",", ", ")
    return f", n = {samples}, {span(row['seeds'] for row in scores)}" if samples else ""


def footnotes(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows with the mark of why they have no score as ``footnote``, and the reasons in words."""
    listed = [*rows]
    reasons = dict.fromkeys(row["unscored"] for row in listed if row["unscored"])
    marks = {reason: superscript(count) for count, reason in enumerate(reasons, 1)}
    marked = [{**row, "footnote": marks.get(row["unscored"])} for row in listed]
    return marked, [f"{mark} {reason}" for reason, mark in marks.items()]


def scratch_rows(rows: Iterable[Row], key: str) -> list[Row]:
    """What training from scratch reaches, once per level, under ``key`` as the name."""
    levels = dict.fromkeys(row["scratch_after"] for row in rows if row["scratch_after"] is not None)
    return [{key: "scratch", "restricted_after": level} for level in levels]


def score_notes(rows: Sequence[Row], reasons: Sequence[str]) -> list[str]:
    """Why rows have no score, and what provisional means where one is."""
    provisional = any(row["provisional"] for row in rows)
    return [*reasons, *[f"{PROVISIONAL} provisional: {WHY_PROVISIONAL}"] * provisional]


def flag_notes(rows: Iterable[Row], legend: Legend) -> list[str]:
    """The flags of every defense that has some."""
    return [f"{legend(row['defense'])}: {', '.join(row['flags'])}" for row in rows if row["flags"]]


def score_order(row: Row) -> tuple[bool, bool, float, str]:
    """What rows of scores are sorted by: controls, then the highest."""
    unscored = row["score"] is None
    return (not row["control"], unscored, 0.0 if unscored else -row["score"], row["defense"])


def score_table(scores: DataFrame, legend: Legend) -> Table:
    """The scores of one place, controls first, with what has to be said about them.

    Two ranked defenses or more have a column of ranks.
    """
    ordered, reasons = footnotes(sorted(records(scores), key=score_order))
    controls = [row for row in ordered if row["control"]]
    others = [row for row in ordered if not row["control"]]
    notes = score_notes(ordered, reasons)
    notes += [
        f"{ROLLED_BACK} {legend(row['defense'])}: protection was rolled back on "
        f"{row['rolled_back']} of {span([row['released_seeds']])}"
        for row in ordered
        if row["rolled_back"]
    ]
    notes += [*_other_bars(controls, others, legend), *flag_notes(ordered, legend)]
    ranked = sum(row["rank"] is not None for row in others) > 1
    if ranked:
        notes.append("rank: one more than the defenses whose whole interval is above; ties overlap")
    return Table(
        title=f"Scores{over(ordered)}: 100 · resistance · intactness · trainability; "
        f"{plural(ordered[0]['utility'])} in % after the tuned attack, cost of protection as a "
        "multiple of pre-training",
        columns=[column for column in columns.SCORES if ranked or column.key != "rank"],
        quiet=[*legend.rows(controls), *scratch_rows(controls, "defense")],
        body=legend.rows(others),
        notes=[*notes, *legend.notes(row["defense"] for row in ordered)],
    )


def _other_bars(controls: Sequence[Row], others: Sequence[Row], legend: Legend) -> list[str]:
    """What the controls reach on the seeds of defenses that have not all of theirs."""
    bars = ("undefended_after", "scratch_after")
    known = {tuple(row[bar] for bar in bars) for row in controls}
    against: dict[tuple[Any, ...], list[str]] = {}
    for row in others:
        against.setdefault(tuple(row[bar] for bar in bars), []).append(legend(row["defense"]))
    return [
        f"{', '.join(names)}: on {'its' if len(names) == 1 else 'their'} seeds the undefended "
        f"model reaches {percent(undefended)}, scratch {percent(scratch)}"
        for (undefended, scratch), names in against.items()
        if (undefended, scratch) not in known
    ]


def winner_table(winners: Sequence[Row], called: Attacks, legend: Legend) -> Table:
    """Who won in one place: a line per defense and n, a column per budget."""
    lines: dict[tuple[bool, str, int], dict[str, Any]] = {}
    for row in winners:
        defense, n = row["defense"], row["samples"]
        line = lines.setdefault((not row["control"], defense, n), {"": legend(defense), "n": n})
        if row["attacks"]:
            reached = percent(row["restricted_after"])
            line[str(row["times"])] = f"{reached} {called.voted(row['attacks'])}"
    budgets = [
        Column(key=str(times), header=f"{Fraction(times).limit_denominator(64)}×")
        for times in sorted({row["times"] for row in winners})
    ]
    return Table(
        title=f"Who won: restricted {winners[0]['utility']} in %, and the attack picked on most "
        "seeds (how many, if not all), by budget as a multiple of the regular one",
        columns=[HEAD, Column(key="n"), *budgets],
        body=[line for _, line in sorted(lines.items(), key=lambda item: item[0])],
        notes=[
            *legend.notes(defense for _, defense, _ in lines),
            *called.notes(row["attacks"][0][0] for row in winners if row["attacks"]),
        ],
    )


def matrices(trials: DataFrame, scores: DataFrame, called: Attacks, legend: Legend) -> list[Table]:
    """Restricted utility by attack (lines) and defense (columns), one table per n.

    Flags that the scores of a defense have stand there, and not here again.
    """
    scored = {row["defense"]: row["flags"] for row in records(scores)}
    tables = []
    for samples, own in by_samples(trials):
        rows = records(own)
        best = envelopes(rows)
        utility = best[0]["utility"]
        flags = [
            {**row, "flags": [f for f in row["flags"] if f not in scored.get(row["defense"], ())]}
            for row in best
        ]
        quiet = {
            f"original {utility}": lambda row: percent(row["original_after"]),
            "cost of protection": lambda row: number(row["protect_cost"], None, ".2f", "×"),
        }
        title = (
            f"n = {samples}, {span(row['seeds'] for row in best)}: "
            f"restricted {utility} after the attack, in %; cost as a multiple of pre-training"
        )
        notes = flag_notes(flags, legend)
        tables.append(cross(title, rows, best, called, legend, quiet=quiet, notes=notes))
    return tables


MEANINGS = {
    "denoising skill": "1 - MSE / MSE₀ of the noise that a model predicts in noisy images, where "
    "MSE₀ is that of the best guess by the mean and the variance of pixels alone: at most 1, and 0 "
    "for that guess."
}
"""What utilities are that need words."""


LOSSES = {"denoising skill": "Noise MSE"}
"""What the loss is called that a utility follows from."""


def loss_tables(trials: DataFrame, called: Attacks, legend: Legend) -> list[Table]:
    """The loss in place of utility, as papers on generation print it: one matrix per n.

    Nothing where utility does not follow from a loss.
    """
    quiet = {
        "original, unprotected": lambda row: loss(row["original_loss_before"]),
        "original": lambda row: loss(row["original_loss"]),
    }
    cell = partial(attack_cell, key="restricted_loss", text=loss)
    tables = []
    for samples, own in by_samples(trials):
        if own["restricted_loss"].isna().all():
            continue
        rows = records(own)
        best = envelopes(rows)
        utility = best[0]["utility"]
        title = (
            f"{LOSSES.get(utility, 'Loss')} (lower is better), n = {samples}, "
            f"{span(row['seeds'] for row in best)}: original before the attack, restricted "
            "after it"
        )
        notes = [f"{utility}: {MEANINGS[utility]}"] if utility in MEANINGS else []
        tables.append(cross(title, rows, best, called, legend, cell, quiet=quiet, notes=notes))
    return tables


def envelopes(trials: Iterable[Row]) -> list[Row]:
    """The rows of the tuned envelope at the regular budget, one per defense."""
    return [row for row in trials if row["attack"] == ENVELOPE and row["stretch"] == 1]


def attack_cell(
    row: Row, seeds: int, key: str = "restricted_after", text: Callable[..., str] = percent
) -> str:
    """What a trial reached, and on how many of the defense's ``seeds`` if not on all."""
    if row[key] is None:
        return str(row["status"])
    marks = [] if row["status"] == "ok" or is_envelope(row) else [row["status"]]
    if row["seeds_reached"] < seeds:
        marks.append(f"{row['seeds_reached']} of {seeds} seeds")
    said = text(row[key], row[f"{key}_half_width"])
    return f"{said} ({', '.join(marks)})" if marks else said


def cross(
    title: str,
    trials: Iterable[Row],
    best: Sequence[Row],
    called: Attacks,
    legend: Legend,
    cell: Callable[[Row, int], str] = attack_cell,
    *,
    quiet: Mapping[str, Callable[[Row], str]],
    notes: Sequence[str] = (),
    scratch_last: bool = False,
) -> Table:
    """Attacks (lines) by defenses (columns), of one place and n.

    Args:
        title, notes: The table's.
        trials: One row per attack and defense, envelopes included.
        best: The envelope's row of each defense, in the order of columns.
        called, legend: What attacks and defenses are called.
        cell: What a row says, given the number of seeds that its defense has.
        quiet: What lines above say of an envelope's row, by their name.
        scratch_last: Whether lines of control attacks come last, and not first.
    """
    lines: dict[tuple[str, int], dict[str, Row]] = {}
    for row in trials:
        lines.setdefault((row["attack"], row["stretch"]), {})[row["defense"]] = row
    heads = {key: next(iter(line.values())) for key, line in lines.items()}
    concluding = [key for key in lines if is_envelope(heads[key])]

    def order(key: tuple[str, int]) -> tuple[Any, ...]:
        attack, stretch = key
        return heads[key]["control"] == scratch_last, called.order(attack), stretch

    def shown(key: tuple[str, int]) -> Row:
        attack, stretch = key
        name = "tuned envelope" if key in concluding else called.name(attack)
        return {"": f"{name} ×{stretch}" if stretch > 1 else name, **lines[key]}

    tried = sorted(lines.keys() - concluding, key=order)
    return Table(
        title=title,
        columns=[HEAD, *(_of_defense(row, legend, cell) for row in best)],
        quiet=[
            {"": name, **{row["defense"]: text(row) for row in best}}
            for name, text in quiet.items()
        ],
        body=[shown(key) for key in tried],
        loud=[shown(key) for key in sorted(concluding, key=lambda key: key[1])],
        notes=[
            *notes,
            *legend.notes(row["defense"] for row in best),
            *called.notes(attack for attack, _ in tried),
        ],
    )


def _of_defense(best: Row, legend: Legend, cell: Callable[[Row, int], str]) -> Column:
    """A column of `cross`: lines have the defense's rows, and those above have texts."""
    label, seeds = best["defense"], best["seeds"]

    def text(line: Row) -> str:
        known = line.get(label, NOTHING)
        return known if isinstance(known, str) else cell(known, seeds)

    def reached(line: Row) -> float | None:
        return line[label].get("restricted_after") if label in line else None

    return Column(key=label, header=legend(label), format=text, sort=reached)


def image_table(images: DataFrame, called: Attacks, legend: Legend) -> Table:
    """How good the images are that models of one place make of noise."""
    order = ("released", "attacked", "scratch")
    rows = [
        {**row, "attack": called.voted(row["attacks"]) if row["attacks"] else None}
        for row in legend.rows(records(images))
    ]
    rows.sort(key=lambda row: (order.index(row["maker"]), row["samples"] or 0))
    inception = any(row["fid"] is not None for row in rows)
    return Table(
        title=f"Images made from noise, {span(row['seeds'] for row in rows)}: Fréchet distance to "
        "test images (lower is better; of real images in brackets), classifier score (higher is "
        "better)",
        columns=[column for column in columns.IMAGES if inception or column.key != "fid"],
        body=rows,
        notes=[
            "attacked: the model at the end of the trial that the selection split picks at the "
            "whole budget, random initialisation left out; named is the one picked on most seeds "
            "(how many, if not all)",
            *legend.notes(images["defense"]),
            *called.notes(row["attacks"][0][0] for row in rows if row["attacks"]),
        ],
    )
