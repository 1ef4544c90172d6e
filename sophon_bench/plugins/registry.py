"""Names -> plugins: discovery, files, and close matches for a name that is not there.

Plugins are found through the entry-point group ``sophon_bench.plugins``. An entry names a module
or a package; a package is walked, so that a new file in it is found without editing a list.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from sophon_bench.plugins.declared import Declared
from sophon_bench.plugins.failures import BadInput, first_line
from sophon_bench.plugins.identity import source_hash

GROUP = "sophon_bench.plugins"
PREFIX = "sophon_bench"
SHORT_PACKAGES = ("attacks", "defenses", "leaderboard")
FILE_PREFIX = "sophon_bench_plugin_"
"""Begins the module names of plugin files."""

NAME = r"^[a-z0-9]+(-[a-z0-9]+)*\Z"
NAME_LENGTH = 60
"""What plugins, suites, studies and entries are called: it is a file name, a selector and a cell of
tables everywhere."""

C = TypeVar("C", bound=type)

Mechanism = Literal["gradient", "function", "repair", "noise"]


class UnknownName(BadInput, LookupError):
    """A name that nothing is registered under; the message names close alternatives."""


class DuplicateName(BadInput, ValueError):
    """Two plugins claim one name."""


class BrokenPlugin(BadInput, ImportError):
    """A plugin file that cannot be loaded."""


@dataclass(frozen=True)
class Entry:
    """One registered plugin class.

    Attributes:
        control: Whether others are compared with it (undefended model, random initialisation).
        optional: Whether a control runs only where it is asked for; every table needs the others.
        mechanism: What an attack works by; flags compare mechanisms.
        hidden: Whether lists leave it out (a canary, say); its name still finds it.
        source: What the plugin's source does, as a hash (`identity.source_hash`); in every key.
        distribution: ``name==version`` of the package it came from, or the file's name.
    """

    name: str
    kind: str
    cls: type[Any]
    control: bool
    optional: bool
    mechanism: Mechanism
    hidden: bool
    source: str
    distribution: str

    @property
    def summary(self) -> str:
        """The first line of the class docstring."""
        return (self.cls.__doc__ or "").strip().split("\n")[0]

    @property
    def reference(self) -> str:
        """The publication: what follows ``Reference:`` in the module docstring, or nothing."""
        text = (sys.modules[self.cls.__module__].__doc__ or "").partition("Reference:")[2]
        return " ".join(text.split("\n\n")[0].split())

    @property
    def declared(self) -> Declared:
        """The optional attributes of the class."""
        return Declared.of(self.cls)


def name_problem(name: object) -> str | None:
    """Why a plugin, a suite or a study cannot be called ``name``, in one line; None if it can."""
    if _is_name(name):
        return None
    words = f"{name!r} should be lower-case letters and digits joined by hyphens, at most " + (
        f"{NAME_LENGTH} characters"
    )
    if not isinstance(name, str) or not re.fullmatch(r"[\w .-]+", name, re.ASCII):
        return words
    better = re.sub(r"[\W_]+", "-", name.lower()).strip("-")
    return f"{words}; try {better!r}" if _is_name(better) else words


def _is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= NAME_LENGTH and bool(re.match(NAME, name))


class Registry:
    """The plugins of one kind, by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(
        self,
        name: str,
        *,
        control: bool = False,
        optional: bool = False,
        mechanism: Mechanism = "gradient",
        hidden: bool = False,
    ) -> Callable[[C], C]:
        """Class decorator that enters a frozen dataclass under ``name``.

        Args:
            name: Lower-case letters and digits joined by hyphens, at most 60 characters.
            control: Others are compared with it; every run needs it, asked for or not.
            optional: Of a control: only runs that ask for it have it.
            mechanism: What an attack works by: ``gradient`` steps on what was released; its
                ``function`` alone (probes, distillation); gradient steps after ``repair`` of the
                weights (re-scaling, for instance) or after ``noise`` on them.
            hidden: Leave it out of lists; it is found by its name.

        Raises:
            DuplicateName: If another class has that name.
            TypeError: If the class is not a dataclass.
            ValueError: If the name will not do.
        """
        if problem := name_problem(name):
            raise ValueError(f"{self.kind} name {problem}")

        def enter(cls: C) -> C:
            if cls.__module__.split(".")[0] in SHORT_PACKAGES:
                raise ImportError(
                    f"{cls.__module__} was imported by its short name, which would register "
                    f"{name!r} twice; import {PREFIX}.{cls.__module__} instead"
                )
            if not is_dataclass(cls):
                raise TypeError(
                    f"{self.kind} {name!r} must be a dataclass: put "
                    f"@dataclass(frozen=True, kw_only=True) under the register decorator"
                )
            if name in self._entries:
                other = self._entries[name].cls
                raise DuplicateName(
                    f"{self.kind} {name!r} is registered twice: by {_place(other)} and by "
                    f"{_place(cls)}; rename one of them"
                )
            file = _file_of(cls)
            self._entries[name] = Entry(
                name=name,
                kind=self.kind,
                cls=cls,
                control=control,
                optional=optional,
                mechanism=mechanism,
                hidden=hidden,
                source=source_hash(file) if file else "",
                distribution=_distribution(cls.__module__, file),
            )
            return cls

        return enter

    def get(self, name: str) -> Entry:
        """The entry called ``name``.

        Raises:
            UnknownName: With the closest names that exist.
        """
        discover()
        if name not in self._entries:
            raise UnknownName(unknown(self.kind, name, self._entries))
        return self._entries[name]

    def names(self, *, hidden: bool = False) -> list[str]:
        """All names, sorted; hidden ones only if asked for."""
        discover()
        return sorted(n for n, entry in self._entries.items() if hidden or not entry.hidden)

    def controls(self) -> list[str]:
        """Names of the controls that every run needs, sorted."""
        entries = [self._entries[name] for name in self.names()]
        return [entry.name for entry in entries if entry.control and not entry.optional]

    def remove(self, name: str) -> None:
        """Forget ``name``, so that a test or a notebook can register it again."""
        self._entries.pop(name, None)


