"""Commands for authors of plugins: check, new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sophon_bench.cli.common import (
    DEFAULT_BACKBONE,
    Refused,
)


@click.command()
@click.argument("file", metavar="PLUGIN.py", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Only this one of the file's plugins.")
@click.option(
    "--backbone",
    default=DEFAULT_BACKBONE,
    show_default=True,
    metavar="SELECTOR",
    help="timm model to check with; one with dropout hides draws from the global generator.",
)
@click.pass_context
def check(context: click.Context, /, file: Path, name: str | None, backbone: str) -> None:
    """Check that the plugins of a file keep the contract, in seconds.

    Runs every attack, defense and scenario of the file with its defaults on a small bench.

    \b
    Examples:
      sophon-bench check my_attack.py
      sophon-bench check my_attack.py --backbone test_vit

    Exit codes: 0 all checks passed, 1 some failed, 2 bad input.
    """
    from sophon_bench import testing
    from sophon_bench.execution.runs import find_backbone

    counts = dict.fromkeys(("passed", "FAILED", "warning", "skipped"), 0)
    plugin = ""
    for finding in testing.check_file(file, name=name, backbone=find_backbone(backbone)):
        if finding.plugin != plugin:
            plugin = finding.plugin
            click.echo(plugin)
        counts[finding.outcome] += 1
        click.echo(f"  {finding.outcome:8} {finding.check:14} {finding.words}".rstrip())
    click.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    context.exit(1 if counts["FAILED"] else 0)


@click.command()
@click.argument("kind", type=click.Choice(["attack", "defense"]))
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where to write; by default here.",
)
def new(kind: Any, name: str, folder: Path) -> None:
    """Write a plugin that works as it is, and a test of it, to start from.

    \b
    Examples:
      sophon-bench new attack my-attack
      sophon-bench new defense my-defense --dir plugins
    """
    from sophon_bench.plugins.authoring import AuthoringError, write_plugin

    try:
        file, *tests = write_plugin(kind, name, folder)
    except AuthoringError as error:
        raise Refused(str(error)) from error
    other = f"--defense {name}" if kind == "defense" else f"--attack {name}"
    plugin = f"--plugin {file} " if tests else ""
    click.echo(f"wrote {' and '.join(map(str, [file, *tests]))}; next:")
    click.echo(f"  sophon-bench check {file}")
    click.echo(f"  sophon-bench run {plugin}{other}")
    place = f"move {file.name} into {kind}s/ of the repository" if tests else f"commit {file.name}"
    click.echo(f"  {place} and open a pull request")
