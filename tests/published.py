"""Makes what the repository shows of leaderboard/results, and of the quick start's records.

That is LEADERBOARD.md with its pictures and rows, and tables of README.md, of the tutorial, and of
the search of hyperparameters.

``make leaderboard`` runs it with ``--write``; a test holds the files to what it would write.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

from sophon_bench.leaderboard import (
    entries,
    finding,
    frozen,
    layout,
    provenance,
    tables,
    tuning,
    vega,
)
from sophon_bench.leaderboard.columns import SCORES, Column, frame
from sophon_bench.leaderboard.render import Place, Table, to_console, to_csv, to_markdown
from sophon_bench.leaderboard.tables import Report
from sophon_bench.results import Results
from sophon_bench.results.documents import read_file

ROOT = Path(__file__).parent.parent
QUICK_START = ROOT / "examples" / "quickstart.json"
"""What the first command of README.md and of the tutorial wrote with ``--json``."""

SEARCHES = ROOT / "leaderboard" / "tuning" / "photographs"
"""Documents of ``tune``, one per defense."""

DEFINED = "docs/reading-results.md"
ANCHORS = {
    "rank": "rank-and-verdict", "score": "how-to-read-results", "resistance": "resistance",
    "worst_resistance": "resistance", "intactness": "intactness", "trainability": "trainability",
    "b50": "b50", "original_after": "intactness", "restricted_after": "restricted-accuracy",
    "recipe_after": "restricted-accuracy", "protect_cost": "cost", "flags": "flags",
}  # fmt: skip
"""Where columns are defined in `DEFINED`, by key."""


def documents() -> dict[Path, bytes]:
    """What the files should hold."""
    found = entries.published()
    report = entries.report(found, frozen.published())
    table, meaning = quick_start()
    untitled = table.partition("\n\n")[2]
    command = "$ sophon-bench run --defense naive-ascent --attack @smoke"
    shown = {
        ROOT / "README.md": {
            "finding": _finding(report),
            "quick start": f"```console\n{command}\n{untitled}```\n{meaning}\n",
        },
        ROOT / "docs" / "tutorial.md": {"quick start": f"```text\n{table}```\n"},
        ROOT / "docs" / "research" / "tuning.md": {"searches": _searches()},
    }
    return {
        ROOT / "LEADERBOARD.md": _leaderboard(found, report).encode(),
        **{page: _filled(page, parts).encode() for page, parts in shown.items()},
        **{ROOT / name: content for name, content in _pictures(report)},
        **{
            ROOT / f"leaderboard/results/{entry.name}.csv": to_csv(
                tables.report(entry.records, frozen.published()).flat
            ).encode()
            for entry in found
        },
    }


def _filled(page: Path, parts: dict[str, str]) -> str:
    """A page with its parts made again, each between its two marks."""
    text = page.read_text(encoding="utf-8")
    for name, made in parts.items():
        begin, end = f"<!-- {name}: made by make leaderboard -->\n", f"<!-- end of {name} -->"
        before, _, after = text.partition(begin)
        text = f"{before}{begin}{made}{end}{after.partition(end)[2]}"
    return text


def _searches() -> str:
    """What was tried on photographs, with the command of each search."""
    found = [json.loads(file.read_bytes()) for file in sorted(SEARCHES.glob("*.json"))]
    made = [
        tuning.table(frame({**row, "defense_name": each["defense"]} for row in each["rows"]), ())
        for each in found
    ]
    commands = "\n".join(f"$ {each['command']} --data DATA --out OUT" for each in found)
    whole = replace(made[0], tables=[table for place in made for table in place.tables])
    return f"```console\n{commands}\n```\n\n{to_markdown([whole])}"


def quick_start() -> tuple[str, str]:
    """The last table of the quick start as a console shows it, and what the program says of it."""
    report = tables.report(read_file(QUICK_START)[1], frozen.published())
    (place,) = tables.places(report)
    text = to_console([replace(place, verdict=None, tables=place.tables[-1:])], width=120)
    return text.partition("\n")[2].strip("\n") + "\n", tables.meaning(report)


def _pictures(report: Report) -> Iterator[tuple[str, bytes]]:
    """The picture of each place, on light and on dark paper."""
    for number, df in enumerate(layout.by_place(report.scores).values(), 1):
        if figure := finding.dumbbells(df):
            for theme in vega.THEMES:
                yield _picture(number, theme), vega.encode(figure, "svg", theme)


def _picture(number: int, theme: str) -> str:
    return f"docs/finding-{number}-{theme}.svg"


def _shown(number: int, place: Place) -> str:
    """The picture of a place, by the reader's theme."""
    light, dark = (_picture(number, theme) for theme in vega.THEMES)
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(f"{place.title}: {place.verdict}")}"></picture>\n'
    )


