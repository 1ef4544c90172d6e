"""Records as frames: what a row is, what is missing, what is told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import Attempt, MakeCell, gather, named
from msgspec.structs import replace
from pandas.testing import assert_frame_equal

from sophon_bench.results import Results
from sophon_bench.results.provenance import capture
from sophon_bench.results.records import Records, Run
from sophon_bench.results.store import Store


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


def test_a_store_has_the_frames_of_its_records_in_whatever_order_they_are_read(
    make_cell: MakeCell, tmp_path: Path
) -> None:
    attempts = [
        make_cell(defense=name, seed=seed, curve=[(n, n / 10, n / 20) for n in range(1, length)])
        for seed, name, length in ((2, "d", 3), (0, "e", 1), (1, "d", 5), (0, "d", 2), (1, "e", 4))
    ]
    records = gather(attempts)
    store = Store(tmp_path)
    for model in records.models.values():
        store.put_model(model)
    for cell in records.cells:
        store.put_cell(cell)
    store.begin(Run(command="", provenance=capture(torch.device("cpu"))), [*records.asked.values()])
    found = Results.of(records)
    for key, points in found.points.groupby("cell"):
        (curve,) = (each.cell.curve for each in attempts if each.key == key)
        assert points["test"].tolist() == curve.test
    backwards = Results.of(Records(records.models, records.cells[::-1], records.asked))
    for other in (backwards, Results.stored(store)):
        for name in ("models", "cells", "points"):
            assert_frame_equal(getattr(other, name), getattr(found, name))


def test_no_records_are_frames_without_rows(make_cell: MakeCell) -> None:
    empty, one = Results.of(gather([])), Results.of(gather([make_cell()]))
    for name in ("models", "cells", "points"):
        assert len(getattr(empty, name)) == 0
        assert list(getattr(empty, name)) == list(getattr(one, name))
        assert getattr(empty, name).dtypes.equals(getattr(one, name).dtypes)
