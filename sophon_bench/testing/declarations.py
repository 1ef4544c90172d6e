"""Checks of a plugin's class, before anything is run, and of what a reader finds in it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator

from sophon_bench.plugins.authoring import PLACEHOLDER
from sophon_bench.plugins.registry import Entry
from sophon_bench.plugins.selectors import SelectorError, Trial, construct

CITATION = re.compile(r"reference:|doi\b|10\.\d{4,}/|arxiv", re.IGNORECASE)


def declaration_problem(entry: Entry) -> str | None:
    """What is wrong with the class."""
    method = "build" if entry.kind == "scenario" else "run"
    if not entry.cls.__dataclass_params__.frozen:
        return "the dataclass is not frozen; write @dataclass(frozen=True, kw_only=True)"
    if not hasattr(entry.cls, method):
        return f"{entry.cls.__name__} has no method {method!r}"
    for field in dataclasses.fields(entry.cls):
        if field.default is dataclasses.MISSING:
            return (
                f"hyperparameter {field.name!r} has no default value; give it one, so that the "
                f"plugin runs by its name alone"
            )
    try:
        trial = Trial(entry, construct(entry, {}))
        again = construct(entry, trial.parameters)
    except SelectorError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__} with the default hyperparameters: {error}"
    if again != trial.plugin:
        return "the default hyperparameters are not the same once read from a record"
    return None


def undocumented(entry: Entry) -> Iterator[str]:
    """What a reader will miss."""
    about = sys.modules[entry.cls.__module__].__doc__ or ""
    if PLACEHOLDER in about:
        yield f"the module docstring still has {PLACEHOLDER!r} where the citation goes"
    elif not CITATION.search(about):
        yield "the module docstring has no citation: add a line 'Reference: …, arXiv 0000.00000'"
    own = entry.cls.__doc__ or ""
    if not own.strip() or own.startswith(f"{entry.cls.__name__}("):
        yield "the class has no docstring; say in a sentence what is minimised or moved"
    documented = "".join((c.__doc__ or "").partition("Args:")[2] for c in entry.cls.__mro__[:-1])
    names = [f.name for f in dataclasses.fields(entry.cls)]
    missing = [n for n in names if not re.search(rf"^\s*{n}:", documented, re.MULTILINE)]
    if missing:
        yield f"not documented under 'Args:' of the class: {', '.join(missing)}"
