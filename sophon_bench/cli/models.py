"""Commands about released models of published entries: models list, fetch."""

from __future__ import annotations

from pathlib import Path

import click

from sophon_bench.cli import options
from sophon_bench.cli.common import Refused

store = options.option(
    "--store",
    "Directory or URL of a store that has weights, by default the user's own; the one that comes "
    "with the package is looked in as well.",
    metavar="DIR",
    envvar="SOPHON_BENCH_STORE",
)


@click.group()
def models() -> None:
    """List released models of published entries, and fetch their weights.

    Weights are data: their SHA-256 is checked, and nothing of them is executed.

    \b
    Examples:
      sophon-bench models list
      sophon-bench models fetch sophon-ice@glyphs-digits --out zoo
    """


@models.command("list")
@options.option("--entry", "Only models of this entry.", metavar="NAME")
@store
def list_(entry: str | None, store: str | None) -> None:
    """List published models: name, backbone, seed, size, SHA-256, and whether it is here.

    'made again' means that a store has weights of the same recipe and seed, from another
    processor, and not the very ones of the published records.
    """
    from tabulate import tabulate

    from sophon_bench.leaderboard import zoo
    from sophon_bench.plugins.registry import unknown

    found = zoo.published()
    if entry is not None:
        known = {name for model in found for name in model.entries}
        if entry not in known:
            raise Refused(unknown("published entry", entry, known))
        found = [model for model in found if entry in model.entries]
    stores = zoo.places(store)
    rows = []
    for model in found:
        copy = zoo.find(model, stores)
        here = "no" if copy is None else "as published" if copy.as_published else "made again"
        record = model.record if copy is None else copy.record
        size = "" if copy is None else f"{copy.size / 1e6:.1f} MB"
        digest = str(record.weights)[:12]
        names = ", ".join(model.entries)
        rows.append((model.name, record.backbone, record.seed, size, digest, here, names))
    headers = ("model", "backbone", "seed", "size", "sha256", "here", "entry")
    click.echo(tabulate(rows, headers, tablefmt="plain", disable_numparse=True))


@models.command()
@click.argument("name", metavar="DEFENSE@SCENARIO[:seed=K]")
@options.backbone("Which one, where several are published.")
@store
@options.option(
    "--out",
    "Store to copy it into; by default the user's own, in the cache directory.",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
)
def fetch(name: str, backbone: str | None, store: str | None, out: Path | None) -> None:
    """Copy a published model into a store, with the pre-trained model before it.

    A later 'run' in that store attacks it without making it first.

    \b
    Example:
      sophon-bench models fetch sophon-ice@glyphs-digits --out zoo
      sophon-bench run --defense sophon-ice --attack 'finetune[lr=0.03]' --store zoo
    """
    from sophon_bench.leaderboard import zoo
    from sophon_bench.results.store import Store, default_root

    copy = zoo.needed(zoo.named(name, zoo.published(), backbone=backbone), zoo.places(store))
    for line in zoo.fetch(copy, Store(out or default_root())):
        click.echo(line)
    if not copy.as_published:
        click.echo(f"note: {copy.difference}", err=True)
