"""Hooks of MkDocs: pages made from the registry and from files at the top of the repository.

A link to a file of the repository that is no page of the site is shown as its path.
"""

from __future__ import annotations

import dataclasses
import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from tabulate import tabulate

from sophon_bench.analysis.flags import FLAGS
from sophon_bench.cli import main
from sophon_bench.leaderboard.catalogue import presets_of
from sophon_bench.library import load_results
from sophon_bench.plugins.registry import Entry, Registry, attacks, defenses, scenarios
from sophon_bench.plugins.selectors import accepted
from sophon_bench.plugins.suites import load_suite, suite_files

ROOT = Path(__file__).parent.parent
TOP = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LEADERBOARD.md": "leaderboard.md",
}
"""Pages of the site by the file of the repository that they are made from."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/attacks.md": catalogue("Attacks", ATTACKS, attacks),
        "reference/defenses.md": catalogue("Defenses", DEFENSES, defenses),
        "reference/scenarios.md": catalogue("Scenarios", SCENARIOS, scenarios),
        "reference/suites.md": suites(),
        "reference/cli.md": "\n".join(["# Command line", *commands(main, "sophon-bench")]),
    }
    pages |= {to: (ROOT / source).read_text(encoding="utf-8") for source, to in TOP.items()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    source = next((top for top, target in TOP.items() if target == here), f"docs/{here}")
    rules = [f"- `{flag.__name__}`: {(flag.__doc__ or '').splitlines()[0]}" for flag in FLAGS]
    markdown = markdown.replace("<!-- flags -->", "\n".join(rules))
    if COLUMNS in markdown:
        markdown = markdown.replace(COLUMNS, "\n".join(columns()))
    markdown = PICTURE.sub(r"![\2](\1)", markdown)
    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [LINK.sub(lambda found: _link(found, source, here), part) for part in parts[::2]]
    return DEFINITION.sub(lambda found: found[1] + found[2].removeprefix("docs/"), "".join(parts))


DEFINITION = re.compile(r"^(\[[^\]]+\]: )(docs/\S+)$", re.MULTILINE)
"""Where a link of the form ``[text]`` leads."""

PICTURE = re.compile(r'<picture>.*?<img src="([^"]+)" alt="([^"]*)"></picture>')
"""A picture that GitHub shows by the reader's theme."""

COLUMNS = "<!-- columns -->"


def columns() -> Iterator[str]:
    """The columns of each frame with their types, as published records have them."""
    results = load_results("published/provisional-five-seeds")
    for name in ("models", "cells", "points"):
        frame = getattr(results, name)
        yield f"\n### results.{name}\n"
        yield ", ".join(f"`{column}` ({kind})" for column, kind in frame.dtypes.items())


LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def _link(found: re.Match[str], source: str, here: str) -> str:
    """One link of the file ``source``, on the page ``here``."""
    target = found["target"]
    if re.match(r"[a-z]+:", target):
        return found[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    page = TOP.get(path, path.removeprefix("docs/"))
    if page == path:
        return f"{found['text']} (`{path}`)" if found["text"].strip("`") != path else f"`{path}`"
    relative = posixpath.relpath(page, posixpath.dirname(here) or ".")
    return f"{found['image']}[{found['text']}]({relative}{found['anchor'] or ''})"


ATTACKS = """
Each adapts the released model to the restricted domain. `sophon-bench show NAME` prints the same.
Parameters go in brackets, as in `--attack 'finetune[optimizer=adam,lr=[1e-3,1e-2]]'`, where a list
is a grid. *Works by* is what the masking flags compare ([Masking and canaries](../masking.md)).
"""
DEFENSES = """
Each turns the pre-trained model into the one that is released. How each differs from its
publication, what that claims and what was measured is on [its card](../defenses.md).
"""
SCENARIOS = """
Each has an original, a restricted and benign domains, with sample counts and budgets. For domains
of your own: [Use your own data](../data.md).
"""
SUITES = """
A suite is a named list of trials, and what the attacker does after them. A suite's version is
raised when its trials change; records carry it. A score needs a search and runs on benign domains.
"""


def catalogue(title: str, words: str, registry: Registry) -> str:
    """A page of all plugins of a kind: what each does, its publication and its parameters."""
    entries = [registry.get(name) for name in registry.names()]
    return "\n".join([f"# {title}", words, *(line for e in entries for line in _plugin(e))])


def _plugin(entry: Entry) -> Iterator[str]:
    yield f"## {entry.name}\n"
    texts, told = _described(entry.cls)
    yield from texts
    if entry.reference:
        yield f"Reference: {entry.reference}\n"
    facts = ["a control"] if entry.control else []
    facts += [f"works by: {entry.mechanism}"] if entry.kind == "attack" else []
    if facts:
        yield f"*{'; '.join(facts)}*\n"
    rows = [
        (
            f"`{field.name}`",
            accepted(entry.cls, field.name),
            f"`{field.default!r}`",
            told.get(field.name, ""),
            ", ".join(map(str, entry.declared.tuning.get(field.name, ()))),
        )
        for field in dataclasses.fields(entry.cls)
    ]
    headers = ["parameter", "takes", "default", "meaning", "searched by `tune`"]
    if not entry.declared.tuning:
        rows, headers = [row[:-1] for row in rows], headers[:-1]
    if rows:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        yield tabulate(cells, headers, tablefmt="pipe", disable_numparse=True) + "\n"
    yield from (f"- `preset={name}`: `{text}`" for name, text in presets_of(entry).items())
    yield ""


def _described(cls: type) -> tuple[list[str], dict[str, str]]:
    """A plugin's own text, and the meaning of its parameters, inherited ones included."""
    texts: list[str] = []
    told: dict[str, str] = {}
    for base in cls.__mro__:
        if not dataclasses.is_dataclass(base):
            continue
        docstring = griffe.Docstring(inspect.cleandoc(base.__doc__ or ""))
        for section in docstring.parse("google", warnings=False):
            if section.kind is griffe.DocstringSectionKind.text and base is cls:
                texts.append(section.value + "\n")
            if section.kind is griffe.DocstringSectionKind.parameters:
                for each in section.value:
                    told.setdefault(each.name, " ".join(each.description.split()))
    return texts, told


def suites() -> str:
    """A page of all suites: what each is for, and its trials."""
    pages = ["# Suites", SUITES]
    for name in sorted(suite_files()):
        suite = load_suite(name)
        rules = suite.search
        pages.append(f"## @{suite.name}\n\nVersion {suite.version}. {suite.description}\n")
        pages += [f"- `{trial}`" for trial in suite.trials]
        if rules.refine or rules.continued:
            pages.append(
                f"\nSearch: the step sizes of the best {rules.refine} families are refined; the "
                f"best {rules.continued} trials go on to {rules.times} times the budget."
            )
        if suite.trainability:
            recipes = ", ".join(f"`{trial}`" for trial in suite.trainability)
            pages.append(f"\nOn the benign domains: {recipes}.")
        pages.append("")
    return "\n".join(pages)


def commands(command: click.Command, name: str) -> Iterator[str]:
    """The help of a command and of those below it, as a terminal shows it."""
    context = click.Context(command, info_name=name, **SETTINGS)
    yield f"\n## {name}\n\n```text\n{command.get_help(context)}\n```"
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        yield from commands(each, f"{name} {each.name}")


SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    "terminal_width": 100,
}
