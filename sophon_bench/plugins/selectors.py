"""``finetune[optimizer=adam,lr=[1e-3,1e-2]]`` -> trials.

Grammar::

    named    = [ given "=" ] selector
    selector = name [ "[" [ pair { "," pair } ] "]" ]
    pair     = parameter "=" value
    value    = token | quoted text | "[" [ value { "," value } ] "]"

A list where the parameter takes one value is a grid: one trial per value, crossed over all such
parameters. Where the parameter itself is a list, a list is one value and a list of lists a grid.
``preset=NAME`` starts from a named set of hyperparameters instead of the defaults. A name that is
given to a trial is what tables call it, and no part of what it is.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from sophon_bench.plugins.failures import BadInput, sentence
from sophon_bench.plugins.registry import (
    Entry,
    Registry,
    attacks,
    closest,
    defenses,
    scenarios,
    unknown,
)

LONGEST_NAME = 40
"""Letters of the longest name that a trial may be given: tables have to hold it."""

_TOKEN = re.compile(r"""[^\[\],=\s'"]+""")
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")

T = TypeVar("T")


class SelectorError(BadInput, ValueError):
    """A selector that does not parse, or a parameter or value that the plugin does not take."""


@dataclass(frozen=True)
class Selector:
    """A parsed selector; values are strings or (nested) lists of strings."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A plugin with all its hyperparameters fixed.

    Attributes:
        entry: The plugin's.
        plugin: The plugin itself.
        suites: Labels of the suites that asked for it.
        given_name: What the user calls it; empty if nothing.
    """

    entry: Entry
    plugin: Any
    suites: tuple[str, ...] = ()
    given_name: str = dataclasses.field(default="", compare=False)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.entry.name

    @functools.cached_property
    def parameters(self) -> dict[str, Any]:
        """Every hyperparameter by name, as plain JSON values."""
        names = _fields(self.entry.cls)
        return {name: plain(getattr(self.plugin, name)) for name in names}

    @functools.cached_property
    def family(self) -> str | None:
        """What trials of one learning-rate sweep have in common; None without a learning rate."""
        rest = dict(self.parameters)
        return f"{self.name}{rest}" if isinstance(rest.pop("lr", None), float) else None

    @functools.cached_property
    def label(self) -> str:
        """The shortest selector that gives this trial: only what differs from the defaults."""
        changed = {
            name: value
            for name, field in _fields(self.entry.cls).items()
            if (value := getattr(self.plugin, name)) != field.default
        }
        return format_selector(self.name, changed)


def expand(registry: Registry, text: str) -> list[Trial]:
    """The trials of one selector, or the one that it gives a name to.

    Raises:
        SelectorError: For a malformed selector, an unknown parameter or value, or a name that is
            taken or given to several trials.
        UnknownName: For a plugin that is not registered.
    """
    name, selector = split_name(text)
    if name and registry is scenarios:
        raise SelectorError(f"{text!r}: attacks and defenses take a name of their own, no scenario")
    for known in (registry, attacks, defenses, scenarios) if name else ():
        if name in known.names(hidden=True):
            raise SelectorError(
                f"{text!r} gives a name that is taken: {name!r} is registered as {known.kind}"
            )
    if name and selector.startswith("@"):
        raise SelectorError(f"{text!r}: a name is for one {registry.kind}, not for a list of them")
    found = _crossed(registry, parse(selector))
    if name and len(found) > 1:
        raise SelectorError(
            f"{text!r}: a name is for one {registry.kind}, and the selector stands for {len(found)}"
        )
    return [dataclasses.replace(trial, given_name=name) for trial in found]


def _crossed(registry: Registry, selector: Selector) -> list[Trial]:
    entry = registry.get(selector.name)
    given = dict(selector.parameters)
    presets = given.pop("preset", []) if "preset" not in _fields(entry.cls) else []
    bases = [_preset(entry, str(name)) for name in _listed(presets)] or [{}]
    check_parameters(entry, given)
    axes = [[(key, v) for v in _grid(entry.cls, key, value)] for key, value in given.items()]
    return [
        Trial(entry, construct(entry, {**base, **dict(choice)}))
        for base, *choice in itertools.product(bases, *axes)
    ]


def vary(trial: Trial, changes: Mapping[str, Any]) -> Trial:
    """The same trial with other values for some hyperparameters.

    Raises:
        SelectorError: If the plugin does not take a value.
    """
    plugin = construct(trial.entry, {**trial.parameters, **changes})
    return dataclasses.replace(trial, plugin=plugin, given_name="")


def names_of(trials: Iterable[Trial]) -> dict[str, str]:
    """The names that were given to trials, by label.

    Raises:
        SelectorError: If two have the same.
    """
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.given_name and (other := found.setdefault(trial.given_name, trial)) != trial:
            raise SelectorError(
                f"the name {trial.given_name!r} is given twice: to {other.label} and to "
                f"{trial.label}"
            )
    return {trial.label: name for name, trial in found.items()}


# Text ------------------------------------------------------------------------------------------


def split_name(text: str) -> tuple[str, str]:
    """The name that ``text`` gives to a trial, empty if it gives none, and the selector.

    Raises:
        SelectorError: If that cannot be a name.
    """
    name, equals, selector = text.partition("=")
    if not equals or "[" in name:
        return "", text
    name = name.strip()
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) or len(name) > LONGEST_NAME:
        raise SelectorError(
            f"{text!r} gives the name {name!r}; a name has lower-case letters, digits and single "
            f"hyphens, {LONGEST_NAME} at most, and the form is "
            f"'my-name=NAME[parameter=value]'"
        )
    return name, selector.strip()


