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
import functools
import itertools
import pickle
import random
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

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

GATHERED = (list, collections.deque, bytearray, set)


class _Kept(Protocol):
    """Something that may change, as it was."""

    def restore(self) -> Iterable[str]:
        """Put it back; the paths of what had changed."""
        ...


class Snapshot:
    """The state of plugins now.

    Args:
        plugins: Instances of one plugin's class.
    """

    def __init__(self, plugins: Sequence[object]) -> None:
        self._kept: list[_Kept] = []
        self._seen: dict[int, object] = {id(sys.modules): sys.modules}
        classes = [cls for plugin in plugins for cls in type(plugin).__mro__]
        homes = dict.fromkeys(type(plugin).__module__ for plugin in plugins)
        self._files = {
            file.name: file.resolve() for home in homes for file in _files(sys.modules.get(home))
        }
        loaded = [module for module in list(sys.modules.values()) if self.owns(module)]
        main = [sys.modules[home] for home in homes if home in sys.modules]
        self._modules = {module.__name__: module for module in [*main, *loaded]}
        roots: list[tuple[str, object]] = [
            *((cls.__name__, cls) for cls in classes),
            *(("self", plugin) for plugin in plugins),
        ]
        for module in self._modules.values():
            self._keep_module(
                "" if module in main else f"{module.__name__.split('.')[-1]}.", module
            )
        self._walk(roots)

    def owns(self, module: object) -> bool:
        """Whether ``module`` is loaded from one of the plugin's own files."""
        file = vars(module).get("__file__") if isinstance(module, types.ModuleType) else None
        name = Path(file).name if isinstance(file, str) else ""
        return name in self._files and Path(str(file)).resolve() == self._files[name]

    def include(self, module: types.ModuleType) -> None:
        """Add one of the plugin's own modules that has just been imported."""
        self._modules[module.__name__] = module
        self._keep_module(f"{module.__name__.split('.')[-1]}.", module)

    def restore(self) -> list[str]:
        """Put everything back as it was; the paths of what had changed, each once."""
        return list(dict.fromkeys(path for kept in self._kept for path in kept.restore()))

    def _keep_module(self, prefix: str, module: types.ModuleType) -> None:
        self._seen[id(module)] = module
        names = self._names(prefix, vars(module))
        self._walk([(prefix + name, value) for name, value in names.items()])

    def _names(self, prefix: str, held: dict[str, Any]) -> dict[str, Any]:
        """Keep the names in a dictionary that holds an object's or a module's attributes."""

        def bind(name: str, value: object) -> None:
            held[name] = value

        kept = _Names(prefix, lambda: held, bind, held.__delitem__, self._foreign)
        self._kept.append(kept)
        return kept.before

    def _foreign(self, value: object) -> bool:
        """Whether a name was bound to other people's code, as an import does.

        torch does too: the first optimizer of a class has its ``step`` wrapped.
        """
        if isinstance(value, types.FunctionType):
            return not self._is_scope(value.__globals__)
        return isinstance(value, types.ModuleType) or (
            isinstance(value, types.BuiltinFunctionType | type) and not self._is_own(value)
        )

    def _is_own(self, code: Any) -> bool:
        module = getattr(code, "__module__", None)
        if isinstance(module, str) and module in self._modules:
            return True
        return self._is_scope(getattr(code, "__globals__", None))

    def _is_scope(self, names: object) -> bool:
        return any(names is vars(module) for module in self._modules.values())

    def _walk(self, roots: Iterable[tuple[str, object]]) -> None:
        waiting = collections.deque(roots)
        while waiting:
            path, value = waiting.popleft()
            if type(value) in ATOMS or id(value) in self._seen:
                continue
            self._seen[id(value)] = value  # held, so that its id stays its own
            waiting.extend(self._inside(path, value))

    def _inside(self, path: str, value: Any) -> Iterator[tuple[str, object]]:
        """Keep what ``value`` itself is, and give what is reached from it."""
        kind = type(value)
        if isinstance(value, type):
            if self._is_own(value):
                yield from self._inside_class(path, value)
        elif kind is types.FunctionType:
            if self._is_own(value):
                yield from self._inside_function(path, value)
        elif kind is types.MethodType:
            yield from ((path, value.__func__), (path, value.__self__))
        elif issubclass(kind, staticmethod | classmethod):
            yield path, value.__func__
        elif issubclass(kind, property):
            yield from ((path, part) for part in (value.fget, value.fset, value.fdel))
        elif issubclass(kind, functools.cached_property):
            yield path, value.func
        elif issubclass(kind, functools.partial):
            yield from ((path, part) for part in (value.func, value.args, value.keywords))
        else:
            yield from self._inside_data(path, value)

    def _inside_class(self, path: str, cls: type) -> Iterator[tuple[str, object]]:
        def bind(name: str, value: object) -> None:
            type.__setattr__(cls, name, value)

        def unbind(name: str) -> None:
            type.__delattr__(cls, name)

        def held() -> dict[str, Any]:
            return dict(vars(cls))

        self._kept.append(_Names(f"{path}.", held, bind, unbind, self._foreign))
        for name, value in held().items():
            if not _is_dunder(name) or isinstance(value, types.FunctionType):
                yield f"{path}.{name}", value

    def _inside_function(
        self, path: str, function: types.FunctionType
    ) -> Iterator[tuple[str, object]]:
        for name, value in self._names(f"{path}.", vars(function)).items():
            yield f"{path}.{name}", value
        code = function.__code__
        arguments = code.co_varnames[: code.co_argcount][-len(function.__defaults__ or ()) :]
        defaults = zip(arguments, function.__defaults__ or (), strict=False)
        for name, value in (*defaults, *(function.__kwdefaults__ or {}).items()):
            yield f"{path}({name}=…)", value
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            variable = _Variable(name, cell)
            self._kept.append(
                _Names("", variable.read, variable.bind, variable.unbind, self._foreign)
            )
            yield from variable.read().items()

    def _inside_data(self, path: str, value: Any) -> Iterator[tuple[str, object]]:
        kind = type(value)
        if issubclass(kind, Tensor):
            if value.layout is torch.strided and not value.is_meta:
                self._kept.append(_Tensor(path, value))
                yield path, value.grad if value.is_leaf else None
        elif issubclass(kind, np.ndarray):
            if value.flags.writeable:
                self._kept.append(_Array(path, value))
        elif (drawn := _generator_state(value)) is not None:
            self._kept.append(_Generator(path, *drawn))
        elif issubclass(kind, GATHERED):
            self._kept.append(_Elements(path, value))
            yield from ((path, part) for part in value)
        elif issubclass(kind, tuple | frozenset):
            yield from ((path, part) for part in value)
        elif issubclass(kind, dict):
            self._kept.append(_Items(path, value))
            yield from ((path, part) for part in value.values())
        if issubclass(kind, OPEN) or self._is_own(kind):
            yield from self._inside_instance(path, value)

    def _inside_instance(self, path: str, value: Any) -> Iterator[tuple[str, object]]:
        if isinstance(held := getattr(value, "__dict__", None), dict):
            for name, part in self._names(f"{path}.", held).items():
                yield f"{path}.{name}", part
        slots = [
            name
            for cls in type(value).__mro__
            for name, member in vars(cls).items()
            if isinstance(member, types.MemberDescriptorType)
        ]
        if slots:

            def filled() -> dict[str, Any]:
                return {name: getattr(value, name) for name in slots if hasattr(value, name)}

            def bind(name: str, part: object) -> None:
                object.__setattr__(value, name, part)

            def unbind(name: str) -> None:
                object.__delattr__(value, name)

            self._kept.append(_Names(f"{path}.", filled, bind, unbind, self._foreign))
            yield from ((f"{path}.{name}", part) for name, part in filled().items())


