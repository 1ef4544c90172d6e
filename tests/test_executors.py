"""What every executor has to keep: one table over all that there are."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import TINY
from test_engine import metrics, plan_of, setting

from sophon_bench.execution.executors import AUTO, Executor, ExecutorError, Work, executors, start
from sophon_bench.execution.executors.in_process import InProcess
from sophon_bench.execution.executors.processes import Processes
from sophon_bench.execution.plan import AttackStage, PretrainStage, Setting, Stage
from sophon_bench.results.records import ModelRecord
from sophon_bench.results.store import Store, StoreError

__all__ = ["setting"]  # a fixture

Begin = Callable[..., Executor]


@pytest.fixture
def begin(setting: Setting, tmp_path: Path) -> Any:
    """Starts an executor on a store of its own, and ends it."""
    begun: list[Executor] = []

    def make(
        name: str,
        tick: Callable[..., object] = lambda *_: None,
        *,
        workers: int = 1,
        root: Path = tmp_path / "store",
    ) -> Executor:
        Store(root)
        work = Work(
            store=root, device=torch.device("cpu"), settings=[setting], plugins=[TINY],
            workers=workers, threads=1, compiled="off", tick=tick,
        )  # fmt: skip
        begun.append(start(name, work))
        return begun[-1]

    yield make
    for executor in begun:
        executor.close()


def upstream(stage: Stage, made: dict[str, ModelRecord]) -> dict[str, ModelRecord]:
    found = {}
    while not isinstance(stage, PretrainStage):
        stage = stage.upstream
        found[stage.key] = made[stage.key]
    return found


@pytest.mark.slow
def test_stages_are_done_alike_by_all_of_them_and_their_ticks_passed_on(
    begin: Begin, setting: Setting, tmp_path: Path
) -> None:
    plan = plan_of(setting, defenses=["none"])
    found = {}
    for name in executors():
        ticked: set[str] = set()
        root = tmp_path / name
        executor = begin(name, lambda stage, *_, seen=ticked: seen.add(stage.key), root=root)
        made: dict[str, ModelRecord] = {}
        for stage in plan.stages:
            executor.submit([stage], upstream(stage, made))
            ((done, record),) = executor.wait()
            assert done.key == stage.key == record.key
            if isinstance(record, ModelRecord):
                made[stage.key] = record
        assert ticked == {stage.key for stage in plan.stages}
        assert all(Store(root).has_model(stage.key) for stage in plan.models)
        found[name] = metrics(Store(root).records())
        assert found[name].keys() == {stage.key for stage in plan.cells}
    first, *others = found.values()
    assert others
    assert all(other == first for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("name", executors())
def test_a_store_that_cannot_be_used_is_said_by_wait(
    begin: Begin, setting: Setting, name: str
) -> None:
    plan = plan_of(setting, defenses=["none"])
    (attack, *_) = (stage for stage in plan.stages if isinstance(stage, AttackStage))
    executor = begin(name)
    executor.submit([plan.models[0]], {})
    ((_, record),) = executor.wait()
    assert isinstance(record, ModelRecord)
    lost = msgspec.structs.replace(record, weights="0" * 64)
    executor.submit([attack], {stage.key: lost for stage in plan.models})
    with pytest.raises(StoreError, match="cannot be read"):
        executor.wait()


@pytest.mark.parametrize("name", ["processes", "in-process"])
def test_what_goes_wrong_beside_plugins_says_where(
    setting: Setting, tmp_path: Path, name: str
) -> None:
    broken = dataclasses.replace(setting, backbone=None)  # type: ignore[arg-type]
    work = Work(
        store=tmp_path, device=torch.device("cpu"), settings=[broken], plugins=[TINY], workers=1,
        threads=1, compiled="off", tick=lambda *_: None,
    )  # fmt: skip
    with contextlib.closing(start(name, work)) as executor:
        executor.submit([PretrainStage("0" * 64, broken, 0)], {})
        with pytest.raises(AttributeError) as raised:
            executor.wait()
    assert "harness/bench.py" in "".join(traceback.format_exception(raised.value))


def test_one_process_has_one_worker(begin: Begin) -> None:
    with pytest.raises(ExecutorError, match="need processes: --executor auto"):
        begin("in-process", workers=2)


def test_where_processes_have_no_groups_several_workers_are_refused(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "setpgrp")  # as on Windows
    with pytest.raises(ExecutorError, match="need Linux or macOS"):
        begin(AUTO, workers=2)


@pytest.mark.parametrize(("workers", "kind"), [(1, InProcess), (2, Processes)])
def test_one_worker_is_this_process_and_several_are_not(
    begin: Begin, workers: int, kind: type[Executor]
) -> None:
    executor = begin(AUTO, workers=workers)
    assert isinstance(executor, kind)
    assert executor.size == workers