def parse(text: str) -> Selector:
    """Parse one selector.

    Raises:
        SelectorError: Naming the place, what was expected there, and the selector.
    """
    return _Parser(text).selector()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def selector(self) -> Selector:
        name = self._token("a name")
        parameters: dict[str, Any] = {}
        for key, value in self._list(self._pair) if self._take("[") else ():
            if key in parameters:
                raise SelectorError(f"parameter {key!r} is given twice in {self.text!r}")
            parameters[key] = value
        if self.at < len(self.text.rstrip()):
            raise self._error("the end")
        return Selector(name, parameters)

    def _pair(self) -> tuple[str, Any]:
        key = self._token("a parameter name or ']'")
        if not self._take("="):
            raise self._error(f"'=' after {key!r}")
        return key, self._value()

    def _value(self) -> Any:
        if not self._take("["):
            return self._token("a value")
        values = self._list(self._value)
        if not values:
            raise SelectorError(f"empty list in {self.text!r}: a grid needs at least one value")
        return values

    def _list(self, item: Callable[[], T]) -> list[T]:
        """What follows an opening bracket, up to the closing one."""
        items = []
        while not self._take("]"):
            items.append(item())
            if self._take(","):
                continue
            if self._take("]"):
                break
            raise self._error("',' or ']'")
        return items

    def _token(self, expected: str) -> str:
        self._space()
        found = _QUOTED.match(self.text, self.at) or _TOKEN.match(self.text, self.at)
        if not found:
            raise self._error(expected)
        self.at = found.end()
        return found[0][1:-1] if found.re is _QUOTED else found[0]

    def _space(self) -> None:
        self.at = len(self.text) - len(self.text[self.at :].lstrip())

    def _take(self, mark: str) -> bool:
        self._space()
        found = self.text.startswith(mark, self.at)
        self.at += found
        return found

    def _error(self, expected: str) -> SelectorError:
        self._space()
        opened = self.text.count("[") - self.text.count("]")
        if self.at < len(self.text):
            return SelectorError(
                f"expected {expected} at character {self.at + 1} of {self.text!r}, found "
                f"{self.text[self.at]!r}; the form is NAME[parameter=value,parameter=[v1,v2]]"
            )
        if opened > 0:
            return SelectorError(
                f"unbalanced brackets in {self.text!r}: {opened} '[' without ']'; "
                f"expected {expected} at the end"
            )
        return SelectorError(f"{self.text!r} ends where {expected} was expected")


def format_selector(name: str, parameters: Mapping[str, Any]) -> str:
    """The selector text for ``name`` with ``parameters``; `parse` reads it back."""
    if not parameters:
        return name
    pairs = (f"{key}={_format(value)}" for key, value in parameters.items())
    return f"{name}[{','.join(pairs)}]"


def _format(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{','.join(_format(v) for v in value)}]"
    if isinstance(value, bool | None):
        return str(value).lower()
    text = str(value)
    if isinstance(value, float) or _TOKEN.fullmatch(text):
        return text
    return f'"{text}"' if "'" in text else f"'{text}'"


