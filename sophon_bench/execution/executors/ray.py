"""On Ray: a cluster that runs already, or one that is started on this machine for the run.

A submission is a Ray task that reads and writes the store, which every node has to see. Ray does a
task again whose worker or node is lost; an error of a plugin is a record, and is not tried again.
This package and the plugin files travel with the run, so that all nodes run the same code; torch
and the other libraries have to be installed there.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sophon_bench.execution.executors import Done, ExecutorError, Work, WorkerDied
from sophon_bench.execution.executors.processes import Processes
from sophon_bench.execution.news import News
from sophon_bench.execution.plan import Setting, Stage
from sophon_bench.execution.shipping import pack, unpack
from sophon_bench.execution.worker import Upstream, Worker
from sophon_bench.plugins.failures import first_line
from sophon_bench.plugins.registry import file_module, load_file
from sophon_bench.results.provenance import SOURCE, source
from sophon_bench.results.store import Store, StoreError

try:
    import ray
    import ray.exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as missing:
    raise ExecutorError(
        "--executor ray needs Ray: in a clone of the repository, pip install '.[ray]'"
    ) from missing

LOCAL = "local"
"""The address of a cluster that is started on this machine and ends with the run."""

RETRIES = 3
"""Times that a task is done again whose worker or node was lost."""

SECONDS = 0.5
"""Between two looks at how stages go."""

PATIENCE = 5.0
"""Seconds that progress may keep anybody waiting: its actor may be lost, and starts again then."""

LOST = (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError)
"""What a call of that actor may raise."""

FILLED = 0.9
"""Share of a GPU's memory that stages on it may take together."""

PACKAGE = Path(__file__).parents[2]
LEFT_HERE = shutil.ignore_patterns("__pycache__", "cli", "leaderboard")
"""What no worker needs."""

_workers: dict[bytes, tuple[Worker | _Apart, Sequence[Setting]]] = {}
"""Of this process, in which Ray runs one task after another; by what they were made from."""


class OnRay:
    """Stages as tasks of Ray.

    Attributes:
        size: Tasks that may be open at once: as many as were asked for, else as fit on the cluster.

    Raises:
        ExecutorError: If there is no such cluster, or no room on it for one stage.
        StoreError: If the nodes would not see the store.
        WorkerDied: From `wait`, if a task's workers were lost too often.
    """

    def __init__(self, work: Work) -> None:
        store = Store(work.store)
        if not store.shared:
            raise StoreError(
                f"store {str(work.store)!r} is in the memory of one process; choose another for Ray"
            )
        self._tick, self._settings = work.tick, list(work.settings)
        self._threads, self._cuda = work.threads, work.device.type == "cuda"
        self._open: dict[Any, Sequence[Stage]] = {}
        self._peak = 0.0
        with tempfile.TemporaryDirectory(prefix="sophon-bench-") as folder:
            plugins = _stage(Path(folder), work.plugins)
            _connect(work.address or LOCAL, folder, work.threads)
        try:
            self.size = work.workers or self._room()
            place = (work.store, store.identity, work.device.type)
            setup = (*place, plugins, work.threads, work.compiled, work.limits)
            self._box = [ray.put((*setup, pickle.dumps(self._settings)))]
            here = NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            )
            actor: Any = ray.remote(News)
            kept = actor.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
            self._news = kept.remote()
            self._do = ray.remote(max_retries=RETRIES, retry_exceptions=False)(_do)
        except BaseException:
            ray.shutdown()
            raise

    def submit(self, stages: Sequence[Stage], upstream: Upstream) -> None:
        """Give a stage, or companions, to the cluster."""
        task = self._do.options(
            num_cpus=self._threads, num_gpus=share(self._peak) if self._cuda else 0,
            name=stages[0].label,
        )  # fmt: skip
        content = pack((stages, upstream), self._settings)
        self._open[task.remote(self._box, content, self._news)] = stages

    def wait(self) -> Done:
        """The next stages that are finished; ticks are passed on meanwhile."""
        done: list[Any] = []
        while not done:
            done, _ = ray.wait(list(self._open), timeout=SECONDS)
            self._pass_on()
        stages = self._open.pop(done[0])
        try:
            records, peak = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise WorkerDied(
                f"Ray lost the workers of a stage {1 + RETRIES} times ({type(error).__name__}; out "
                f"of memory?): {stages[0].label}. Everything finished is kept: the same command "
                f"does the rest"
            ) from error
        self._peak = max(self._peak, peak)
        return list(zip(stages, records, strict=True))

    def close(self) -> None:
        """End all work, whatever it is at; what is written is whole."""
        for task in self._open:
            ray.cancel(task, force=True)
        ray.shutdown()

    def _room(self) -> int:
        """Stages that fit on the cluster at once."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(has.get("CPU", 0)) for has in nodes]
        room = sum(count // self._threads for count in cpus)
        if not room:
            raise ExecutorError(
                f"the nodes of the Ray cluster have {max(cpus, default=0)} CPUs at most, a stage "
                f"takes {self._threads} (--threads)"
            )
        if self._cuda and not any(has.get("GPU") for has in nodes):
            raise ExecutorError("the Ray cluster has no GPU; try --device cpu")
        return room

    def _pass_on(self) -> None:
        """Tell the ticks of stages that are open."""
        stages = {stage.key: stage for open_ in self._open.values() for stage in open_}
        news: dict[str, tuple[float | None, str]] = {}
        with contextlib.suppress(*LOST):
            news = ray.get(self._news.take.remote(), timeout=PATIENCE)
        for key, how in news.items():
            if key in stages:
                self._tick(stages[key], *how)


def start(work: Work) -> OnRay:
    """Connected to the cluster at the address."""
    return OnRay(work)


def share(peak: float) -> float:
    """Share of a GPU for a stage, so that whole numbers of stages fit.

    Args:
        peak: The largest share of a GPU's memory that a stage was measured to take; 0: none was.
    """
    return 1.0 if not peak else 1 / max(1, int(FILLED / peak))


def _connect(address: str, folder: str, threads: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    shipped = {
        "working_dir": folder,
        "env_vars": {"OMP_NUM_THREADS": str(threads), SOURCE: source()},
    }
    common: dict[str, Any] = {
        "runtime_env": shipped,
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if address == LOCAL:
        # by default workers yield to everything else on the machine, and starve on a busy one
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init("local", include_dashboard=False, **common)
        return
    try:
        ray.init(address, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ExecutorError(
            f"no Ray cluster answers at --address {address}: {first_line(error)}; "
            f"--address local starts one on this machine"
        ) from error


def _stage(folder: Path, plugins: Sequence[Path]) -> list[tuple[str, str]]:
    """Copy this package and the plugin files; the plugins' paths inside, and modules' names."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=LEFT_HERE)
    found = []
    for number, plugin in enumerate(plugins):
        place = folder / "plugins" / str(number)
        place.mkdir(parents=True)
        shutil.copy(plugin, place)
        found.append((str((place / plugin.name).relative_to(folder)), file_module(plugin)))
    return found


