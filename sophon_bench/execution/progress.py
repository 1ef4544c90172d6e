"""How a run shows its progress: bars on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Self, TextIO

from sophon_bench.execution.plan import Stage

HEARTBEAT_SECONDS = 15.0


def reporter(stages: Sequence[Stage], stream: TextIO | None = None) -> Bars | Lines:
    """Bars if ``stream`` is a terminal, lines if not; use it in a ``with``.

    By default it is standard error, with bars in a notebook as well.
    """
    bars = (stream or sys.stderr).isatty() or (stream is None and _in_notebook())
    return (Bars if bars else Lines)(stages, stream or sys.stderr)


def _in_notebook() -> bool:
    """Whether rich shows live bars here: in a kernel of Jupyter's, by ipywidgets."""
    if "IPython" not in sys.modules or find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter


class _Work:
    """Finished and total work of a run in units; a stage of unknown cost counts as the mean."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        known = [stage.units for stage in stages if stage.units is not None]
        self.guess = sum(known) / len(known) if known else 1.0
        self.total = sum(self.of(stage) for stage in stages)
        self.count = len(stages)
        self.done = 0.0
        self.number = 0
        self.parts: dict[str, float] = {}

    def of(self, stage: Stage) -> float:
        return self.guess if stage.units is None else stage.units

    def expect(self, units: float, stages: int) -> None:
        self.total += units
        self.count += stages

    def part(self, stage: Stage, fraction: float | None) -> None:
        self.parts[stage.key] = self.of(stage) * (fraction or 0.0)

    def end(self, stage: Stage) -> None:
        self.parts.pop(stage.key, None)
        self.done += self.of(stage)
        self.number += 1

    @property
    def so_far(self) -> float:
        return self.done + sum(self.parts.values())


class Bars:
    """A bar of rich for the whole run, and one for each stage under way with how it goes."""

    def __init__(self, stages: Sequence[Stage], stream: TextIO) -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        fixed = Column(no_wrap=True)
        self.work = _Work(stages)
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

    def __exit__(self, *_error: object) -> None:
        self.bars.stop()

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
        self.bars.remove_task(self.open.pop(stage.key))
        self.work.end(stage)
        self._whole()
        if not reused:
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
    ) -> None:
        self.work = _Work(stages)
        self.stream = stream
        self.clock = clock
        self.started = self.said = clock()
        self.skipped = 0.0
        self.reused = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.reused:
            print(f"{self.reused} finished stages were in the store", file=self.stream, flush=True)

    def expect(self, units: float, stages: int) -> None:
        """Reckon with more, or less."""
        self.work.expect(units, stages)

    def begin(self, stage: Stage) -> None:
        """Nothing to say yet."""

    def tick(self, stage: Stage, fraction: float | None, words: str) -> None:
        """Say how the stage goes, every now and then."""
        self.work.part(stage, fraction)
        if self.clock() - self.said < HEARTBEAT_SECONDS:
            return
        share = f" {100 * fraction:.0f} %" if fraction is not None else ""
        self._say(f"{stage.label}{share}: {words}")

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        """Say how the stage went."""
        self.work.end(stage)
        if reused:
            self.reused += 1
            self.skipped += self.work.of(stage)
        else:
            self._say(f"{stage.label}: {words}")

    def _say(self, line: str) -> None:
        self.said = self.clock()
        work = self.work
        worked = work.so_far - self.skipped
        left = work.total - work.so_far
        time_left = _minutes((self.said - self.started) / worked * left) if worked else "?"
        print(
            f"[{work.number}/{work.count}, {time_left} left] {line}", file=self.stream, flush=True
        )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
