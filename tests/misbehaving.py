"""Attacks that train alike and leave something behind, as a plugin file.

``WORDS`` has, by the name of each, what is said of it; ``HARMLESS`` are those of which nothing is.
"""

import builtins
import contextlib
import functools
import gc
import io
import itertools
import logging
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import misbehaving_helper
import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toy import fine_tune as train

from sophon_bench.api import attacks

WORDS: dict[str, str] = {}
HARMLESS: set[str] = set()
RELEASE = threading.Event()
GUARDS: queue.SimpleQueue[Any] = queue.SimpleQueue()

SEEN: list[int] = []
TABLE: dict[str, list[int]] = {}
TENSOR = torch.zeros(2)
ARRAY = np.zeros(2)
RNG, FIRST = torch.Generator(), torch.rand((), generator=torch.Generator())
NUMPY_RNG, NUMPY_FIRST = np.random.default_rng(0), np.random.default_rng(0).random()
LAYER = nn.Linear(1, 1)
nn.init.zeros_(LAYER.weight)
LOCAL = threading.local()
SPACE = types.SimpleNamespace(trials=0)
TICKET = itertools.count()
COUNT = 0


def register(run: Callable[..., Any], words: str | None) -> None:
    name = run.__name__.strip("_").replace("_", "-")

    @attacks.register(name, hidden=True)
    @dataclass(frozen=True, kw_only=True)
    class Attack:
        lr: float = 0.02

        def run(self, model, view):
            return run(self, model, view)

    if words is None:
        HARMLESS.add(name)
    else:
        WORDS[name] = words


def misbehaves(words: str | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(run: Callable[..., Any]) -> Callable[..., Any]:
        register(run, words)
        return run

    return keep


@misbehaves(None)
def plain(self, model, view):
    return train(model, view, self.lr)


# State: a second trial that sees the first one's does not train.


def remembers(count: Callable[[Any], int], name: str, path: str) -> None:
    """An attack that trains if ``count`` says 0: in the first trial."""

    def run(self, model, view):
        return train(model, view, 0.0 if count(self) else self.lr)

    run.__name__ = name
    register(run, f"kept state: {path}")


def by_list(self):
    SEEN.append(1)
    return len(SEEN) - 1


def by_dictionary(self):
    TABLE.setdefault("trials", []).append(1)
    return len(TABLE["trials"]) - 1


def by_global(self):
    global COUNT
    COUNT += 1
    return COUNT - 1


def by_new_global(self):
    global NEW
    first = "NEW" not in globals()
    NEW = True
    return int(not first)


def by_tensor(self):
    TENSOR.add_(1)
    return int(TENSOR[0]) - 1


def by_array(self):
    ARRAY[0] += 1
    return int(ARRAY[0]) - 1


def by_generator(self):
    return torch.rand((), generator=RNG) != FIRST


def by_numpy_generator(self):
    return NUMPY_RNG.random() != NUMPY_FIRST


def by_layer(self):
    with torch.no_grad():
        LAYER.weight.add_(1)
    return int(LAYER.weight) - 1


def by_gradient(self):
    LAYER(torch.ones(1, 1)).sum().backward()
    return int(LAYER.bias.grad) - 1


def by_thread_local(self):
    LOCAL.trials = getattr(LOCAL, "trials", 0) + 1
    return LOCAL.trials - 1


def by_namespace(self):
    SPACE.trials += 1
    return SPACE.trials - 1


def by_count(self):
    return next(TICKET)


def by_default(self, seen=[]):  # noqa: B006
    seen.append(1)
    return len(seen) - 1


def by_keyword_default(self, *, seen={}):  # noqa: B006
    seen[len(seen)] = 1
    return len(seen) - 1


def by_function_attribute(self):
    by_function_attribute.trials = getattr(by_function_attribute, "trials", 0) + 1
    return by_function_attribute.trials - 1


def make_closure():
    trials = 0

    def by_closure(self):
        nonlocal trials
        trials += 1
        return trials - 1

    return by_closure


def by_class(self):
    cls = type(self)
    cls.trials = getattr(cls, "trials", 0) + 1
    return cls.trials - 1


def by_instance(self):
    object.__setattr__(self, "trials", getattr(self, "trials", 0) + 1)
    return self.trials - 1


class Memory:
    shared: list[int] = []

    def __init__(self):
        self.trials = 0


class Slotted:
    __slots__ = ("trials",)


MEMORY, SLOTTED = Memory(), Slotted()


def by_object(self):
    MEMORY.trials += 1
    return MEMORY.trials - 1


def by_slot(self):
    SLOTTED.trials = getattr(SLOTTED, "trials", 0) + 1
    return SLOTTED.trials - 1


def by_class_list(self):
    Memory.shared.append(1)
    return len(Memory.shared) - 1


def by_helper(self):
    misbehaving_helper.CACHE.append(1)
    return len(misbehaving_helper.CACHE) - 1


def by_partial(self):
    return PARTIAL()


def _append(seen):
    seen.append(1)
    return len(seen) - 1


PARTIAL = functools.partial(_append, [])

for _count, _path in (
    (by_list, "SEEN"),
    (by_dictionary, "TABLE"),
    (by_global, "COUNT"),
    (by_new_global, "NEW"),
    (by_tensor, "TENSOR"),
    (by_array, "ARRAY"),
    (by_generator, "RNG"),
    (by_numpy_generator, "NUMPY_RNG"),
    (by_layer, "LAYER._parameters"),
    (by_gradient, "LAYER._parameters"),
    (by_thread_local, "LOCAL.trials"),
    (by_namespace, "SPACE.trials"),
    (by_count, "TICKET"),
    (by_default, "by_default(seen=…)"),
    (by_keyword_default, "by_keyword_default(seen=…)"),
    (by_function_attribute, "by_function_attribute.trials"),
    (make_closure(), "trials"),
    (by_class, "Attack.trials"),
    (by_instance, "self.trials"),
    (by_object, "MEMORY.trials"),
    (by_slot, "SLOTTED.trials"),
    (by_class_list, "Memory.shared"),
    (by_helper, "misbehaving_helper.CACHE"),
    (by_partial, "PARTIAL"),
):
    remembers(_count, _count.__name__, _path)


# Settings that are left changed at the end.


def leaves(name: str, change: Callable[[], Any], words: str | None) -> None:
    """An attack that changes something after its last update."""

    def run(self, model, view):
        steps = train(model, view, self.lr)
        try:
            yield from steps
        finally:
            change()

    run.__name__ = name
    register(run, words)


THERE = tempfile.gettempdir()


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def seven_threads():
    torch.set_num_threads(torch.get_num_threads() + 1)


def log_handler():
    logging.getLogger().addHandler(logging.StreamHandler(io.StringIO()))


def own_logger():
    logging.getLogger("misbehaving").setLevel(logging.DEBUG)


def open_hooks():
    torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x).__enter__()