def scalar(text: Any) -> Any:
    """A value of a selector that has no declared type, read as YAML reads it: ``32`` is an int."""
    import yaml

    if isinstance(text, list):
        return [scalar(t) for t in text]
    try:
        return yaml.safe_load(text) if isinstance(text, str) else text
    except yaml.YAMLError as error:
        raise SelectorError(f"{text!r} is not a number, a word, true, false or none") from error


# Hyperparameters -------------------------------------------------------------------------------


def check_parameters(entry: Entry, names: Iterable[str]) -> None:
    """Nothing, if the plugin has parameters of these names.

    Raises:
        SelectorError: Naming the first that it does not have, and close ones that it has.
    """
    fields = sorted(_fields(entry.cls))
    for name in names:
        if name not in fields:
            hint = closest(name, fields, f"'sophon-bench show {entry.name}' lists them")
            raise SelectorError(f"{entry.kind} {entry.name!r} has no parameter {name!r}; {hint}")


def construct(entry: Entry, parameters: Mapping[str, Any]) -> Any:
    """The plugin with these hyperparameters; text is converted to each field's type.

    Raises:
        SelectorError: Naming the parameter, the value and what was expected.
    """
    hints = _hints(entry)
    values = {
        key: None if str(value).lower() == "none" and _optional(hints[key]) else value
        for key, value in parameters.items()
    }
    for key, value in values.items():
        if any(_infinite(v) for v in _listed(value)):
            raise SelectorError(f"{entry.name}[{key}={_format(value)}]: {key} should be finite")
    try:
        return _adapter(entry).validate_python(values)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        reason = str(error).split("\n")[0]
        raise SelectorError(
            f"{entry.cls.__name__} has a field whose type is not supported: {reason}; "
            f"use int, float, bool, str, Literal or tuples of them"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        field = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "missing":
            raise SelectorError(f"{entry.kind} {entry.name!r} needs {field}=…") from error
        wrong = {field: values[field]} if field else values
        words = f"{field} {message}" if field else message
        raise SelectorError(f"{format_selector(entry.name, wrong)}: {words}") from error
    # the class is anybody's: whatever its __post_init__ raises, sys.exit too
    except (Exception, SystemExit) as error:
        reason = sentence(error, lambda file: str(file) == inspect.getsourcefile(entry.cls))
        raise SelectorError(
            f"{entry.kind} {format_selector(entry.name, values)} cannot be made: {reason}"
        ) from error


@functools.cache
def _hints(entry: Entry) -> dict[str, Any]:
    return typing.get_type_hints(entry.cls)


@functools.cache
def _adapter(entry: Entry) -> TypeAdapter[Any]:
    """What checks a plugin's hyperparameters; making it takes far longer than a check."""
    return TypeAdapter(entry.cls)


def accepted(cls: type[Any], field: str) -> str:
    """What a hyperparameter takes, in words: ``float > 0``, ``sgd | adam``, ``list of str``."""
    return _words(typing.get_type_hints(cls, include_extras=True)[field])


_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _words(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [
            f" {sign} {limit}"
            for mark in options[1:]
            for name, sign in _BOUNDS.items()
            if (limit := getattr(mark, name, None)) is not None
        ]
        return _words(options[0]) + " and".join(bounds)
    if origin is typing.Literal:
        return " | ".join(map(str, options))
    if origin in (tuple, list):
        return f"list of {_words(options[0])}"
    if options:
        return " | ".join(_words(option) for option in options)
    return "none" if hint is type(None) else str(getattr(hint, "__name__", hint))


def _fields(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """The hyperparameters: a field that is not compared says where things are, not what is done."""
    return {field.name: field for field in dataclasses.fields(cls) if field.compare}


def _preset(entry: Entry, name: str) -> Mapping[str, Any]:
    presets = entry.declared.presets
    if name not in presets:
        raise SelectorError(unknown(f"preset of {entry.name}", name, presets))
    return presets[name]


def _grid(cls: type[Any], key: str, value: Any) -> list[Any]:
    """The values that one stands for: several, if it is a list of what the field takes."""
    hint = typing.get_type_hints(cls)[key]
    options = typing.get_args(hint) if _optional(hint) else (hint,)
    takes_list = any(typing.get_origin(option) in (tuple, list) for option in options)
    if takes_list and not all(isinstance(v, list) for v in _listed(value)):
        return [value]
    return _listed(value)


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _infinite(value: Any) -> bool:
    try:
        return not math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def plain(value: Any) -> Any:
    """Tuples within tuples as lists, as JSON has them."""
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value
