"""What a plugin does to the process around it: kept to its stage, put back after it, and named.

A plugin's generator runs like a coroutine with a context of its own: what it sets in the process
(grad mode, default dtype, working directory, standard output, …) is taken away whenever it yields
and given back when it goes on. So ``with torch.no_grad(): yield model`` is harmless. What is still
different when the stage is over is named, as is what can only be looked at then: the environment,
signal handlers, hooks, threads, and state that the plugin keeps for its next trial.

The private names of torch that this takes are used here and in `process_settings` alone.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import inspect
import io
import multiprocessing
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any, Self, TypeVar

import torch
from torch.utils import _python_dispatch

from sophon_bench.data.samples import THREADS
from sophon_bench.harness.plugin_state import Snapshot
from sophon_bench.harness.process_settings import LOOKED_AT, STREAMS, SWAPPED, Setting, listed

T = TypeVar("T")

SHOWN = 2000
"""Bytes of what a plugin prints in a stage that are kept."""

CLOSINGS = 3
"""Times that a generator is asked to end."""

GRACE_SECONDS = 1.0
"""How long threads and processes that are ending anyway are waited for."""


class Containment:
    """One stage of a plugin: use it in a ``with``, and drive the plugin through it.

    Args:
        plugins: Instances of one plugin's class.
        found: Where sentences go that say what the plugin did to the process, each once.
    """

    def __init__(self, plugins: Sequence[object], found: list[str] | None = None) -> None:
        self.found: list[str] = [] if found is None else found
        # a check's own wrapper is not what is looked at
        self._plugins = [inspect.unwrap(plugin) for plugin in plugins]  # type: ignore[arg-type]
        self._printed = Printed()
        self._steps: Iterator[Any] | None = None
        self._modes = _Modes()
        self._imported = False

    def __enter__(self) -> Self:
        self._context = contextvars.copy_context()
        self._state = Snapshot(self._plugins)
        self._threads = set(threading.enumerate())
        self._children = set(multiprocessing.active_children())
        self._outside = _read(SWAPPED)
        binary: Any = self._printed
        text = io.TextIOWrapper(binary, "utf-8", "replace", newline="", write_through=True)
        self._begin = [text, text, self._warn, *self._outside[len(STREAMS) :]]
        self._inside = list(self._begin)
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook, threading.excepthook = self._unraisable, self._thread_failed
        self._looked_at = _read(LOOKED_AT)
        self._imports = _Imports(self)
        sys.meta_path.insert(0, self._imports)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        try:
            self.close()
        finally:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self._imports]
            self._say_changes(SWAPPED, self._begin, self._inside)
            for words in self._modes.end():
                self._say(words)
            values = _read(LOOKED_AT)
            self._say_changes(LOOKED_AT, self._looked_at, values)
            _write(LOOKED_AT, values, self._looked_at)
            self._end_workers()
            if state := self._state.restore():
                self._say(f"kept state: {listed(state)}")
            sys.unraisablehook, threading.excepthook = self._hooks
            if self._printed.bytes:
                self._say(f"printed {self._printed}")

    def drive(self, start: Callable[[], Iterator[T]]) -> Generator[T, None, object]:
        """Yield what the iterator that ``start`` makes yields, and return what it returns.

        Nothing is started before the first item is asked for. It is closed at the end.
        """
        try:
            self._steps = self._within(start)
            while True:
                try:
                    item = self._within(next, self._steps)
                except StopIteration as stop:
                    return stop.value
                yield item
        finally:
            self.close()

    @contextlib.contextmanager
    def visit(self) -> Iterator[None]:
        """Call what the plugin has made (a predictor) from the harness's own settings."""
        _write(SWAPPED, self._outside, self._begin)
        try:
            yield
        finally:
            now = _read(SWAPPED)
            self._say_changes(SWAPPED, self._begin, now)
            _write(SWAPPED, now, self._outside)

    def close(self) -> None:
        """End the generator, whatever it does about it."""
        steps, self._steps = self._steps, None
        if steps is None:  # the generator of `drive` may be freed long after, inside another stage
            return
        close: Callable[[], object] = getattr(steps, "close", lambda: None)
        for _ in range(CLOSINGS):
            try:
                self._within(close)
                break
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._say(_raised(type(error), error, "while it was closed"))
        if isinstance(steps, types.GeneratorType):
            generator = weakref.ref(steps)
            del steps, close  # what still yields is asked once more by Python, and then freed
            if (held := generator()) is not None and held.gi_frame is not None:
                # whoever has it may let go of it when nobody listens: at the interpreter's exit
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))

    @contextlib.contextmanager
    def excusing(self) -> Iterator[None]:
        """Let be what changes inside: a library does it while it is imported."""
        before, threads = _read(LOOKED_AT), set(threading.enumerate())
        try:
            yield
        finally:
            self._imported = True
            self._threads |= set(threading.enumerate()) - threads
            self._looked_at = [
                new if old == first else first
                for first, old, new in zip(self._looked_at, before, _read(LOOKED_AT), strict=True)
            ]

    def include(self, module: types.ModuleType) -> None:
        """Look at the state of a module that was just imported, if it is one of the plugin's."""
        if self._state.owns(module):
            self._state.include(module)

    def _within(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something of the plugin's in its own settings."""
        try:
            with self._modes.inside():
                _write(SWAPPED, self._outside, self._inside)
                return self._context.run(function, *arguments)
        finally:
            self._inside = _read(SWAPPED)
            _write(SWAPPED, self._inside, self._outside)

    def _say(self, words: str) -> None:
        # names are anybody's: a line stays a line, and what JSON has no form for stays out
        words = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
        if words not in self.found:
            self.found.append(words)

    def _say_changes(
        self, settings: Sequence[Setting], before: Sequence[Any], after: Sequence[Any]
    ) -> None:
        for setting, one, other in zip(settings, before, after, strict=True):
            if one != other:
                self._say(setting.change(one, other))

    def _end_workers(self) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        threads = [thread for thread in threading.enumerate() if self._is_left(thread)]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if threads := [thread for thread in threads if thread.is_alive()]:
            self._say(f"left threads running: {listed([thread.name for thread in threads])}")
            _LEFT.extend(threads)
        processes = [p for p in multiprocessing.active_children() if p not in self._children]
        for process in processes:
            process.terminate()
            process.join(GRACE_SECONDS)
            process.kill()
            process.join()
        if processes:
            self._say(f"left processes running: {listed([p.name for p in processes])}")

    def _is_left(self, thread: threading.Thread) -> bool:
        """Whether a thread is the plugin's: none of before, of the harness, or of a library."""
        if thread in self._threads or thread.name.startswith(THREADS):
            return False
        if isinstance(thread, threading._DummyThread):  # one of torch's that has run some Python
            return False
        return not self._imported or self._runs_own_code(thread)

    def _runs_own_code(self, thread: threading.Thread) -> bool:
        frame = sys._current_frames().get(thread.ident or 0)
        while frame is not None:
            if self._state.owns(sys.modules.get(frame.f_globals.get("__name__", ""))):
                return True
            frame = frame.f_back
        return False

    def _warn(self, *arguments: Any, **named: Any) -> None:
        """Show a warning where the harness shows them: it is no printing."""
        stdout, stderr, show = self._outside[: len(STREAMS)]
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            show(*arguments, **named)

    def _unraisable(self, raised: sys.UnraisableHookArgs) -> None:
        self._say(_raised(raised.exc_type, raised.exc_value, "in a finalizer"))

    def _thread_failed(self, raised: threading.ExceptHookArgs) -> None:
        if not issubclass(raised.exc_type, SystemExit):
            self._say(_raised(raised.exc_type, raised.exc_value, "in a thread"))


_LEFT: list[threading.Thread] = []
"""Threads that plugins have left running."""

_KEPT: list[object] = []
"""Guards whose end would bring back what a plugin left."""


def unending() -> bool:
    """Whether threads are left that Python would wait for before it ends."""
    return any(thread.is_alive() and not thread.daemon for thread in _LEFT)


def _raised(kind: type[BaseException], error: BaseException | None, when: str) -> str:
    if "ignored GeneratorExit" in str(error):
        return "swallowed GeneratorExit"
    words = str(error or "").strip().split("\n")[0][:200]
    return f"raised {kind.__name__} {when}" + f": {words}" * bool(words)


def _read(settings: Sequence[Setting]) -> list[Any]:
    return [setting.read() for setting in settings]


def _write(settings: Sequence[Setting], now: Sequence[Any], wanted: Sequence[Any]) -> None:
    for setting, one, other in zip(settings, now, wanted, strict=True):
        if one is not other and one != other:
            setting.write(other)


class _Neutral(_python_dispatch.TorchDispatchMode):
    """A mode that changes nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


class _Modes:
    """A plugin's own dispatch modes and inference mode, above those of the harness."""

    def __init__(self) -> None:
        self._guard: torch.inference_mode | None = None
        self._own: list[Any] = []

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Bring back the plugin's, above the harness's; after it, those of the harness alone."""
        outer = _stack()
        guard, self._guard = self._guard, None
        if guard is not None:
            # its own guard brings back that there were modes, as in the first update, a sampled one
            outer = outer or [_Neutral()]
            _set_modes([])
            guard.__exit__(None, None, None)
        if guard is not None or self._own:
            _set_modes([*outer, *self._own])
        try:
            yield
        finally:
            modes = _stack()
            self._own = [mode for mode in modes if mode not in outer]
            inference = torch.is_inference_mode_enabled()
            if guard is not None or inference or modes != outer:
                _set_modes([])
                if inference:
                    self._guard = torch.inference_mode(mode=False)
                    self._guard.__enter__()
                _set_modes([mode for mode in outer if not isinstance(mode, _Neutral)])

    def end(self) -> Iterator[str]:
        """Leave what is left on, and say what that was."""
        if self._guard is not None:
            yield "left torch.inference_mode on"
            _KEPT.append(self._guard)
        if self._own:
            yield f"left torch dispatch modes on: {listed([type(m).__name__ for m in self._own])}"
            outer = _stack()
            _set_modes([*outer, *self._own])
            for mode in reversed(self._own):  # torch counts how many modes it is in
                with contextlib.suppress(Exception):
                    mode.__exit__(None, None, None)
            _set_modes(outer)


def _stack() -> list[Any]:
    modes: list[Any] = _python_dispatch._get_current_dispatch_mode_stack()
    return modes


def _set_modes(modes: Sequence[Any]) -> None:
    """Make these the dispatch modes.

    Inference mode also saves and restores whether there are any, whatever has become of them
    meanwhile; torch sees how it is when the last one is removed.
    """
    _python_dispatch._push_mode(_Neutral())
    while _stack():
        _python_dispatch._pop_mode()
    for mode in modes:
        _python_dispatch._push_mode(mode)


class Printed(io.BufferedIOBase):
    """Standard output of a plugin: how much it was, and how it began."""

    def __init__(self) -> None:
        self.bytes = 0
        self.begin = b""

    def __str__(self) -> str:
        size = next(
            f"{self.bytes / unit:.1f} {name}" if unit > 1 else f"{self.bytes} {name}"
            for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (0, "bytes"))
            if self.bytes >= unit
        )
        begin = self.begin.decode(errors="replace")
        return f"{size}: {begin!r}" + "…" * (len(self.begin) == SHOWN)

    def write(self, content: Any) -> int:
        written = bytes(content)
        self.bytes += len(written)
        self.begin += written[: SHOWN - len(self.begin)]
        return len(written)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Standard error's: a program that the plugin starts writes where it would anyway."""
        return 2

    def close(self) -> None:
        """Nothing: there are others who write here."""


class _Imports:
    """A finder that sees what is imported for the first time in a stage."""

    def __init__(self, stage: Containment) -> None:
        self._stage = stage
        self._depth = 0

    def find_spec(self, *place: Any) -> ModuleSpec | None:
        """What the other finders find, to be loaded where the stage sees it."""
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            if find and (spec := find(*place)):
                loader = spec.loader
                if hasattr(loader, "exec_module") and not isinstance(loader, type):
                    loader.exec_module = partial(self._load, loader, loader.exec_module)
                return spec  # type: ignore[no-any-return]
        return None

    def _load(
        self, loader: Any, execute: Callable[[types.ModuleType], None], module: types.ModuleType
    ) -> None:
        vars(loader).pop("exec_module", None)
        with contextlib.nullcontext() if self._depth else self._stage.excusing():
            self._depth += 1
            try:
                execute(module)
            finally:
                self._depth -= 1
                self._stage.include(module)
