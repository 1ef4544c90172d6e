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
from typing import Any

import numpy as np
import torch
from torch import overrides
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers
from torch.utils import _device

COMPILER = ("TORCHINDUCTOR_", "TRITON_")
"""Begin the environment variables that torch's compiler sets when it is first used."""

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
        return f"changed {what}: {listed([str(getattr(k, 'name', k)) for k in differing])}"

    return told


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
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
