"""What a plugin keeps between two trials: snapshots of it, put back in place.

Looked at is what can be reached from the globals of the plugin's own modules, its classes, the
plugin itself, and functions of its own (attributes, defaults, closures). Its own modules are its
file, the files that it imports relatively, and those that lie beside it. Of other modules' objects
only plain containers, arrays, tensors, modules of layers and random generators are looked into.
Caches of `functools` are let be, and so are names that a late import binds.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import functools
import gc
import itertools
import pickle
import random
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from sophon_bench.plugins.identity import source_files

ATOMS = (type(None), bool, int, float, complex, str, bytes)
"""Types of values that are compared by value; the rest is compared by identity."""

OPEN = (
    types.SimpleNamespace,
    argparse.Namespace,
    threading.local,
    collections.UserDict,
    collections.UserList,
    nn.Module,
)
"""Other modules' classes whose instances are looked into: they hold what one puts there."""

WRAPPERS = (
    types.MethodType, staticmethod, classmethod, property, functools.cached_property,
    functools.partial, tuple, frozenset,
)  # fmt: skip
"""What never changes itself, and is looked through."""

GENERATORS: Sequence[tuple[type, Callable[[Any], Any], Callable[[Any, Any], object]]] = (
    (
        torch.Generator,
        lambda rng: rng.get_state().tolist(),
        lambda rng, state: rng.set_state(torch.tensor(state, dtype=torch.uint8)),
    ),
    (
        np.random.Generator,
        lambda rng: rng.bit_generator.state,
        lambda rng, state: setattr(rng.bit_generator, "state", state),
    ),
    (np.random.RandomState, np.random.RandomState.get_state, np.random.RandomState.set_state),
    (random.Random, random.Random.getstate, random.Random.setstate),
)
"""How the state of random generators is read and written."""

Restore = Callable[[], Iterable[str]]
"""Puts something back as it was; gives the paths of what had changed."""


