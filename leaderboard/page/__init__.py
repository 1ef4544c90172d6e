"""The page that people come to: submissions as a static site, derived from their records alone.

`view` is what is shown, and this module writes it. Names, titles and
links are data of strangers. They reach the page through jinja2 with escaping on, a link only if it
is one of the web, and figures as `vega` says. Of pictures only the pixels do, encoded anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sophon_bench.leaderboard import cards, layout, provenance, vega
from sophon_bench.leaderboard.columns import percent
from sophon_bench.leaderboard.page import view
from sophon_bench.leaderboard.page.view import Submission
from sophon_bench.leaderboard.tables import Gaps
from sophon_bench.leaderboard.templates import TEMPLATES, rendered
from sophon_bench.results.files import write_atomic
from sophon_bench.results.records import SCHEMA

__all__ = ["LIBRARY", "Submission", "site", "write"]

ASSETS = ("style.css", "page.js")
LIBRARY = "vega.min.js"


def write(submissions: Sequence[Submission], out: Path, **options: Any) -> Path:
    """Write the site into the directory ``out``, which is made; returns its ``index.html``.

    Arguments are those of `site`. Files of the same names are replaced.

    Raises:
        OSError: ``out`` cannot be made or written.
        PictureError: A record has a picture that is none; nothing is written.
    """
    files = site(submissions, **options)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(out.absolute() / name, content)
    return out / "index.html"


def site(
    submissions: Sequence[Submission],
    *,
    subjects: Iterable[cards.Subject] = (),
    sheets: Mapping[str, bytes] | None = None,
    frozen: Gaps = None,
) -> dict[str, bytes]:
    """The site's files by name, the page last: the same bytes for the same records.

    Args:
        submissions: At least one; each is scored against its own controls.
        subjects: What the code says of defenses; those of other names are left out.
        sheets: Pictures of scenarios by label, as PNG.
        frozen: Which budgets and n count, as for `analysis.scores`.
    """
    known = {subject.name: subject for subject in subjects}
    pictures = {
        scenario: (f"scenario-{number}.png", content)
        for number, (scenario, content) in enumerate(sorted((sheets or {}).items()), 1)
    }
    sections = [
        view.section(key, parts, known, pictures)
        for key, parts in view.by_place(submissions, frozen)
    ]
    utilities = sorted({section.utility for section in sections})
    versions = {cell.provenance.version for each in submissions for cell in each.cells.cells}
    html = rendered(
        "index.html",
        provenance=provenance,
        percent=percent,
        schema=SCHEMA,
        sections=sections,
        utilities=utilities,
        plurals=list(map(layout.plural, utilities)),
        meanings=layout.MEANINGS,
        labels=sorted({s.label for s in submissions if s.label is not None}),
        themes={name: vega.config(name) for name in vega.THEMES},
        versions=provenance.distinct(versions),
    )
    return {
        **dict(pictures.values()),
        **{name: (TEMPLATES / name).read_bytes() for name in ASSETS},
        LIBRARY: vega.library(),
        "index.html": html.encode(),
    }