class _Apart:
    """Does stages in a process beside this one, which can be ended at a limit.

    What it takes of a GPU's memory is not measured: such a stage has a GPU to itself.
    """

    def __init__(self, work: Work, plugins: Sequence[tuple[Path, str]]) -> None:
        self.device, self.tick = work.device, work.tick
        self._processes = Processes(work, plugins)

    def do(self, stages: Sequence[Stage], upstream: Upstream) -> list[Any]:
        """Records of one stage, or companions."""
        self._processes.tick = self.tick
        self._processes.submit(stages, upstream)
        return [record for _, record in self._processes.wait()]


def _do(box: Sequence[Any], content: bytes, news: Any) -> tuple[list[Any], float]:
    """Records of stages, and the largest share of a GPU's memory that they took; a task."""
    worker, settings = _worker(box[0])
    latest: dict[str, tuple[float | None, str]] = {}
    said = time.monotonic()

    def tick(stage: Stage, fraction: float | None, words: str) -> None:
        nonlocal said
        latest[stage.key] = (fraction, words)
        if time.monotonic() > said + SECONDS:
            said = time.monotonic()
            news.tell.remote(latest)

    worker.tick = tick
    records = worker.do(*unpack(content, settings))
    with contextlib.suppress(*LOST):
        ray.get(news.tell.remote(latest), timeout=PATIENCE)
    if worker.device.type != "cuda":
        return records, 0.0
    return records, torch.cuda.max_memory_reserved() / torch.cuda.mem_get_info()[1]


def _worker(made_from: Any) -> tuple[Worker | _Apart, Sequence[Setting]]:
    """The worker of this process, and the settings that its stages name.

    Raises:
        StoreError: If this node does not see the driver's store.
    """
    if made_from.binary() not in _workers:
        place, identity, device, plugins, threads, compiled, limits, known = ray.get(made_from)
        torch.set_num_threads(threads)
        with warnings.catch_warnings(action="ignore"):  # the driver has said them
            for plugin, name in plugins:
                load_file(Path(plugin), name)
        store = Store(place)
        if store.identity != identity:
            raise StoreError(
                f"store {str(place)!r} is another one on {platform.node()}; choose a directory "
                f"that all nodes share, or a URL"
            )
        settings = pickle.loads(known)
        worker: Worker | _Apart
        if limits:
            work = Work(
                store=place, device=torch.device(device), settings=settings, plugins=[], workers=1,
                threads=threads, compiled=compiled, tick=_unheard, limits=limits,
            )  # fmt: skip
            worker = _Apart(work, [(Path(plugin), name) for plugin, name in plugins])
        else:
            worker = Worker(store, torch.device(device), _unheard, compiled)
        _workers[made_from.binary()] = (worker, settings)
    return _workers[made_from.binary()]


def _unheard(_stage: Stage, _fraction: float | None, _words: str) -> None:
    """Before a task says whom to tell."""
