"""Commands about plugins and this machine: list, show, info, check, new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sophon_bench.cli import options
from sophon_bench.cli.common import Refused

if TYPE_CHECKING:
    from sophon_bench.testing import Finding

PLACES = {
    "attack": "attacks/", "defense": "defenses/", "scenario": "sophon_bench/data/scenarios/",
}  # fmt: skip
"""Where plugins of a kind live, by kind."""

KINDS = ("attacks", "defenses", "scenarios", "backbones", "suites", "studies")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("pattern", required=False)
@options.plugins()
def list_(kind: str, pattern: str | None) -> None:
    """List what can be run, with PATTERN in the name.

    \b
    Examples:
      sophon-bench list attacks
      sophon-bench list backbones resnet
    """
    from sophon_bench.leaderboard.catalogue import listing

    lines = [(n, s) for n, s in listing(kind) if pattern is None or pattern in n]
    if not lines:
        raise Refused(f"no {kind} with {pattern!r} in the name; try 'sophon-bench list {kind}'")
    width = max(len(name) for name, _ in lines)
    for name, summary in lines:
        click.echo(f"{name:{width}}  {summary}".rstrip())


@click.command()
@click.argument("name")
@options.path("--images", "Draw samples of a scenario's domains, as PNG.", type=options.FILE)
@options.image_size
@options.data_folder
@options.plugins()
@options.store
def show(name: str, images: Path | None, image_size: int | None, store: str | None) -> None:
    """Show an attack, a defense, a scenario, a @suite or a backbone.

    \b
    Examples:
      sophon-bench show sophon-ice
      sophon-bench show @paper
      sophon-bench show glyphs-digits --images glyphs.png
      sophon-bench show resnet18
    """
    from sophon_bench.leaderboard.catalogue import explained

    for line in explained(name, image_size, images, store):
        click.echo(line)


@click.command()
@options.flag("--json as_json", "Print JSON.")
@options.data_folder
@options.store
def info(as_json: bool, store: str | None) -> None:
    """Print versions, devices, data, caches and plugins.

    \b
    Examples:
      sophon-bench info
      sophon-bench info --json
    """
    from sophon_bench.execution.facts import facts

    found = facts(store)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    width = max(len(name) for values in found.values() for name in values)
    for topic, values in found.items():
        click.echo(topic)
        for name, value in values.items():
            click.echo(f"  {name:{width}}  {_said(value)}")


def _said(value: object) -> str:
    """A fact in words: lists with commas, counts by name, ``none`` for what there is not."""
    if isinstance(value, dict):
        return ", ".join(f"{count} of {name}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


@click.command()
@click.argument("file", metavar="PLUGIN.py", type=options.PATH)
@options.option("--name", "Check only this plugin of the file.", metavar="NAME")
@options.option("--backbone", "timm model to check with.", default=options.DEFAULT_BACKBONE)
def check(file: Path, name: str | None, backbone: str) -> int:
    """Check that the plugins of a file keep the contract, in seconds.

    The file is executed: every attack, defense and scenario runs with its defaults on a small
    bench. A backbone with dropout hides draws from the global generator.

    \b
    Examples:
      sophon-bench check my_attack.py
      sophon-bench check my_attack.py --backbone test_vit

    Exit codes: 0 all checks passed, 1 some failed, 2 bad input.
    """
    from sophon_bench import library

    plugin = ""

    def show(finding: Finding) -> None:
        nonlocal plugin
        if finding.plugin != plugin:
            plugin = finding.plugin
            click.echo(plugin)
        click.echo(f"  {finding.outcome:8} {finding.check:14} {finding.words}".rstrip())

    report = library.check(file, name=name, backbone=backbone, show=show)
    outcomes = [finding.outcome for finding in report.findings]
    known = [kind for kind in ("passed", "FAILED", "warning", "skipped") if kind in outcomes]
    click.echo(", ".join(f"{outcomes.count(kind)} {kind}" for kind in known))
    return 0 if report.passed else 1


@click.command()
@click.argument("kind", type=click.Choice([*PLACES]))
@click.argument("name")
@options.path("--dir folder", "Folder to write to; by default this one.", default=".")
def new(kind: Any, name: str, folder: Path) -> None:
    """Write a plugin that works as it is, and its test.

    \b
    Examples:
      sophon-bench new attack my-attack
      sophon-bench new defense my-defense --dir plugins
      sophon-bench new scenario my-scenario
    """
    from sophon_bench.plugins.authoring import write_plugin

    file, *tests = write_plugin(kind, name, folder)
    plugin = f"--plugin {file} " if tests else ""
    place = f"commit {file.name}"
    if tests:
        place = f"move {file.name} into {PLACES[kind]} of the repository"
    click.echo(
        f"wrote {' and '.join(map(str, [file, *tests]))}; next:\n"
        f"  sophon-bench check {file}\n"
        f"  sophon-bench run {plugin}--{kind} {name}\n"
        f"  {place} and open a pull request"
    )
