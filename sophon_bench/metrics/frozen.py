"""Which (budget, n) cells count: measured once on controls, then frozen in the repository."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from sophon_bench.metrics.envelopes import (
    Candidates,
    Open,
    Sides,
    Where,
    budgets,
    head,
    places,
    stretch_of,
    suites,
)
from sophon_bench.protocol import SEEDS
from sophon_bench.records import Cell, Record


class Gap(Record, frozen=True, kw_only=True):
    """Test utility of the undefended model and of fresh weights, means over seeds.

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
    def slot(self) -> tuple[Where, float]:
        """Where and at what cost."""
        return Where(self.role, self.domain, self.samples), self.cost


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

    def fits(self, cell: Cell) -> bool:
        """Whether these gaps are of the place that ``cell`` is in."""
        same = ("revision", "backbone", "protocol", "budget")
        place = head(cell)
        return self.scenario == place["scenario"] and all(
            getattr(self, key) == place[key] for key in same
        )


def freeze(cells: Iterable[Cell]) -> Frozen:
    """The gaps of the controls, of at least five seeds in one place.

    Raises:
        ValueError: If there are fewer seeds, or cells of several places.
    """
    found = places(c for c in cells if c.defense.control)
    if len(found) != 1:
        raise ValueError(
            f"gaps are frozen for one scenario, backbone and budget at a time; "
            f"the controls are of {len(found)}"
        )
    (sides,) = found
    fresh, undefended = sides.of_scratch, sides.of_undefended
    seeds = common_seeds([fresh, undefended], sorted(fresh.keys() & undefended.keys()))
    if len(seeds) < SEEDS:
        raise ValueError(
            f"frozen gaps need at least {SEEDS} seeds with both the undefended model and fresh "
            f"weights under attack, there are {len(seeds)}; run both controls on more seeds"
        )
    gaps = [
        Gap(
            domain=at.domain,
            role="restricted" if at.role == "restricted" else "benign",
            samples=at.samples,
            cost=cost,
            undefended=one,
            scratch=other,
            gap=one - other,
        )
        for at, cost, one, other in _gaps(sides, undefended, fresh, seeds)
    ]
    here = head(sides.cells[0])
    del here["utility"]  # the scenario's
    return Frozen(
        **here,
        seeds=tuple(seeds),
        suite=suites(sides.cells),
        gaps=tuple(gaps),
    )


def _gaps(
    sides: Sides, undefended: Candidates, fresh: Candidates, seeds: list[int]
) -> Iterator[tuple[Where, float, float, float]]:
    budget = sides.cells[0].budget
    for at in sorted(fresh.keys() & undefended.keys()):
        longest = stretch_of(sides.undefended[at])
        costs = budgets(budget, longest) if at.role == "restricted" else [float(budget)]
        for cost in costs:
            one, other = utilities(undefended[at], cost), utilities(fresh[at], cost)
            if all(seed in one and seed in other for seed in seeds):
                high, low = (statistics.fmean(side[s] for s in seeds) for side in (one, other))
                yield at, cost, high, low


def utilities(open_to: Mapping[int, Open], units: float) -> dict[int, float]:
    """The envelope's test utility at cost <= ``units`` by seed, where there is one."""
    picks = {seed: found.best(units) for seed, found in open_to.items()}
    return {seed: pick[1].test for seed, pick in picks.items() if pick is not None}


def common_seeds(sides: Iterable[Candidates], at: Iterable[Where]) -> list[int]:
    """Seeds that every side has everywhere."""
    found = [set(side.get(place, {})) for place in at for side in sides]
    return sorted(set.intersection(*found)) if found else []
