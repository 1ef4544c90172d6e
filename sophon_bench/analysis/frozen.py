"""Which budgets and n count: measured once on controls, then frozen in the repository."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sophon_bench import protocol
from sophon_bench.analysis.envelope import Outcomes, Setting, multiples
from sophon_bench.analysis.statistics import Floats, Groups
from sophon_bench.results.frames import PLACE, Results
from sophon_bench.results.records import Record

Slot = tuple[Setting, float]
"""What is attacked, and at what cost in units."""


class Gap(Record, frozen=True, kw_only=True):
    """Test utility of the undefended model and of random initialisation, means over seeds.

    ``cost`` is in units.
    """

    domain: str
    role: Literal["restricted", "benign"]
    samples: int
    cost: float
    undefended: float
    scratch: float
    gap: float

    @property
    def slot(self) -> Slot:
        """Where and at what cost."""
        return Setting(self.role, self.domain, self.samples), self.cost


class Frozen(Record, frozen=True, kw_only=True):
    """The gaps of one scenario and backbone."""

    scenario: str
    revision: str
    backbone: str
    precision: str
    protocol: str
    budget: int
    seeds: tuple[int, ...]
    suite: str | None
    gaps: tuple[Gap, ...]

    def fits(self, place: Mapping[str, Any]) -> bool:
        """Whether these gaps are of a place, that is of the columns of `PLACE` with such values."""
        return all(getattr(self, name) == place[name] for name in PLACE)


def fitting(frozen: Frozen | Sequence[Frozen] | None, place: Mapping[str, Any]) -> Frozen | None:
    """The first of frozen gaps that are of a place, if there are any."""
    documents = (frozen,) if isinstance(frozen, Frozen) else frozen or ()
    return next((found for found in documents if found.fits(place)), None)


def freeze(results: Results) -> Frozen:
    """The gaps of the controls, of at least five seeds in one place.

    Raises:
        ValueError: If there are fewer seeds, or cells of several places.
    """
    controls = results.cells[results.cells["defense_control"]]
    points = results.points[results.points["cell"].isin(controls.index)]
    found = Outcomes(Results(results.models, controls, points))
    if len(found.places) != 1:
        raise ValueError(
            f"gaps are frozen for one scenario, backbone and budget at a time; "
            f"the controls are of {len(found.places)}"
        )
    models = found.sides(0)[1:]
    seeds = common_seeds(found, models, shared_settings(found, models))
    if len(seeds) < protocol.SEEDS:
        raise ValueError(
            f"frozen gaps need at least {protocol.SEEDS} seeds with both the undefended model and "
            f"random initialisation under attack, there are {len(seeds)}; run both controls on "
            "more seeds"
        )
    (place,) = found.places.to_dict("records")
    (suite,) = found.suites(Groups(found.cells["place"].to_numpy()))
    gaps = []
    for (setting, cost), utilities in slots(found, models, seeds).items():
        high, low = map(statistics.fmean, utilities)
        told = {**setting._asdict(), "cost": cost, "undefended": high, "scratch": low}
        gaps.append(Gap(**told, gap=high - low))
    return Frozen(
        **place, seeds=tuple(found.seeds[s] for s in seeds), suite=suite, gaps=tuple(gaps)
    )


def shared_settings(found: Outcomes, models: Sequence[int]) -> list[int]:
    """The settings that all models have an envelope in, in order."""
    shared: list[int] = np.flatnonzero(found.ran[models].any(axis=2).all(axis=0)).tolist()
    return shared


def common_seeds(found: Outcomes, models: Sequence[int], settings: Sequence[int]) -> list[int]:
    """Seeds, by number, that the envelopes of all models are known on in all settings."""
    ran = found.ran[models][:, settings].all(axis=(0, 1))
    return np.flatnonzero(ran).tolist() if settings else []


def slots(found: Outcomes, models: Sequence[int], seeds: Sequence[int]) -> dict[Slot, Floats]:
    """(models, seeds) what models reach in each slot, where each reaches something on every seed.

    They are compared at the budgets that all of them but the last, which is random initialisation,
    were followed to; in a benign domain at the whole budget alone.
    """
    utilities: dict[Slot, Floats] = {}
    budget = found.models["budget"].to_list()[models[0]]
    for setting in shared_settings(found, models) if seeds else ():
        followed = int(found.stretches[models[:-1], setting].min())
        for times in multiples(followed) if found.restricted[setting] else [1.0]:
            levels = found.reached[models, setting, :, found.times.index(times)][:, seeds]
            if not np.isnan(levels).any():
                utilities[found.settings[setting], budget * times] = levels
    return utilities