class _Names:
    """Names that are bound to values.

    Args:
        prefix: Begins the path of each.
        read: Gives them now.
        bind: Binds one.
        unbind: Removes one.
        foreign: Whether a value is other people's code: a name bound to it was imported late.
    """

    def __init__(
        self,
        prefix: str,
        read: Callable[[], Mapping[str, Any]],
        bind: Callable[[str, Any], None],
        unbind: Callable[[str], None],
        foreign: Callable[[object], bool],
    ) -> None:
        self.prefix = prefix
        self.read, self.bind, self.unbind, self.foreign = read, bind, unbind, foreign
        self.before = {name: v for name, v in read().items() if not _is_dunder(name)}
        self.counts = {
            name: repr(v) for name, v in self.before.items() if type(v) is itertools.count
        }

    def restore(self) -> Iterator[str]:
        now = {name: v for name, v in self.read().items() if not _is_dunder(name)}
        for name, value in self.before.items():
            if name in self.counts and repr(value) != self.counts[name]:
                self.bind(name, _counting(self.counts[name]))
                yield self.prefix + name
            elif name not in now or not _same(now[name], value):
                if name in now and self.foreign(now[name]):
                    continue
                self.bind(name, value)
                yield self.prefix + name
        for name in now.keys() - self.before.keys():
            if not self.foreign(now[name]):
                self.unbind(name)
                yield self.prefix + name


