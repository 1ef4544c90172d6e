"""Records as frames: what a row is, what is missing, what is told apart."""

from __future__ import annotations

import numpy as np
from conftest import Attempt, MakeCell, gather, named
from msgspec.structs import replace

from sophon_bench.results import Results


def test_rows_are_models_cells_and_points(make_cell: MakeCell) -> None:
    cells = [
        make_cell(defense="d", seed=1, curve=[(10, 0.4, 0.5), (20, 0.6, 0.7)]),
        make_cell(defense="d", attack="probe", seed=0, curve=[]),
        make_cell(seed=0, curve=[(10, 0.1, 0.2)]),
    ]
    found = Results.of(gather([*cells, cells[0]]))
    assert found.cells["seed"].tolist() == [0, 0, 1]
    assert set(found.cells.index) == {cell.key for cell in cells}
    assert sorted(found.models["kind"]) == ["pretrained"] * 2 + ["released"] * 3
    keys = set(found.cells["pretrained"]) | set(found.cells["released"])
    assert keys == set(found.models.index)
    points = found.points[found.points["cell"] == cells[0].key]
    assert points["number"].tolist() == [0, 1]
    assert points["test"].tolist() == [0.5, 0.7]
    assert len(found.points) == 3


def test_what_is_not_known_is_nan_among_numbers_and_none_else(make_cell: MakeCell) -> None:
    failed = make_cell(status="failed", reason="boom", curve=[], cost=None)
    row = Results.of(gather([failed])).cells.iloc[0]
    assert np.isnan(row["seconds"])
    assert np.isnan(row["nonfinite_step"])
    assert np.isnan(row["lr"])
    assert row["suite"] is None
    assert (row["reason"], row["samples"]) == ("boom", 200)


def with_lr(cell: Attempt, lr: float) -> Attempt:
    return named(replace(cell, attack=replace(cell.attack, parameters={"lr": lr, "k": [1, 2]})))


def test_a_plugin_is_what_its_record_says(make_cell: MakeCell) -> None:
    cells = [with_lr(make_cell(seed=seed), lr) for seed in (0, 1) for lr in (1, 1.0, 0.5)]
    found = Results.of(gather(cells)).cells
    for cell in cells:
        row = found.loc[cell.key]
        assert row["attack_version"] == cell.attack.version
        assert row["attack_parameters"] == cell.attack.parameters
        assert (row["family"], row["lr"]) == (cell.attack.family, cell.attack.lr)
    assert found["attack_version"].nunique() == 3


def test_no_records_are_frames_without_rows(make_cell: MakeCell) -> None:
    empty, one = Results.of(gather([])), Results.of(gather([make_cell()]))
    for name in ("models", "cells", "points"):
        assert len(getattr(empty, name)) == 0
        assert list(getattr(empty, name)) == list(getattr(one, name))
        assert getattr(empty, name).dtypes.equals(getattr(one, name).dtypes)