attacks = Registry("attack")
defenses = Registry("defense")
scenarios = Registry("scenario")


def unknown(kind: str, name: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """One line that says ``name`` does not exist and what comes close.

    Args:
        kind: What it should have been, ``attack`` for instance.
        name: What was given.
        known: What there is.
        otherwise: The hint where nothing comes close and there is too much to name.
    """
    names = sorted(known)
    otherwise = otherwise or f"'sophon-bench list {kind}s' shows all {len(names)}"
    return f"unknown {kind} {name!r}; {closest(name, names, otherwise)}"


def closest(name: str, known: Sequence[str], otherwise: str) -> str:
    """What a name that does not exist may mean; if nothing, what there is, or ``otherwise``."""
    if close := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return "did you mean " + " or ".join(map(repr, close)) + "?"
    if not known:
        return "there are none"
    return "there are: " + ", ".join(known) if len(known) <= 12 else otherwise


_discovered = False


def discover() -> None:
    """Import every installed plugin, once. A broken one warns and is skipped.

    Raises:
        DuplicateName: If two plugins claim one name.
    """
    global _discovered
    if _discovered:
        return
    _discovered = True
    for point in _points():
        for module in _modules(point.value):
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    importlib.import_module(module)
            except DuplicateName:
                raise
            except Exception as error:
                warnings.warn(f"plugin module {module} is skipped: {_reason(error)}", stacklevel=2)


def _points() -> list[EntryPoint]:
    return sorted(set(entry_points(group=GROUP)), key=lambda point: point.value)


def _find_spec(module: str) -> ModuleSpec | None:
    """Where a plugin module is; None if its package is missing or broken."""
    try:
        return importlib.util.find_spec(module)
    except Exception:
        return None


def _modules(root: str) -> Iterator[str]:
    """``root`` and, if it is a package, every module below it; nothing is imported but packages."""
    yield root
    spec = _find_spec(root)
    for info in pkgutil.iter_modules((spec and spec.submodule_search_locations) or []):
        name = f"{root}.{info.name}"
        yield from _modules(name) if info.ispkg else [name]


def entry_folders() -> list[Path]:
    """Folders of the packages that the installed entry points name."""
    specs = [_find_spec(point.value) for point in _points()]
    return [Path(f) for spec in specs if spec for f in spec.submodule_search_locations or []]


def declared_names(kind: str) -> list[str]:
    """Names of installed plugins, read from their source without importing it.

    Shell completion uses this: it must answer before torch could be imported.
    """
    specs = [_find_spec(point.value) for point in _points()]
    single = [Path(s.origin) for s in specs if s and s.origin and not s.submodule_search_locations]
    files = [*single, *(file for folder in entry_folders() for file in folder.rglob("*.py"))]
    form = re.compile(rf"""^@{kind}s\.register\(\s*["']([^"']+)""", re.MULTILINE)
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return sorted({name for text in texts for name in form.findall(text)})


def file_module(path: Path) -> str:
    """The name of the module that a plugin file becomes."""
    return f"{FILE_PREFIX}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"


def load_file(path: Path, name: str | None = None) -> None:
    """Load one plugin file (``--plugin FILE.py``).

    Args:
        path: The file.
        name: The module's name; None: `file_module`. For a copy on another machine, whose classes
            are to be known by the names that they have on this one.

    Raises:
        BrokenPlugin: If the file is missing, is not Python, raises, or registers nothing.
        DuplicateName: If it claims a name that exists.
    """
    discover()
    if not path.is_file():
        raise BrokenPlugin(f"plugin file {str(path)!r} does not exist")
    name = name or file_module(path)
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BrokenPlugin(f"plugin file {str(path)!r} is not a Python file (expected NAME.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = _registered()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where tables go, nothing else does
            spec.loader.exec_module(module)
        if _registered() == before:
            raise BrokenPlugin(
                f"plugin file {str(path)!r} registers nothing; decorate a dataclass with "
                f"@attacks.register(NAME), @defenses.register(NAME) or @scenarios.register(NAME) "
                f"from sophon_bench.api"
            )
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SystemExit):
            raise BrokenPlugin(
                f"plugin file {str(path)!r} leaves Python while it is loaded (sys.exit at its top "
                f"level); move that under 'if __name__ == \"__main__\"'"
            ) from error
        if isinstance(error, Exception) and not isinstance(error, BrokenPlugin | DuplicateName):
            raise BrokenPlugin(
                f"plugin file {str(path)!r} cannot be loaded: {_reason(error)}"
            ) from error
        raise


def _registered() -> set[int]:
    return {id(e) for r in (attacks, defenses, scenarios) for e in r._entries.values()}


def _reason(error: Exception) -> str:
    """What the module of a plugin raised, in one line."""
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{kind} at line {error.lineno}: {error.msg}"
    return f"{kind}: {first_line(error)}"


def _place(cls: type) -> str:
    """The module of a class, or the file where that is a plugin's."""
    file = _file_of(cls) if cls.__module__.startswith(FILE_PREFIX) else None
    return str(file or cls.__module__)


def _file_of(cls: type) -> Path | None:
    """The file that a class is from; None of one that was made without a file."""
    try:
        return Path(inspect.getfile(cls))
    except (OSError, TypeError):
        return None


def _distribution(module: str, file: Path | None) -> str:
    if module.startswith(f"{PREFIX}."):
        return f"sophon-bench=={version('sophon-bench')}"
    for point in _points():
        if module == point.value or module.startswith(point.value + "."):
            return f"{point.dist.name}=={point.dist.version}" if point.dist else point.name
    return file.name if file else module