class _Elements:
    """What is in a list, a deque, a byte array or a set."""

    def __init__(self, path: str, value: Any) -> None:
        self.path, self.value = path, value
        self.before = list(value)

    def restore(self) -> Iterator[str]:
        if isinstance(self.value, set):
            same = self.value == set(self.before)
        else:
            same = _all_same(list(self.value), self.before)
        if not same:
            self.value.clear()
            (self.value.update if isinstance(self.value, set) else self.value.extend)(self.before)
            yield self.path


class _Items:
    """What is in a dictionary, in its order."""

    def __init__(self, path: str, value: dict[Any, Any]) -> None:
        self.path, self.value = path, value
        self.before = dict(value)

    def restore(self) -> Iterator[str]:
        one, other = self.value, self.before
        if not (_all_same([*one], [*other]) and _all_same([*one.values()], [*other.values()])):
            self.value.clear()
            self.value.update(self.before)
            yield self.path


class _Tensor:
    """The values of a tensor, its gradient, and whether it has one."""

    def __init__(self, path: str, value: Tensor) -> None:
        self.path, self.value = path, value
        self.before = value.detach().clone()
        self.leaf, self.learns = value.is_leaf, value.requires_grad
        self.grad = value.grad if self.leaf else None

    def restore(self) -> Iterator[str]:
        now, before = self.value.detach(), self.before
        like = now.shape == before.shape and now.dtype == before.dtype
        changed = not like or not bool(
            ((now == before) | ((now != now) & (before != before))).all()
        )
        if changed:
            with torch.inference_mode(self.value.is_inference()), torch.no_grad():
                if like:
                    now.copy_(before)
                else:
                    self.value.data = before
        if self.leaf and (
            self.value.grad is not self.grad or self.value.requires_grad != self.learns
        ):
            self.value.requires_grad_(self.learns)
            self.value.grad = self.grad
            changed = True
        if changed:
            yield self.path


class _Array:
    """The values of an array."""

    def __init__(self, path: str, value: np.ndarray) -> None:
        self.path, self.value = path, value
        self.before = value.copy()

    def restore(self) -> Iterator[str]:
        if self.value.shape != self.before.shape:
            self.value.resize(self.before.shape, refcheck=False)
        if self.value.tobytes() != self.before.tobytes():
            self.value[...] = self.before
            yield self.path


class _Generator:
    """How far a random generator is."""

    def __init__(self, path: str, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.path, self.read, self.write = path, read, write
        self.before = read()

    def restore(self) -> Iterator[str]:
        if pickle.dumps(self.read()) != pickle.dumps(self.before):
            self.write(self.before)
            yield self.path


def _generator_state(value: Any) -> tuple[Callable[[], Any], Callable[[Any], object]] | None:
    """How to read and to write a random generator's state; None of anything else."""
    if isinstance(value, torch.Generator):
        return (
            lambda: value.get_state().numpy().tobytes(),
            lambda state: value.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8)),
        )
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if isinstance(value, np.random.RandomState):
        return value.get_state, value.set_state
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    return None


class _Variable:
    """A variable of an enclosing function."""

    def __init__(self, name: str, cell: types.CellType) -> None:
        self.name, self.cell = name, cell

    def read(self) -> dict[str, Any]:
        """Its value by its name; nothing if it has none as yet."""
        try:
            return {self.name: self.cell.cell_contents}
        except ValueError:
            return {}

    def bind(self, _name: str, value: object) -> None:
        self.cell.cell_contents = value

    def unbind(self, _name: str) -> None:
        del self.cell.cell_contents


def _files(module: types.ModuleType | None) -> list[Path]:
    file = getattr(module, "__file__", None)
    return _files_of(Path(file)) if isinstance(file, str) else []


@functools.cache  # a file may be edited while a run goes on; what is loaded stays as it was
def _files_of(file: Path) -> list[Path]:
    try:
        return source_files(file, beside=True)
    except (OSError, SyntaxError):
        return [file]


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _counting(text: str) -> Any:
    """The `itertools.count` that has this representation."""
    return itertools.count(*ast.literal_eval(f"({text.partition('(')[2][:-1]},)"))


def _same(one: object, other: object) -> bool:
    """The same object, or equal ones of which nobody can tell that they are two."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple) and isinstance(other, tuple):
        return _all_same(one, other)
    return isinstance(one, ATOMS) and (one == other or (one != one and other != other))


def _all_same(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))
