"""What a plugin does to the process around it: kept to its stage, put back after it, and named.

A plugin's generator runs like a coroutine with a context of its own: what it sets in the process
(grad mode, default dtype, working directory, standard output, …) is taken away whenever it yields
and given back when it goes on. So ``with torch.no_grad(): yield model`` is harmless. What is still
different when the stage is over is named, as is what can only be looked at then: the environment,
signal handlers, hooks, threads, and state that the plugin keeps for its next trial.

The private names of torch that this takes are used here and nowhere else.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import ctypes
import gc
import inspect
import io
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import overrides
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers
from torch.utils import _device, _python_dispatch

from sophon_bench.plugin_state import Snapshot
from sophon_bench.samples import THREADS

T = TypeVar("T")

SHOWN = 2000
"""Characters of what a plugin prints in a stage that are kept."""

CLOSINGS = 3
"""Times that a generator is asked to end."""

GRACE_SECONDS = 1.0
"""How long threads and processes that are ending anyway are waited for."""

COMPILER = ("TORCHINDUCTOR_", "TRITON_")
"""Begin the environment variables that torch's compiler sets when it is first used."""

SHORT = 200
"""Characters of a sentence that advice is given on."""

LISTED = 5
"""Names at most in one sentence."""


@dataclass(frozen=True)
class Setting:
    """Something that the whole process has one of.

    Attributes:
        name: What it is, for a reader.
        read: Its value now, equal as long as nothing has changed.
        write: Makes it what `read` gave.
        told: What to say of a value before and one after; None: that the setting is now the other.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    told: Callable[[Any, Any], str] | None = None

    def change(self, before: Any, after: Any) -> str:
        """A change in words."""
        if self.told is not None:
            return self.told(before, after)
        return f"changed {self.name} to {str(after).removeprefix('torch.')}"


def _changed(name: str) -> Callable[[Any, Any], str]:
    """Says that something changed where its value would say nothing."""
    return lambda _before, _after: f"changed {name}"


def _names(what: str) -> Callable[[Mapping[Any, Any], Mapping[Any, Any]], str]:
    """Says which entries of a mapping differ."""

    def told(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> str:
        keys = [*before, *(key for key in after if key not in before)]
        gone = object()
        differing = [k for k in keys if before.get(k, gone) != after.get(k, gone)]
        return f"changed {what}: {_listed([str(getattr(k, 'name', k)) for k in differing])}"

    return told


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 (half the time that a `Path` takes)
    except FileNotFoundError:  # it was removed
        return ""


def _go_to(directory: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(directory)


PRECISIONS = (
    ("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"),
    ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"),
)  # fmt: skip
"""Where torch has a precision of float32 products, a default before what it is the default of."""


def _precision() -> tuple[str | None, bool | None, tuple[str, ...]]:
    """The precision of float32 products in torch's old terms and in its new ones.

    None: torch refuses to answer in the old terms, since somebody has used both.
    """
    matmul = cudnn = None
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        cudnn = torch._C._get_cudnn_allow_tf32()
    return matmul, cudnn, tuple(torch._C._get_fp32_precision_getter(*at) for at in PRECISIONS)


def _set_precision(value: tuple[str | None, bool | None, tuple[str, ...]]) -> None:
    matmul, cudnn, new = value
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if cudnn is not None:
        torch._C._set_cudnn_allow_tf32(cudnn)
    for at, precision in zip(PRECISIONS, new, strict=True):
        if torch._C._get_fp32_precision_getter(*at) != precision:
            torch._C._set_fp32_precision_setter(*at, precision)


def _tell_precision(before: Any, after: Any) -> str:
    if after[0] not in (None, before[0]):
        return f"changed torch.set_float32_matmul_precision to {after[0]}"
    return "changed the precision of float32 in torch.backends"


def _backends() -> tuple[bool, ...]:
    c = torch._C
    return (
        c._get_cudnn_enabled(),
        c._get_cudnn_benchmark(),
        c._get_cudnn_deterministic(),
        c._get_mkldnn_enabled(),
        c._get_flash_sdp_enabled(),
        c._get_mem_efficient_sdp_enabled(),
        c._get_math_sdp_enabled(),
        c._get_cudnn_sdp_enabled(),
    )


def _set_backends(values: tuple[bool, ...]) -> None:
    c = torch._C
    setters = (
        c._set_cudnn_enabled,
        c._set_cudnn_benchmark,
        c._set_cudnn_deterministic,
        c._set_mkldnn_enabled,
        c._set_sdp_use_flash,
        c._set_sdp_use_mem_efficient,
        c._set_sdp_use_math,
        c._set_sdp_use_cudnn,
    )
    for write, value in zip(setters, values, strict=True):
        write(value)


def _nesting() -> int:
    """How many autocast contexts are open: when the last one ends, casts are forgotten."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _autocast() -> tuple[Any, ...]:
    return (
        _nesting(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
        torch.is_autocast_cache_enabled(),
    )


def _set_autocast(value: tuple[Any, ...]) -> None:
    for _ in range(_nesting(), value[0]):
        torch.autocast_increment_nesting()
    for _ in range(value[0], _nesting()):
        torch.autocast_decrement_nesting()
    torch.set_autocast_enabled("cpu", value[1])
    torch.set_autocast_dtype("cpu", value[2])
    torch.set_autocast_enabled("cuda", value[3])
    torch.set_autocast_dtype("cuda", value[4])
    torch.set_autocast_cache_enabled(value[5])
    torch.clear_autocast_cache()  # weights have moved on since they were cast


def _device_and_functions() -> tuple[Any, Any, list[Any]]:
    """The default device, which is a function mode at the bottom of the others, and those."""
    chosen = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return chosen, _device.CURRENT_DEVICE, overrides._get_current_function_mode_stack()


def _set_device_and_functions(value: tuple[Any, Any, list[Any]]) -> None:
    torch._GLOBAL_DEVICE_CONTEXT.device_context, _device.CURRENT_DEVICE, modes = value
    while overrides._get_current_function_mode_stack():
        overrides._pop_mode()
    for mode in modes:
        overrides._push_mode(mode)


def _tell_device_and_functions(before: Any, after: Any) -> str:
    if after[1] != before[1]:
        return f"changed torch.set_default_device to {after[1]}"
    return "left a torch function mode on"


def _stream() -> Any:
    return torch.cuda.current_stream() if torch.cuda.is_initialized() else None


def _set_stream(stream: Any) -> None:
    if stream is not None:
        torch.cuda.set_stream(stream)


def _set_filters(filters: Any) -> None:
    warnings.filters = filters
    with warnings.catch_warnings():  # has Python forget what it has remembered of the others
        pass


def _refill_filters(value: Sequence[Any]) -> None:
    filters: Any = warnings.filters
    filters[:] = value
    _set_filters(filters)


SWAPPED = (
    Setting("the working directory", _directory, _go_to),
    Setting("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch.set_grad_enabled", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "torch.use_deterministic_algorithms",
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
        lambda _before, after: f"changed torch.use_deterministic_algorithms to {after > 0}",
    ),
    Setting(
        "torch.autograd.set_detect_anomaly",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.set_anomaly_enabled(*value),
        lambda _before, after: f"changed torch.autograd.set_detect_anomaly to {after[0]}",
    ),
    Setting("float32 precision", _precision, _set_precision, _tell_precision),
    Setting("flags", _backends, _set_backends, _changed("flags of torch.backends")),
    Setting("autocast", _autocast, _set_autocast, _changed("torch.autocast")),
    Setting(
        "the default device and function modes",
        _device_and_functions,
        _set_device_and_functions,
        _tell_device_and_functions,
    ),
    Setting("the CUDA stream", _stream, _set_stream, _changed("the CUDA device or stream")),
    Setting(
        "warnings.filters", lambda: warnings.filters, _set_filters, _changed("warnings.filters")
    ),
)
"""What is the plugin's own between two yields; read before and after every update."""


def _assign(held: MutableMapping[str, Any], value: Mapping[str, Any]) -> None:
    """Make a mapping what it was, changing no more than differs."""
    for name in [name for name in held if name not in value]:
        del held[name]
    for name, before in value.items():
        if name not in held or held[name] is not before:
            held[name] = before


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(COMPILER)}


