"""A new plugin from a template: a file that works as it is, and a test of it."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from sophon_bench.plugins import registry
from sophon_bench.plugins.failures import BadInput

Kind = Literal["attack", "defense", "scenario"]

PLACEHOLDER = "AUTHORS, TITLE, VENUE YEAR"
"""What the templates have where the citation goes; the conformance checks warn of it."""


class AuthoringError(BadInput, ValueError):
    """A plugin that cannot be written as asked; one line."""


def write_plugin(kind: Kind, name: str, folder: Path) -> list[Path]:
    """Write ``NAME.py`` and ``test_NAME.py``, with underscores for dashes, and return them.

    In a folder of installed plugins no test is written: there, the tests of the project run every
    plugin, and every module counts as one.

    Raises:
        AuthoringError: If the name will not do or is taken, or a file exists or cannot be written.
    """
    module = name.replace("-", "_")
    file, test = folder / f"{module}.py", folder / f"test_{module}.py"
    if not folder.is_dir():
        raise AuthoringError(f"--dir {str(folder)!r} is not a directory that exists")
    _check_name(kind, name)
    wanted = [file] if _is_plugin_package(folder) else [file, test]
    for path in wanted:
        if path.exists():
            raise AuthoringError(
                f"{str(path)!r} exists and is not overwritten; choose another name or --dir"
            )
    _check_module(name, module)
    words = {"name": name, "module": module, "cls": _class_name(kind, name)}
    words |= {"file": file.name, "test": test.name, "placeholder": PLACEHOLDER}
    for path, template in zip(wanted, (kind, "test"), strict=False):
        try:
            with path.open("x", encoding="utf-8") as opened:
                opened.write(Template(_template(template)).substitute(words))
        except OSError as error:
            raise AuthoringError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    return wanted


def _check_name(kind: Kind, name: str) -> None:
    if problem := registry.name_problem(name):
        raise AuthoringError(f"{kind} name {problem}")
    if name[0].isdigit():
        raise AuthoringError(
            f"{kind} name {name!r} should begin with a letter, as the name of a Python module does"
        )
    if name in registry.declared_names(kind):
        raise AuthoringError(
            f"{kind} {name!r} exists ('sophon-bench show {name}'); choose another name"
        )


def _check_module(name: str, module: str) -> None:
    if keyword.iskeyword(module):
        raise AuthoringError(f"{name!r} is a Python keyword; choose another name")
    if module.startswith("test_") or module.endswith("_test"):
        raise AuthoringError(f"pytest would collect {module}.py as a test; choose another name")
    if module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise AuthoringError(
            f"{module}.py would hide the installed Python module {module!r}; choose another name, "
            f"'my-{name}' for instance"
        )


def _class_name(kind: Kind, name: str) -> str:
    """Camel case; with the kind behind it where the template uses the word already."""
    camel = "".join(word.capitalize() for word in name.split("-"))
    taken = keyword.iskeyword(camel) or re.search(rf"\b{camel}\b", _template(kind))
    return camel + kind.capitalize() if taken else camel


def _template(name: str) -> str:
    folder = files("sophon_bench").joinpath("plugins", "templates")
    return folder.joinpath(f"{name}.py.txt").read_text("utf-8")


def _is_plugin_package(folder: Path) -> bool:
    """Whether discovery walks this folder."""
    return any(folder.resolve().is_relative_to(f.resolve()) for f in registry.entry_folders())
