"""LEADERBOARD.md and the scores in README.md are made of leaderboard/results, by this.

``make leaderboard`` runs it with ``--write``; a test holds the files to what it would write.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sophon_bench.leaderboard import entries, frozen, provenance, tables
from sophon_bench.leaderboard.render import Place, to_markdown
from sophon_bench.leaderboard.tables import Report
from sophon_bench.results import Results

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- scores: made by make leaderboard -->\n", "<!-- end of scores -->"


def documents() -> dict[Path, str]:
    """What the files should hold."""
    found = entries.published()
    report = entries.report(found, frozen.published())
    readme = ROOT / "README.md"
    return {
        ROOT / "LEADERBOARD.md": _leaderboard(found, report),
        readme: re.sub(
            f"{re.escape(BEGIN)}.*?{re.escape(END)}",
            lambda _: f"{BEGIN}{_scores(report)}{END}",
            readme.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        ),
    }


def _leaderboard(found: list[entries.Entry], report: Report) -> str:
    listed = [
        f"- [{_plain(entry.title)}]({entry.link}) by {_plain(', '.join(entry.authors))}: "
        f"{entry.label}, {entry.submitted}, [records](leaderboard/results/{entry.name}.jsonl)"
        f"{_origin(Results.of(entry.records))}"
        for entry in found
    ]
    return "\n".join(
        [
            "# Leaderboard",
            "",
            "Made of [leaderboard/results](leaderboard/results) by `make leaderboard`; how to read "
            "it is in [README.md](README.md#how-to-read-the-score), how to get onto it in "
            "[CONTRIBUTING.md](CONTRIBUTING.md#submit-a-result).",
            "",
            *(listed or ["Nothing is published yet."]),
            "",
            tables.show("md", report),
        ]
    )


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


def _scores(report: Report) -> str:
    """The tables of scores alone."""
    alone = [Place(title=at.title, tables=at.tables[:1]) for at in tables.places(report)]
    return to_markdown(alone) if alone else ""


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: published.py --write")
    for file, text in documents().items():
        file.write_text(text, encoding="utf-8")
        print(file.name)
