"""How a run shows its progress: bars on a terminal and in a notebook, plain lines elsewhere.

Either ends with a line that says how many stages were finished, and in what time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Self, TextIO

from sophon_bench.execution.plan import Stage

HEARTBEAT_SECONDS = 15.0


def reporter(
    stages: Sequence[Stage],
    stream: TextIO | None = None,
    *,
    quiet: bool = False,
    verbose: bool = False,
) -> Bars | Lines | Silent:
    """Bars if ``stream`` is a terminal, lines if not; use it in a ``with``.

    By default it is standard error, with bars in a notebook as well.

    Args:
        quiet: Show nothing.
        verbose: Name the stages that the store had as well.
    """
    if quiet:
        return Silent()
    bars = (stream or sys.stderr).isatty() or (stream is None and _in_notebook())
    return (Bars if bars else Lines)(stages, stream or sys.stderr, verbose=verbose)


def _in_notebook() -> bool:
    """Whether rich shows live bars here: in a kernel of Jupyter's, by ipywidgets."""
    if "IPython" not in sys.modules or find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter


class _Work:
    """Finished and total work of a run in units; a stage of unknown cost counts as the mean."""

    def __init__(self, stages: Sequence[Stage], clock: Callable[[], float]) -> None:
        known = [stage.units for stage in stages if stage.units is not None]
        self.guess = sum(known) / len(known) if known else 1.0
        self.total = sum(self.of(stage) for stage in stages)
        self.count = len(stages)
        self.done = 0.0
        self.number = 0
        self.reused = 0
        self.parts: dict[str, float] = {}
        self.clock = clock
        self.started = clock()

    def of(self, stage: Stage) -> float:
        return self.guess if stage.units is None else stage.units

    def expect(self, units: float, stages: int) -> None:
        self.total += units
        self.count += stages

    def part(self, stage: Stage, fraction: float | None) -> None:
        self.parts[stage.key] = self.of(stage) * (fraction or 0.0)

    def end(self, stage: Stage, *, reused: bool) -> None:
        self.parts.pop(stage.key, None)
        self.done += self.of(stage)
        self.number += 1
        self.reused += reused

    @property
    def so_far(self) -> float:
        return self.done + sum(self.parts.values())

    def summary(self, *, stopped: bool) -> str:
        """How many stages were finished in what time; nothing if none was."""
        if not self.number:
            return ""
        time_taken = _minutes(self.clock() - self.started)
        stored = f", {self.reused} of them from the store" if self.reused else ""
        if stopped:
            whole = f"{self.number} of {self.count} stages finished{stored}"
            return f"stopped after {time_taken}, {whole}; the same command continues"
        return f"{self.number} stages finished in {time_taken}{stored}"


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Nothing to close."""

    def expect(self, units: float, stages: int) -> None:
        """Nothing to reckon."""

    def begin(self, stage: Stage) -> None:
        """Nothing to show."""

    def tick(self, stage: Stage, fraction: float | None, words: str) -> None:
        """Nothing to show."""

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        """Nothing to show."""


class Bars:
    """A bar of rich for the whole run, and one for each stage under way with how it goes."""

    def __init__(
        self,
        stages: Sequence[Stage],
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        verbose: bool = False,
    ) -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        fixed = Column(no_wrap=True)
        self.work = _Work(stages, clock)
        self.verbose = verbose
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
        self.open: dict[str, progress.TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.bars.stop()
        if words := self.work.summary(stopped=error is not None):
            self.bars.console.print(words, markup=False, highlight=False)

    def expect(self, units: float, stages: int) -> None:
        """Lengthen the whole run's bar, or shorten it."""
        self.work.expect(units, stages)
        self._whole()

    def begin(self, stage: Stage) -> None:
        """Show a bar for the stage."""
        self.open[stage.key] = self.bars.add_task(stage.label, total=1.0, words="")

    def tick(self, stage: Stage, fraction: float | None, words: str) -> None:
        """Move the stage's bar and the run's; an unknown fraction moves neither."""
        self.bars.update(self.open[stage.key], completed=fraction or 0.0, words=words)
        self.work.part(stage, fraction)
        self._whole()

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        """Count the stage and leave a line above the bars."""
        if not reused:
            self.bars.remove_task(self.open.pop(stage.key))
        self.work.end(stage, reused=reused)
        self._whole()
        if self.verbose or not reused:
            self.bars.console.print(f"{stage.label}: {words}", markup=False, highlight=False)

    def _whole(self) -> None:
        work = self.work
        words = f"{work.number}/{work.count}"
        self.bars.update(self.all, total=work.total, completed=work.so_far, words=words)


class Lines:
    """One line per finished stage, and one every 15 seconds within a long one."""

    def __init__(
        self,
        stages: Sequence[Stage],
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        verbose: bool = False,
    ) -> None:
        self.work = _Work(stages, clock)
        self.stream = stream
        self.verbose = verbose
        self.said = self.work.started
        self.skipped = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if words := self.work.summary(stopped=error is not None):
            print(words, file=self.stream, flush=True)

    def expect(self, units: float, stages: int) -> None:
        """Reckon with more, or less."""
        self.work.expect(units, stages)

    def begin(self, stage: Stage) -> None:
        """Nothing to say yet."""

    def tick(self, stage: Stage, fraction: float | None, words: str) -> None:
        """Say how the stage goes, every now and then."""
        self.work.part(stage, fraction)
        if self.work.clock() - self.said < HEARTBEAT_SECONDS:
            return
        share = f" {100 * fraction:.0f} %" if fraction is not None else ""
        self._say(f"{stage.label}{share}: {words}")

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        """Say how the stage went."""
        self.work.end(stage, reused=reused)
        if reused:
            self.skipped += self.work.of(stage)
        if self.verbose or not reused:
            self._say(f"{stage.label}: {words}")

    def _say(self, line: str) -> None:
        work = self.work
        self.said = work.clock()
        worked = work.so_far - self.skipped
        left = work.total - work.so_far
        time_left = _minutes((self.said - work.started) / worked * left) if worked else "?"
        print(
            f"[{work.number}/{work.count}, {time_left} left] {line}", file=self.stream, flush=True
        )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
