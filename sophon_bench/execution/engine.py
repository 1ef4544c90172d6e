"""Run a plan on this machine; whatever the store has is not redone."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from sophon_bench.execution.executors import AUTO, NO_LIMITS, Executor, Limits, Work, start
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
from sophon_bench.execution.waiting import Waiting
from sophon_bench.execution.worker import Worker
from sophon_bench.harness import speed
from sophon_bench.models.architecture import Compile
from sophon_bench.results.files import no_collector
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
        """A stage is finished; ``reused`` if the store had it, and then it did not begin."""
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
        limits: What a stage may take.
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
    limits: Limits = NO_LIMITS
    plugins: Sequence[Path] = ()
    compiled: Compile = "off"
    together: int = 1
    command: str = ""
    loggers: Sequence[Logger] = ()
    _models: dict[str, ModelRecord] = field(default_factory=dict, init=False)
    _there: set[str] = field(default_factory=set, init=False)
    _waiting: Waiting = field(default_factory=lambda: Waiting(1), init=False)
    _wanted: dict[str, list[_Running]] = field(default_factory=dict, init=False)
    _executor: Executor | None = field(default=None, init=False)
    _manifest: Manifest | None = field(default=None, init=False)

    def run(self, plan: Plan) -> Records:
        """Do what is missing and return all cells, search by search, as this run asked for them.

        A model that cannot be made fails the cells that need it, and no others.

        Raises:
            StoreError: If the store cannot be used.
            WorkerDied: If processes cannot be started, or are lost too often.
        """
        searches = self._begin(plan)
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
        return self._records(searches)

    def pending(self, plan: Plan) -> list[Stage]:
        """The stages known beforehand that `run` would do."""
        self._there = self.store.finished()
        return [stage for stage, record in self._finished(plan.stages) if record is None]

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

    @no_collector()
    def _begin(self, plan: Plan) -> list[_Running]:
        """Let all stages wait that are known, and write down which cells are asked for."""
        self._there = self.store.finished()
        self._waiting, self._wanted = Waiting(self.together), {}
        self._waiting.add(plan.models)
        searches = [self._start(search) for search in plan.searches]
        run = Run(
            command=self.command,
            names=plan.names,
            provenance=capture(self.device, self.compiled),
        )
        self._manifest = self.store.begin(run, [_asked(stage) for stage in plan.cells])
        return searches

    @no_collector()
    def _records(self, searches: Sequence[_Running]) -> Records:
        cells: dict[str, Cell] = {}
        asked: dict[str, Asked] = {}
        for running in searches:
            for stage, cell in running.done.items():
                cells[stage.key] = cell
                asked[stage.key] = _asked(stage).and_by(asked.get(stage.key, _asked(stage)))
        return Records(dict(self._models), list(cells.values()), asked)

    def _start(self, search: Search) -> _Running:
        steps = search.run()
        first = next(steps)
        running = _Running(search, steps, {}, search.forecast)
        self._want(running, first)
        self._waiting.add(first)
        self.reporter.expect(*search.forecast)
        return running

    def _want(self, running: _Running, stages: Sequence[AttackStage]) -> None:
        running.open = {stage.key: stage for stage in stages}
        for key in running.open:
            self._wanted.setdefault(key, []).append(running)

    def _dispatch(self, plan: Plan, working: int) -> int:
        """Finish what the store has, and give out what is ready; how much that was."""
        self._reuse()
        given = 0
        while self._executor is None or working + given < self._executor.size:
            stages = self._waiting.take()
            if not stages:
                break
            stages = [stage for stage in stages if not self._elsewhere(stage)]
            if not stages:
                continue
            if self._executor is None:
                self._executor = self._open(plan)
            for each in stages:
                self.reporter.begin(each)
            self._executor.submit(stages, self._upstream(stages[0]))
            given += 1
        return given

    @no_collector()
    def _reuse(self) -> None:
        """Finish what the store has of the stages that arrived, and what that lets arrive."""
        while stages := self._waiting.arrived():
            for stage, record in self._finished(stages):
                if record is None:
                    self._waiting.ready(stage)
                else:
                    self._waiting.done(stage)
                    self._finish(stage, record, reused=True)

    def _elsewhere(self, stage: Stage) -> bool:
        """Whether another run on this store has finished a stage meanwhile; then it is."""
        has = self.store.has_cell if isinstance(stage, AttackStage) else self.store.has_model
        if stage.key in self._there or not has(stage.key):
            return False
        self._there.add(stage.key)
        ((_, record),) = self._finished([stage])
        if record is not None:
            self._finish(stage, record, reused=True)
        return record is not None

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
            limits=self.limits,
        )
        return start(self.executor, work)

    def _upstream(self, stage: Stage) -> dict[str, ModelRecord]:
        found = {}
        while not isinstance(stage, PretrainStage):
            stage = stage.upstream
            found[stage.key] = self._models[stage.key]
        return found

    def _finished(
        self, stages: Sequence[Stage]
    ) -> Iterator[tuple[Stage, ModelRecord | Cell | None]]:
        """Stages in their order, each with its record if it need not be done."""
        there = [stage for stage in stages if stage.key in self._there]
        attacks = [stage.key for stage in there if isinstance(stage, AttackStage)]
        others = [stage.key for stage in there if not isinstance(stage, AttackStage)]
        cells, models = self.store.made_cells(attacks), self.store.made_models(others)
        for stage in stages:
            record: ModelRecord | Cell | None = None
            if stage.key in self._there:
                record = next(cells) if isinstance(stage, AttackStage) else next(models)
            if record is not None and self.retry_failed and record.status == "failed":
                record = None
            yield stage, record

    def _finish(self, stage: Stage, record: ModelRecord | Cell, *, reused: bool) -> None:
        self.reporter.end(stage, _outcome(record), reused=reused)
        for logger in () if reused else self.loggers:
            for step, values in series(record):
                logger.log(stage.label, values, step)
        if isinstance(record, ModelRecord):
            self._models[stage.key] = record
            self._waiting.made(stage.key)
            return
        for running in self._wanted.pop(stage.key, ()):
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
        if batch and self._manifest is not None:
            self._manifest.add(map(_asked, batch))
        self._want(running, batch)
        # the longest go first; what other searches list fills the gaps
        self._waiting.add(batch, ahead=True)


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
