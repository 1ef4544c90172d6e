"""Means, intervals and rows by group, by cases computed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophon_bench.analysis.statistics import Groups, mean, table

NONE = float("nan")


@pytest.fixture
def groups() -> Groups:
    """Rows 0, 2, 5 are of group 3 and rows 1, 4 of group 7; row 3 is of none."""
    return Groups(np.array([7, 3, 3, 7, 3]), np.array([1, 0, 2, 4, 5]))


def test_groups_are_in_order_of_their_numbers(groups: Groups) -> None:
    assert groups.numbers.tolist() == [3, 7]
    assert groups.first.tolist() == [0, 1]
    assert groups.last.tolist() == [5, 4]
    assert [rows.tolist() for rows in groups.positions()] == [[0, 2, 5], [1, 4]]
    assert groups.of_rows.tolist() == [0, 0, 0, 1, 1]


def test_columns_are_reduced_by_group(groups: Groups) -> None:
    values = np.array([1.0, NONE, 2.0, 9.0, NONE, 6.0])
    assert groups.means(values) == [3, None]
    found = groups.intervals(values)
    # mean 3, standard deviation sqrt 7, t(0.975, 2) = 4.302653
    assert found[0] is not None
    assert found[0].half_width == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    assert found[1] is None
    words = np.array(["b", None, "a", "z", "c", "b"], dtype=object)
    assert groups.distinct(words) == [["a", "b"], ["c"]]
    assert groups.counts(words) == [2, 1]
    assert groups.join(words, " or ") == ["a or b", "c"]
    assert groups.join(np.full(6, None), " or ") == [None, None]


def test_the_first_of_the_highest_is_found_column_by_column() -> None:
    groups = Groups(np.array([0, 0, 0, 1]))
    low = -np.inf
    values = np.array([[1, low], [3, 2], [3, 5], [low, 4]])
    assert groups.highest(values).tolist() == [[1, 2], [-1, 3]]
    assert len(Groups(np.array([], dtype=int)).highest(np.empty((0, 2)))) == 0


def test_groups_can_be_given_one_by_one() -> None:
    groups = Groups.of([np.array([4, 1]), np.array([4])])
    assert [rows.tolist() for rows in groups.positions()] == [[4, 1], [4]]
    assert len(Groups.of([])) == 0


@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=6), min_size=1, max_size=4))
def test_means_are_exact_sums(found: list[list[float]]) -> None:
    numbers = np.repeat(np.arange(len(found)), [len(values) for values in found])
    means = Groups(numbers).means(np.concatenate(found))
    assert means == [math.fsum(values) / len(values) for values in found]


def test_the_mean_of_nothing_is_none() -> None:
    assert mean([None, NONE]) is None
    assert mean([0.5, None, 0.75]) == 0.625


def test_whole_numbers_stay_whole_beside_missing_ones() -> None:
    frame = table(
        {"rank": [1, None], "share": [0.5, None], "seeds": [3, 4], "control": [True, False],
         "suite": ["@a", None], "none": [None, None]}
    )  # fmt: skip
    assert json.dumps(frame["rank"].tolist()) == "[1, null]"
    assert frame["suite"].tolist() == ["@a", None]
    assert frame["none"].tolist() == [None, None]
    assert np.isnan(frame["share"][1])
    assert (~frame["control"]).tolist() == [False, True]
    assert frame["seeds"].dtype == "int64"
