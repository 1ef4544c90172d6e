"""Where stages are done: each module here is a way, and names it.

A module has a function ``start(work: Work) -> Executor``; a new file is found without editing a
list. Whatever the way, a stage's record is the same.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from sophon_bench.execution.plan import Setting, Stage
from sophon_bench.execution.worker import Tick, Upstream
from sophon_bench.models.architecture import Compile
from sophon_bench.plugins.failures import BadInput, Failure
from sophon_bench.results.records import Cell, ModelRecord

Done = list[tuple[Stage, ModelRecord | Cell]]
"""Stages that are finished, with their records."""

AUTO = "auto"
"""In this process for one worker without limits, else in others."""


class WorkerDied(Failure):
    """A worker process ended by itself, or could not do its work."""


class ExecutorError(BadInput):
    """A way to do stages that cannot be started here."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a stage may take; beyond, its process is ended and a failed record written.

    Attributes:
        seconds: Wall-clock time; None: any.
        gib: Resident memory of its process and those that it started, in GiB; None: any.
    """

    seconds: float | None = None
    gib: float | None = None

    def __bool__(self) -> bool:
        return self.seconds is not None or self.gib is not None


NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an executor needs to know to do stages.

    Attributes:
        store: Root of the store that all workers write to.
        device: Where they train.
        settings: Every setting of the stages to come.
        plugins: Plugin files to load in each process.
        workers: How many stages may be under way at once; None: what the way takes by itself.
        threads: CPU threads of each.
        compiled: How models are compiled.
        tick: Told how stages go.
        address: Of a cluster, where stages are done on one.
        limits: What a stage may take. A process that hangs cannot end itself: with limits, stages
            are done in processes that can be ended.
    """

    store: str | Path
    device: torch.device
    settings: Sequence[Setting]
    plugins: Sequence[Path]
    workers: int | None
    threads: int
    compiled: Compile
    tick: Tick
    address: str | None = None
    limits: Limits = NO_LIMITS


class Executor(Protocol):
    """Does stages that are handed to it, and writes their records into the store."""

    @property
    def size(self) -> int:
        """How many submissions may be open at once."""
        ...

    def submit(self, stages: Sequence[Stage], upstream: Upstream) -> None:
        """Take a stage, or companions; only while fewer than `size` are open."""
        ...

    def wait(self) -> Done:
        """The next submission that is finished, of at least one that is open.

        Raises:
            StoreError: If the store cannot be used.
            WriteError: If it cannot be written.
            WorkerDied: If processes cannot be started, or are lost too often.
        """
        ...

    def close(self) -> None:
        """End all work, whatever it is at; what is written is whole."""
        ...


def executors() -> list[str]:
    """Names of all ways."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def start(name: str, work: Work) -> Executor:
    """An executor that is ready for stages.

    Args:
        name: One of `executors`, or `AUTO`.
    """
    if name == AUTO:
        alone = (work.workers or 1) == 1 and not work.limits
        name = "in-process" if alone else "processes"
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    executor: Executor = module.start(work)
    return executor
