"""Rows of trials and their envelope, by cases computed by hand, and by what must hold for any."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
from conftest import Attempt, MakeCell, gather, records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sophon_bench.analysis.case import intactness
from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.statistics import interval
from sophon_bench.analysis.trials import trials
from sophon_bench.results import Results
from sophon_bench.results.records import Point


def rows_of(cells: Iterable[Attempt]) -> list[dict[str, Any]]:
    return records(trials(Results.of(gather(cells))))


def selected(cell: Attempt) -> Point | None:
    """The checkpoint that is selected within the budget."""
    found = outcomes(Results.of(gather([cell])))
    row = found.selected[0, found.times.index(1)]
    return None if row < 0 else cell.curve[found.points["number"][row]]


def test_the_interval_is_students_t() -> None:
    # mean 2, standard deviation 1, standard error 1/sqrt(3), t(0.975, 2) = 4.302653
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert interval([0.4]).half_width is None


def test_the_selection_split_picks_the_checkpoint_not_the_test_split(make_cell: MakeCell) -> None:
    cell = make_cell(curve=[(10, 0.3, 0.9), (20, 0.6, 0.5), (40, 0.6, 0.7), (80, 0.5, 0.8)])
    point = selected(cell)
    assert point is not None
    assert (point.units, point.test) == (20, 0.5)


@pytest.mark.parametrize(("budget", "number"), [(19, 0), (20, 1), (9, None)])
def test_a_budget_hides_what_costs_more(
    make_cell: MakeCell, budget: int, number: int | None
) -> None:
    cell = make_cell(curve=[(10, 0.3, 0.9), (20, 0.6, 0.5)], budget=budget)
    assert selected(cell) == (None if number is None else cell.curve[number])
    assert selected(make_cell(curve=[])) is None


def test_the_envelope_picks_trial_and_checkpoint_per_seed(make_cell: MakeCell) -> None:
    lucky = make_cell(attack="a", curve=[(10, 0.5, 0.99)])
    right = make_cell(attack="b", curve=[(10, 0.4, 0.1), (20, 0.7, 0.6)])
    other = make_cell(attack="a", seed=1, curve=[(10, 0.9, 0.8)])
    row = next(r for r in rows_of([lucky, right, other]) if r["attack"] == "envelope")
    assert row["restricted_after"] == pytest.approx((0.6 + 0.8) / 2)
    assert row["best"] == "a or b"
    assert row["trials"] == 2


def test_a_checkpoint_beyond_the_budget_never_counts(make_cell: MakeCell) -> None:
    cell = make_cell(budget=100, curve=[(50, 0.2, 0.2), (101, 0.9, 0.9)])
    found = {r["attack"]: r for r in rows_of([cell])}
    assert found["finetune"]["restricted_after"] == 0.2
    assert found["envelope"]["restricted_after"] == 0.2
    greedy = make_cell(budget=100, curve=[(101, 0.9, 0.9)])
    (row, _) = rows_of([greedy])
    assert row["restricted_after"] is None


def test_protection_by_crash_is_no_protection(make_cell: MakeCell) -> None:
    cells = [
        make_cell(curve=[(10, 0.9, 0.85)]),
        make_cell(defense="trap", curve=[], status="diverged", nonfinite_step=1),
        make_cell(defense="late", curve=[(10, 0.3, 0.2)], status="diverged", nonfinite_step=7),
    ]
    found = {(r["defense"], r["attack"]): r for r in rows_of(cells)}
    assert found["trap", "finetune"]["restricted_after"] == 0.85
    assert found["trap", "envelope"]["restricted_after"] == 0.85
    assert found["late", "envelope"]["restricted_after"] == 0.2


def test_two_versions_of_a_plugin_are_two_rows(make_cell: MakeCell) -> None:
    old = make_cell(curve=[(10, 0.5, 0.2)])
    new = make_cell(curve=[(10, 0.5, 0.9)], key="new")
    new = replace(new, attack=replace(new.attack, source="edited"))
    found = [r for r in rows_of([old, new]) if r["attack"] != "envelope"]
    assert sorted(r["restricted_after"] for r in found) == [0.2, 0.9]
    assert all(r["attack"].startswith("finetune@") for r in found)
    assert {r["seeds"] for r in found} == {1}


def test_unequal_trials_or_seeds_are_flagged(make_cell: MakeCell) -> None:
    equal = [make_cell(), make_cell(defense="d")]
    more = [*equal, make_cell(attack="strong")]
    for cells, flags in ((equal, 0), (more, 1)):
        rows = rows_of(cells)
        row = next(r for r in rows if (r["defense"], r["attack"]) == ("d", "envelope"))
        assert len(row["flags"]) == flags


def test_seeds_that_reached_nothing_are_counted(make_cell: MakeCell) -> None:
    cells = [make_cell(), make_cell(seed=1, curve=[], status="diverged", nonfinite_step=1)]
    row = rows_of(cells)[0]
    assert (row["seeds"], row["seeds_reached"]) == (2, 1)
    assert row["status"] == "diverged ok"


def test_scratch_is_a_candidate_of_every_envelope(make_cell: MakeCell) -> None:
    cells = [
        make_cell(curve=[(10, 0.9, 0.85)]),
        make_cell(attack="scratch", curve=[(10, 0.6, 0.55)]),
        make_cell(defense="d", curve=[(10, 0.2, 0.15)]),
    ]
    found = {(r["defense"], r["attack"]): r for r in rows_of(cells)}
    assert found["none", "envelope"]["restricted_after"] == 0.85
    assert found["d", "envelope"]["restricted_after"] == 0.55
    assert found["d", "envelope"]["best"] == "scratch"
    assert ("d", "scratch") not in found


def test_a_row_averages_seeds_and_counts_costs(make_cell: MakeCell) -> None:
    cells = [
        make_cell(defense="d", seed=seed, curve=[(10, 0.5, test)], original=(0.98, after))
        for seed, test, after in [(0, 0.2, 0.96), (1, 0.4, 0.90)]
    ]
    row = next(r for r in rows_of(cells) if r["attack"] == "finetune")
    assert row["seeds"] == 2
    assert row["restricted_after"] == pytest.approx(0.3)
    # t(0.975, 1) = 12.7062; standard error = 0.1414 / sqrt(2) = 0.1
    assert row["restricted_after_half_width"] == pytest.approx(1.27062, rel=1e-5)
    assert row["original_after"] == pytest.approx(0.93)
    assert row["intactness"] == pytest.approx((0.8 + 0.2) / 2)
    assert row["protect_cost"] == 2.0
    assert row["status"] == "ok"


def test_other_data_protocol_or_budget_is_another_row(make_cell: MakeCell) -> None:
    other = {"name": "s", "label": "s", "parameters": {}, "revision": "other"}
    cells = [make_cell(), make_cell(scenario=other), make_cell(protocol="2"), make_cell(budget=1)]
    rows = rows_of(cells)
    assert len([r for r in rows if r["attack"] == "finetune"]) == 4
    assert {r["seeds"] for r in rows} == {1}


def test_failures_stay_visible(make_cell: MakeCell) -> None:
    failed = make_cell(status="failed", reason="boom", curve=[], cost=None)
    diverged = make_cell(attack="b", status="diverged", nonfinite_step=1, curve=[])
    found = {r["attack"]: r for r in rows_of([failed, diverged])}
    assert found["finetune"]["status"] == "failed"
    assert found["finetune"]["restricted_after"] is None
    assert found["b"]["flags"] == ["non-finite"]
    assert found["envelope"]["restricted_after"] is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.98, 0.98, 1), (0.98, 0.99, 1), (0.98, 0.93, 0.5), (1, 0.5, 0)],
)
def test_intactness_loses_all_over_ten_points(before: float, after: float, expected: float) -> None:
    assert intactness(before, after) == pytest.approx(expected)


fractions = st.floats(0, 1)
curves = st.lists(st.tuples(st.floats(1, 1000), fractions, fractions), min_size=1, max_size=4)


fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@fixture
@given(st.lists(curves, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order_of_records(
    make_cell: MakeCell, found: list[list[tuple[float, float, float]]], shuffle: random.Random
) -> None:
    cells = [
        make_cell(attack=f"a{i % 2}", defense=("none", "d")[i % 3 == 0], seed=i, curve=curve)
        for i, curve in enumerate(found)
    ]
    shuffled = cells.copy()
    shuffle.shuffle(shuffled)
    assert rows_of(cells) == rows_of(shuffled)


@fixture
@given(curves, st.integers(1, 1000), st.integers(1, 1000))
def test_more_budget_never_selects_worse(
    make_cell: MakeCell, curve: list[tuple[float, float, float]], one: int, other: int
) -> None:
    less, more = (
        selected(make_cell(curve=curve, budget=budget)) for budget in sorted([one, other])
    )
    if less is not None:
        assert more is not None
        assert more.selection >= less.selection


@fixture
@given(st.lists(curves, min_size=1, max_size=4), st.sampled_from([1 / 16, 1 / 4, 1]))
def test_the_envelope_is_the_best_of_what_each_trial_selects(
    make_cell: MakeCell, found: list[list[tuple[float, float, float]]], times: float
) -> None:
    cells = [
        make_cell(attack=f"a{number}", curve=curve, budget=1000)
        for number, curve in enumerate(found)
    ]
    best = [
        max(within, key=lambda point: point.selection)
        for cell in cells
        if (within := [point for point in cell.curve if point.units <= 1000 * times])
    ]
    envelope = outcomes(Results.of(gather(cells)))
    expected = {0: max(best, key=lambda point: point.selection).test} if best else {}
    test = envelope.reached[0, 0, 0, envelope.times.index(times)]
    assert ({} if math.isnan(test) else {0: test}) == expected


def test_only_the_restricted_domain_has_rows(make_cell: MakeCell) -> None:
    cells = [make_cell(), make_cell(role="benign", domain="greek")]
    assert rows_of(cells) == rows_of(cells[:1])


def test_what_went_on_has_rows_of_its_own(make_cell: MakeCell) -> None:
    curve = [(100.0, 0.3, 0.3), (1000.0, 0.9, 0.9)]
    cells = [
        make_cell(budget=100, curve=curve[:1], suite="@s v1"),
        make_cell(budget=100, curve=curve, stretch=10, derived=True),
        make_cell(budget=100, attack="b", curve=[(90.0, 0.4, 0.4)]),
    ]
    rows = rows_of(cells)
    found = {(r["attack"], r["stretch"]): r["restricted_after"] for r in rows}
    assert found == {
        ("b", 1): 0.4,
        ("finetune", 1): 0.3,
        ("finetune", 10): 0.9,
        ("envelope", 1): 0.4,
        ("envelope, 10× budget", 10): 0.9,
    }
    assert {r["suite"] for r in rows if r["attack"].startswith("envelope")} == {"@s v1"}
    assert list(found) == [(row["attack"], row["stretch"]) for row in rows]


def test_the_envelope_takes_early_checkpoints_of_what_went_on(make_cell: MakeCell) -> None:
    longer = make_cell(budget=100, curve=[(90.0, 0.6, 0.6), (900.0, 0.9, 0.9)], stretch=10)
    rows = rows_of([make_cell(budget=100, curve=[(100.0, 0.3, 0.3)]), longer])
    envelope = next(row for row in rows if row["attack"] == "envelope")
    assert envelope["restricted_after"] == 0.6


def test_a_crash_without_its_like_counts_as_the_best_of_that_attack(make_cell: MakeCell) -> None:
    cells = [
        make_cell(attack="finetune[lr=0.1]", curve=[(10, 0.5, 0.5)]),
        make_cell(attack="finetune[lr=0.3]", curve=[(10, 0.7, 0.7)]),
        make_cell(attack="probe", curve=[(10, 0.9, 0.9)]),
        make_cell(defense="d", attack="finetune[lr=0.9]", curve=[], nonfinite_step=1),
    ]
    found = {(r["defense"], r["attack"]): r for r in rows_of(cells)}
    assert found["d", "finetune[lr=0.9]"]["restricted_after"] == 0.7
    assert found["d", "envelope"]["restricted_after"] == 0.7
    assert "non-finite values in 1 of 1 runs" in found["d", "envelope"]["flags"]


def test_records_are_looked_at_once_however_many_ask(make_cell: MakeCell) -> None:
    results = Results.of(gather([make_cell()]))
    assert outcomes(results) is outcomes(results)
    assert outcomes(Results.of(gather([make_cell()]))) is not outcomes(results)


def test_no_records_are_no_rows_with_all_columns(make_cell: MakeCell) -> None:
    empty, one = trials(Results.of(gather([]))), trials(Results.of(gather([make_cell()])))
    assert len(empty) == 0
    assert list(empty) == list(one)


def test_a_label_with_two_versions_in_one_place_alone_tells_them_apart(
    make_cell: MakeCell,
) -> None:
    here, elsewhere = make_cell(defense="d"), make_cell(defense="d", backbone="c")
    edited = replace(here, defense=replace(here.defense, source="edited"), key="edited")
    rows = rows_of([here, edited, elsewhere])
    names = {(row["backbone"], row["defense"]) for row in rows}
    versions = {f"d@{cell.defense.version[:7]}" for cell in (here, edited)}
    assert names == {("c", "d"), *(("b", name) for name in versions)}