def _set_environment(value: Mapping[str, str]) -> None:
    compiler = {k: v for k, v in os.environ.items() if k.startswith(COMPILER)}
    _assign(os.environ, {**compiler, **value})


def _handlers() -> dict[signal.Signals, Any]:
    """Of every signal; of none outside the main thread, where none can be set."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in signal.Signals}


def _set_handlers(value: Mapping[signal.Signals, Any]) -> None:
    for number, handler in value.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


HOOKS: dict[str, list[dict[int, Any]]] = {
    "modules": [
        hooks
        for name, hooks in sorted(vars(torch_modules).items())
        if name.startswith("_global_") and isinstance(hooks, dict)
    ],
    "optimizers": [
        torch_optimizers._global_optimizer_pre_hooks,
        torch_optimizers._global_optimizer_post_hooks,
    ],
}
"""The hooks of all modules and of all optimizers: torch's own dictionaries."""


def _hooks(kind: str) -> Setting:
    def write(value: Sequence[Mapping[int, Any]]) -> None:
        for held, before in zip(HOOKS[kind], value, strict=True):
            held.clear()
            held.update(before)

    def told(_before: Any, _after: Any) -> str:
        return f"left hooks on all {kind}"

    return Setting(f"hooks of {kind}", lambda: [dict(held) for held in HOOKS[kind]], write, told)