class Snapshot:
    """The state of plugins now.

    Args:
        plugins: Instances of one plugin's class.
    """

    def __init__(self, plugins: Sequence[object]) -> None:
        self._kept: list[Restore] = []
        self._seen: dict[int, object] = {id(sys.modules): sys.modules}
        homes = dict.fromkeys(type(plugin).__module__ for plugin in plugins)
        main = [sys.modules[home] for home in homes if home in sys.modules]
        self._files = {file.name: file.resolve() for home in main for file in _files(home)}
        loaded = [module for module in list(sys.modules.values()) if self.owns(module)]
        self._modules = {module.__name__: module for module in [*main, *loaded]}
        for module in self._modules.values():
            self._keep_module(module, "" if module in main else _prefix(module))
        for plugin in plugins:
            self._walk([*((cls.__name__, cls) for cls in type(plugin).__mro__), ("self", plugin)])

    def owns(self, module: object) -> bool:
        """Whether ``module`` is loaded from one of the plugin's own files."""
        file = vars(module).get("__file__") if isinstance(module, types.ModuleType) else None
        name = Path(file).name if isinstance(file, str) else ""
        return name in self._files and Path(str(file)).resolve() == self._files[name]

    def include(self, module: types.ModuleType) -> None:
        """Add one of the plugin's own modules that has just been imported."""
        self._modules[module.__name__] = module
        self._keep_module(module, _prefix(module))

    def restore(self) -> list[str]:
        """Put everything back as it was; the paths of what had changed, each once."""
        return list(dict.fromkeys(path for restore in self._kept for path in restore()))

    def _keep_module(self, module: types.ModuleType, prefix: str) -> None:
        self._seen[id(module)] = module
        self._walk(self._dictionary(prefix, vars(module)))

    def _walk(self, roots: Iterable[tuple[str, object]]) -> None:
        waiting = collections.deque(roots)
        while waiting:
            path, value = waiting.popleft()
            if type(value) not in ATOMS and id(value) not in self._seen:
                self._seen[id(value)] = value  # held, so that its id stays its own
                waiting.extend(self._inside(path, value))

    def _inside(self, path: str, value: Any) -> Iterator[tuple[str, object]]:
        """Keep what ``value`` itself is, and give what is reached from it."""
        if isinstance(value, type):
            if self._is_own(value):
                bind, unbind = partial(type.__setattr__, value), partial(type.__delattr__, value)
                yield from self._names(f"{path}.", lambda: dict(vars(value)), bind, unbind)
                yield from ((path, part) for part in vars(value).values() if _is_function(part))
        elif _is_function(value):
            if self._is_own(value):
                yield from self._inside_function(path, value)
        elif isinstance(value, WRAPPERS):
            yield from ((path, part) for part in gc.get_referents(value))
        else:
            yield from self._inside_data(path, value)

    def _inside_function(
        self, path: str, function: types.FunctionType
    ) -> Iterator[tuple[str, object]]:
        yield from self._dictionary(f"{path}.", vars(function))
        code, defaults = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[: code.co_argcount][-len(defaults) :]
        arguments = {**dict(zip(names, defaults, strict=False)), **(function.__kwdefaults__ or {})}
        yield from ((f"{path}({name}=…)", value) for name, value in arguments.items())
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            yield from self._attributes(cell, {name: "cell_contents"})

    def _inside_data(self, path: str, value: Any) -> Iterator[tuple[str, object]]:
        kind = type(value)
        if issubclass(kind, Tensor):
            if value.layout is torch.strided and not value.is_meta:
                self._kept.append(partial(_restore_tensor, path, value, *_tensor_state(value)))
                yield path, value.grad if value.is_leaf else None
        elif issubclass(kind, np.ndarray):
            if value.flags.writeable:
                self._kept.append(partial(_restore_array, path, value, value.copy()))
        elif issubclass(kind, list | collections.deque | bytearray | set | dict):
            self._kept.append(partial(_restore_container, path, value, value.copy()))
            yield from ((path, part) for part in gc.get_referents(value))
        for generator, read, write in GENERATORS:
            if issubclass(kind, generator):
                self._kept.append(
                    partial(_restore_generator, path, value, read, write, read(value))
                )
        if issubclass(kind, OPEN) or self._is_own(kind):
            if isinstance(held := getattr(value, "__dict__", None), dict):
                yield from self._dictionary(f"{path}.", held)
            slots = {
                name: name
                for cls in kind.__mro__
                for name, member in vars(cls).items()
                if isinstance(member, types.MemberDescriptorType)
            }
            yield from self._attributes(value, slots, f"{path}.")

    def _dictionary(self, prefix: str, held: dict[str, Any]) -> Iterator[tuple[str, object]]:
        """Keep what a module's, a function's or an instance's names are bound to."""
        return self._names(prefix, lambda: held, held.__setitem__, held.__delitem__)

    def _attributes(
        self, owner: object, attributes: Mapping[str, str], prefix: str = ""
    ) -> Iterator[tuple[str, object]]:
        """Keep slots, or the content of a cell: attributes of an object by what they are called."""

        def read() -> dict[str, Any]:
            found = {}
            for name, attribute in attributes.items():
                with contextlib.suppress(AttributeError, ValueError):  # it has none
                    found[name] = getattr(owner, attribute)
            return found

        def bind(name: str, value: object) -> None:
            object.__setattr__(owner, attributes[name], value)

        def unbind(name: str) -> None:
            object.__delattr__(owner, attributes[name])

        return self._names(prefix, read, bind, unbind)

    def _names(
        self,
        prefix: str,
        read: Callable[[], Mapping[str, Any]],
        bind: Callable[[str, Any], object],
        unbind: Callable[[str], object],
    ) -> Iterator[tuple[str, object]]:
        """Keep what names are bound to, by functions that read, bind and unbind them."""

        def now() -> dict[str, Any]:
            return {name: value for name, value in read().items() if not _is_dunder(name)}

        def restore() -> Iterator[str]:
            after = now()
            for name in {**before, **after}:
                if name in before and name in after and _same(after[name], before[name]):
                    continue
                if name in after and self._foreign(after[name]):
                    continue
                if name in before:
                    bind(name, before[name])
                else:
                    unbind(name)
                yield prefix + name

        before = {name: _copy_of_count(value) for name, value in now().items()}
        self._kept.append(restore)
        return ((prefix + name, value) for name, value in before.items())

    def _foreign(self, value: object) -> bool:
        """Whether a name was bound to other people's code, as an import does.

        torch does too: the first optimizer of a class has its ``step`` wrapped.
        """
        if _is_function(value):
            return not self._is_scope(value.__globals__)
        return isinstance(value, types.ModuleType) or (
            isinstance(value, types.BuiltinFunctionType | type) and not self._is_own(value)
        )

    def _is_own(self, code: Any) -> bool:
        if getattr(code, "__module__", None) in self._modules:
            return True
        return self._is_scope(getattr(code, "__globals__", None))

    def _is_scope(self, names: object) -> bool:
        return any(names is vars(module) for module in self._modules.values())


