"""What goes wrong on real machines: nothing finished is lost, and the same command goes on.

A full disk is in `test_disk`, a store that does not answer in `test_object_store`, a node that is
lost in `test_ray`, `kill -9` at chosen moments in `test_engine`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from conftest import TINY, attempts
from test_engine import DEFENSE, Silent, engine, finished, metrics, plan_of, setting

from sophon_bench.cli import main
from sophon_bench.execution.executors import ExecutorError, Limits, WorkerDied
from sophon_bench.execution.plan import Setting
from sophon_bench.plugins import registry
from sophon_bench.results import provenance
from sophon_bench.results.documents import read_file
from sophon_bench.results.store import Store

__all__ = ["setting"]  # a fixture

FAULTS = """
import ctypes, os, signal, time
from dataclasses import dataclass
from pathlib import Path
import torch
from sophon_bench.api import attacks

def note(name):
    Path({folder!r}, name).write_text(str(os.getpid()))

def fork():
    if os.fork() == 0:
        note("forked")
        time.sleep(600)
        os._exit(0)

class Hangs:
    def run(self, model, view):
        note("hanging")
        fork()
        ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock: no signal is handled
        yield model

class Hoards:
    def run(self, model, view):
        kept = [b"x" * 2**26 for _ in range(48)]
        ctypes.PyDLL(None).sleep(600)
        yield kept

class Dies:
    def run(self, model, view):
        yield model
        os.kill(os.getpid(), signal.SIGKILL)

class Fills:
    def run(self, model, view):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        yield model

for plugin in (Hangs, Hoards, Dies, Fills):
    attacks.register(plugin.__name__.lower())(dataclass(frozen=True, kw_only=True)(plugin))
"""

REASONS = {
    "hangs": "it took more than 20 s (--cell-timeout)",
    "hoards": "GiB of memory, more than 2 (--cell-memory)",
    "dies": "its process died twice (killed by signal 9; out of memory?)",
    "fills": "CUDA out of memory. Tried to allocate 2.00 GiB.",
}


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell's jobs in the background ignore SIGINT, and so does all that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def faulty(tmp_path: Path, forget: None) -> Path:
    """A plugin file of attacks that harm the process that they run in."""
    plugin = tmp_path / "faulty.py"
    plugin.write_text(FAULTS.format(folder=str(tmp_path)))
    registry.load_file(plugin)
    return plugin


def gone(process: int | psutil.Process) -> bool:
    """Whether a process ends; one that was killed may take a moment."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process) if isinstance(process, int) else process
        return not psutil.wait_procs([found], timeout=10)[1]
    return True


WAYS = [
    ("auto", [*REASONS]),
    pytest.param(
        "ray",
        ["hangs"],
        marks=pytest.mark.skipif(
            importlib.util.find_spec("ray") is None, reason="Ray is not installed"
        ),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "faults"), WAYS)
def test_what_ends_or_fills_its_process_is_a_failed_record_and_the_rest_is_done(
    executor: str, faults: list[str], faulty: Path, setting: Setting, tmp_path: Path
) -> None:
    limits = Limits(seconds=20, gib=2)
    plan = plan_of(setting, ["none"], [*faults, "finetune"])
    calm = metrics(engine(tmp_path / "calm").run(plan_of(setting, ["none"], ["finetune"])))
    made = engine(
        tmp_path / "store", executor=executor, workers=2, limits=limits, plugins=[TINY, faulty]
    ).run(plan)
    found = {cell.attack.name: cell for cell in attempts(made)}
    assert found.keys() == {*faults, "finetune", "scratch"}
    for name in faults:
        assert found[name].status == "failed"
        assert REASONS[name] in str(found[name].reason)
    assert {key: content for key, content in metrics(made).items() if key in calm} == calm
    assert gone(int((tmp_path / "forked").read_text()))
    again = Silent()
    engine(tmp_path / "store", again).run(plan)
    assert again.done == []


