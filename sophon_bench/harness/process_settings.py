"""What the whole process has one of: how it is read, put back, and told.

The private names of torch that this takes are used here and in `containment`, and nowhere else.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import overrides
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers
from torch.utils import _device

C = torch._C

COMPILER = ("TORCHINDUCTOR_", "TRITON_")
"""Begin the environment variables that torch's compiler sets when it is first used."""

LISTED = 5
"""Names at most in one sentence."""


@dataclass(frozen=True)
class Setting:
    """Something that the whole process has one of.

    Attributes:
        name: What it is, for a reader; with ``left`` at the beginning, all that is said of a
            change; or what makes that from the value before and the one after.
        read: Its value now, equal as long as nothing has changed.
        write: Makes it what `read` gave.
    """

    name: str | Callable[[Any, Any], str]
    read: Callable[[], Any]
    write: Callable[[Any], object]

    def change(self, before: Any, after: Any) -> str:
        """A change in words: entries of a mapping by their names, plain values as they are."""
        if callable(self.name):
            return self.name(before, after)
        if self.name.startswith("left "):
            return self.name
        if isinstance(after, dict):
            gone = object()
            names = [k for k in {**before, **after} if before.get(k, gone) != after.get(k, gone)]
            return f"changed {self.name}: {listed([str(getattr(k, 'name', k)) for k in names])}"
        if isinstance(after, bool | int | float | str | tuple | torch.dtype):
            return f"changed {self.name} to {str(after).removeprefix('torch.')}"
        return f"changed {self.name}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


Pair = tuple[Callable[[], Any], Callable[[Any], object]]


def _several(name: str | Callable[[Any, Any], str], *pairs: Pair) -> Setting:
    """One setting of several values, each with what reads and what writes it."""

    def write(values: Sequence[Any]) -> None:
        for (_, put), value in zip(pairs, values, strict=True):
            put(value)

    return Setting(name, lambda: [read() for read, _ in pairs], write)


def attribute(name: str, holder: Any) -> Setting:
    """What the last part of ``name`` is bound to in ``holder``."""
    own = name.rpartition(".")[2]
    return Setting(name, partial(getattr, holder, own), partial(setattr, holder, own))


def _of_devices(read: Callable[..., Any], write: Callable[..., object]) -> list[Pair]:
    return [(partial(read, device), partial(write, device)) for device in ("cpu", "cuda")]


def _given(write: Callable[[Any], object]) -> Callable[[Any], object]:
    """Writes nothing where nothing was read."""
    return lambda value: None if value is None else write(value)


def _directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 (half the time that a `Path` takes)
    except FileNotFoundError:  # it was removed
        return ""


