"""Which budgets and n count: measured once on controls, then frozen in the repository."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from sophon_bench import protocol
from sophon_bench.analysis.envelope import Outcomes, Setting, multiples
from sophon_bench.analysis.statistics import Groups
from sophon_bench.results.frames import Results
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
        same = ("scenario", "revision", "backbone", "protocol", "budget")
        return all(getattr(self, name) == place[name] for name in same)


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
    outcomes = Outcomes(Results(results.models, controls, points))
    if len(outcomes.places) != 1:
        raise ValueError(
            f"gaps are frozen for one scenario, backbone and budget at a time; "
            f"the controls are of {len(outcomes.places)}"
        )
    models = (outcomes.undefended(0), outcomes.scratch(0))
    seeds = common_seeds(outcomes, models, shared_settings(outcomes, models))
    if len(seeds) < protocol.SEEDS:
        raise ValueError(
            f"frozen gaps need at least {protocol.SEEDS} seeds with both the undefended model and "
            f"fresh weights under attack, there are {len(seeds)}; run both controls on more seeds"
        )
    (place,) = outcomes.places.to_dict("records")
    (suite,) = outcomes.suites(Groups(outcomes.cells["place"].to_numpy()))
    return Frozen(
        **place, seeds=tuple(seeds), suite=suite, gaps=tuple(_gaps(outcomes, models, seeds))
    )


def _gaps(outcomes: Outcomes, models: Sequence[int], seeds: Sequence[int]) -> Iterator[Gap]:
    for setting in shared_settings(outcomes, models):
        for cost, times in costs(outcomes, models[:1], setting).items():
            utilities = [outcomes.utilities(model, setting, times) for model in models]
            if all(seed in found for found in utilities for seed in seeds):
                high, low = (statistics.fmean(found[s] for s in seeds) for found in utilities)
                yield Gap(
                    domain=setting.domain,
                    role="restricted" if setting.role == "restricted" else "benign",
                    samples=setting.samples,
                    cost=cost,
                    undefended=high,
                    scratch=low,
                    gap=high - low,
                )


def costs(outcomes: Outcomes, models: Sequence[int], setting: Setting) -> dict[float, float]:
    """The costs that models are compared at, in units, each with the multiple of the budget.

    All of them were followed to these. Of a benign domain, the whole budget alone.
    """
    followed = min(outcomes.stretches[model, setting] for model in models)
    found = [1.0] if setting.role == "benign" else multiples(followed)
    return {outcomes.budgets[models[0]] * times: times for times in found}


def shared_settings(outcomes: Outcomes, models: Sequence[int]) -> list[Setting]:
    """The settings that all models have an envelope in, in order."""
    return [
        setting
        for setting in outcomes.settings_of.get(models[0], [])
        if all((model, setting) in outcomes.envelopes for model in models)
    ]


def common_seeds(
    outcomes: Outcomes, models: Sequence[int], settings: Iterable[Setting]
) -> list[int]:
    """Seeds that the envelopes of all models are known on in all settings."""
    found = [set(outcomes.seeds(model, at)) for at in settings for model in models]
    return sorted(set.intersection(*found)) if found else []
