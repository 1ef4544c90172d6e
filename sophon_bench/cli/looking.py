"""Commands that show what there is: list, show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sophon_bench.plugins.registry import Registry
from sophon_bench.cli.common import (
    KINDS,
    Refused,
    image_size_option,
    load_plugins,
    plugin_option,
    presets_of,
    store_option,
)


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("pattern", required=False)
@plugin_option
def list_(kind: str, pattern: str | None, plugin: Sequence[Path]) -> None:
    """List what can be run; PATTERN keeps names that contain it.

    \b
    Examples:
      sophon-bench list attacks
      sophon-bench list backbones resnet
    """
    load_plugins(plugin)
    lines = [(n, s) for n, s in _listing(kind) if pattern is None or pattern in n]
    if not lines:
        raise Refused(f"no {kind} with {pattern!r} in the name; try 'sophon-bench list {kind}'")
    width = max(len(name) for name, _ in lines)
    for name, summary in lines:
        click.echo(f"{name:{width}}  {summary}".rstrip())


def _listing(kind: str) -> list[tuple[str, str]]:
    if kind == "backbones":
        from sophon_bench.execution.runs import list_backbones

        return [(name, "") for name in list_backbones()]
    if kind == "suites":
        from sophon_bench.plugins.suites import load_suite, suite_files

        suites = [load_suite(name) for name in sorted(suite_files())]
        return [(f"@{s.name}", f"v{s.version}: {s.description}") for s in suites]
    if kind == "studies":
        from sophon_bench.leaderboard.studies import load_study, study_files

        studies = [load_study(name) for name in study_files()]
        return [(study.name, f"v{study.version}: {study.question}") for study in studies]
    registry = _registries()[kind]
    entries = [registry.get(name) for name in registry.names()]
    return [
        (e.name, e.summary.replace("``", "") + (" (control)" if e.control else "")) for e in entries
    ]


def _registries() -> dict[str, Registry]:
    from sophon_bench.plugins.registry import attacks, defenses, scenarios

    return {"attacks": attacks, "defenses": defenses, "scenarios": scenarios}


@click.command()
@click.argument("name")
@click.option(
    "--images",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw samples of a scenario's domains.",
)
@image_size_option
@plugin_option
@store_option
def show(
    name: str,
    images: Path | None,
    image_size: int | None,
    plugin: Sequence[Path],
    store: str | None,
) -> None:
    """Show an attack, a defense, a scenario, a @suite or a backbone.

    \b
    Examples:
      sophon-bench show sophon-ice
      sophon-bench show @paper
      sophon-bench show glyphs-digits --images glyphs.png
      sophon-bench show resnet18
    """
    from sophon_bench.plugins import registry
    from sophon_bench.plugins.selectors import parse
    from sophon_bench.plugins.suites import load_suite, suite_files

    load_plugins(plugin)
    if name.startswith("@"):
        suite = load_suite(name[1:])
        click.echo(f"@{suite.name}, version {suite.version}: {suite.description}")
        click.echo("\n".join(f"  {trial}" for trial in suite.trials))
        return
    bare = parse(name).name
    holders = {kind: r for kind, r in _registries().items() if bare in r.names()}
    if images is not None and "scenarios" not in holders:
        raise Refused(f"--images draws scenarios; {name!r} is none (see 'list scenarios')")
    for kind, holder in holders.items():
        _show_plugin(holder.get(bare))
        if kind == "scenarios":
            _show_scenario(name, image_size, images, store)
    if not holders:
        from sophon_bench.execution.runs import list_backbones

        known = {*list_backbones(), *(n for r in _registries().values() for n in r.names())}
        if bare.split(".")[0] not in known:
            suites = [f"@{suite}" for suite in suite_files()]
            hint = "'sophon-bench list KIND' shows what there is"
            raise Refused(registry.unknown("name", bare, {*known, *suites}, otherwise=hint))
        _show_backbone(name)


def _show_plugin(entry: Any) -> None:
    import inspect

    from sophon_bench.plugins.selectors import accepted

    click.echo(f"{entry.kind} {entry.name}" + (" (control)" if entry.control else ""))
    click.echo(f"from {entry.distribution}, source {entry.source[:12]}\n")
    for cls in entry.cls.__mro__:
        if dataclasses.is_dataclass(cls):
            click.echo(inspect.cleandoc(cls.__doc__ or "") + "\n")
    for field in dataclasses.fields(entry.cls):
        click.echo(f"  {field.name} = {field.default!r}  ({accepted(entry.cls, field.name)})")
    for preset, text in presets_of(entry).items():
        click.echo(f"  preset={preset}: {text}")
    for field, grid in entry.declared.tuning.items():
        click.echo(f"  tuning {field}: {', '.join(map(str, grid))}")


def _show_scenario(
    name: str, image_size: int | None, images: Path | None, store: str | None
) -> None:
    from sophon_bench.execution.runs import build, find_scenarios
    from sophon_bench.results.store import Store, default_root

    (trial,) = find_scenarios([name], image_size)
    data = build(trial, Store(store or default_root()).data)
    click.echo(f"\ndata revision {data.revision}, {data.image_size}x{data.image_size} pixels")
    for domain in data.domains:
        splits = ", ".join(f"{split} {len(i)}" for split, i in domain.splits.items())
        click.echo(f"  {domain.name}: {len(domain.classes)} classes; {splits}")
    if images is not None:
        from sophon_bench.data.sheet import contact_sheet

        try:
            contact_sheet(data, images)
        except (OSError, ValueError) as error:
            raise Refused(f"--images {str(images)!r} cannot be written: {error}") from error
        click.echo(f"samples drawn to {images}")


def _show_backbone(name: str) -> None:
    import torch

    from sophon_bench.execution.runs import find_backbone

    backbone = find_backbone(name)
    outputs = 10 if backbone.task == "classification" else 3
    model = backbone.build(outputs, torch.Generator(), fresh=True)
    count = sum(p.numel() for p in model.parameters())
    click.echo(
        f"backbone {name}, for {backbone.task}: {count / 1e6:.2f} M parameters with {outputs} "
        f"outputs"
    )
    for path, block in model.blocks():
        size = sum(p.numel() for p in block.parameters())
        click.echo(f"  {path}: {type(block).__name__}, {size / 1e6:.3f} M")
