"""Images that models made from noise: of released models, and after the attacks on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sophon_bench.analysis.envelope import CHOICE, HEAD, Outcomes, outcomes
from sophon_bench.analysis.statistics import Groups, interval, table_of, votes
from sophon_bench.results.frames import Results
from sophon_bench.results.records import Generated

if TYPE_CHECKING:
    from pandas import DataFrame

Maker = Literal["released", "attacked", "scratch"]
"""A defense's model; the same after an attack; random initialisation after its own."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """Images of one model.

    Attributes:
        place: What they have in common with others of their place (`HEAD`, and ``suite``).
        maker: Which kind of model made them.
        defense: Whose model that was; for random initialisation the undefended model's name.
        control: Whether that is the undefended model.
        samples: The attacker's; None before any attack.
        attack: The label of the attack that was picked; None before any.
        seed: The model's.
        generated: The images: of the original domain before an attack, after it of the restricted.
    """

    place: Mapping[str, Any]
    maker: Maker
    defense: str
    control: bool
    samples: int | None
    attack: str | None
    seed: int
    generated: Generated


def makers(results: Results, among: Collection[str] | None = None) -> list[Made]:
    """Images by place, the released models first, then the attacked, scratch last; by seed.

    Of attacks, the one whose best checkpoint within the budget the selection split picks among
    those of regular length on the model itself: random initialisation is no candidate here, and
    stands beside. A trial that is not finite from its first update counts as the undefended
    model's. The images are of the model at the end of the trial.

    Args:
        results: Records.
        among: Keys of the cells that may be picked; None: all may. Those of random
            initialisation, which has attacks of its own, always may.
    """
    found = outcomes(results)
    in_place = Groups(found.cells["place"].to_numpy())
    places = found.cells[list(HEAD)].iloc[in_place.first].assign(suite=found.suites(in_place))
    heads = places.to_dict("records")
    made = [*_released(found), *_attacked(found, among)]
    return [
        Made(**{**each, "place": heads[each["place"]]})
        for each in sorted(made, key=lambda each: each["place"])
        if each["generated"] is not None
    ]


MADE = ["place", "maker", "defense", "control", "samples", "attack", "seed", "generated"]
"""Fields of `Made`; ``place`` is a row of `Outcomes.places`."""


def _released(found: Outcomes) -> list[dict[str, Any]]:
    """`MADE` of released models, before any attack."""
    cells = found.cells.drop_duplicates(["model", "seed"], keep="last")
    cells = cells.sort_values(["model", "seed"])
    stages = cells["after"].mask(cells["defense_control"], cells["before"])
    made = cells.assign(
        maker="released",
        defense=cells["defense_label"],
        control=cells["defense_control"],
        samples=None,
        attack=None,
        generated=found.stages["generated"].to_numpy()[stages],
    )
    released: list[dict[str, Any]] = made[MADE].to_dict("records")
    return released


def _attacked(found: Outcomes, among: Collection[str] | None) -> list[dict[str, Any]]:
    """`MADE` after the trial that is picked, by attacked model, setting and seed."""
    cells, regular = found.cells, found.times.index(1.0)
    role, stretch = (cells[name].to_numpy() for name in ("role", "stretch"))
    kind = found.models["kind"].to_numpy()
    rows = found.own
    rows = rows[(role[rows["cell"]] == "restricted") & (stretch[rows["cell"]] == 1)]
    rows = rows[kind[rows["model"]] != "undefended"].sort_values([*CHOICE, "cell"])
    rows["first"] = rows.groupby(["model", "setting"])["cell"].transform("first")
    if among is not None:
        allowed = cells["key"].isin(among) | cells["attack_control"]
        rows = rows[allowed.to_numpy()[rows["cell"]]]
    rows["cell"] = found.picked(found.counted[rows["cell"], regular])
    rows = rows[rows["cell"] >= 0]
    numbers = rows.groupby(CHOICE).ngroup().to_numpy()
    best = found.envelope(Groups(numbers, rows["cell"].to_numpy()))[:, regular]
    picked = cells.iloc[found.picked(best)]
    rows = rows.drop_duplicates(CHOICE)
    first = cells.iloc[rows["first"]]
    made = rows.assign(
        maker=np.where(kind[rows["model"]] == "scratch", "scratch", "attacked"),
        defense=first["defense_label"].to_numpy(),
        control=first["defense_control"].to_numpy(),
        samples=first["samples"].to_numpy(),
        attack=picked["attack_label"].to_numpy(),
        generated=picked["generated"].to_numpy(),
    )
    attacked: list[dict[str, Any]] = made[MADE].to_dict("records")
    return attacked


def images(results: Results) -> DataFrame:
    """How good the images of `makers` are: one row per place, maker, defense and n.

    ``frechet``, ``frechet_real`` (the same number of real images) and ``classifier_score`` are
    means over seeds, the first and the last with a ``_half_width``; so are ``fid`` and
    ``fid_real``, None unless every seed has them; ``attacks`` is a list of (label, seeds) as in
    `winners`. Nothing where models make no images.
    """
    groups: dict[tuple[Any, ...], list[Made]] = {}
    for made in makers(results):
        key = (*made.place.values(), made.maker, made.defense, made.samples)
        groups.setdefault(key, []).append(made)
    return table_of([_row(group) for group in groups.values()], COLUMNS)


COLUMNS = (
    *HEAD, "suite", "defense", "control", "maker", "samples", "seeds", "attacks", "frechet",
    "frechet_half_width", "frechet_real", "classifier_score", "classifier_score_half_width", "fid",
    "fid_half_width", "fid_real",
)  # fmt: skip
"""Columns of `images`."""


def _row(group: Sequence[Made]) -> dict[str, Any]:
    first = group[0]
    row = {
        **first.place,
        "defense": first.defense,
        "control": first.control,
        "maker": first.maker,
        "samples": first.samples,
        "seeds": len(group),
        "attacks": votes(made.attack for made in group),
    }
    for name in ("frechet", "frechet_real", "classifier_score", "fid", "fid_real"):
        values = [getattr(made.generated, name) for made in group]
        ends = (None, None) if None in values else interval(values)
        row[name], row[f"{name}_half_width"] = ends
    return row
