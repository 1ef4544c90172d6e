"""page: what people look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from sophon_bench.cli.common import (
    Refused,
    load_plugins,
    make_directory,
    need_extra,
    no_collector,
    plugin_option,
    read_records,
    subject_of,
)


@click.command()
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file of 'run --json'. Repeatable: each is scored against its own controls.",
)
@click.option(
    "--store",
    metavar="DIR",
    help="A store, of all whose records the page is made.",
)
@plugin_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where the site goes; made if need be.",
)
def page(sources: Sequence[Path], store: str | None, plugin: Sequence[Path], out: Path) -> None:
    """Write a leaderboard as a static site that needs no network.

    Of the published entries, of files of runs, or of the records in a store. DIR/index.html opens
    in any browser, from the disk: scores, a view of each defense, attacks by defenses, costs,
    images of the scenario.

    \b
    Examples:
      sophon-bench page --out site
      sophon-bench page --from out.json --out site
      sophon-bench page --store ~/.cache/sophon-bench --out site
    """
    need_extra("a page", "jinja2", "vl_convert")
    from sophon_bench.leaderboard import page as leaderboard
    from sophon_bench.leaderboard.frozen import published

    load_plugins(plugin)
    with no_collector():
        found = [*_entries()] if not sources and store is None else _records(sources, store)
        submissions = [leaderboard.Submission(**fields) for fields in found]
        make_directory(out)
        index = leaderboard.write(
            submissions,
            out,
            subjects=_subjects(),
            sheets=_sheets(m for s in submissions for m in s.cells.models.values()),
            frozen=published(),
        )
    click.echo(index)


def _records(sources: Sequence[Path], store: str | None) -> list[dict[str, Any]]:
    """The records of each source."""
    found = [read_records(source, None) for source in sources]
    found += [] if store is None else [read_records(None, store)]
    return [{"cells": cells} for cells in found]


def _entries() -> list[dict[str, Any]]:
    """What is published."""
    from sophon_bench.leaderboard import entries

    found = entries.published()
    if not found:
        raise Refused(
            "nothing is published yet; say what the page is of: --from FILE or --store DIR"
        )
    return [{"cells": entry.records, **entry.head} for entry in found]


def _subjects() -> list[Any]:
    from sophon_bench.plugins.registry import defenses

    return [subject_of(defenses.get(name)) for name in defenses.names()]


def _sheets(models: Iterable[Any]) -> dict[str, bytes]:
    """Pictures of the scenarios that are here with the same data, by label."""
    import tempfile

    from sophon_bench.data.scenario import ScenarioError
    from sophon_bench.data.sheet import contact_sheet
    from sophon_bench.execution.runs import build, find_scenarios
    from sophon_bench.plugins.registry import UnknownName
    from sophon_bench.plugins.selectors import SelectorError

    found = {}
    revisions = {model.scenario.label: model.scenario.revision for model in models}
    for label, revision in sorted(revisions.items()):
        try:
            (trial,) = find_scenarios([label], None)
            data = build(trial, None)
        except (UnknownName, SelectorError, ScenarioError) as error:
            click.echo(f"no images: {error}", err=True)
            continue
        if data.revision != revision:
            words = f"{label} has other data here than its records are of ({revision[:8]})"
            click.echo(f"no images: {words}", err=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sheet.png"
            contact_sheet(data, file)
            found[label] = file.read_bytes()
    return found