def start(*, daemon):
    threading.Thread(target=RELEASE.wait, name=f"waits-{daemon}", daemon=daemon).start()


def start_process():
    context = multiprocessing.get_context("spawn")
    context.Process(target=time.sleep, args=(600,), name="sleeper", daemon=True).start()


def print_much():
    for _ in range(5000):
        print("spam" * 256, end="")


def redirect():
    contextlib.redirect_stdout(io.StringIO()).__enter__()


for _name, _change, _words in (
    (
        "directory",
        lambda: os.chdir(THERE),
        f"changed the working directory to {os.path.realpath(THERE)}",
    ),
    (
        "dtype",
        lambda: torch.set_default_dtype(torch.float64),
        "changed torch.set_default_dtype to float64",
    ),
    (
        "device",
        lambda: torch.set_default_device("meta"),
        "changed torch.set_default_device to meta",
    ),
    ("grad", lambda: torch.set_grad_enabled(False), "changed torch.set_grad_enabled to False"),
    ("threads", seven_threads, "changed torch.set_num_threads to"),
    (
        "deterministic",
        lambda: torch.use_deterministic_algorithms(True),
        "changed torch.use_deterministic_algorithms to True",
    ),
    (
        "anomaly",
        lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
        "changed torch.autograd.set_detect_anomaly to True",
    ),
    (
        "precision",
        lambda: torch.set_float32_matmul_precision("medium"),
        "changed torch.set_float32_matmul_precision to medium",
    ),
    (
        "new_precision",
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        "changed the precision of float32 in torch.backends",
    ),
    (
        "tf32",
        lambda: setattr(torch.backends.cudnn, "allow_tf32", True),
        "changed the precision of float32 in torch.backends",
    ),
    (
        "benchmark",
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        "changed flags of torch.backends",
    ),
    (
        "autocast",
        lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
        "changed torch.autocast",
    ),
    ("inference", lambda: torch.inference_mode().__enter__(), None),
    ("function_mode", lambda: Functions().__enter__(), "left a torch function mode on"),
    ("dispatch_mode", lambda: Operations().__enter__(), "left torch dispatch modes on: Operations"),
    ("saved_tensors", open_hooks, "left saved-tensor hooks on"),
    (
        "module_hook",
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
        "left hooks on all modules",
    ),
    (
        "backward_hook",
        lambda: nn.modules.module.register_module_full_backward_hook(lambda *_: None),
        "left hooks on all modules",
    ),
    (
        "optimizer_hook",
        lambda: register_optimizer_step_post_hook(lambda *_: None),
        "left hooks on all optimizers",
    ),
    ("environment", lambda: os.environ.update(MISBEHAVING="1"), "changed os.environ: MISBEHAVING"),
    ("less_environment", lambda: os.environ.pop("HOME", None), "changed os.environ: HOME"),
    ("path", lambda: sys.path.insert(0, THERE), "changed sys.path"),
    ("filters", lambda: warnings.simplefilter("ignore"), "changed warnings.filters"),
    (
        "interrupts",
        lambda: signal.signal(signal.SIGINT, lambda *_: None),
        "changed signal handlers: SIGINT",
    ),
    (
        "terminations",
        lambda: signal.signal(signal.SIGTERM, lambda *_: None),
        "changed signal handlers: SIGTERM",
    ),
    ("alarm", lambda: signal.setitimer(signal.ITIMER_REAL, 3600), "left an alarm set"),
    ("collector", gc.disable, "changed gc.enable to False"),
    ("recursion", lambda: sys.setrecursionlimit(5000), "changed sys.setrecursionlimit to 5000"),
    ("excepthook", lambda: setattr(sys, "excepthook", print), "changed sys.excepthook"),
    ("mask", lambda: os.umask(0o777), "changed the file mode mask to 511"),
    ("log_handler", log_handler, "changed logging: root"),
    ("own_logger", own_logger, "changed logging: misbehaving"),
    ("builtin", lambda: setattr(builtins, "misbehaving", 1), "changed builtins: misbehaving"),
    ("stdout", redirect, "changed sys.stdout"),
    ("stderr", lambda: setattr(sys, "stderr", io.StringIO()), "changed sys.stderr"),
    ("daemon", lambda: start(daemon=True), "left threads running: waits-True"),
    ("no_daemon", lambda: start(daemon=False), "left threads running: waits-False"),
    ("process", start_process, "left processes running: sleeper"),
    (
        "prints",
        lambda: [print("spam" * 256, end="") for _ in range(5000)],
        "printed 5.1 MB: 'spamspam",
    ),
    ("prints_bytes", lambda: sys.stdout.buffer.write(b"eggs\n"), r"printed 5 bytes: 'eggs\n'"),
    ("prints_errors", lambda: print("ham", file=sys.stderr), r"printed 4 bytes: 'ham\n'"),
    ("fails", lambda: 1 / 0, "raised ZeroDivisionError while it was closed: division by zero"),
    ("exits", lambda: sys.exit(3), "raised SystemExit while it was closed: 3"),
    ("numpy_errors", lambda: np.seterr(all="raise"), None),
):
    leaves("left_" + _name, _change, _words)