def _go_to(directory: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(directory)


def _legacy(read: Callable[[], Any]) -> Callable[[], Any]:
    """None where torch refuses to answer in its old terms, since somebody has used both."""

    def legacy() -> Any:
        try:
            return read()
        except RuntimeError:
            return None

    return legacy


PLACES = (
    ("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"),
    ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"),
)  # fmt: skip
"""Where torch has a precision of float32 products, a default before what it is the default of."""


def _set_precision(at: tuple[str, str], value: str) -> None:
    if C._get_fp32_precision_getter(*at) != value:
        C._set_fp32_precision_setter(*at, value)


def _precision_words(before: Any, after: Any) -> str:
    if after[0] not in (None, before[0]):
        return f"changed torch.set_float32_matmul_precision to {after[0]}"
    return "changed the precision of float32 in torch.backends"


def _nesting() -> int:
    """How many autocast contexts are open: when the last one ends, casts are forgotten."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _set_nesting(wanted: int) -> None:
    while (depth := _nesting()) != wanted:
        if depth < wanted:
            torch.autocast_increment_nesting()
        else:
            torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()  # weights have moved on since they were cast


def _functions() -> tuple[Any, Any, list[Any]]:
    """The default device, which is a function mode at the bottom of the others, and those."""
    chosen = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return chosen, _device.CURRENT_DEVICE, overrides._get_current_function_mode_stack()


def _set_functions(value: tuple[Any, Any, list[Any]]) -> None:
    torch._GLOBAL_DEVICE_CONTEXT.device_context, _device.CURRENT_DEVICE, modes = value
    while overrides._get_current_function_mode_stack():
        overrides._pop_mode()
    for mode in modes:
        overrides._push_mode(mode)


def _functions_words(before: Any, after: Any) -> str:
    if after[1] != before[1]:
        return f"changed torch.set_default_device to {after[1]}"
    return "left a torch function mode on"


def _stream() -> Any:
    return torch.cuda.current_stream() if torch.cuda.is_initialized() else None


def _set_filters(filters: Any) -> None:
    warnings.filters = filters
    with warnings.catch_warnings():  # has Python forget what it has remembered of the others
        pass


STREAMS = (
    attribute("sys.stdout", sys),
    attribute("sys.stderr", sys),
    attribute("warnings.showwarning", warnings),
)
"""Where is printed to; a plugin begins with its own."""

SWAPPED = (
    *STREAMS,
    Setting("the working directory", _directory, _go_to),
    Setting("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch.set_grad_enabled", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Setting(
        lambda _before, after: f"changed torch.use_deterministic_algorithms to {after > 0}",
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    Setting(
        lambda _before, after: f"changed torch.autograd.set_detect_anomaly to {after[0]}",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.set_anomaly_enabled(*value),
    ),
    _several(
        _precision_words,
        (_legacy(torch.get_float32_matmul_precision), _given(torch.set_float32_matmul_precision)),
        (_legacy(C._get_cudnn_allow_tf32), _given(C._set_cudnn_allow_tf32)),
        *((partial(C._get_fp32_precision_getter, *p), partial(_set_precision, p)) for p in PLACES),
    ),
    _several(
        "flags of torch.backends",
        (C._get_cudnn_enabled, C._set_cudnn_enabled),
        (C._get_cudnn_benchmark, C._set_cudnn_benchmark),
        (C._get_cudnn_deterministic, C._set_cudnn_deterministic),
        (C._get_mkldnn_enabled, C._set_mkldnn_enabled),
        (C._get_flash_sdp_enabled, C._set_sdp_use_flash),
        (C._get_mem_efficient_sdp_enabled, C._set_sdp_use_mem_efficient),
        (C._get_math_sdp_enabled, C._set_sdp_use_math),
        (C._get_cudnn_sdp_enabled, C._set_sdp_use_cudnn),
    ),
    _several(
        "torch.autocast",
        *_of_devices(torch.is_autocast_enabled, torch.set_autocast_enabled),
        *_of_devices(torch.get_autocast_dtype, torch.set_autocast_dtype),
        (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        (_nesting, _set_nesting),
    ),
    Setting(_functions_words, _functions, _set_functions),
    Setting("the CUDA device or stream", _stream, _given(torch.cuda.set_stream)),
    Setting("warnings.filters", lambda: warnings.filters, _set_filters),
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


def _hooks(kind: str, *more: Pair) -> Setting:
    pairs = [(hooks.copy, partial(_assign, hooks)) for hooks in HOOKS[kind]]  # type: ignore[arg-type]
    return _several(f"left hooks on all {kind}", *pairs, *more)


def _saved_tensors_hooks() -> Any:
    return C._autograd._top_saved_tensors_default_hooks(True)


def _pop_saved_tensors_hooks(value: Any) -> None:
    while _saved_tensors_hooks() not in (None, value):
        C._autograd._pop_saved_tensors_default_hooks()


def _loggers() -> dict[str, tuple[Any, ...]]:
    """How each logger is set that is not as it was made."""
    root = logging.getLogger()
    named = [one for one in [*root.manager.loggerDict.values()] if isinstance(one, logging.Logger)]
    return {
        one.name: (one.level, one.propagate, one.disabled, [*one.handlers], [*one.filters])
        for one in [root, *named]
        if one.handlers or one.filters or one.level or one is root
    }


def _set_loggers(value: Mapping[str, tuple[Any, ...]]) -> None:
    for name in {**_loggers(), **value}:
        logger = logging.getLogger(None if name == "root" else name)
        level, propagate, disabled, handlers, filters = value.get(name, (0, True, False, [], []))
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
        logger.handlers[:], logger.filters[:] = handlers, filters


def _refill(held: list[Any], value: Sequence[Any]) -> None:
    held[:] = value


def _refill_filters(value: Sequence[Any]) -> None:
    _refill(warnings.filters, value)  # type: ignore[arg-type]
    _set_filters(warnings.filters)


_backward_hooks = attribute("_global_is_full_backward_hook", torch_modules)

LOOKED_AT = (
    Setting("os.environ", _environment, _set_environment),
    Setting("sys.path", lambda: [*sys.path], lambda value: _refill(sys.path, value)),
    Setting("sys.argv", lambda: [*sys.argv], lambda value: _refill(sys.argv, value)),
    Setting("warnings.filters", lambda: [*warnings.filters], _refill_filters),
    Setting("signal handlers", _handlers, _set_handlers),
    Setting(
        "left an alarm set",
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda _value: signal.setitimer(signal.ITIMER_REAL, 0),
    ),
    Setting("the file mode mask", _umask, os.umask),
    Setting("gc.enable", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    Setting("gc.set_threshold", gc.get_threshold, lambda value: gc.set_threshold(*value)),
    Setting("sys.setrecursionlimit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("sys.setswitchinterval", sys.getswitchinterval, sys.setswitchinterval),
    Setting("sys.settrace", sys.gettrace, sys.settrace),
    Setting("sys.setprofile", sys.getprofile, sys.setprofile),
    attribute("sys.excepthook", sys),
    attribute("sys.unraisablehook", sys),
    attribute("threading.excepthook", threading),
    Setting("numpy.seterr", np.geterr, lambda value: np.seterr(**value)),
    Setting("logging", _loggers, _set_loggers),
    Setting("logging.disable", lambda: logging.root.manager.disable, logging.disable),
    _hooks("modules", (_backward_hooks.read, _backward_hooks.write)),
    _hooks("optimizers"),
    Setting("left saved-tensor hooks on", _saved_tensors_hooks, _pop_saved_tensors_hooks),
    Setting("builtins", lambda: dict(vars(builtins)), partial(_assign, vars(builtins))),
)
"""What is looked at once, after the stage."""
