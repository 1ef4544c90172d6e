from __future__ import annotations

import builtins
import io
import itertools
import re
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import rich.jupyter

from sophon_bench.execution.progress import Bars, Lines, reporter


@dataclass
class Step:
    """Stands for a stage."""

    label: str
    units: float | None

    @property
    def key(self) -> str:
        return self.label


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


STAGES: Any = [Step("one", 100.0), Step("two", 300.0), Step("three", None)]


def test_lines_say_what_is_done_and_what_is_left() -> None:
    now = [0.0]
    stream = io.StringIO()
    with Lines(STAGES, stream, clock=lambda: now[0]) as lines:
        lines.begin(STAGES[0])
        now[0] = 10.0
        lines.tick(STAGES[0], 0.5, "too soon to say")
        lines.end(STAGES[0], "restricted 50.0 %", reused=False)
        lines.begin(STAGES[1])
        now[0] = 40.0
        lines.tick(STAGES[1], 0.5, "halfway")
        lines.end(STAGES[1], "", reused=True)
    # the third stage counts as the mean, 200: of 600 units, 100 took 10 s, so 500 take 50 s;
    # then 250 units took 40 s, and 350 are left: 56 s
    assert stream.getvalue().splitlines() == [
        "[1/3, 0:50 left] one: restricted 50.0 %",
        "[1/3, 0:56 left] two 50 %: halfway",
        "2 stages finished in 0:40, 1 of them from the store",
    ]


def test_what_was_stopped_is_said_to_go_on() -> None:
    stream = io.StringIO()
    lines = Lines(STAGES, stream, clock=itertools.count(0.0, 10.0).__next__)

    def interrupted() -> None:
        with lines:
            lines.end(STAGES[0], "", reused=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().splitlines() == [
        "stopped after 0:10, 1 of 3 stages finished, 1 of them from the store; "
        "the same command continues",
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_says_nothing_and_verbose_names_reused_stages(stream: type[io.StringIO]) -> None:
    shown = []
    for options in ({"quiet": True}, {}, {"verbose": True}):
        where = stream()
        with reporter(STAGES, where, **options) as progress:
            progress.expect(1.0, 1)
            progress.begin(STAGES[0])
            progress.tick(STAGES[0], 0.5, "halfway")
            progress.end(STAGES[0], "finished", reused=True)
        shown.append(where.getvalue())
    assert shown[0] == ""
    assert "one: finished" not in shown[1]
    assert "one: finished" in shown[2]


def test_bars_are_for_terminals() -> None:
    assert isinstance(reporter(STAGES, io.StringIO()), Lines)
    terminal = Terminal()
    with reporter(STAGES, terminal) as bars:
        assert isinstance(bars, Bars)
        for stage in STAGES:
            bars.begin(stage)
            bars.tick(stage, 0.25, "restricted 12.0 %")
            bars.tick(stage, None, "")
            bars.end(stage, "finished", reused=stage.label == "two")
    shown = terminal.getvalue()
    assert "all stages" in shown
    assert "one: finished" in shown
    assert "two: finished" not in shown
    assert "3/3" in shown
    assert "3 stages finished in 0:00, 1 of them from the store" in shown


@pytest.mark.parametrize("value", ["", "1"])
def test_no_color_takes_the_colours_off_the_bars(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", value)
    terminal = Terminal()
    with reporter(STAGES, terminal) as bars:
        bars.begin(STAGES[0])
        bars.end(STAGES[0], "finished", reused=False)
    coloured = re.search(r"\x1b\[(\d+;)*[349]\d[;m]", terminal.getvalue())
    assert (coloured is None) is bool(value)


class Widget:
    """A widget of a notebook that prints into nothing."""

    def __enter__(self) -> Widget:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def clear_output(self, *, wait: bool) -> None:
        assert wait


@pytest.mark.parametrize("widgets", [True, False])
def test_bars_are_for_notebooks_that_can_draw_them(
    monkeypatch: pytest.MonkeyPatch, widgets: bool
) -> None:
    shown: list[object] = []
    display = ModuleType("IPython.display")
    display.display = shown.append  # type: ignore[attr-defined]
    ipywidgets = ModuleType("ipywidgets")
    ipywidgets.Output = Widget  # type: ignore[attr-defined]
    ipywidgets.__spec__ = ModuleSpec("ipywidgets", None)
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr(rich.jupyter, "display", lambda *_: None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for module in (ModuleType("IPython"), display):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "ipywidgets", ipywidgets if widgets else None)
    with reporter(STAGES) as bars:
        bars.begin(STAGES[0])
        bars.end(STAGES[0], "finished", reused=False)
    assert isinstance(bars, Bars if widgets else Lines)
    assert [type(widget) for widget in shown] == [Widget] * widgets
    assert ("one: finished" in sys.stderr.getvalue()) is not widgets  # type: ignore[attr-defined]
    assert isinstance(reporter(STAGES, io.StringIO()), Lines)