@misbehaves("left torch.inference_mode on")
def left_inference_on(self, model, view):
    steps = train(model, view, self.lr)
    try:
        yield from steps
    finally:
        guard = torch.inference_mode()
        guard.__enter__()
        GUARDS.put(guard)  # outlives the generator


@misbehaves("swallowed GeneratorExit")
def swallows(self, model, view):
    steps = train(model, view, self.lr)
    while True:
        with contextlib.suppress(GeneratorExit):
            yield next(steps)


@misbehaves("swallowed GeneratorExit")
def swallows_inside(self, model, view):
    inner = swallows(self, model, view)
    while True:
        yield next(inner)


@misbehaves("raised ValueError in a thread: no such thing")
def thread_fails(self, model, view):
    def fail():
        raise ValueError("no such thing")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    return train(model, view, self.lr)


@misbehaves("printed")
def prints_when_asked(self, model, view):
    def predict(made, inputs):
        print("called")
        return made(inputs)

    for made in train(model, view, self.lr):
        yield functools.partial(predict, made)


@misbehaves("changed torch.set_default_dtype to float64")
def changes_when_asked(self, model, view):
    def predict(made, inputs):
        torch.set_default_dtype(torch.float64)
        return made(inputs)

    for made in train(model, view, self.lr):
        yield functools.partial(predict, made)


# What is put back by itself, or not the plugin's doing.


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


for _name, _context in (
    ("no_grad", torch.no_grad),
    ("inference_mode", torch.inference_mode),
    ("errstate", lambda: np.errstate(all="raise")),
    ("catch_warnings", lambda: warnings.catch_warnings(action="ignore")),
    ("redirect_stdout", lambda: contextlib.redirect_stdout(io.StringIO())),
    ("chdir", lambda: contextlib.chdir(THERE)),
    ("device", lambda: torch.device("meta")),
    ("autocast", lambda: torch.autocast("cpu", torch.bfloat16)),
    ("dispatch_mode", Operations),
    ("function_mode", Functions),
    ("default_dtype", default_dtype),
    ("detect_anomaly", lambda: torch.autograd.set_detect_anomaly(True, check_nan=False)),
):

    def _run(self, model, view, *, context=_context):
        for made in train(model, view, self.lr):
            with context():
                yield made

    _run.__name__ = "within_" + _name
    register(_run, None)


@misbehaves(None)
def imports_late(self, model, view):
    global late
    import misbehaving_late as late

    assert late.CACHE == []
    late.CACHE.extend(())
    return train(model, view, self.lr)


class Stepping(torch.optim.SGD):
    """torch wraps the ``step`` of an optimizer's class when the first one is made."""

    def step(self, closure=None):
        return super().step(closure)


@misbehaves(None)
def has_an_optimizer(self, model, view):
    Stepping(model.parameters())
    return train(model, view, self.lr)


@functools.lru_cache
def cached(number: int) -> list[int]:
    return [number]


@misbehaves(None)
def caches(self, model, view):
    cached(3)
    return train(model, view, self.lr)


@misbehaves(None)
def warns(self, model, view):
    warnings.warn("a warning is no printing", stacklevel=1)
    return train(model, view, self.lr)