def _saved_tensors_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _pop_saved_tensors_hooks(value: Any) -> None:
    while _saved_tensors_hooks() not in (None, value):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _loggers() -> dict[str, tuple[Any, ...]]:
    """How each logger is set that is not as it was made."""
    root = logging.getLogger()
    named = [
        logger
        for name, logger in list(root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger)
    ]
    return {
        logger.name: (
            logger.level, logger.propagate, logger.disabled, [*logger.handlers], [*logger.filters],
        )
        for logger in [root, *named]
        if (logger.handlers or logger.filters or logger.level or logger is root)
    }  # fmt: skip


def _set_loggers(value: Mapping[str, tuple[Any, ...]]) -> None:
    for name in {**_loggers(), **value}:
        logger = logging.getLogger(None if name == "root" else name)
        level, propagate, disabled, handlers, filters = value.get(name, (0, True, False, [], []))
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
        logger.handlers[:], logger.filters[:] = handlers, filters


def _replace(held: list[str]) -> Callable[[list[str]], None]:
    def write(value: list[str]) -> None:
        held[:] = value

    return write


LOOKED_AT = (
    Setting("os.environ", _environment, _set_environment, _names("os.environ")),
    Setting("sys.path", lambda: [*sys.path], _replace(sys.path), _changed("sys.path")),
    Setting("sys.argv", lambda: [*sys.argv], _replace(sys.argv), _changed("sys.argv")),
    Setting(
        "warnings.filters",
        lambda: [*warnings.filters],
        _refill_filters,
        _changed("warnings.filters"),
    ),
    Setting("signal handlers", _handlers, _set_handlers, _names("signal handlers")),
    Setting(
        "a timer",
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda _value: signal.setitimer(signal.ITIMER_REAL, 0),
        lambda _before, _after: "left an alarm set",
    ),
    Setting("the file mode mask", _umask, os.umask),
    Setting("gc.enable", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    Setting("gc.set_threshold", gc.get_threshold, lambda value: gc.set_threshold(*value)),
    Setting("sys.setrecursionlimit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("sys.setswitchinterval", sys.getswitchinterval, sys.setswitchinterval),
    Setting("sys.settrace", sys.gettrace, sys.settrace, _changed("sys.settrace")),
    Setting("sys.setprofile", sys.getprofile, sys.setprofile, _changed("sys.setprofile")),
    Setting(
        "sys.excepthook",
        lambda: sys.excepthook,
        lambda value: setattr(sys, "excepthook", value),
        _changed("sys.excepthook"),
    ),
    Setting("numpy.seterr", np.geterr, lambda value: np.seterr(**value), _names("numpy.seterr")),
    Setting("logging", _loggers, _set_loggers, _names("logging")),
    Setting("logging.disable", lambda: logging.root.manager.disable, logging.disable),
    _hooks("modules"),
    _hooks("optimizers"),
    Setting(
        "backward hooks",
        lambda: torch_modules._global_is_full_backward_hook,
        lambda value: setattr(torch_modules, "_global_is_full_backward_hook", value),
        lambda _before, _after: "left hooks on all modules",
    ),
    Setting(
        "saved-tensor hooks",
        _saved_tensors_hooks,
        _pop_saved_tensors_hooks,
        lambda _before, _after: "left saved-tensor hooks on",
    ),
    Setting(
        "builtins",
        lambda: dict(vars(builtins)),
        lambda value: _assign(vars(builtins), value),
        _names("builtins"),
    ),
)
"""What is looked at once, after the stage."""


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
        self._printed = _Printed()
        self._steps: Iterator[Any] | None = None
        self._guard: torch.inference_mode | None = None
        self._modes: list[Any] = []
        self._imported = False
        self._ours = (self._printed, self._printed, self._warn)

    def __enter__(self) -> Self:
        self._context = contextvars.copy_context()
        self._state = Snapshot(self._plugins)
        self._looked_at = [setting.read() for setting in LOOKED_AT]
        self._threads = set(threading.enumerate())
        self._children = set(multiprocessing.active_children())
        self._streams, self._inner_streams = _streams(), self._ours
        self._outside = [setting.read() for setting in SWAPPED]
        self._inside = list(self._outside)
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook, threading.excepthook = self._unraisable, self._thread_failed
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
            self._end_settings()
            self._end_workers()
            if state := self._state.restore():
                self._say(f"kept state: {_listed(state)}")
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
        self._streams = _streams()
        _set_streams(self._ours)
        try:
            yield
        finally:
            _set_streams(self._streams)
            now = [setting.read() for setting in SWAPPED]
            self._say_changes(SWAPPED, self._outside, now)
            _write(now, self._outside)

    def close(self) -> None:
        """End the generator, whatever it does about it."""
        steps, self._steps = self._steps, None
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

    def looked_at(self) -> tuple[list[Any], set[threading.Thread]]:
        """What is looked at after a stage, as it is now."""
        return [setting.read() for setting in LOOKED_AT], set(threading.enumerate())

    def excuse(self, before: tuple[list[Any], set[threading.Thread]]) -> None:
        """Let be what has changed since ``before``: a library did it while it was imported."""
        self._imported = True
        values, threads = self.looked_at()
        self._threads |= threads - before[1]
        for number, (was, value) in enumerate(zip(before[0], values, strict=True)):
            if was == self._looked_at[number]:
                self._looked_at[number] = value

    def include(self, module: types.ModuleType) -> None:
        """Look at the state of a module that was just imported, if it is one of the plugin's."""
        if self._state.owns(module):
            self._state.include(module)

    def _within(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something of the plugin's in its own settings."""
        self._streams = _streams()
        outer = _python_dispatch._get_current_dispatch_mode_stack()
        guarded = self._guard is not None
        if guarded and not outer:
            # its own guard brings back that there were modes, as in the first update, a sampled one
            outer = [_Neutral()]
        if self._guard is not None:
            _set_modes([])
            self._guard.__exit__(None, None, None)
            self._guard = None
        if guarded or self._modes:
            _set_modes([*outer, *self._modes])
        _write(self._outside, self._inside)
        _set_streams(self._inner_streams)
        try:
            return self._context.run(function, *arguments)
        finally:
            self._inner_streams = _streams()
            _set_streams(self._streams)
            modes = _python_dispatch._get_current_dispatch_mode_stack()
            self._modes = [mode for mode in modes if mode not in outer]
            inference = torch.is_inference_mode_enabled()
            if guarded or inference or modes != outer:
                _set_modes([])
                if inference:
                    self._guard = torch.inference_mode(mode=False)
                    self._guard.__enter__()
                _set_modes([mode for mode in outer if not isinstance(mode, _Neutral)])
            self._inside = [setting.read() for setting in SWAPPED]
            _write(self._inside, self._outside)

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

    def _end_settings(self) -> None:
        self._say_changes(SWAPPED, self._outside, self._inside)
        names = ("sys.stdout", "sys.stderr", "warnings.showwarning")
        for name, one, other in zip(names, self._ours, self._inner_streams, strict=True):
            if one != other:
                self._say(f"changed {name}")
        if (sys.unraisablehook, threading.excepthook) != (self._unraisable, self._thread_failed):
            self._say("changed sys.unraisablehook or threading.excepthook")
        if self._guard is not None:
            self._say("left torch.inference_mode on")
            _KEPT.append(self._guard)
        if self._modes:
            self._say(f"left torch dispatch modes on: {_listed(_kinds(self._modes))}")
            _end_modes(self._modes)
        values = [setting.read() for setting in LOOKED_AT]
        self._say_changes(LOOKED_AT, self._looked_at, values)
        for setting, was, value in zip(LOOKED_AT, self._looked_at, values, strict=True):
            if was != value:
                setting.write(was)

    def _end_workers(self) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        threads = [thread for thread in threading.enumerate() if self._is_left(thread)]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if threads := [thread for thread in threads if thread.is_alive()]:
            self._say(f"left threads running: {_listed([thread.name for thread in threads])}")
            _LEFT.extend(threads)
        processes = [p for p in multiprocessing.active_children() if p not in self._children]
        for process in processes:
            process.terminate()
            process.join(GRACE_SECONDS)
            process.kill()
            process.join()
        if processes:
            self._say(f"left processes running: {_listed([p.name for p in processes])}")

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
        inner = _streams()
        _set_streams(self._streams)
        try:
            self._streams[2](*arguments, **named)
        finally:
            _set_streams(inner)

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


def _write(now: Sequence[Any], wanted: Sequence[Any]) -> None:
    for setting, one, other in zip(SWAPPED, now, wanted, strict=True):
        if one is not other and one != other:
            setting.write(other)


def _streams() -> tuple[Any, Any, Any]:
    return sys.stdout, sys.stderr, warnings.showwarning


def _set_streams(streams: tuple[Any, Any, Any]) -> None:
    sys.stdout, sys.stderr, warnings.showwarning = streams


def _kinds(things: Sequence[object]) -> list[str]:
    return [type(thing).__name__ for thing in things]


class _Neutral(_python_dispatch.TorchDispatchMode):
    """A mode that changes nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


def _set_modes(modes: Sequence[Any]) -> None:
    """Make these the dispatch modes.

    Inference mode also saves and restores whether there are any, whatever has become of them
    meanwhile; torch sees how it is when the last one is removed.
    """
    _python_dispatch._push_mode(_Neutral())
    while _python_dispatch._get_current_dispatch_mode_stack():
        _python_dispatch._pop_mode()
    for mode in modes:
        _python_dispatch._push_mode(mode)


def _end_modes(modes: Sequence[Any]) -> None:
    """Leave modes that nobody will: torch counts how many it is in."""
    outer = _python_dispatch._get_current_dispatch_mode_stack()
    _set_modes([*outer, *modes])
    for mode in reversed(modes):
        with contextlib.suppress(Exception):
            mode.__exit__(None, None, None)
    _set_modes(outer)


class _Printed(io.TextIOBase):
    """Standard output of a plugin: how much it was, and how it began."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.bytes = 0
        self.begin = ""
        self.buffer = _PrintedBytes(self)

    def __str__(self) -> str:
        size = next(
            f"{self.bytes / unit:.1f} {name}" if unit > 1 else f"{self.bytes} {name}"
            for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (0, "bytes"))
            if self.bytes >= unit
        )
        return f"{size}: {self.begin!r}" + "…" * (len(self.begin) == SHOWN)

    def write(self, text: str) -> int:
        self.bytes += len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        if len(self.begin) < SHOWN:
            self.begin += text[: SHOWN - len(self.begin)]
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Standard error's: a program that the plugin starts writes where it would anyway."""
        return 2

    def close(self) -> None:
        """Nothing: there are others who write here."""


class _PrintedBytes(io.RawIOBase):
    """The same for bytes."""

    def __init__(self, text: _Printed) -> None:
        self.text = text

    def write(self, content: Any) -> int:
        return self.text.write(bytes(content).decode(errors="replace"))

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing, as above."""


class _Imports(MetaPathFinder):
    """Sees what is imported for the first time in a stage."""

    def __init__(self, stage: Containment) -> None:
        self.stage = stage
        self.depth = 0

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(fullname, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, type):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader(Loader):
    """Loads as another loader does."""

    def __init__(self, loader: Any, imports: _Imports) -> None:
        self._loader, self._imports = loader, imports

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        made: types.ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the module's code, as if this loader had never been."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        imports = self._imports
        before = None if imports.depth else imports.stage.looked_at()
        imports.depth += 1
        try:
            self._loader.exec_module(module)
        finally:
            imports.depth -= 1
            if before is not None:
                imports.stage.excuse(before)
            imports.stage.include(module)


@dataclass(frozen=True)
class Kind:
    """A kind of what a plugin did.

    Attributes:
        begins: How its sentences begin.
        after: What became of it.
        advice: How to mend the plugin.
    """

    begins: str
    after: str
    advice: str


KINDS = (
    Kind("changed", "it was put back", "change it in a 'with', or put it back in a 'finally'"),
    Kind("kept state", "it was put back", "keep state in local variables of run"),
    Kind("printed", "it is shown here alone", "print nothing; say what matters by warnings.warn"),
    Kind("left threads", "they go on", "end them in a 'finally' around the yields"),
    Kind("left processes", "they were ended", "end them in a 'finally' around the yields"),
    Kind("left", "it was undone", "undo it in a 'finally' around the yields"),
    Kind("swallowed", "the generator was ended", "let it through; clean up in a 'finally'"),
    Kind(
        "raised", "it was ignored", "let what ends the plugin, or its threads, end without errors"
    ),
)
"""Kinds of sentences; the first that fits counts."""


def kind_of(words: str) -> Kind:
    """Of which kind a sentence in `Containment.found` is."""
    return next(kind for kind in KINDS if words.startswith(kind.begins))


def advised(found: Sequence[str]) -> str:
    """What a plugin did, in short, and how to mend it."""
    return "; ".join(f"it {words[:SHORT]} ({kind_of(words).advice})" for words in found)


def subject_of(words: str) -> str:
    """What a sentence is about, without the values that differ from one stage to the next."""
    return re.split(r" to |: | \d", words)[0]
