"""What fine-tuning reaches on every domain, the restricted one and benign ones, side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sophon_bench.analysis.envelope import HEAD, outcomes
from sophon_bench.analysis.statistics import Floats, Groups, interval, table_of
from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = (
    *HEAD, "suite", "defense", "control", "role", "domain", "samples", "seeds", "protected",
    "protected_half_width", "undefended", "scratch", "lost", "lost_half_width",
)  # fmt: skip
"""Columns of `domains`."""


def domains(results: Results) -> DataFrame:
    """The tuned envelope at the whole budget: one row per place, defense, domain and n.

    ``protected``, ``undefended`` and ``scratch`` are test utilities, means over the seeds on which
    the defense and the undefended model were both attacked there (``seeds``); null where nothing
    ran. ``lost`` is undefended minus protected, paired by seed. Half-widths are those of 95 %
    intervals, null for one seed. Restricted domains come first, then benign ones by name.
    """
    found = outcomes(results)
    models, whole = found.models.to_dict("list"), found.times.index(1)
    attacked = [key for key in found.attacks if models["kind"][key[0]] == "defense"]
    attacked.sort(key=lambda key: (key[0], not found.restricted[key[1]], key[1]))
    suites = found.suites(Groups.of(found.attacks[key] for key in attacked))
    rows = []
    for (model, number), suite in zip(attacked, suites, strict=True):
        sides = found.reached[found.sides(model), number, :, whole]
        setting = found.settings[number]
        rows.append(
            {
                **found.head(int(found.attacks[model, number][0])),
                "suite": suite,
                "defense": models["defense_label"][model],
                "control": models["control"][model],
                **setting._asdict(),
                **_levels(*sides),
            }
        )
    return table_of(rows, COLUMNS)


def _levels(protected: Floats, undefended: Floats, scratch: Floats) -> dict[str, Any]:
    """Means over seeds; arguments are (seeds,), NaN where nothing ran."""
    both = np.isfinite(protected) & np.isfinite(undefended)
    told: dict[str, Any] = {"seeds": int(both.sum())}
    lost = undefended - protected
    for name, values in (
        ("protected", protected), ("undefended", undefended), ("scratch", scratch), ("lost", lost),
    ):  # fmt: skip
        known = [value for value in values[both].tolist() if not math.isnan(value)]
        told[name], told[f"{name}_half_width"] = interval(known) if known else (None, None)
    return told
