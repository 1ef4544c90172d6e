"""Run a plan on this machine; whatever the store has is not redone."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from sophon_bench.execution.executors import AUTO, Executor, Work, start
from sophon_bench.execution.loggers import Logger, series
from sophon_bench.execution.plan import (
    AttackStage,
    Plan,
    PretrainStage,
    Search,
    Setting,
    Stage,
    Tried,
    setting_of,
)
from sophon_bench.execution.worker import Worker
from sophon_bench.harness import speed
from sophon_bench.models.architecture import Compile
from sophon_bench.results.provenance import capture
from sophon_bench.results.records import Asked, Cell, ModelRecord, Records, Run
from sophon_bench.results.store import Manifest, Store


class Reporter(Protocol):
    """Told how a run goes."""

    def expect(self, units: float, stages: int) -> None:
        """So much more is to be done than was said, or less."""
        ...

    def begin(self, stage: Stage) -> None:
        """A stage starts; several may be under way."""
        ...

    def tick(self, stage: Stage, fraction: float | None, words: str) -> None:
        """How far the stage is (None: unknown), and a few words on it."""
        ...

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        """A stage is finished; ``reused`` if the store had it."""
        ...


@dataclass(eq=False)
class _Running:
    """A search under way: its open stages, and what it has so far."""

    search: Search
    steps: Generator[list[AttackStage], Tried, None]
    open: dict[str, AttackStage]
    forecast: tuple[float, int]
    done: dict[AttackStage, Cell] = field(default_factory=dict)


@dataclass
class LocalEngine:
    """Runs stages on one device, in this process or in several.

    Args:
        store: Where finished work is and goes.
        device: Where to train.
        reporter: Told how it goes.
        retry_failed: Whether to do failed cells and models again.
        executor: Where stages are done, one of `executors.executors`.
        address: Of a cluster, where stages are done on one.
        workers: How many stages may be under way at once; None: what the executor takes by itself.
        threads: CPU threads of each of several.
        plugins: Plugin files that several load.
        compiled: How models are compiled.
        together: Trials at most that run at once, where that is measured to pay.
        command: What started the run, for its manifest.
        loggers: Told of every record that is made.
    """

    store: Store
    device: torch.device
    reporter: Reporter
    retry_failed: bool = False
    executor: str = AUTO
    address: str | None = None
    workers: int | None = None
    threads: int = 1
    plugins: Sequence[Path] = ()
    compiled: Compile = "off"
    together: int = 1
    command: str = ""
    loggers: Sequence[Logger] = ()
    _models: dict[str, ModelRecord] = field(default_factory=dict, init=False)
    _waiting: list[Stage] = field(default_factory=list, init=False)
    _missing: set[str] = field(default_factory=set, init=False)
    _searches: list[_Running] = field(default_factory=list, init=False)
    _executor: Executor | None = field(default=None, init=False)
    _manifest: Manifest | None = field(default=None, init=False)

    def run(self, plan: Plan) -> Records:
        """Do what is missing and return all cells, search by search, as this run asked for them.

        A model that cannot be made fails the cells that need it, and no others.

        Raises:
            StoreError: If the store cannot be used.
            WorkerDied: If one of several processes ends by itself.
        """
        self._waiting, self._missing = list(plan.models), set()
        self._searches = [self._start(search) for search in plan.searches]
        run = Run(
            command=self.command,
            names=plan.names,
            provenance=capture(self.device, self.compiled),
        )
        self._manifest = self.store.begin(run, [_asked(stage) for stage in plan.cells])
        working = 0
        try:
            while self._waiting or working:
                working += self._dispatch(plan, working)
                if working and self._executor is not None:
                    for stage, record in self._executor.wait():
                        self._finish(stage, record, reused=False)
                    working -= 1
        finally:
            if self._executor is not None:
                self._executor.close()
                self._executor = None
        cells: dict[str, Cell] = {}
        asked: dict[str, Asked] = {}
        for running in self._searches:
            for stage, cell in running.done.items():
                cells[stage.key] = cell
                asked[stage.key] = _asked(stage).and_by(asked.get(stage.key, _asked(stage)))
        return Records(dict(self._models), list(cells.values()), asked)

    def pending(self, plan: Plan) -> list[Stage]:
        """The stages known beforehand that `run` would do."""
        return [stage for stage in plan.stages if self._finished(stage) is None]

    def estimate(self, pending: Sequence[Stage]) -> tuple[float, float]:
        """FLOPs and seconds of the stages whose cost is planned, from one timed update each."""
        worker = Worker(self.store, self.device, self.reporter.tick)
        flops = seconds = 0.0
        by_setting: dict[int, list[Stage]] = {}
        for stage in pending:
            by_setting.setdefault(id(setting_of(stage)), []).append(stage)
        for group in by_setting.values():
            bench = worker.bench(setting_of(group[0]))
            units = sum(stage.units or 0.0 for stage in group)
            flops += units * bench.profile.flops_per_unit
            seconds += units * speed.seconds_per_unit(bench)
        return flops, seconds / (self.workers or 1)

    def _start(self, search: Search) -> _Running:
        steps = search.run()
        first = next(steps)
        self._waiting += first
        self.reporter.expect(*search.forecast)
        return _Running(search, steps, {stage.key: stage for stage in first}, search.forecast)

    def _dispatch(self, plan: Plan, working: int) -> int:
        """Finish what the store has, and give out what is ready; how much that was."""
        given = 0
        gone: set[str] = set()
        for stage in list(self._waiting):
            full = self._executor is not None and working + given >= self._executor.size
            if stage.key in gone or (full and stage.key in self._missing):
                continue
            if not isinstance(stage, PretrainStage) and stage.upstream.key not in self._models:
                continue
            record = None if stage.key in self._missing else self._finished(stage)
            if record is not None:
                self._waiting.remove(stage)
                self.reporter.begin(stage)
                self._finish(stage, record, reused=True)
                continue
            self._missing.add(stage.key)
            if self._executor is None:
                self._executor = self._open(plan)
            if working + given < self._executor.size:
                companions = self._companions(stage)
                for each in companions:
                    gone.add(each.key)
                    self._waiting.remove(each)
                    self.reporter.begin(each)
                self._executor.submit(companions, self._upstream(stage))
                given += 1
        return given

    def _companions(self, stage: Stage) -> list[Stage]:
        """The stage, and those that wait to be done and can be at once with it."""
        if self.together == 1 or not isinstance(stage, AttackStage) or stage.companions is None:
            return [stage]
        found: list[Stage] = [
            other
            for other in self._waiting
            if isinstance(other, AttackStage)
            and other.companions == stage.companions
            and self._finished(other) is None
        ]
        return found[: self.together]

    def _open(self, plan: Plan) -> Executor:
        settings: dict[int, Setting] = {id(s): s for s in map(setting_of, plan.models)}
        work = Work(
            store=self.store.root,
            device=self.device,
            settings=list(settings.values()),
            plugins=self.plugins,
            workers=self.workers,
            threads=self.threads,
            compiled=self.compiled,
            tick=self.reporter.tick,
            address=self.address,
        )
        return start(self.executor, work)

    def _upstream(self, stage: Stage) -> dict[str, ModelRecord]:
        found = {}
        while not isinstance(stage, PretrainStage):
            stage = stage.upstream
            found[stage.key] = self._models[stage.key]
        return found

    def _finished(self, stage: Stage) -> ModelRecord | Cell | None:
        record: ModelRecord | Cell
        if isinstance(stage, AttackStage):
            if not self.store.has_cell(stage.key):
                return None
            record = self.store.cell(stage.key)
        elif self.store.has_model(stage.key):
            record = self.store.model(stage.key)
        else:
            return None
        return None if self.retry_failed and record.status == "failed" else record

    def _finish(self, stage: Stage, record: ModelRecord | Cell, *, reused: bool) -> None:
        self._missing.discard(stage.key)
        self.reporter.end(stage, _outcome(record), reused=reused)
        for logger in () if reused else self.loggers:
            for step, values in series(record):
                logger.log(stage.label, values, step)
        if isinstance(record, ModelRecord):
            self._models[stage.key] = record
            return
        for running in self._searches:
            if stage.key in running.open:
                self._advance(running, running.open.pop(stage.key), record)

    def _advance(self, running: _Running, stage: AttackStage, cell: Cell) -> None:
        """Note a cell; go on when nothing of the search is open."""
        running.done[stage] = cell
        if running.open:
            return
        try:
            batch = running.steps.send(running.done)
        except StopIteration:
            batch = []
        units, count = running.forecast
        if not batch or batch[0].stretch > 1:
            running.forecast = (0.0, 0)
            self.reporter.expect(-units, -count)
        self.reporter.expect(sum(s.units for s in batch), len(batch))
        if self._manifest is not None:
            self._manifest.add(map(_asked, batch))
        running.open = {s.key: s for s in batch}
        self._waiting[:0] = batch  # the longest go first; what other searches list fills the gaps


def _asked(stage: AttackStage) -> Asked:
    return Asked(key=stage.key, suites=stage.attack.suites, derived=stage.derived)


def _outcome(record: ModelRecord | Cell) -> str:
    if isinstance(record, ModelRecord):
        if record.original is None:
            return f"{record.status}: {record.reason}"
        note = f" ({record.note})" if record.note else ""
        return f"original {100 * record.original:.1f} %{note}"
    if record.status in ("failed", "skipped") or not record.curve:
        return f"{record.status}: {record.reason}"
    best = max(zip(record.curve.selection, record.curve.test, strict=True), key=lambda p: p[0])
    return f"{record.domain} {100 * best[1]:.1f} %"
