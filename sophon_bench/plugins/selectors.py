"""``finetune[optimizer=adam,lr=[1e-3,1e-2]]`` and ``@suite`` -> trials.

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
import inspect
import itertools
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from sophon_bench.plugins.failures import BadInput, sentence
from sophon_bench.plugins.registry import (
    Entry,
    Registry,
    UnknownName,
    attacks,
    defenses,
    entry_roots,
    find_spec,
    name_problem,
    scenarios,
    unknown,
)

_TOKEN = re.compile(r"""[^\[\],=\s'"]+""")
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")

D = TypeVar("D", bound=BaseModel)


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

    @property
    def parameters(self) -> dict[str, Any]:
        """Every hyperparameter by name, as plain JSON values."""
        return {f.name: _plain(getattr(self.plugin, f.name)) for f in _fields(self.entry.cls)}

    @property
    def label(self) -> str:
        """The shortest selector that gives this trial: only what differs from the defaults."""
        changed = {
            f.name: getattr(self.plugin, f.name)
            for f in _fields(self.entry.cls)
            if getattr(self.plugin, f.name) != f.default
        }
        return format_selector(self.name, changed)


class Rules(BaseModel):
    """How an attacker goes on after the listed trials, by each model's own results.

    Attributes:
        refine: Of this many best families (trials that differ in ``lr`` only) the lr grid grows
            until the best lr has a neighbour within half a decade on either side.
        continued: This many best trials are done again with a longer budget.
        times: How many times longer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    refine: int = Field(default=0, ge=0)
    continued: int = Field(default=0, ge=0, alias="continue")
    times: int = Field(default=10, ge=2)


def _checked_name(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


Name = Annotated[str, AfterValidator(_checked_name)]
"""Of a suite or a study: that of its file."""


class Suite(BaseModel):
    """A named list of attack trials, read from a YAML file next to the attacks.

    Attributes:
        search: What the attacker does after the listed trials.
        trainability: Plain recipes for the benign domains, scratch included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = ""
    version: int = Field(ge=1)
    description: str
    trials: list[str] = Field(min_length=1)
    search: Rules = Rules()
    trainability: list[str] = []

    @property
    def label(self) -> str:
        """As records carry it."""
        return f"@{self.name} v{self.version}"


@dataclass(frozen=True)
class Arsenal:
    """All that an attacker of a run has: trials, rules for more, and recipes for benign domains."""

    trials: list[Trial]
    rules: Rules = dataclasses.field(default_factory=Rules)
    trainability: list[Trial] = dataclasses.field(default_factory=list)


def format_selector(name: str, parameters: Mapping[str, Any]) -> str:
    """The selector text for ``name`` with ``parameters``; `parse` reads it back."""
    if not parameters:
        return name
    pairs = (f"{key}={_format(value)}" for key, value in parameters.items())
    return f"{name}[{','.join(pairs)}]"


def parse(text: str) -> Selector:
    """Parse one selector.

    Raises:
        SelectorError: Naming the place, what was expected there, and the selector.
    """
    return _Parser(text).selector()


LONGEST_NAME = 40
"""Letters of the longest name that a trial may be given: tables have to hold it."""


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


def names_of(trials: Iterable[Trial]) -> dict[str, str]:
    """The names that were given to trials, by label.

    Raises:
        SelectorError: If two have the same.
    """
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.given_name:
            other = found.setdefault(trial.given_name, trial)
            if other != trial:
                raise SelectorError(
                    f"the name {trial.given_name!r} is given twice: to {other.label} and to "
                    f"{trial.label}"
                )
    return {trial.label: name for name, trial in found.items()}


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def selector(self) -> Selector:
        name = self._token("a name")
        parameters: dict[str, Any] = {}
        if self._take("["):
            while not self._take("]"):
                key = self._token("a parameter name or ']'")
                if not self._take("="):
                    raise self._error(f"'=' after {key!r}")
                if key in parameters:
                    raise SelectorError(f"parameter {key!r} is given twice in {self.text!r}")
                parameters[key] = self._value()
                if not self._take(",") and not self._ahead("]"):
                    raise self._error("',' or ']'")
        if self.at < len(self.text.rstrip()):
            raise self._error("the end")
        return Selector(name, parameters)

    def _value(self) -> Any:
        if not self._take("["):
            return self._token("a value")
        values = []
        while not self._take("]"):
            values.append(self._value())
            if not self._take(",") and not self._ahead("]"):
                raise self._error("',' or ']'")
        if not values:
            raise SelectorError(f"empty list in {self.text!r}: a grid needs at least one value")
        return values

    def _token(self, expected: str) -> str:
        self._space()
        if quoted := _QUOTED.match(self.text, self.at):
            self.at = quoted.end()
            return quoted[1] if quoted[1] is not None else quoted[2]
        found = _TOKEN.match(self.text, self.at)
        if not found:
            raise self._error(expected)
        self.at = found.end()
        return found[0]

    def _space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _ahead(self, mark: str) -> bool:
        self._space()
        return self.text.startswith(mark, self.at)

    def _take(self, mark: str) -> bool:
        found = self._ahead(mark)
        self.at += found
        return found

    def _error(self, expected: str) -> SelectorError:
        self._space()
        if self.at >= len(self.text):
            opened = self.text.count("[") - self.text.count("]")
            if opened > 0:
                return SelectorError(
                    f"unbalanced brackets in {self.text!r}: {opened} '[' without ']'; "
                    f"expected {expected} at the end"
                )
            return SelectorError(f"{self.text!r} ends where {expected} was expected")
        return SelectorError(
            f"expected {expected} at character {self.at + 1} of {self.text!r}, "
            f"found {self.text[self.at]!r}; the form is NAME[parameter=value,parameter=[v1,v2]]"
        )


ALL = "@all"


def trials(registry: Registry, selectors: Iterable[str]) -> list[Trial]:
    """All trials that ``selectors`` stand for, in order, each once.

    `ALL` stands for every plugin of the kind that is in lists, with its defaults.

    Raises:
        SelectorError: For a malformed selector, an unknown suite, parameter or value.
        UnknownName: For a name that is not registered.
    """
    listed: list[tuple[str, str | None]] = []
    for text in selectors:
        if text == ALL:
            listed += [(name, None) for name in registry.names()]
            continue
        suite = load_suite(text[1:]) if text.startswith("@") else None
        listed += [(t, suite.label) for t in suite.trials] if suite else [(text, None)]
    return _trials(registry, listed)


def _trials(registry: Registry, listed: Iterable[tuple[str, str | None]]) -> list[Trial]:
    """All trials of plain selectors, each with the labels of its suites."""
    found: dict[str, Trial] = {}
    for text, suite in listed:
        for trial in _named(registry, text):
            known = found.setdefault(f"{trial.name}{trial.parameters}", trial)
            names = [name for name in (known.given_name, trial.given_name) if name]
            if len({*names}) > 1:
                raise SelectorError(f"{' and '.join(map(repr, names))} name one: {trial.label}")
            suites = known.suites
            if suite is not None and suite not in suites:
                suites = (*suites, suite)
            found[f"{trial.name}{trial.parameters}"] = dataclasses.replace(
                known, suites=suites, given_name="".join(names[:1])
            )
    names_of(found.values())
    return list(found.values())


def _named(registry: Registry, text: str) -> list[Trial]:
    """The trials of one selector, or the one that it gives a name to."""
    name, selector = split_name(text)
    if not name:
        return _expand(registry, parse(selector))
    if registry is scenarios:
        raise SelectorError(f"{text!r}: attacks and defenses take a name of their own, no scenario")
    for known in (registry, attacks, defenses, scenarios):
        if name in known.names(hidden=True):
            raise SelectorError(
                f"{text!r} gives a name that is taken: {name!r} is registered as {known.kind}"
            )
    if selector.startswith("@"):
        raise SelectorError(f"{text!r}: a name is for one {registry.kind}, not for a list of them")
    found = _expand(registry, parse(selector))
    if len(found) > 1:
        raise SelectorError(
            f"{text!r}: a name is for one {registry.kind}, and the selector stands for {len(found)}"
        )
    return [dataclasses.replace(trial, given_name=name) for trial in found]


def arsenal(registry: Registry, selectors: Sequence[str]) -> Arsenal:
    """The trials that ``selectors`` stand for with the rules and recipes of their suites.

    Where several suites have rules, the most thorough of each holds for all trials.

    Raises:
        SelectorError: For a malformed selector, an unknown suite, parameter or value.
        UnknownName: For a name that is not registered.
    """
    suites = [load_suite(t[1:]) for t in selectors if t.startswith("@") and t != ALL]
    rules = [suite.search for suite in suites] or [Rules()]
    chosen = {
        "refine": max(rule.refine for rule in rules),
        "continue": max(rule.continued for rule in rules),
        "times": max(rule.times for rule in rules),
    }
    recipes = [(text, suite.label) for suite in suites for text in suite.trainability]
    return Arsenal(
        trials(registry, selectors), Rules.model_validate(chosen), _trials(registry, recipes)
    )


def vary(trial: Trial, changes: Mapping[str, Any]) -> Trial:
    """The same trial with other values for some hyperparameters.

    Raises:
        SelectorError: If the plugin does not take a value.
    """
    plugin = construct(trial.entry, {**trial.parameters, **changes})
    return dataclasses.replace(trial, plugin=plugin, given_name="")


def _expand(registry: Registry, selector: Selector) -> list[Trial]:
    try:
        entry = registry.get(selector.name)
    except UnknownName:
        if selector.name in suite_files():
            raise UnknownName(
                f"unknown {registry.kind} {selector.name!r}; did you mean '@{selector.name}'?"
            ) from None
        raise
    fields = {field.name: field for field in _fields(entry.cls)}
    given = dict(selector.parameters)
    presets = given.pop("preset", []) if "preset" not in fields else []
    bases = [_preset(entry, name) for name in _listed(presets)] or [{}]
    check_parameters(entry, given)
    axes = [
        [(key, value) for value in _grid(fields[key], entry.cls, value)]
        for key, value in given.items()
    ]
    return [
        Trial(entry, construct(entry, {**base, **dict(choice)}))
        for base, *choice in itertools.product(bases, *axes)
    ]


def check_parameters(entry: Entry, names: Iterable[str]) -> None:
    """Nothing, if the plugin has parameters of these names.

    Raises:
        SelectorError: Naming the first that it does not have, and close ones that it has.
    """
    fields = [field.name for field in _fields(entry.cls)]
    for name in names:
        if name not in fields:
            known = unknown("parameter", name, fields).split("; ", 1)[1]
            raise SelectorError(f"{entry.kind} {entry.name!r} has no parameter {name!r}; {known}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _preset(entry: Entry, name: Any) -> Mapping[str, Any]:
    presets = entry.declared.presets
    if str(name) not in presets:
        raise SelectorError(unknown(f"preset of {entry.name}", str(name), presets))
    return presets[str(name)]


def construct(entry: Entry, parameters: Mapping[str, Any]) -> Any:
    """The plugin with these hyperparameters; text is converted to each field's type.

    Raises:
        SelectorError: Naming the parameter, the value and what was expected.
    """
    hints = _hints(entry.cls)
    values = {
        key: None if str(value).lower() == "none" and _optional(hints[key]) else value
        for key, value in parameters.items()
    }
    for key, value in values.items():
        if any(_infinite(v) for v in _listed(value)):
            raise SelectorError(f"{entry.name}[{key}={_format(value)}]: {key} should be finite")
    try:
        return _adapter(entry.cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if first["type"] == "missing":
            raise SelectorError(f"{entry.kind} {entry.name!r} needs {field}=…") from error
        given = f"{field}={_format(values[field])}" if field in values else f"{values}"
        raise SelectorError(f"{entry.name}[{given}]: {field} {message}".strip()) from error
    # the class is anybody's: whatever its __post_init__ raises, sys.exit too
    except (Exception, SystemExit) as error:
        reason = sentence(error, lambda file: str(file) == inspect.getsourcefile(entry.cls))
        raise SelectorError(
            f"{entry.kind} {format_selector(entry.name, values)} cannot be made: {reason}"
        ) from error


def _infinite(value: Any) -> bool:
    try:
        return not math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(cls)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        reason = str(error).split("\n")[0]
        raise SelectorError(
            f"{cls.__name__} has a field whose type is not supported: {reason}; "
            f"use int, float, bool, str, Literal or tuples of them"
        ) from error


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


def _fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    """The hyperparameters: a field that is not compared says where things are, not what is done."""
    return tuple(field for field in dataclasses.fields(cls) if field.compare)


def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _is_list(hint: Any) -> bool:
    options = typing.get_args(hint) if _optional(hint) else (hint,)
    return any(typing.get_origin(option) in (tuple, list) for option in options)


def _grid(field: dataclasses.Field[Any], cls: type[Any], value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    if _is_list(_hints(cls)[field.name]):
        return value if all(isinstance(v, list) for v in value) else [value]
    return value


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _format(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{','.join(_format(v) for v in value)}]"
    if isinstance(value, bool | None):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    text = str(value)
    return text if _TOKEN.fullmatch(text) else f'"{text}"' if "'" in text else f"'{text}'"


def scalar(text: Any) -> Any:
    """A value of a selector that has no declared type, read as YAML reads it: ``32`` is an int."""
    import yaml

    if isinstance(text, list):
        return [scalar(t) for t in text]
    try:
        return yaml.safe_load(text) if isinstance(text, str) else text
    except yaml.YAMLError as error:
        raise SelectorError(f"{text!r} is not a number, a word, true, false or none") from error


def suite_files() -> dict[str, Path]:
    """Every installed suite's file by its name."""
    files = {}
    for root in entry_roots():
        spec = find_spec(root)
        for place in (spec.submodule_search_locations or []) if spec else []:
            files.update({f.stem: f for f in sorted(Path(place).glob("suites/*.yaml"))})
    return files


def load_suite(name: str) -> Suite:
    """The suite called ``name``, or the one in the YAML file of that path.

    Raises:
        SelectorError: If there is none, or the file is not a suite.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else suite_files().get(name)
    if path is None or not path.is_file():
        raise SelectorError(unknown("suite", f"@{name}", (f"@{suite}" for suite in suite_files())))
    return read_document("suite", path, Suite)


def read_document(kind: str, path: Path, model: type[D]) -> D:
    """The YAML file at ``path`` as a ``model``, whose ``name`` is the file's.

    Raises:
        SelectorError: If it is not one, with what is wrong and where.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return model.model_validate({"name": path.stem, **content})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise SelectorError(f"{kind} file {str(path)!r} is not YAML of a {kind}") from error
    except ValidationError as error:
        found = error.errors()
        strange = [e for e in found if e["type"] == "extra_forbidden" and len(e["loc"]) == 1]
        first = (strange or found)[0]  # a mistyped key is missing as well
        where = ".".join(str(part) for part in first["loc"])
        if strange:
            reason = unknown("key", where, (k for k in model.model_fields if k != "name"))
        else:
            reason = f"{where}: {first['msg'].removeprefix('Value error, ')}"
        raise SelectorError(f"{kind} file {str(path)!r}: {reason}") from error
