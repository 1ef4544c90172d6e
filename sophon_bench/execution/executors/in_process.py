"""One worker in this process."""

from __future__ import annotations

from collections.abc import Sequence

from sophon_bench.execution.executors import Done, ExecutorError, Work
from sophon_bench.execution.plan import Stage
from sophon_bench.execution.worker import Upstream, Worker
from sophon_bench.results.store import Store


class InProcess:
    """Does a stage when it is waited for."""

    size = 1

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._next: list[tuple[Sequence[Stage], Upstream]] = []

    def submit(self, stages: Sequence[Stage], upstream: Upstream) -> None:
        """Take a stage, or companions."""
        self._next.append((stages, upstream))

    def wait(self) -> Done:
        """Do them."""
        stages, upstream = self._next.pop()
        return list(zip(stages, self.worker.do(stages, upstream), strict=True))

    def close(self) -> None:
        """Nothing is left to end."""


def start(work: Work) -> InProcess:
    """A worker on the caller's device and threads.

    Raises:
        ExecutorError: For several workers, or if stages are limited: a process cannot end itself
            while it hangs.
    """
    if work.limits or (work.workers or 1) > 1:
        raise ExecutorError(
            "several workers, and limits of time and memory, need processes: --executor auto"
        )
    return InProcess(Worker(Store(work.store), work.device, work.tick, work.compiled))
