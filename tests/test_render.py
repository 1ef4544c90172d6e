"""One declaration of a column for all views, and what each format makes of strange cells."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pytest
from conftest import drawn
from hypothesis import example, given
from hypothesis import strategies as st

from sophon_bench.leaderboard.columns import (
    DATA,
    TEXT,
    Column,
    frame,
    number,
    records,
    shown_in,
)
from sophon_bench.leaderboard.render import (
    Flat,
    Place,
    Table,
    flat_rows,
    from_csv,
    to_console,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from sophon_bench.leaderboard.templates import TEMPLATES

NAME = Column(key="name", header="")


def plain(table: Table) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    return str(environment.from_string(
        '{% from "macros.html" import plain %}{{ plain(table) }}'
    ).render(table=table))  # fmt: skip


def place(table: Table) -> list[Place]:
    return [Place(title="somewhere", tables=[table])]


VIEWS: dict[str, Callable[[Table], str]] = {
    "console": lambda table: to_console(place(table)),
    "md": lambda table: to_markdown(place(table)),
    "latex": lambda table: to_latex(place(table)),
    "page": plain,
    "csv": lambda table: to_csv(Flat(frames=[frame(table.body)], columns=table.columns)),
    "json": lambda table: to_json(Flat(frames=[frame(table.body)], columns=table.columns)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_column_that_is_declared_once_is_in_every_view(view: str) -> None:
    speed = Column(key="speed", header="how fast", unit="×", format=".2f")
    kept = {"name": "a", "speed": 1.25, "undeclared": "never shown"}
    with_it = Table(title="t", columns=[NAME, speed], body=[kept])
    without = Table(title="t", columns=[NAME], body=[kept])
    header, value = ("how fast", "1.25") if view in TEXT else ("speed", "1.25")
    assert header in VIEWS[view](with_it)
    assert value in VIEWS[view](with_it)
    assert "never shown" not in VIEWS[view](with_it)
    assert header not in VIEWS[view](without)
    assert VIEWS.keys() == TEXT | DATA


@pytest.mark.parametrize("view", VIEWS)
def test_a_column_is_in_the_views_that_it_names(view: str) -> None:
    for hidden in VIEWS:
        once = Column(key="thing", views=(TEXT | DATA) - {hidden})
        body = [{"thing": "there it is"}]
        text = VIEWS[view](Table(title="t", columns=[NAME, once], body=body))
        assert ("there it is" in text) is (hidden != view)


def test_whole_numbers_stay_whole_and_nothing_is_null() -> None:
    mixed = pd.DataFrame(
        {
            "seeds": pd.Series([3, None], dtype="Int64"),
            "samples": pd.Series([200, 50]),
            "score": pd.Series([0.1 + 0.2, np.nan]),
            "flags": pd.Series([["a", "b"], []], dtype=object),
            "boxed": pd.Series([np.int64(7), np.float64(0.1)], dtype=object),
            "fine": pd.Series([True, False]),
        }
    )
    columns = [Column(key=key) for key in mixed]
    flat = Flat(frames=[mixed], columns=columns)
    found = json.loads(to_json(flat))
    assert found[0] == {"seeds": 3, "samples": 200, "score": 0.1 + 0.2, "flags": ["a", "b"],
                        "boxed": 7, "fine": True}  # fmt: skip
    assert (found[1]["seeds"], found[1]["score"]) == (None, None)
    assert to_csv(flat).splitlines() == [
        "seeds,samples,score,flags,boxed,fine",
        "3,200,0.30000000000000004,a; b,7,True",
        ",50,,,0.1,False",
    ]


def test_rows_of_several_kinds_keep_their_own_keys_in_json_and_share_columns_in_csv() -> None:
    scores, trials = frame([{"defense": "d", "score": 1}]), frame([{"defense": "d", "attack": "a"}])
    columns = [Column(key=key) for key in ("defense", "score", "attack")]
    flat = Flat(frames=[scores, trials], columns=columns, first=1)
    assert flat_rows(flat) == [{"defense": "d", "score": 1}, {"defense": "d", "attack": "a"}]
    lines = list(csv.reader(io.StringIO(to_csv(flat))))
    assert lines == [["defense", "attack", "score"], ["d", "", "1"], ["d", "a", ""]]


def test_nothing_to_show_is_no_error() -> None:
    empty = Flat(frames=[frame([])], columns=[NAME])
    assert flat_rows(empty) == []
    assert to_json(empty) == "[]\n"
    assert to_csv(empty).strip() == ""
    nothing = Table(title="t", columns=[NAME], body=[])
    assert drawn(nothing).body == []
    for view in TEXT:
        assert "t" in VIEWS[view](nothing)


STRANGE = ["[bold]x[/bold]", ":smile:", "a | b", "50 %_$", "1\n2", "<b>", "", "x" * 300]


@pytest.mark.parametrize("text", STRANGE)
@pytest.mark.parametrize("view", sorted(TEXT))
def test_no_cell_is_markup(view: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = Table(
        title=text, columns=[NAME, Column(key="k", header=text)],
        body=[{"name": "n", "k": text}], notes=[text],
    )  # fmt: skip
    shown = VIEWS[view](table)
    if view == "console":
        assert "".join(shown.split()).count("".join(text.split())) >= 3
    if view == "md":
        lines = [line for line in shown.splitlines() if line.startswith("| n")]
        assert len(lines) == 1
        assert lines[0].replace(r"\|", "").count("|") == 3
    if view == "page":
        assert "<b>" not in shown
    if view == "latex" and "%" in text:
        assert r"50 \%\_\$" in shown


@pytest.mark.parametrize("width", [20, 60, 200])
def test_the_console_folds_words_and_keeps_every_line_of_a_cell(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    body = [{"name": f"line-{i}", "k": "some words " * (i % 3), "v": "1.0 ± 0.5"} for i in range(9)]
    table = Table(title="t", columns=[NAME, Column(key="k"), Column(key="v")], body=body)
    shown = to_console(place(table))
    assert shown.count("1.0 ± 0.5") == 9
    assert shown.count("words") == sum(i % 3 for i in range(9))
    order = [shown.index(f"line-{i}"[: max(4, int(0.4 * width))]) for i in range(9)]
    assert order == sorted(order)


@pytest.mark.parametrize("strange", ["漢字漢字", "a\tb", "1\n2", "é" * 9, "\x1b[31mred"])
def test_lines_stay_beside_each_other_whatever_a_cell_holds(strange: str) -> None:
    body = [{"name": f"line-{i}", "k": strange if i == 2 else "word", "v": i} for i in range(5)]
    table = Table(title="t", columns=[NAME, Column(key="k"), Column(key="v")], body=body)
    lines = [line for line in to_console(place(table)).splitlines() if line.startswith("line-")]
    assert [line.split()[0] for line in lines] == [f"line-{i}" for i in range(5)]
    assert [line.split()[-1] for line in lines] == [str(i) for i in range(5)]


@pytest.mark.parametrize(
    ("value", "half_width", "form", "unit", "text"),
    [
        (None, 0.1, ".1f", "%", "·"),
        (0.123, None, ".1f", "%", "12.3"),
        (0.123, 0.041, ".1f", "%", "12.3 ± 4.1"),
        (5.781, None, ".2f", "×", "5.78×"),
        (2.5e6, None, ".2f", "M", "2.50 M"),
        (3, None, "", "", "3"),
        ("word", None, "", "", "word"),
    ],
)
def test_numbers(value: Any, half_width: float | None, form: str, unit: str, text: str) -> None:
    assert number(value, half_width, form, unit) == text


def test_the_page_sorts_by_values_and_latex_sets_the_highest_in_bold() -> None:
    score = Column(key="score", format=".1f", best=True)
    count = Column(key="flags", sort=lambda row: len(row["flags"]))
    rows = [{"name": "a", "score": 9.04, "flags": []}, {"name": "b", "score": 10.0, "flags": ["x"]},
            {"name": "c", "score": None, "flags": []}]  # fmt: skip
    assert [score.sort_value(row) for row in rows] == [9.04, 10.0, None]
    assert [count.sort_value(row) for row in rows] == [0, 1, 0]
    text = to_latex(place(Table(title="t", columns=[NAME, score], body=rows)))
    assert text.count(r"\textbf") == 1
    assert r"\textbf{10.0}" in text


def test_records_and_frames_are_inverse() -> None:
    rows = [{"a": 1, "b": None, "c": [1, 2], "d": "x"}, {"a": 2.5, "b": 3, "c": [], "d": None}]
    assert records(frame(rows)) == rows
    assert shown_in("csv", [NAME, Column(key="x", views=TEXT)]) == [NAME]


def flat_of(*rows: dict[str, Any]) -> Flat:
    """Rows with a column for each of their keys."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return Flat(frames=[frame(rows)], columns=[Column(key=key) for key in keys])


