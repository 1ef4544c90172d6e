"""What the paper's recipe reaches, beside a tuned attacker: the table and the picture."""

from __future__ import annotations

import json

import pytest

from sophon_bench.analysis.score import scores
from sophon_bench.leaderboard import finding, tables, vega
from sophon_bench.leaderboard.columns import records
from sophon_bench.leaderboard.recipe import paper_recipe
from sophon_bench.plugins.selectors import parse
from sophon_bench.results import Results
from sophon_bench.results.records import Records

LR = 1e-4


@pytest.fixture
def report(published_records: Records) -> tables.Report:
    return finding.with_recipe(tables.report(published_records), published_records)


@pytest.fixture(scope="module")
def published_records() -> Records:
    from sophon_bench.leaderboard import entries

    (entry,) = (each for each in entries.published() if each.name == "provisional-generation")
    return entry.records


def test_where_the_recipe_was_not_run_the_same_step_size_stands_for_it(
    report: tables.Report, published_records: Records
) -> None:
    paper = paper_recipe().trials
    assert not {cell.attack.label for cell in published_records.cells} & set(paper)
    rows = {row["defense"]: row for row in records(report.scores)}
    assert rows["sophon-dos"]["recipe_listed"] is False
    names = {parse(label).name for label in paper}
    alike = [
        cell
        for cell in published_records.cells
        if cell.attack.name in names
        and cell.attack.parameters.get("lr") == LR
        and cell.role == "restricted"
        and cell.stretch == 1
        and published_records.defense(cell).label == "sophon-dos"
    ]
    seeds = sorted({published_records.model(cell).seed for cell in alike})
    best = []
    for seed in seeds:
        points = [
            (selection, test)
            for cell in alike
            if published_records.model(cell).seed == seed
            for selection, test in zip(cell.curve.selection, cell.curve.test, strict=True)
        ]
        best.append(max(points)[1])
    assert rows["sophon-dos"]["recipe_after"] == pytest.approx(sum(best) / len(best))


def test_the_table_has_six_columns_and_a_verdict(report: tables.Report) -> None:
    (place,) = finding.places(report)
    assert place.verdict == "sophon-dos is not distinguishable from no defense (95 %). Provisional."
    (table,) = place.tables
    assert len(table.headers("md")) == 6
    assert [line[0] for line in table.lines("quiet", "md")] == ["none", "scratch"]
    assert "@paper itself was not run here" in " ".join(table.notes)


def test_the_picture_says_what_the_table_says(report: tables.Report) -> None:
    figure = finding.dumbbells(report.scores)
    assert figure is not None
    (row,) = (row for row in records(report.scores) if not row["control"])
    text = json.dumps(figure)
    for key in ("recipe_after", "restricted_after", "undefended_after", "scratch_after"):
        assert str(round(100 * row[key], 2)) in text, key
    for theme in vega.THEMES:
        assert vega.encode(figure, "svg", theme).startswith(b"<svg")


def test_there_is_no_picture_without_a_defense(published_records: Records) -> None:
    found = finding.recipe_beside(
        scores(Results.of(published_records)), Results.of(published_records)
    )
    assert finding.dumbbells(found[found["control"].astype(bool)]) is None
