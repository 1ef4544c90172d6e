"""Commands about sets of images: data list, prepare, check."""

from __future__ import annotations

from collections.abc import Sequence

import click

from sophon_bench.cli import options

names = click.argument("names", nargs=-1, required=True, metavar="NAME...")


@click.group("data")
def data() -> None:
    """List, convert and verify published sets and folders of images.

    \b
    Examples:
      sophon-bench data list --data ~/sets
      sophon-bench data prepare imagenette cifar10 --data ~/sets --download
      sophon-bench data check folder:flowers
    """


@data.command("list")
@options.data_folder
def list_() -> None:
    """List published sets: size, licence, where each is expected, and whether it is there."""
    from tabulate import tabulate

    from sophon_bench.data.preparing import Row, rows

    click.echo(tabulate(rows(), headers=Row._fields, tablefmt="plain", disable_numparse=True))


@data.command()
@names
@options.data_folder
@click.option(
    "--download/--offline",
    default=False,
    help="Download what is not there, from where it stopped; offline, the network is not touched.",
)
@options.count("--image-size", "Size of the images.", default=64, least=16)
@options.store
def prepare(names: Sequence[str], download: bool, image_size: int, store: str | None) -> None:
    """Decode sets and folder:PATH once, into the cache that scenarios read."""
    from sophon_bench.data.preparing import prepare
    from sophon_bench.results.store import Store, default_root

    cache = Store(store or default_root()).data
    for name in names:
        click.echo(prepare(name, size=image_size, cache=cache, download=download))


@data.command()
@names
@options.data_folder
def check(names: Sequence[str]) -> None:
    """Read every image of sets and folder:PATH, and compare sums and counts."""
    from sophon_bench.data.preparing import check

    for name in names:
        click.echo(check(name))
