"""The executor on Ray where it differs from others: a cluster of its own, and what gets lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import TINY
from test_engine import Silent, engine, metrics, plan_of, setting

from sophon_bench.execution.executors import ExecutorError, Work, WorkerDied
from sophon_bench.execution.plan import Plan, Setting, Stage
from sophon_bench.results.store import Store, StoreError

pytest.importorskip("ray", reason="Ray is not installed")

import ray
from ray.cluster_utils import Cluster

from sophon_bench.execution.executors.ray import OnRay, share

__all__ = ["setting"]  # a fixture

pytestmark = pytest.mark.slow


def work(store: str | Path, setting: Setting, **changes: Any) -> Work:
    known: dict[str, Any] = {
        "store": store, "device": torch.device("cpu"), "settings": [setting], "plugins": [TINY],
        "workers": None, "threads": 1, "compiled": "off", "tick": lambda *_: None,
    }  # fmt: skip
    return Work(**known | changes)


def on(cluster: Cluster | None, root: Path, reporter: Silent | None = None) -> Any:
    address = None if cluster is None else cluster.address
    return engine(root, reporter, executor="ray", address=address, plugins=[TINY])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes with one CPU each, on this machine."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.parametrize(
    ("peak", "expected"), [(0.0, 1.0), (0.95, 1.0), (0.5, 1.0), (0.45, 0.5), (0.1, 1 / 9)]
)
def test_whole_numbers_of_stages_share_a_gpu(peak: float, expected: float) -> None:
    assert share(peak) == pytest.approx(expected)


@pytest.fixture(scope="module")
def of_one_process(
    setting: Setting, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], set[str | None]]:
    """Metrics of a grid in this process, and the commits in its records."""
    made = engine(tmp_path_factory.mktemp("one")).run(grid(setting))
    return metrics(made), {cell.provenance.commit for cell in made.cells}


def grid(setting: Setting) -> Plan:
    return plan_of(setting, defenses=["none"], seeds=[0, 1])


@pytest.mark.parametrize(
    "way", ["two processes", "one node", "two nodes", "two nodes and a bucket"]
)
def test_all_ways_give_the_records_of_one_process(
    way: str,
    of_one_process: tuple[dict[str, Any], set[str | None]],
    setting: Setting,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    plan = grid(setting)
    store: str | Path = tmp_path
    if way.endswith("bucket"):  # first, so that the nodes have its credentials
        store = f"{request.getfixturevalue('s3')}/store"
    if way == "two processes":
        made = engine(store, workers=2, plugins=[TINY]).run(plan)
    else:
        nodes = request.getfixturevalue("cluster") if way.startswith("two nodes") else None
        made = on(nodes, store).run(plan)
    expected, commits = of_one_process
    assert len(expected) == len(plan.cells)
    assert metrics(made) == metrics(Store(store).records()) == expected
    assert {cell.provenance.commit for cell in made.cells} == commits


class Losing(Silent):
    """Loses something at the first tick of an attack."""

    def __init__(self, lose: Any) -> None:
        super().__init__()
        self.lose, self.lost = lose, False

    def tick(self, stage: Stage, _fraction: float | None, _words: str) -> None:
        if not self.lost and stage.label.startswith("attack"):
            self.lost = True
            self.lose()


def kill_workers() -> int:
    """SIGKILL to all Ray workers that are at an attack of this process's run; how many."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::attack")
    ]
    for process in found:
        process.send_signal(signal.SIGKILL)
    return len(found)


def test_a_worker_that_is_killed_and_a_node_that_is_lost_cost_no_cell(
    cluster: Cluster, setting: Setting, tmp_path: Path
) -> None:
    plan = plan_of(setting, defenses=["none"], steps=200)
    expected = metrics(engine(tmp_path / "one").run(plan))
    killed: list[int] = []
    killing = Losing(lambda: killed.append(kill_workers()))
    assert metrics(on(cluster, tmp_path / "two", killing).run(plan)) == expected
    assert killed
    assert killed[0] > 0
    losing = Losing(
        lambda: cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    )
    assert metrics(on(cluster, tmp_path / "three", losing).run(plan)) == expected
    assert losing.lost


def test_workers_that_die_each_time_end_the_run_in_one_line(
    setting: Setting, tmp_path: Path
) -> None:
    class Killing(Silent):
        def tick(self, *_: Any) -> None:
            kill_workers()

    with pytest.raises(WorkerDied, match="the same command does the rest"):
        on(None, tmp_path, Killing()).run(plan_of(setting, defenses=["none"], steps=100000))


def test_a_cluster_that_does_not_answer_is_said(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="no Ray cluster answers at --address auto"):
        OnRay(work(tmp_path, setting, address="auto"))


def test_a_cluster_that_refuses_without_a_word_is_said(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ExecutorError, match="at --address auto: ConnectionError; --address local"):
        OnRay(work(tmp_path, setting, address="auto"))


def test_a_stage_has_to_fit_on_one_node(cluster: Cluster, setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="have 1 CPUs at most, a stage takes 2"):
        OnRay(work(tmp_path, setting, address=cluster.address, threads=2))


def test_more_threads_than_there_are_and_a_store_of_one_process_are_refused(
    setting: Setting, tmp_path: Path
) -> None:
    with pytest.raises(ExecutorError, match=r"a stage takes 4096 \(--threads\)"):
        OnRay(work(tmp_path, setting, threads=4096))
    with pytest.raises(StoreError, match="in the memory of one process"):
        OnRay(work("memory://ray", setting))