def test_a_full_gpu_is_told_with_what_helps(faulty: Path, setting: Setting, tmp_path: Path) -> None:
    made = engine(tmp_path / "store").run(plan_of(setting, ["none"], ["fills", "finetune"]))
    found = {cell.attack.name: cell for cell in attempts(made)}
    assert found["finetune"].status == "ok"
    assert found["fills"].status == "failed"
    assert "GiB. (faulty.py:" in str(found["fills"].reason)
    assert str(found["fills"].reason).endswith(
        "try a smaller batch_size, or fewer --together or --workers"
    )


def test_this_process_cannot_end_itself_at_a_limit(setting: Setting, tmp_path: Path) -> None:
    limited = engine(tmp_path, executor="in-process", limits=Limits(seconds=1))
    with pytest.raises(ExecutorError, match="need processes: --executor auto"):
        limited.run(plan_of(setting))


def test_processes_that_cannot_begin_end_the_run(setting: Setting, tmp_path: Path) -> None:
    plugin = tmp_path / "gone.py"  # is not there when a process loads it
    with pytest.raises(WorkerDied, match=r"a worker process died \(exit 1"):
        engine(tmp_path / "store", workers=2, plugins=[plugin]).run(plan_of(setting))


def command(store: Path, out: Path, workers: int = 1) -> list[str]:
    """Of a run of eight cells."""
    return [
        sys.executable, "-m", "sophon_bench.cli", "run", "--plugin", str(TINY), "--scenario",
        "tiny", "--defense", "none", "--attack", "finetune[lr=[0.01,0.02,0.03]]", "--seeds", "0-1",
        "--samples", "20", "--steps", "10", "--threads", "1", "--workers", str(workers),
        "--store", str(store), "--json", str(out),
    ]  # fmt: skip


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def session(leader: int) -> list[psutil.Process]:
    """The processes of a session, without its leader."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if process.pid != leader and os.getsid(process.pid) == leader:
                found.append(process)
    return found


def wait_for(true: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not true():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of an undisturbed run."""
    root = tmp_path_factory.mktemp("calm")
    subprocess.run(command(root, root / "calm.json"), check=True, capture_output=True)
    return metrics(read_file(root / "calm.json")[1])


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_ends_the_run_in_good_order(
    sent: signal.Signals, workers: int, calm: dict[str, Any], tmp_path: Path
) -> None:
    store, out = tmp_path / "store", tmp_path / "out.json"
    process = started(*command(store, out, workers))
    wait_for(lambda: list(store.glob("cells/*.json")), process)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"stopped by {sent.name}: everything finished is kept, and the same command does the rest"
    )
    assert all(map(gone, session(process.pid)))
    kept = finished(store)
    assert kept
    subprocess.run(command(store, out, workers), check=True, capture_output=True)
    assert finished(store).items() >= kept.items()
    assert metrics(read_file(out)[1]) == calm


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker ends at its next tick")
def test_workers_end_with_a_driver_that_is_killed_whatever_they_are_at(
    faulty: Path, tmp_path: Path
) -> None:
    process = started(
        sys.executable, "-m", "sophon_bench.cli", "run", "--plugin", str(TINY), "--plugin",
        str(faulty), "--scenario", "tiny", "--defense", "none", "--attack", "hangs", "--steps", "2",
        "--samples", "20", "--threads", "1", "--workers", "2", "--store", str(tmp_path / "store"),
    )  # fmt: skip
    wait_for((tmp_path / "forked").exists, process)
    wait_for((tmp_path / "forked").read_text, process)
    forked = psutil.Process(int((tmp_path / "forked").read_text()))
    others = [each for each in session(process.pid) if each != forked]
    workers = [each for each in others if "spawn_main" in " ".join(each.cmdline())]
    process.kill()
    assert len(workers) >= 2
    assert all(map(gone, workers))
    forked.kill()  # nobody else is left to end what a plugin forked
    process.communicate()