def _leaderboard(found: list[entries.Entry], report: Report) -> str:
    listed = [
        f"- [{_plain(entry.title)}]({entry.link}) by {_plain(', '.join(entry.authors))}: "
        f"{entry.label}, {entry.submitted}, [records](leaderboard/results/{entry.name}.jsonl), "
        f"[rows](leaderboard/results/{entry.name}.csv)"
        f"{_origin(Results.of(entry.records))}"
        for entry in found
    ]
    return "\n".join(
        [
            "# Leaderboard",
            "",
            "Made of [leaderboard/results](leaderboard/results) by `make leaderboard`. "
            f"[How to read it]({DEFINED}); [how to get onto it](CONTRIBUTING.md#submit-a-result). "
            "`·`: not measured, or does not apply. What every trial reached is in the CSV file "
            "beside each entry, and on the page of `sophon-bench page`.",
            "",
            *(listed or ["Nothing is published yet."]),
            "",
            *_places(report),
            *(f"[{c.title}]: {DEFINED}#{ANCHORS[c.key]}" for c in SCORES if c.key in ANCHORS),
            "",
        ]
    )


def _places(report: Report) -> Iterator[str]:
    """Per place: verdict, picture, scores and who won."""
    for number, at in enumerate(tables.places(report), 1):
        text = to_markdown([replace(at, tables=[_numbered(table) for table in at.tables[:2]])])
        title, _, rest = text.partition("\n\n**")
        yield f"{title}\n\n{_shown(number, at)}\n**{rest}"


def _numbered(table: Table) -> Table:
    """A table whose columns lead to their definitions, with numbered notes."""
    notes = ["\n".join(f"{number}. {note}" for number, note in enumerate(table.notes, 1))]
    return replace(table, columns=[_linked(c) for c in table.columns], notes=notes)


def _linked(column: Column) -> Column:
    if column.key not in ANCHORS:
        return column
    return replace(column, header=f"[{column.title}]")


def _origin(results: Results) -> str:
    """Of an entry's records: the command, place by place, the machine, and how long it took."""
    cells = results.cells
    hours = (results.models["seconds"].sum() + cells["seconds"].sum()) / 3600
    finished = sorted(time[:16].replace("T", " ") for time in cells["made_finished"])
    machines = _plain(provenance.made_on(cells))
    places = cells.groupby(["scenario", "backbone", "precision"], sort=False)
    lines = [f"`{provenance.reproduction(here)}`" for _, here in places]
    lines += [
        f"{len(cells)} records, finished from {finished[0]} to {finished[-1]} UTC; {hours:.1f} h "
        f"inside plugins and pre-training, of {machines}"
    ]
    return "".join(f"\n  - {line}" for line in lines)


def _plain(text: str) -> str:
    """Text of strangers, without what Markdown makes of it."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def _finding(report: Report) -> str:
    """Verdict, picture and table of the first place."""
    places = finding.places(report)
    if not places:
        return ""
    text = to_markdown(places[:1])
    title, verdict, table = text.split("\n\n", 2)
    return f"**{verdict}** ({title.removeprefix('### ')})\n\n{_shown(1, places[0])}\n{table}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: published.py --write")
    for file, content in documents().items():
        file.write_bytes(content)
        print(file.name)
