"""``@suite`` -> trials: named lists of attack trials, and all that an attacker of a run has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sophon_bench.plugins.registry import (
    Registry,
    UnknownName,
    entry_folders,
    name_problem,
    unknown,
)
from sophon_bench.plugins.selectors import SelectorError, Trial, expand, names_of, parse, split_name

ALL = "@all"
"""Stands for every plugin of a kind that is in lists, with its defaults."""

D = TypeVar("D", bound=BaseModel)


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


def trials(registry: Registry, selectors: Iterable[str]) -> list[Trial]:
    """All trials that ``selectors`` stand for, in order, each once.

    Raises:
        SelectorError: For a malformed selector, an unknown suite, parameter or value.
        UnknownName: For a name that is not registered.
    """
    listed: list[tuple[str, str]] = []
    for text in selectors:
        if text == ALL:
            listed += [(name, "") for name in registry.names()]
        elif text.startswith("@"):
            suite = load_suite(text[1:])
            listed += [(selector, suite.label) for selector in suite.trials]
        else:
            listed.append((text, ""))
    return _trials(registry, listed)


def _trials(registry: Registry, listed: Iterable[tuple[str, str]]) -> list[Trial]:
    """All trials of plain selectors, each with the labels of its suites."""
    found: dict[str, Trial] = {}
    for text, suite in listed:
        for trial in _expanded(registry, text):
            key = f"{trial.name}{trial.parameters}"
            known = found.get(key, trial)
            names = [*dict.fromkeys(filter(None, (known.given_name, trial.given_name)))]
            if len(names) > 1:
                raise SelectorError(f"{' and '.join(map(repr, names))} name one: {trial.label}")
            suites = tuple(dict.fromkeys([*known.suites, *filter(None, [suite])]))
            found[key] = dataclasses.replace(known, suites=suites, given_name="".join(names))
    names_of(found.values())
    return list(found.values())


def _expanded(registry: Registry, text: str) -> list[Trial]:
    try:
        return expand(registry, text)
    except UnknownName as error:
        name = parse(split_name(text)[1]).name
        if name not in suite_files():
            raise
        raise UnknownName(f"unknown {registry.kind} {name!r}; did you mean '@{name}'?") from error


def arsenal(registry: Registry, selectors: Sequence[str]) -> Arsenal:
    """The trials that ``selectors`` stand for with the rules and recipes of their suites.

    Where several suites have rules, the most thorough of each holds for all trials. ``times`` is
    the largest of the suites that continue trials.

    Raises:
        SelectorError: For a malformed selector, an unknown suite, parameter or value.
        UnknownName: For a name that is not registered.
    """
    suites = [load_suite(t[1:]) for t in selectors if t.startswith("@") and t != ALL]
    rules = [suite.search for suite in suites] or [Rules()]
    most = {key: max(getattr(rule, key) for rule in rules) for key in Rules.model_fields}
    most["times"] = max((r.times for r in rules if r.continued), default=most["times"])
    recipes = [(text, suite.label) for suite in suites for text in suite.trainability]
    return Arsenal(
        trials(registry, selectors), rules[0].model_copy(update=most), _trials(registry, recipes)
    )


def suite_files() -> dict[str, Path]:
    """Every installed suite's file by its name."""
    return {
        file.stem: file
        for folder in entry_folders()
        for file in sorted(folder.glob("suites/*.yaml"))
    }


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
    """The YAML or JSON file at ``path`` as a ``model``, whose ``name`` is the file's.

    Raises:
        SelectorError: If it is not one, with what is wrong and where.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        return model.model_validate({"name": path.stem, **content})
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise SelectorError(f"{kind} file {str(path)!r} is not YAML of a {kind}") from error
    except ValidationError as error:
        found = error.errors()
        strange = [e for e in found if e["type"] == "extra_forbidden" and len(e["loc"]) == 1]
        first = (strange or found)[0]  # a mistyped key is missing as well
        where = ".".join(str(part) for part in first["loc"])
        if strange:
            known = sorted({*model.model_fields} - {"name"})
            reason = unknown("key", where, known, otherwise=f"there are: {', '.join(known)}")
        else:
            reason = f"{where}: {first['msg'].removeprefix('Value error, ')}"
        raise SelectorError(f"{kind} file {str(path)!r}: {reason}") from error
