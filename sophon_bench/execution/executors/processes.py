"""Several worker processes, each with its own threads; the parent decides what is done next.

Stages travel by pickle between a parent and the processes that it started itself, settings (the
data) only once, at the start.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from unittest import mock

import torch

from sophon_bench.execution.executors import Done, Work, WorkerDied
from sophon_bench.execution.plan import Setting, Stage
from sophon_bench.execution.worker import Upstream, Worker
from sophon_bench.models.architecture import Compile
from sophon_bench.results.store import Store, StoreError


class Processes:
    """Worker processes, each with its own threads.

    Raises:
        StoreError: If they would not see the store.
        WorkerDied: From `wait`, if a process ends by itself.
    """

    def __init__(self, work: Work) -> None:
        if not Store(work.store).shared:
            raise StoreError(
                f"store {str(work.store)!r} is in the memory of one process; choose another for "
                "several, or --workers 1"
            )
        self.size = work.workers
        self.tick = work.tick
        self._settings = list(work.settings)
        self._busy: dict[Connection, Sequence[Stage]] = {}
        self._workers: dict[Connection, SpawnProcess] = {}
        context = multiprocessing.get_context("spawn")
        known = pickle.dumps(self._settings)
        setup = (work.store, str(work.device), list(work.plugins), work.threads, work.compiled)
        with mock.patch.dict(os.environ, dict.fromkeys(THREAD_COUNTS, str(work.threads))):
            for _ in range(self.size):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, *setup, known), daemon=True)
                process.start()
                theirs.close()
                self._workers[ours] = process

    def submit(self, stages: Sequence[Stage], upstream: Upstream) -> None:
        """Give a stage, or companions, to an idle worker."""
        idle = next(connection for connection in self._workers if connection not in self._busy)
        self._busy[idle] = stages
        self._send(idle, _dump((stages, upstream), self._settings))

    def wait(self) -> Done:
        """The next stages that are finished; ticks are passed on meanwhile."""
        while True:
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                stages = self._busy[connection]
                try:
                    kind, *content = pickle.loads(connection.recv_bytes())
                except (EOFError, OSError) as error:
                    raise self._died(connection) from error
                if kind == "tick":
                    key, *how = content
                    self.tick(next(stage for stage in stages if stage.key == key), *how)
                elif kind == "done":
                    del self._busy[connection]
                    return list(zip(stages, content[0], strict=True))
                else:
                    raise content[0]

    def close(self) -> None:
        """End all workers, whatever they are at; what they have written is whole."""
        for connection, process in self._workers.items():
            process.terminate()
            connection.close()
        for process in self._workers.values():
            process.join()

    def _send(self, connection: Connection, content: bytes) -> None:
        try:
            connection.send_bytes(content)
        except OSError as error:
            raise self._died(connection) from error

    def _died(self, connection: Connection) -> WorkerDied:
        process = self._workers[connection]
        process.join(5)
        code = process.exitcode
        label = self._busy[connection][0].label
        killed = f"killed by signal {-code}" if code is not None and code < 0 else f"exit {code}"
        return WorkerDied(
            f"a worker process died ({killed}; out of memory?) at: {label}. "
            f"Everything finished is kept: the same command does the rest; --workers 1 needs "
            f"the least memory"
        )


def start(work: Work) -> Processes:
    """As many processes as there are workers."""
    return Processes(work)


THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What numerical libraries besides torch read once, when a process loads them."""


def _serve(
    connection: Connection,
    root: str | Path,
    device: str,
    plugins: Sequence[Path],
    threads: int,
    compiled: Compile,
    settings: bytes,
) -> None:
    """Do what comes through the connection until it closes; the parent alone heeds Ctrl-C."""
    from sophon_bench.plugins.registry import load_file

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with warnings.catch_warnings(action="ignore"):  # the parent has said them
        for plugin in plugins:
            load_file(plugin)

    def answer(*content: object) -> None:
        try:
            connection.send_bytes(pickle.dumps(content))
        except OSError:
            os._exit(1)  # the parent is gone, and its plan with it

    known = pickle.loads(settings)

    def tick(stage: Stage, fraction: float | None, words: str) -> None:
        answer("tick", stage.key, fraction, words)

    worker = Worker(Store(root), torch.device(device), tick, compiled)
    while True:
        try:
            stages, upstream = _load(connection.recv_bytes(), known)
        except EOFError:
            return
        try:
            answer("done", worker.do(stages, upstream))
        except Exception as error:
            answer("error", error)


def _dump(content: object, settings: Sequence[Setting]) -> bytes:
    """Pickled, with settings by their number."""
    numbers = {id(setting): number for number, setting in enumerate(settings)}
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: object) -> int | None:
            return numbers.get(id(item)) if isinstance(item, Setting) else None

    Pickler(buffer).dump(content)
    return buffer.getvalue()


def _load(content: bytes, settings: Sequence[Setting]) -> tuple[Sequence[Stage], Upstream]:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> Setting:
            return settings[number]

    loaded: tuple[Sequence[Stage], Upstream] = Unpickler(io.BytesIO(content)).load()
    return loaded
