"""Commands about the store of finished work: store verify, gc, push, pull."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import click

from sophon_bench.cli import options
from sophon_bench.cli.common import open_store

if TYPE_CHECKING:
    from sophon_bench.results.store import Store

T = TypeVar("T")


@click.group("store")
def store() -> None:
    """Verify, clean and copy stores of finished work.

    \b
    Examples:
      sophon-bench store verify
      sophon-bench store gc --dry-run
      sophon-bench store push s3://bucket/prefix
      sophon-bench store pull s3://bucket/prefix --store DIR
    """


def _track(items: Iterable[T], title: str) -> Iterable[T]:
    """The items; a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)


@store.command()
@options.store
def verify(store: str | None) -> int:
    """Read every record and every file of weights, and compare them with their keys and hashes.

    Prints what is damaged or missing, and also what nothing refers to and which runs are not
    finished.

    Exit codes: 0 fine, 1 something is damaged or missing, 2 there is no store.
    """
    from sophon_bench.results.upkeep import verify

    found = verify(open_store(store), _track)
    for finding in found.findings:
        click.echo(finding)
    click.echo(
        f"{found.cells} cells, {found.models} models, {found.weights} files of weights "
        f"({_size(found.bytes)}), {found.runs} runs: {'sound' if found.sound else 'damaged'}"
    )
    return 0 if found.sound else 1


@store.command()
@options.store
@options.flag("--dry-run", "Say what would be deleted, and delete nothing.")
def gc(store: str | None, dry_run: bool) -> None:
    """Delete weights that no record refers to, and temporary files, if older than an hour.

    Never deletes a record, and may be used beside a run. Built scenarios are left: their folder
    data may be deleted at any time, and is made again.
    """
    from sophon_bench.results.upkeep import delete, waste

    opened = open_store(store)
    found = waste(opened)
    for each in found:
        click.echo(f"{each.name} ({_size(each.bytes)})")
    freed = sum(each.bytes for each in found) if dry_run else delete(opened, found)
    click.echo(f"{len(found)} files, {_size(freed)} {'would be freed' if dry_run else 'freed'}")


@store.command()
@click.argument("url", metavar="STORE")
@options.store
def push(url: str, store: str | None) -> int:
    """Copy to another store what it lacks.

    STORE is a directory or a URL; it is made if need be. Each record and file is verified before
    it is copied, and nothing that is finished there is written over. A copy that was stopped, also
    by kill -9, is continued by the same command.

    Exit codes: 0 fine, 1 something was left out, and why; 2 there is no such store.
    """
    from sophon_bench.results.store import Store

    return _copied(open_store(store), Store(url))


@store.command()
@click.argument("url", metavar="STORE")
@options.store
def pull(url: str, store: str | None) -> int:
    """Copy from another store what this one lacks; as push, the other way round."""
    from sophon_bench.results.store import Store, default_root

    return _copied(open_store(url), Store(store or default_root()))


def _copied(source: Store, target: Store) -> int:
    from sophon_bench.results.upkeep import copy

    done = copy(source, target, _track)
    for words in done.left_out:
        click.echo(f"left out: {words}", err=True)
    click.echo(
        f"{done.cells} cells, {done.models} models, {done.weights} files of weights "
        f"({_size(done.bytes)}) and {done.runs} runs copied to {target.root}"
    )
    return 1 if done.left_out else 0