def _restore_container(path: str, value: Any, before: Any) -> Iterator[str]:
    """What is in a list, a deque, a byte array, a set, or a dictionary in its order."""
    if isinstance(value, set):
        same = value == before
    else:
        same = _all_same([*value], [*before])
        if isinstance(value, dict):
            same = same and _all_same([*value.values()], [*before.values()])
    if not same:
        value.clear()
        (value.update if isinstance(value, set | dict) else value.extend)(before)
        yield path


def _tensor_state(value: Tensor) -> tuple[Tensor, bool, Tensor | None]:
    """The values of a tensor, whether it learns, and its gradient."""
    return value.detach().clone(), value.requires_grad, value.grad if value.is_leaf else None


def _restore_tensor(
    path: str, value: Tensor, before: Tensor, learns: bool, grad: Tensor | None
) -> Iterator[str]:
    now = value.detach()
    alike = now.shape == before.shape and now.dtype == before.dtype
    unequal = not alike or bool(((now != before) & ((now == now) | (before == before))).any())
    if unequal and alike:
        with torch.inference_mode(value.is_inference()), torch.no_grad():
            now.copy_(before)
    elif unequal:
        value.data = before
    retrained = value.is_leaf and (value.grad is not grad or value.requires_grad != learns)
    if retrained:
        value.requires_grad_(learns)
        value.grad = grad
    if unequal or retrained:
        yield path


def _restore_array(path: str, value: np.ndarray, before: np.ndarray) -> Iterator[str]:
    if value.shape != before.shape:
        value.resize(before.shape, refcheck=False)
    if value.tobytes() != before.tobytes():
        value[...] = before
        yield path


def _restore_generator(
    path: str,
    value: Any,
    read: Callable[[Any], Any],
    write: Callable[[Any, Any], object],
    before: Any,
) -> Iterator[str]:
    if pickle.dumps(read(value)) != pickle.dumps(before):
        write(value, before)
        yield path


def _files(module: types.ModuleType) -> list[Path]:
    file = getattr(module, "__file__", None)
    return _files_of(Path(file)) if isinstance(file, str) else []


@functools.cache  # a file may be edited while a run goes on; what is loaded stays as it was
def _files_of(file: Path) -> list[Path]:
    try:
        return source_files(file, beside=True)
    except (OSError, SyntaxError):
        return [file]


def _prefix(module: types.ModuleType) -> str:
    return f"{module.__name__.split('.')[-1]}."


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_function(value: object) -> TypeGuard[types.FunctionType]:
    return type(value) is types.FunctionType


def _copy_of_count(value: Any) -> Any:
    """Another `itertools.count` that is as far as this one; anything else as it is."""
    if type(value) is not itertools.count:
        return value
    return itertools.count(*ast.literal_eval(f"({repr(value).partition('(')[2][:-1]},)"))


def _same(one: object, other: object) -> bool:
    """The same object, or equal ones of which nobody can tell that they are two."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple) and isinstance(other, tuple):
        return _all_same(one, other)
    if isinstance(one, itertools.count):
        return repr(one) == repr(other)
    return isinstance(one, ATOMS) and (one == other or (one != one and other != other))


def _all_same(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))
