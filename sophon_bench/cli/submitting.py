"""Commands for published results: submit, verify."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sophon_bench.cli import options
from sophon_bench.cli.common import Refused, make_directory, read_records, write_json

if TYPE_CHECKING:
    from sophon_bench.results.records import Records


@click.command()
@options.path(
    "--records sources",
    "A file of 'run --json', or an existing entry; by default the records in the store. "
    "Repeatable.",
    multiple=True,
)
@options.selectors("--defense", "Submit only this one of the records' defenses.")
@options.option("--name", "Name of the entry's file, such as 'acme-shield'.", required=True)
@options.option("--title", "Title of the entry.", required=True)
@options.option("--authors", "Authors, separated by commas.", required=True)
@options.option("--link", "Where the method is described: https://…", required=True)
@options.suites("Suite that has to be complete.", "@standard")
@options.directory("Where NAME.jsonl goes; in the repository, leaderboard/results.")
@options.plugins()
@options.store
def submit(
    sources: Sequence[Path],
    defense: Sequence[str],
    suite: Sequence[str],
    out: Path,
    store: str | None,
    **about: str,
) -> None:
    """Make an entry for the leaderboard of the records of a run.

    Checks that nothing is left out: every trial of the suite, its search and its runs on benign
    domains, against the defense, the undefended model and random initialisation, on the same
    seeds. Lists everything that is missing, and writes nothing then. Seeds may have been run one
    by one, on different machines: give the file of each.

    \b
    Example:
      sophon-bench run --defense my-defense --attack @standard --seeds 0-4 --json mine.json
      sophon-bench submit --records mine.json --name my-defense --title 'My defense' \\
        --authors 'A. Author, B. Author' --link https://arxiv.org/abs/2404.12699 \\
        --out leaderboard/results
    """
    from sophon_bench.leaderboard import entries, submitting

    files: Sequence[Path | None] = sources or [None]
    whole = submitting.joined([read_records(file, store) for file in files])
    cells = submitting.chosen(whole, defense)
    _check_complete(cells, suite)
    entry = submitting.entry(cells, **about)
    make_directory(out)
    file = entries.write(entry, out)
    click.echo(f"{file}: {len(cells.cells)} records of {', '.join(cells.defended)}")
    click.echo(f"next: sophon-bench verify {file}")


def _check_complete(cells: Records, suite: Sequence[str]) -> None:
    """List what stands against records of these suites, and refuse them if that is anything."""
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.leaderboard.submitting import faults, installed

    found = faults(cells, installed(suite), published())
    for fault in found:
        click.echo(f"refused: {fault}", err=True)
    if found:
        raise Refused(f"{len(found)} things stand against publishing these records")


@click.command()
@click.argument("file", metavar="ENTRY.jsonl", type=options.PATH)
@options.count("--cells", "Records to make again; 0 checks the file alone.", least=0, default=3)
@options.suites("Check that this suite is complete, as submit does.")
@options.option("--draw", "Seed of the draw; by default a new one.", type=int)
@options.option(
    "--weights", "File that models start from, where the entry has one.", metavar="FILE"
)
@options.flag("--dry-run", "Check the file, print what would be run, and stop.")
@options.device
@options.workers
@options.threads
@options.plugins(expose=True)
@options.option("--store", "Store for the work; by default a temporary one.", metavar="DIR")
@options.json_file("Write the comparison there.")
@options.loudness
def verify(
    file: Path,
    cells: int,
    suite: Sequence[str],
    draw: int | None,
    dry_run: bool,
    store: str | None,
    json_file: Path | None,
    **options: Any,
) -> int:
    """Make random records of an entry again, and compare them.

    Models are pre-trained and protected again too. Nothing in the file is executed: plugins are
    those installed here, and another version of one is reported. With --store an interrupted call
    continues; the store that the entry was made from is refused.

    \b
    Examples:
      sophon-bench verify leaderboard/results/sophon.jsonl
      sophon-bench verify mine.jsonl --cells 0 --suite @standard
      sophon-bench verify mine.jsonl --cells 10 --workers 2 --plugin my_defense.py

    Exit codes: 0 reproduced, 1 not reproduced, 2 not comparable, or bad input.
    """
    from sophon_bench.execution import runs
    from sophon_bench.leaderboard import answers, entries, tables
    from sophon_bench.leaderboard.columns import AGREEMENTS
    from sophon_bench.leaderboard.render import Flat, flat_rows, to_console
    from sophon_bench.results import Results

    entry = entries.read(file)
    click.echo(f"{file} is whole: {len(entry.records.cells)} records")
    if suite:
        _check_complete(entry.records, suite)
        click.echo(f"nothing of {' and '.join(suite)} is left out")
    if cells == 0:
        return 0
    drawn = random.SystemRandom().randrange(10**6) if draw is None else draw
    able = [cell for cell in entry.records.cells if cell.status != "failed"]
    if not able:
        raise Refused(f"{str(file)!r} has no record that could be made again: all failed")
    drawn_cells = random.Random(drawn).sample(able, min(cells, len(able)))
    reported = entry.records.only({cell.key for cell in drawn_cells})
    click.echo(f"made again: {len(drawn_cells)} of {len(able)}, --draw {drawn}")
    with tempfile.TemporaryDirectory(prefix="sophon-bench-") as thrown_away:
        place = store or thrown_away
        job = runs.again(reported, runs.Options(store=place, **options))
        for cell in drawn_cells:
            if job.store.has_cell(cell.key) and job.store.cell(cell.key) == cell:
                raise Refused(
                    f"store {str(place)!r} has the very records of the entry; name another"
                )
            defense, seed = reported.defense(cell).label, reported.model(cell).seed
            click.echo(f"  {cell.attack.label} against {defense}, seed {seed}")
        if dry_run:
            return 0
        made = job.run()
    examples = {stage.key: stage.examples for stage in job.plan.cells}
    found = answers.agreements(Results.of(reported), Results.of(made), examples)
    rows = flat_rows(Flat(frames=[found], columns=AGREEMENTS))
    click.echo(to_console([tables.agreements(entry.name, found)]), nl=False)
    write_json(json_file, {"entry": entry.name, "draw": drawn, "cells": rows})
    differing = sum(row["agreement"] == "differs" for row in rows)
    verdict = f"not reproduced: {differing} of {len(rows)} differ" if differing else "reproduced"
    click.echo(verdict)
    return 1 if differing else 0
