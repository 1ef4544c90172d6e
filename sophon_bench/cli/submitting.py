"""Commands for published results: submit, verify."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sophon_bench.results.records import Records

from sophon_bench.cli.common import (
    SCORING_SUITE,
    Refused,
    check_writable,
    complete,
    device_option,
    load_plugins,
    make_directory,
    plugin_option,
    read_records,
    store_option,
    threads_option,
    workers_option,
    write_json,
)


@click.command()
@click.option(
    "--records",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of 'run --json'; by default the records in the store.",
)
@click.option(
    "--defense",
    multiple=True,
    metavar="SELECTOR",
    shell_complete=complete("defense"),
    help="Only this one of the records' defenses. Repeatable.",
)
@click.option("--name", required=True, help="Of the entry's file, such as 'acme-shield'.")
@click.option("--title", required=True, help="Of what is submitted, for people.")
@click.option("--authors", required=True, help="Who stands for it, separated by commas.")
@click.option("--link", required=True, help="Where the method is described: https://…")
@click.option(
    "--suite",
    default=SCORING_SUITE,
    show_default=True,
    metavar="@SUITE",
    help="What every defense has to have met.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where NAME.jsonl goes; in the repository, leaderboard/results.",
)
@plugin_option
@store_option
def submit(
    source: Path | None,
    defense: Sequence[str],
    name: str,
    title: str,
    authors: str,
    link: str,
    suite: str,
    out: Path,
    plugin: Sequence[Path],
    store: str | None,
) -> None:
    """Make an entry for the leaderboard of the records of a run.

    Checks that nothing is left out: every trial of the suite, its search and its runs on benign
    domains, against the defense and the undefended model, and fresh weights, on the same seeds.
    What is missing is said, all of it, and nothing is written then.

    \b
    Example:
      sophon-bench run --defense my-defense --attack @standard --seeds 0-4 --json mine.json
      sophon-bench submit --records mine.json --name my-defense --title 'My defense' \\
        --authors 'A. Author, B. Author' --link https://arxiv.org/abs/2404.12699 \\
        --out leaderboard/results
    """
    import msgspec

    from sophon_bench.leaderboard import entries

    load_plugins(plugin)
    records = read_records(source, store)
    defenses = [m.defense for m in records.models.values() if m.defense is not None]
    known = {each.label for each in defenses if not each.control}
    for label in defense:
        if label not in known:
            raise Refused(f"no records of {label!r}; there are {', '.join(sorted(known))}")
    if defense:
        records = records.of_defenses(lambda other: other.label in defense)
    _check_complete(records, suite)
    head = {
        "name": name,
        "title": title,
        "authors": [author.strip() for author in authors.split(",") if author.strip()],
        "link": link,
        "submitted": max(cell.provenance.finished for cell in records.cells)[:10],
    }
    try:
        entry = entries.Entry.of(head, records)
    except msgspec.ValidationError as error:
        raise Refused(f"the entry is not well-formed: {error}") from error
    make_directory(out)
    file = entries.write(entry, out)
    click.echo(f"{file}: {len(records.cells)} records of {', '.join(sorted(defense or known))}")
    click.echo(f"next: sophon-bench verify {file}")


def _check_complete(records: Records, suite: str) -> None:
    """Say all of a suite that records lack, and refuse them if there is something."""
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.leaderboard.submitting import Suite, faults
    from sophon_bench.plugins.registry import attacks
    from sophon_bench.plugins.suites import arsenal, load_suite

    label = load_suite(suite.removeprefix("@")).label
    found = faults(records, Suite(label=label, arsenal=arsenal(attacks, [suite])), published())
    for fault in found:
        click.echo(f"missing: {fault}", err=True)
    if found:
        raise Refused(f"{len(found)} things stand against publishing these records")


@click.command()
@click.argument("file", metavar="ENTRY.jsonl", type=click.Path(path_type=Path))
@click.option(
    "--cells",
    "count",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="K",
    help="How many records are made again; with 0 the file alone is checked, and no plugin needed.",
)
@click.option(
    "--suite",
    metavar="@SUITE",
    help="Check too that nothing of this suite is left out, as submit does.",
)
@click.option(
    "--draw",
    type=int,
    metavar="N",
    help="Seed of the draw of records, to repeat one; by default a new one, which is printed.",
)
@click.option("--dry-run", is_flag=True, help="Check the file, say what would be run, and stop.")
@device_option
@workers_option
@threads_option
@plugin_option
@click.option(
    "--store",
    metavar="DIR",
    help="Where the work goes, to go on after an interruption; by default it is thrown away. "
    "A store that the entry was made from would repeat nothing, and is refused.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the comparison there.",
)
@click.pass_context
def verify(context: click.Context, /, **options: Any) -> None:
    """Make randomly chosen records of an entry again, and say whether they come out as reported.

    Models are pre-trained and protected again too. Nothing in the file is executed; the plugins
    that it names are those installed here, and if they are of another version, that is said.

    \b
    Examples:
      sophon-bench verify leaderboard/results/sophon.jsonl
      sophon-bench verify mine.jsonl --cells 0 --suite @standard
      sophon-bench verify mine.jsonl --cells 10 --workers 2 --plugin my_defense.py

    Exit codes: 0 reproduced, 1 not reproduced, 2 not comparable, or bad input.
    """
    context.exit(_verify(**options))


def _verify(
    *,
    file: Path,
    count: int,
    suite: str | None,
    draw: int | None,
    dry_run: bool,
    device: str,
    workers: int,
    threads: int | None,
    plugin: Sequence[Path],
    store: str | None,
    json_file: Path | None,
) -> int:
    from sophon_bench.execution import runs
    from sophon_bench.leaderboard import answers as analysis
    from sophon_bench.leaderboard import entries, tables
    from sophon_bench.leaderboard.columns import AGREEMENTS
    from sophon_bench.leaderboard.render import Flat, flat_rows, to_console
    from sophon_bench.results import Results

    load_plugins(plugin)
    if json_file is not None:
        check_writable("--json", json_file)
    entry = entries.read(file)
    click.echo(f"{file} is whole: {len(entry.records.cells)} records")
    if suite is not None:
        _check_complete(entry.records, suite)
        click.echo(f"nothing of {suite} is left out")
    if count == 0:
        return 0
    drawn = random.SystemRandom().randrange(10**6) if draw is None else draw
    able = [cell for cell in entry.records.cells if cell.status in ("ok", "diverged")]
    cells = random.Random(drawn).sample(able, min(count, len(able)))
    records = entry.records.only({cell.key for cell in cells})
    click.echo(f"made again: {len(cells)} of {len(able)}, --draw {drawn}")
    with _workplace(store) as place:
        job = runs.again(
            records,
            runs.Options(
                device=device, workers=workers, threads=threads, plugin=plugin, store=place
            ),
        )
        for cell in cells:
            if job.store.has_cell(cell.key) and job.store.cell(cell.key) == cell:
                raise Refused(
                    f"store {str(place)!r} has the very records of the entry; name another"
                )
            click.echo(
                f"  {cell.attack.label} against {records.defense(cell).label}, "
                f"seed {records.model(cell).seed}"
            )
        if dry_run:
            return 0
        made = job.run()
    found = analysis.agreements(Results.of(records), Results.of(made))
    rows = flat_rows(Flat(frames=[found], columns=AGREEMENTS))
    click.echo(to_console([tables.agreements(entry.name, found)]), nl=False)
    if json_file is not None:
        write_json(json_file, {"entry": entry.name, "draw": drawn, "cells": rows})
    differing = sum(row["agreement"] == "differs" for row in rows)
    verdict = f"not reproduced: {differing} of {len(rows)} differ" if differing else "reproduced"
    click.echo(verdict)
    return 1 if differing else 0


@contextlib.contextmanager
def _workplace(store: str | None) -> Iterator[str]:
    """Where cells are made again: a directory that is thrown away, if none is named."""
    import tempfile

    if store is not None:
        yield store
    else:
        with tempfile.TemporaryDirectory(prefix="sophon-bench-") as made:
            yield made
