"""Tables of one place that have attacks in them: who won, what each reached, images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.leaderboard import columns
from sophon_bench.leaderboard.columns import (
    NOTHING,
    Column,
    Row,
    frame,
    loss,
    number,
    percent,
    records,
    span,
)
from sophon_bench.leaderboard.names import Attacks, Legend, is_envelope, voted
from sophon_bench.leaderboard.render import Table
from sophon_bench.leaderboard.score_tables import called_by, flag_notes

if TYPE_CHECKING:
    from pandas import DataFrame

HEAD = Column(key="", header="")
"""The first column of a matrix, whose other columns are defenses or budgets."""

Line = tuple[str, int]
"""An attack, and how many budgets it went on to."""


def winner_table(winners: DataFrame, called: Attacks, legend: Legend) -> Table:
    """Who won in one place: a line per defense and n, a column per budget."""
    rows = records(winners)
    budgets = sorted({row["times"] for row in rows})
    lines: dict[tuple[bool, str, int], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault((not row["control"], row["defense"], row["samples"]), {})
        line[str(row["times"])] = (
            f"{percent(row['restricted_after'])} {voted(row['attacks'], called)}"
            if row["attacks"]
            else NOTHING
        )
    body = [
        {"": legend(defense), "samples": samples, **cells}
        for (_, defense, samples), cells in sorted(lines.items())
    ]
    return Table(
        title=f"Who won: restricted {rows[0]['utility']} in %, and the attack picked on most "
        "seeds (how many, if not all), by budget as a multiple of the regular one",
        columns=[
            HEAD,
            Column(key="samples", header="n"),
            *(Column(key=str(times), header=f"{Fraction(times).limit_denominator(64)}×")
              for times in budgets),
        ],
        body=frame(body),
        notes=[
            *legend.notes(defense for _, defense, _ in lines),
            *called.notes(row["attacks"][0][0] for row in rows if row["attacks"]),
        ],
    )  # fmt: skip


def matrices(trials: DataFrame, scores: DataFrame, called: Attacks, legend: Legend) -> list[Table]:
    """Restricted utility by attack (lines) and defense (columns), one table per n.

    Flags that the scores of a defense have stand there, and not here again.
    """
    scored = {row["defense"]: row["flags"] for row in records(scores)}
    tables = []
    for samples, own in by_samples(trials):
        best = envelopes(own)
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
        tables.append(cross(title, own, best, called, legend, attack_cell, quiet, notes))
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
    tables = []
    for samples, own in by_samples(trials):
        if own["restricted_loss"].isna().all():
            continue
        best = envelopes(own)
        utility = best[0]["utility"]
        title = (
            f"{LOSSES.get(utility, 'Loss')} (lower is better), n = {samples}, "
            f"{span(row['seeds'] for row in best)}: original before the attack, restricted "
            "after it"
        )
        notes = [f"{utility}: {MEANINGS[utility]}"] if utility in MEANINGS else []
        tables.append(cross(title, own, best, called, legend, _loss_cell, quiet, notes))
    return tables


def by_samples(trials: DataFrame) -> list[tuple[int, DataFrame]]:
    """The rows of one place by n, in their order."""
    return list(trials.groupby("samples", sort=False)) if len(trials) else []


def envelopes(trials: DataFrame) -> list[dict[str, Any]]:
    """The rows of the tuned envelope at the regular budget, one per defense."""
    return records(trials[(trials["attack"] == ENVELOPE) & (trials["stretch"] == 1)])


def cross(
    title: str,
    trials: DataFrame,
    best: Sequence[Row],
    called: Attacks,
    legend: Legend,
    cell: Callable[[Row, int], str],
    quiet: Mapping[str, Callable[[Row], str]],
    notes: Sequence[str] = (),
) -> Table:
    """Attacks (lines) by defenses (columns), of one place and n.

    Args:
        title: The table's.
        trials: One row per attack and defense, envelopes included.
        best: The envelope's row of each defense, in the order of columns.
        called: What attacks are called.
        legend: What defenses are called.
        cell: What a row says, given the number of seeds that its defense has.
        quiet: What lines above say of an envelope's row, by their name.
        notes: Lines that stand below.
    """
    seeds = {row["defense"]: row["seeds"] for row in best}
    lines: dict[Line, dict[str, Row]] = {}
    for row in records(trials):
        lines.setdefault((row["attack"], row["stretch"]), {})[row["defense"]] = row
    concluding = {key for key, line in lines.items() if is_envelope(_any(line))}

    def order(key: Line) -> tuple[Any, ...]:
        return (not _any(lines[key]).get("control"), called.order(key[0]), key[1])

    def texts(keys: Iterable[Line]) -> DataFrame:
        return frame(
            {
                "": ("tuned envelope" if key in concluding else called.name(key[0])) + longer(key),
                **{d: cell(row, seeds[d]) for d, row in lines[key].items() if d in seeds},
            }
            for key in keys
        )

    tried = sorted(lines.keys() - concluding, key=order)
    return Table(
        title=title,
        columns=[HEAD, *(Column(key=defense, header=legend(defense)) for defense in seeds)],
        quiet=frame(
            {"": name, **{row["defense"]: text(row) for row in best}}
            for name, text in quiet.items()
        ),
        body=texts(tried),
        loud=texts(sorted(concluding, key=lambda key: key[1])),
        notes=[*notes, *legend.notes(seeds), *called.notes(attack for attack, _ in tried)],
    )


def longer(key: Line) -> str:
    """What an attack's line says that went on to several budgets."""
    return f" ×{key[1]}" if key[1] > 1 else ""


def _any(by_defense: Mapping[str, Row]) -> Row:
    return next(iter(by_defense.values()))


def image_table(images: DataFrame, called: Attacks, legend: Legend) -> Table:
    """How good the images are that models of one place make of noise."""
    order = ("released", "attacked", "scratch")
    rows = sorted(
        called_by(legend, records(images)),
        key=lambda row: (order.index(row["maker"]), row["samples"] or 0),
    )
    inception = any(row["fid"] is not None for row in rows)
    picked = [
        {**row, "attack": voted(row["attacks"], called) if row["attacks"] else None} for row in rows
    ]
    return Table(
        title=f"Images made from noise, {span(row['seeds'] for row in rows)}: Fréchet distance to "
        "test images (lower is better; of real images in brackets), classifier score (higher is "
        "better)",
        columns=[column for column in columns.IMAGES if inception or column.key != "fid"],
        body=frame(picked),
        notes=[
            "attacked: the model at the end of the trial that the selection split picks at the "
            "whole budget, fresh weights left out; named is the one picked on most seeds (how "
            "many, if not all)",
            *legend.notes(images["defense"]),
            *called.notes(row["attacks"][0][0] for row in rows if row["attacks"]),
        ],
    )


def attack_cell(row: Row | None, seeds: int) -> str:
    """What a trial reached, and on how many of the defense's ``seeds`` if not on all."""
    return _cell(row, seeds, "restricted_after", percent)


def _loss_cell(row: Row | None, seeds: int) -> str:
    return _cell(row, seeds, "restricted_loss", loss)


def _cell(row: Row | None, seeds: int, key: str, text: Callable[..., str]) -> str:
    if row is None:
        return NOTHING
    if row[key] is None:
        return str(row["status"])
    marks = [] if row["status"] == "ok" or is_envelope(row) else [row["status"]]
    if row["seeds_reached"] < seeds:
        marks.append(f"{row['seeds_reached']} of {seeds} seeds")
    said = text(row[key], row[f"{key}_half_width"])
    return f"{said} ({', '.join(marks)})" if marks else said
