"""Several worker processes, each with its own threads; the parent decides what is done next.

Stages travel by pickle between a parent and the processes that it started itself, settings (the
data) only once, before the first stage. They are no arguments of a process: Python waits for ever
for a process to read these that ended before.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil
import torch

from sophon_bench.execution.executors import Done, ExecutorError, Work, WorkerDied
from sophon_bench.execution.plan import Stage
from sophon_bench.execution.shipping import pack, unpack
from sophon_bench.execution.worker import Upstream, Worker
from sophon_bench.models.architecture import Compile
from sophon_bench.plugins.registry import file_module, load_file
from sophon_bench.results.store import Store, StoreError

SECONDS = 0.5
"""Between two looks at whether processes live and keep to their limits."""


@dataclass(eq=False)
class _Child:
    """A worker process, and what it is at.

    Attributes:
        stages: What it was given; empty: it is idle.
        begun: When it began, by the clock that only goes forward; None: not yet.
        alive: Whether it ever answered.
        deaths: How many processes ended at these stages.
        given_up: Whether it only has to write that they failed.
        equipped: Whether it was sent the settings.
    """

    process: SpawnProcess
    connection: Connection
    stages: Sequence[Stage] = ()
    upstream: Upstream = field(default_factory=dict)
    begun: float | None = None
    alive: bool = False
    deaths: int = 0
    given_up: bool = False
    equipped: bool = False


class Processes:
    """Worker processes, each with its own threads.

    A process that dies is replaced, and its stage done once more; what ends two processes, or
    takes more than its limits, is a failed record.

    Args:
        work: What to do.
        plugins: Plugin files to load, and the names of their modules; None: those of ``work``.

    Raises:
        ExecutorError: If the system has no groups of processes, as Windows.
        StoreError: If they would not see the store.
        WorkerDied: From `wait`, if processes end before they do anything.
    """

    def __init__(self, work: Work, plugins: Sequence[tuple[Path, str]] | None = None) -> None:
        if not hasattr(os, "setpgrp"):
            raise ExecutorError(
                "several workers, and limits of time and memory, need Linux or macOS; leave "
                "--workers, --cell-timeout and --cell-memory out"
            )
        if not Store(work.store).shared:
            raise StoreError(
                f"store {str(work.store)!r} is in the memory of one process; choose another for "
                "several, or --workers 1"
            )
        if plugins is None:
            plugins = [(plugin, file_module(plugin)) for plugin in work.plugins]
        self.size = work.workers or 1
        self.tick = work.tick
        self._limits, self._threads = work.limits, work.threads
        self._settings = list(work.settings)
        self._known = pickle.dumps(self._settings)
        self._setup = (work.store, str(work.device), plugins, work.threads, work.compiled)
        self._children = [_Child(*self._start()) for _ in range(self.size)]

    def submit(self, stages: Sequence[Stage], upstream: Upstream) -> None:
        """Give a stage, or companions, to an idle worker."""
        child = next(child for child in self._children if not child.stages)
        child.stages, child.upstream = stages, upstream
        child.deaths, child.given_up = 0, False
        self._give(child)

    def wait(self) -> Done:
        """The next stages that are finished; ticks are passed on meanwhile."""
        while True:
            busy = {child.connection: child for child in self._children if child.stages}
            for connection in wait(list(busy), SECONDS):
                child = busy[connection]  # type: ignore[index]
                try:
                    kind, *content = pickle.loads(child.connection.recv_bytes())
                except (EOFError, OSError):
                    self._died(child)
                    continue
                child.alive = True
                if kind == "begun":
                    child.begun = time.monotonic()
                elif kind == "tick":
                    key, *how = content
                    self.tick(next(stage for stage in child.stages if stage.key == key), *how)
                elif kind == "done":
                    stages, child.stages = child.stages, ()
                    return list(zip(stages, content[0], strict=True))
                else:
                    raise content[0]
            for child in busy.values():
                # a process that it forked keeps the connection open
                if not child.process.is_alive() and not child.connection.poll():
                    self._died(child)
                elif reason := self._over(child):
                    self._replace(child, reason)

    def close(self) -> None:
        """End all workers, whatever they are at; what they have written is whole."""
        for child in self._children:
            _kill(child.process)
            child.connection.close()
        for child in self._children:
            child.process.join()

    def _start(self) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), *self._setup)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        with _environment(dict.fromkeys(THREAD_COUNTS, str(self._threads))):
            process.start()
        theirs.close()
        return process, ours

    def _give(self, child: _Child, reason: str | None = None) -> None:
        child.begun = None
        content = pack((child.stages, child.upstream, reason), self._settings)
        with contextlib.suppress(OSError):  # it died: `wait` sees that
            if not child.equipped:
                child.connection.send_bytes(self._known)
                child.equipped = True
            child.connection.send_bytes(content)

    def _died(self, child: _Child) -> None:
        """Do its stages in another process, once."""
        child.process.join(5)
        code = child.process.exitcode
        killed = f"killed by signal {-code}" if code is not None and code < 0 else f"exit {code}"
        if not child.alive or child.given_up:
            raise WorkerDied(
                f"a worker process died ({killed}; out of memory?) at: {child.stages[0].label}. "
                f"Everything finished is kept: the same command does the rest; --workers 1 needs "
                f"the least memory"
            )
        child.deaths += 1
        twice = f"its process died twice ({killed}; out of memory?)"
        self._replace(child, twice if child.deaths > 1 else None)

    def _replace(self, child: _Child, reason: str | None) -> None:
        """End a process; another does its stages, or writes that they failed, and why."""
        _kill(child.process)
        child.process.join()
        child.connection.close()
        child.process, child.connection = self._start()
        child.alive, child.equipped, child.given_up = False, False, reason is not None
        self._give(child, reason)

    def _over(self, child: _Child) -> str | None:
        """Which limit it is beyond, in words."""
        if child.begun is None:
            return None
        seconds, gib = self._limits.seconds, self._limits.gib
        if seconds is not None and time.monotonic() - child.begun > seconds:
            return f"it took more than {seconds:g} s (--cell-timeout)"
        if gib is not None and (held := _resident(child.process)) > gib:
            return f"it held {held:.1f} GiB of memory, more than {gib:g} (--cell-memory)"
        return None


def start(work: Work) -> Processes:
    """As many processes as there are workers."""
    return Processes(work)


def _kill(process: SpawnProcess) -> None:
    """End a worker, and what it started."""
    assert process.pid is not None, "it was started"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _resident(process: SpawnProcess) -> float:
    """GiB of memory that a worker holds, and what it started."""
    held = 0
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(process.pid)
        for each in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                held += each.memory_info().rss
    return held / 2**30


THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What numerical libraries besides torch read once, when a process loads them."""


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started inside."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(
    connection: Connection,
    parent: int,
    root: str | Path,
    device: str,
    plugins: Sequence[tuple[Path, str]],
    threads: int,
    compiled: Compile,
) -> None:
    """Do what comes through the connection until it closes; the parent alone heeds Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _follow(parent)
    torch.set_num_threads(threads)
    with warnings.catch_warnings(action="ignore"):  # the parent has said them
        for plugin, name in plugins:
            load_file(plugin, name)

    def answer(*content: object) -> None:
        try:
            connection.send_bytes(pickle.dumps(content))
        except OSError:
            os._exit(1)  # the parent is gone, and its plan with it

    def tick(stage: Stage, fraction: float | None, words: str) -> None:
        answer("tick", stage.key, fraction, words)

    worker = Worker(Store(root), torch.device(device), tick, compiled)
    with contextlib.suppress(EOFError):  # the parent has no more
        known = pickle.loads(connection.recv_bytes())
        while True:
            stages, upstream, reason = unpack(connection.recv_bytes(), known)
            try:
                if reason is None:
                    answer("begun")
                    answer("done", worker.do(stages, upstream))
                else:
                    answer("done", worker.give_up(stages, reason))
            except Exception as error:
                error.add_note(traceback.format_exc())  # which does not travel with it
                answer("error", error)


DEATH_OF_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


def _follow(parent: int) -> None:
    """Lead a group of processes that can be ended as one, and end with the parent on Linux.

    Elsewhere a worker whose parent was killed ends at its next tick.
    """
    os.setpgrp()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_OF_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
