"""Figures that a paper reports, beside what was measured here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from sophon_bench.leaderboard import vega
from sophon_bench.leaderboard.columns import Column, Row, number, percent, records
from sophon_bench.leaderboard.render import Place, Table
from sophon_bench.leaderboard.vega import Figure, Point, Style
from sophon_bench.plugins.selectors import parse

if TYPE_CHECKING:
    from pandas import DataFrame

SCRATCH = "scratch"


class Reported(BaseModel):
    """A figure of a paper, as it is on record: accuracies in per cent.

    Attributes:
        model: What the paper calls the model.
        ours: Names of the defenses that stand beside it; ``none`` is the undefended model,
            ``scratch`` random initialisation.
        scenario: The scenario's name; None: not on record.
        backbone: The backbone's name.
        original: Accuracy on the original domain, before fine-tuning.
        restricted: Accuracy on the restricted domain, after fine-tuning.
        recipe: How it was fine-tuned, as far as that is on record.
        source: Where the figure was read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    ours: list[str]
    scenario: str | None = None
    backbone: str
    original: float | None = None
    restricted: float | None = None
    recipe: str = "not on record"
    source: str


COLUMNS = (
    Column(key="scenario", header=""),
    Column(key="backbone"),
    Column(key="model", header="paper: model"),
    Column(key="paper_original", header="paper: original", format=".1f"),
    Column(key="paper_restricted", header="paper: restricted", format=".1f"),
    Column(key="recipe", header="paper: fine-tuning"),
    Column(key="defense", header="ours: model", format=lambda row: row.get("defense") or "·"),
    Column(key="original", header="ours: original", format=lambda row: percent(row["original"])),
    Column(
        key="restricted",
        header="ours: restricted",
        format=lambda row: percent(row["restricted"]),
    ),
    Column(key="seeds", format=lambda row: number(row["seeds"])),
)  # fmt: skip


def beside(paper: Iterable[Reported], scores: DataFrame) -> list[dict[str, Any]]:
    """The paper's figures, each with every model of ours on the same scenario and backbone.

    Args:
        paper: What is on record.
        scores: Rows of `analysis.scores`.
    """
    ours = _ours(scores)
    rows = []
    for figure in paper:
        where = figure.scenario, figure.backbone
        told = {
            "scenario": figure.scenario or "not on record",
            "backbone": figure.backbone,
            "model": figure.model,
            "paper_original": figure.original,
            "paper_restricted": figure.restricted,
            "recipe": figure.recipe if figure.restricted is not None else "",
            "source": figure.source,
        }
        nothing = dict.fromkeys(("defense", "original", "restricted", "seeds"))
        found = [row for row in ours if row["where"] == where and row["name"] in figure.ours]
        rows += [{**told, **{key: row[key] for key in nothing}} for row in found or [nothing]]
    return rows


def _ours(scores: DataFrame) -> list[dict[str, Any]]:
    """What was measured: a row per place and defense, and one per place of random weights."""
    rows = []
    for row in records(scores):
        told = {
            "where": (parse(row["scenario"]).name, parse(row["backbone"]).name),
            "seeds": row["seeds"],
        }
        own = {"name": row["defense_name"], "defense": row["defense"]}
        reached = {"original": row["original_after"], "restricted": row["restricted_after"]}
        rows.append({**told, **own, **reached})
        if row["control"]:
            fresh = {"name": SCRATCH, "defense": SCRATCH, "original": None}
            rows.append({**told, **fresh, "restricted": row["scratch_after"]})
    return rows


def place(rows: Sequence[Row], notes: Sequence[str]) -> Place:
    """The table of `beside`."""
    sources = dict.fromkeys(row["source"] for row in rows)
    table = Table(
        title="Accuracies in %; the paper's columns are the paper's figures, not measured here",
        columns=COLUMNS,
        body=rows,
        notes=[
            "ours: restricted accuracy after the best of the study's trials, picked on the "
            "selection split, of the n below; the paper's: one recipe on its training set",
            *(f"the paper's figures: {source}" for source in sources),
            *notes,
        ],
    )
    return Place(title="The paper's figures beside ours", tables=[table])


PAPER = Style("#000000", "cross")
"""Of the paper's figures: black crosses, whatever the model."""


def figure(rows: Sequence[Row], scores: DataFrame) -> Figure | None:
    """Restricted accuracy by scenario and backbone: what was measured, and the paper's figures."""
    points: list[Point] = []
    for row in _ours(scores):
        name = vega.UNDEFENDED if row["name"] == "none" else row["defense"]
        points += _point(name, row["where"], row["restricted"], 100, name)
    for told in rows:
        where = told["scenario"], told["backbone"]
        points += _point("the paper's", where, told["paper_restricted"], 1, told["model"])
    if not points:
        return None
    shown = dict.fromkeys(point["x"] for point in points)
    defenses = {p["name"] for p in points} - {*vega.CONTROLS, "the paper's"}
    looks = vega.present({**vega.styles(defenses), "the paper's": PAPER}, points)
    x = {
        "type": "ordinal",
        "scale": {"domain": [*shown]},
        "axis": {"title": None, "labelAngle": -30, "labelLimit": vega.LONGEST},
    }
    y = {"scale": {"domain": [0, 100]}, "axis": {"title": "restricted accuracy (%)"}}
    drawn = vega.lines(points, looks, x=x, y=y, width=max(200, 60 * len(shown)), joined=False)
    return vega.titled(drawn, "Restricted accuracy after fine-tuning", ["crosses: the paper's"])


def _point(
    name: str, where: tuple[str, str], level: float | None, scale: float, tip: str
) -> list[Point]:
    if level is None:
        return []
    at = ", ".join(where)
    return [{"name": name, "x": at, "y": scale * level, "tip": f"{tip}: {scale * level:.1f} %"}]