DANGEROUS = tuple("=+-@\t\r\n＝＋－＠")
TEXTS = st.text() | st.builds(
    str.__add__, st.sampled_from([*DANGEROUS, "'", '"', ",", ";"]), st.text()
)


@given(st.dictionaries(TEXTS, TEXTS, min_size=1))
@example({"=1+1": "@standard v2", "'": "''", "a\rb": "\r\n", "": ""})
def test_text_comes_back_from_csv_and_none_of_it_is_a_formula(row: dict[str, str]) -> None:
    text = to_csv(flat_of(row, row))
    assert from_csv(text) == ([row, row] if row else [])
    for line in csv.reader(io.StringIO(text, newline="")):
        assert not any(cell.startswith(DANGEROUS) for cell in line)


def test_numbers_in_csv_are_as_they_are_and_flags_are_text() -> None:
    row = {"a": -1, "b": -0.5, "c": None, "d": True, "e": "-1", "flags": ["=x", "y"]}
    text = to_csv(flat_of(row, {"a": 2}))
    assert text == "a,b,c,d,e,flags\n-1,-0.5,,True,'-1,'=x; y\n2,,,,,\n"
    assert from_csv(text)[0] == {
        "a": "-1", "b": "-0.5", "c": "", "d": "True", "e": "-1", "flags": "=x; y",
    }  # fmt: skip