def test_workers_that_end_before_they_read_anything_are_not_waited_for(tmp_path: Path) -> None:
    script = (
        "from multiprocessing import spawn\n"
        f"spawn.set_executable({shutil.which('false')!r})\n"
        "from sophon_bench.cli import main\n"
        "main()"
    )
    words = command(tmp_path / "store", tmp_path / "out.json", workers=2)[3:]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Error: a worker process died (exit 1; " in done.stderr


@pytest.mark.slow
def test_two_drivers_on_one_store_end_with_the_records_of_one(
    calm: dict[str, Any], tmp_path: Path
) -> None:
    store, outs = tmp_path / "store", [tmp_path / "one.json", tmp_path / "two.json"]
    drivers = [started(*command(store, out)) for out in outs]
    said = [driver.communicate(timeout=300) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    for out in outs:
        assert metrics(read_file(out)[1]) == calm
    assert metrics(Store(store).records()) == calm
    assert len(list(store.glob("cells/*.json"))) == len(calm)
    assert list(store.rglob(".writing-*")) == []


RUN = [
    "run", "--scenario", "tiny", "--steps", "2", "--samples", "20", "--defense", DEFENSE,
    "--threads", "1",
]  # fmt: skip


def run(store: Path, attack: str) -> Result:
    return CliRunner().invoke(main, [*RUN, "--attack", attack, "--store", str(store)])


BOTH = "finetune[lr=[0.01,0.03]]"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store with one attack of two, and the metrics of both."""
    folder = tmp_path_factory.mktemp("stores")
    assert run(folder / "half", "finetune[lr=0.01]").exit_code == 0
    shutil.copytree(folder / "half", folder / "whole")
    assert run(folder / "whole", BOTH).exit_code == 0
    return folder / "half", metrics(Store(folder / "whole").records())


@pytest.fixture
def half(stores: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """That store, to be damaged."""
    return Path(shutil.copytree(stores[0], tmp_path / "half"))


@pytest.fixture
def whole(stores: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """The metrics of both attacks, undisturbed."""
    return stores[1]


def cut(weights: Path, _other: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])


def changed(weights: Path, _other: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def swapped(weights: Path, other: Path) -> None:
    weights.write_bytes(other.read_bytes())


def lost(weights: Path, _other: Path) -> None:
    weights.unlink()


@pytest.mark.parametrize("damage", [cut, changed, swapped, lost])
def test_damaged_weights_are_told_never_used_and_made_again(
    damage: Callable[[Path, Path], None], half: Path, whole: dict[str, Any]
) -> None:
    models = Store(half).records().models.values()
    (model,) = (m for m in models if m.defense and m.defense.name == "sophon-klu")
    (first,) = (m for m in models if m.defense is None)
    weights, other = (half / f"models/{m.weights}.safetensors" for m in (model, first))
    damage(weights, other)
    before = finished(half)
    told = run(half, BOTH)
    assert told.exit_code != 0
    (line,) = (line for line in told.stderr.splitlines() if line.startswith("Error: "))
    assert weights.name in line
    assert {file: at for file, at in finished(half).items() if file in before} == before
    weights.unlink(missing_ok=True)
    (half / f"models/{model.key}.json").unlink()
    assert run(half, BOTH).exit_code == 0
    assert metrics(Store(half).records()) == whole


def test_a_clock_that_jumps_back_moves_nothing(
    half: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = finished(half)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2001, 2, 3, tzinfo=tz)

    monkeypatch.setattr(provenance, "datetime", Earlier)
    monkeypatch.setattr(time, "time", lambda: 981158400.0)
    assert run(half, BOTH).exit_code == 0
    monkeypatch.undo()
    assert finished(half).items() > before.items()
    records = Store(half).records()
    assert metrics(records) == whole
    assert all(cell.cost and cell.cost.seconds >= 0 for cell in records.cells)
    years = {cell.provenance.finished[:4] for cell in records.cells}
    assert "2001" in years
    assert len(years) == 2


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """No test leaves a process behind; one may take a moment to end, and Python keeps its own."""
    before = psutil.Process().children(recursive=True)
    yield
    new = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert psutil.wait_procs([p for p in new if not is_pythons(p)], timeout=10)[1] == []


def is_pythons(process: psutil.Process) -> bool:
    """Whether multiprocessing keeps it for as long as this process lives."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "resource_tracker" in " ".join(process.cmdline())
    return False
