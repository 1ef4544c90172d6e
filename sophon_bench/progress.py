"""How a run shows its progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

from sophon_bench.plan import Stage

HEARTBEAT_SECONDS = 15.0


def reporter(stages: Sequence[Stage], stream: TextIO | None = None) -> Bars | Lines:
    """Bars if ``stream`` (standard error) is a terminal, lines if not; use it in a ``with``."""
    stream = sys.stderr if stream is None else stream
    return Bars(stages, stream) if stream.isatty() else Lines(stages, stream)


class _Work:
    """Finished and total work of a run in units; a stage of unknown cost counts as the mean."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        known = [stage.units for stage in stages if stage.units is not None]
        self.guess = sum(known) / len(known) if known else 1.0
        self.total = sum(self.of(stage) for stage in stages)
        self.count = len(stages)
        self.done = 0.0
        self.number = 0

    def of(self, stage: Stage) -> float:
        return self.guess if stage.units is None else stage.units


class Bars:
    """Two bars of rich: the whole run, and the stage with its accuracy so far."""

    def __init__(self, stages: Sequence[Stage], stream: TextIO) -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        fixed = Column(no_wrap=True)
        self.work = _Work(stages)
        self.size = 0.0
        self.bars = progress.Progress(
            progress.TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            progress.BarColumn(bar_width=12),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[words]}", markup=False, table_column=fixed),
            progress.TimeRemainingColumn(compact=True, table_column=fixed),
            progress.TextColumn("left", table_column=fixed),
            console=Console(file=stream),
            expand=True,
        )
        self.all = self.bars.add_task("all stages", total=self.work.total, words="")
        self.one = self.bars.add_task("", total=1.0, words="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def begin(self, stage: Stage) -> None:
        """Reset the stage's bar."""
        self.size = self.work.of(stage)
        self.bars.reset(self.one, description=stage.label, total=1.0, words="")

    def tick(self, fraction: float | None, words: str) -> None:
        """Move both bars; an unknown fraction moves neither."""
        self.bars.update(self.one, completed=fraction or 0.0, words=words)
        done = self.work.done + self.size * (fraction or 0.0)
        self.bars.update(self.all, completed=done, words=self._count())

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        """Count the stage and leave a line above the bars."""
        self.work.done += self.size
        self.work.number += 1
        self.bars.update(self.all, completed=self.work.done, words=self._count())
        if not reused:
            self.bars.console.print(f"{stage.label}: {words}", markup=False, highlight=False)

    def _count(self) -> str:
        return f"{self.work.number}/{self.work.count}"


class Lines:
    """One line per finished stage, and one every 15 seconds within a long one."""

    def __init__(
        self,
        stages: Sequence[Stage],
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work = _Work(stages)
        self.stream = stream
        self.clock = clock
        self.started = self.said = clock()
        self.stage: Stage | None = None
        self.worked = 0.0
        self.reused = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.reused:
            print(f"{self.reused} finished stages were in the store", file=self.stream, flush=True)

    def begin(self, stage: Stage) -> None:
        """Remember the stage."""
        self.stage = stage

    def tick(self, fraction: float | None, words: str) -> None:
        """Say how the stage goes, every now and then."""
        if self.stage is None or self.clock() - self.said < HEARTBEAT_SECONDS:
            return
        share = f" {100 * fraction:.0f} %" if fraction is not None else ""
        part = self.work.of(self.stage) * (fraction or 0.0)
        self._say(f"{self.stage.label}{share}: {words}", part)

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        """Say how the stage went."""
        self.work.done += self.work.of(stage)
        self.work.number += 1
        if reused:
            self.reused += 1
            return
        self.worked += self.work.of(stage)
        self._say(f"{stage.label}: {words}", 0.0)

    def _say(self, line: str, part: float) -> None:
        self.said = self.clock()
        left = self.work.total - self.work.done - part
        worked = self.worked + part
        elapsed = self.said - self.started
        time_left = _minutes(elapsed / worked * left) if worked else "?"
        print(
            f"[{self.work.number}/{self.work.count}, {time_left} left] {line}",
            file=self.stream,
            flush=True,
        )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
