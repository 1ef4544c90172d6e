from __future__ import annotations

import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from matplotlib.axes import Axes

from sophon_bench import metrics
from sophon_bench.cli import main
from sophon_bench.leaderboard import plots
from sophon_bench.leaderboard.tables import document, report
from sophon_bench.store import read_cells

BUDGET = 12800
BUDGETS = [BUDGET * part for part in (1 / 16, 1 / 4, 1, 10)]
DEFENSES = ("none", "ice", "klu[alpha=0.1]")


def row(defense: str, **values: Any) -> dict[str, Any]:
    place = {
        "scenario": "glyphs-digits[image_size=16]", "revision": "r", "backbone": "hf_hub:a/b c",
        "precision": "fp32", "protocol": "1", "samples": 200, "budget": BUDGET, "seeds": 5,
        "utility": "accuracy",
    }  # fmt: skip
    return {**place, "defense": defense, "control": defense == "none", **values}


def curve_rows(*, half_width: float | None = 0.02, **changes: Any) -> list[dict[str, Any]]:
    return [
        row(
            defense,
            **{
                "protected": levels(0.2 + 0.05 * j, half_width),
                "undefended": levels(0.4, half_width),
                "scratch": levels(0.1, half_width),
                "resistance": [(units, 0.9 - 0.1 * i) for i, units in enumerate(BUDGETS)],
                "resistance_all": [(units, 0.5) for units in BUDGETS],
                **changes,
            },
        )
        for j, defense in enumerate(DEFENSES)
    ]


def levels(start: float, half_width: float | None) -> list[tuple[float, float, float | None]]:
    return [(units, start + 0.1 * i, half_width) for i, units in enumerate(BUDGETS)]


def sweep_rows(families: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        row(
            defense,
            family=family,
            levels=[(lr, 0.3 + 0.1 * j + lr, 0.02) for lr in (0.001, 0.01, 0.1)],
        )
        for family in families
        for j, defense in enumerate(DEFENSES)
    ]


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with plots.drawing():
        yield


def drawn(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Data of the lines that the legend names."""
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def only(curves: list[dict[str, Any]], kind: str) -> Axes:
    (picture,) = (p for p in plots.pictures(curves, []) if kind in p.name)
    (axes,) = picture.figure.axes
    return axes


def test_envelopes_are_the_rows() -> None:
    axes = only(curve_rows(), "envelopes")
    steps = [12.5, 50, 200, 2000]
    lines = drawn(axes)
    assert list(lines) == ["undefended", "scratch", "ice", "klu[alpha=0.1]"]
    assert lines["ice"] == (steps, pytest.approx([25, 35, 45, 55]))
    assert lines["undefended"] == (steps, pytest.approx([40, 50, 60, 70]))
    assert lines["scratch"] == (steps, pytest.approx([10, 20, 30, 40]))
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["12.5", "50", "200", "2000"]
    (vertical,) = (line for line in axes.lines if line.get_label() not in lines)
    assert list(vertical.get_xdata()) == [200, 200]
    title = axes.figure.get_suptitle()
    for words in ("glyphs-digits[image_size=16]", "hf_hub:a/b c", "n = 200", "5 seeds",
                  "protocol 1", "95 % intervals"):  # fmt: skip
        assert words in title.replace("\n", " ")


def test_bands_are_half_widths_and_one_seed_has_none() -> None:
    axes = only(curve_rows(), "envelopes")
    undefended, *others = axes.collections
    low, high = undefended.get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((38, 72))
    assert len(others) == 3
    single = only(curve_rows(half_width=None, seeds=1), "envelopes")
    assert not single.collections
    assert "interval" not in single.figure.get_suptitle()
    assert "1 seed," in single.figure.get_suptitle().replace("\n", " ")


def test_a_missing_control_is_left_out() -> None:
    assert list(drawn(only(curve_rows(scratch=[]), "envelopes"))) == [
        "undefended", "ice", "klu[alpha=0.1]"
    ]  # fmt: skip
    bare = curve_rows(undefended=[], resistance=[], resistance_all=[])
    assert next(iter(drawn(only(bare, "envelopes")))) == "scratch"
    assert not [p.name for p in plots.pictures(bare, []) if "resistance" in p.name]


def test_nothing_to_draw_is_no_picture() -> None:
    empty = {"protected": [], "undefended": [], "scratch": [], "resistance": []}
    assert not list(plots.pictures(curve_rows(**empty, resistance_all=[]), []))


def test_lines_end_where_their_records_do() -> None:
    lines = drawn(only(curve_rows(undefended=levels(0.4, None)[:3]), "envelopes"))
    assert lines["undefended"][0] == [12.5, 50, 200]
    assert lines["ice"][0] == [12.5, 50, 200, 2000]


def test_resistance_is_the_rows() -> None:
    axes = only(curve_rows(), "resistance")
    lines = drawn(axes)
    assert list(lines) == ["ice", "klu[alpha=0.1]"]
    assert lines["ice"][1] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    (of_all,) = (line for line in axes.lines if line.get_label() == "_ice")
    assert list(of_all.get_ydata()) == [0.5] * 4
    assert of_all.get_linestyle() == ":"


@pytest.mark.parametrize(("lowest", "shown"), [(0.01, 0.0), (-0.5, -50.0)])
def test_a_sweep_is_seen_whole_and_an_interval_alone_goes_not_below_zero(
    lowest: float, shown: float
) -> None:
    row = sweep_rows(("finetune",))[0]
    row["levels"] = [(0.001, 0.6, 0.02), (0.01, lowest, 0.2)]
    (picture,) = plots.pictures([], [row])
    low = picture.figure.axes[0].get_ylim()[0]
    assert low == 0.0 if shown == 0 else low < shown


def test_where_skill_falls_below_zero_equal_heights_are_equal_ratios_of_error() -> None:
    row = sweep_rows(("finetune",))[0]
    row["levels"] = [(0.001, 0.9, None), (0.01, 0.0, None), (0.1, -9.0, None)]
    (picture,) = plots.pictures([], [row])
    axes = picture.figure.axes[0]
    heights = [float(axes.transData.transform((0.01, skill))[1]) for skill in (90, 0, -900)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])
    assert heights[0] > heights[1]
    low, high = axes.get_ylim()
    assert low < -900
    assert 90 < high < 100


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_a_sweep_has_one_panel_per_family(count: int) -> None:
    families = tuple(f"finetune[optimizer=o{i}]" for i in range(count))
    (picture,) = plots.pictures([], sweep_rows(families))
    panels = [axes for axes in picture.figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == list(families)
    for axes in panels:
        assert axes.get_xscale() == "log"
        lines = drawn(axes)
        assert list(lines) == ["undefended", "ice", "klu[alpha=0.1]"]
        assert lines["ice"] == ([0.001, 0.01, 0.1], pytest.approx([40.1, 41, 50]))
        assert len(axes.collections) == 3
    (legend,) = picture.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(lines)


def test_a_defense_keeps_its_colour_in_every_picture() -> None:
    found = plots.pictures(curve_rows(), sweep_rows(("finetune",)))
    colours = {
        line.get_color()
        for picture in found
        for line in picture.figure.axes[0].lines
        if line.get_label() == "ice"
    }
    assert len(colours) == 1


def test_file_names_are_safe_and_tell_places_apart() -> None:
    rows = [*curve_rows(), *curve_rows(revision="other"), *curve_rows(samples=50)]
    names = [picture.name for picture in plots.pictures(rows, sweep_rows(("finetune",)))]
    assert len(set(names)) == len(names) == 3 * 2 + 1
    assert set("".join(names)) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
    )
    assert names[0].startswith("glyphs-digits-image-size-16_hf-hub-a-b-c_n200_envelopes_")


@pytest.mark.parametrize("form", plots.FORMATS)
def test_pictures_are_the_same_bytes_again(form: str) -> None:
    first, again = (
        [plots.encode(p.figure, form) for p in plots.pictures(curve_rows(), sweep_rows(("a", "b")))]
        for _ in range(2)
    )
    assert first == again
    start = b"\x89PNG" if form == "png" else b"<?xml"
    assert all(content.startswith(start) for content in first)
    if form == "svg":
        assert not any(b"<dc:date>" in content for content in first)
        xml.etree.ElementTree.fromstring(first[0])


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def finished(tmp_path: Path, make_cell: Any) -> Path:
    """A run's JSON file with two defenses, two learning rates and fresh weights."""
    cells = [
        make_cell(
            defense=defense,
            attack=attack,
            seed=seed,
            curve=[(800.0, 0.3, 0.3), (12800.0, test, test)],
        )
        for seed in (0, 1)
        for defense in ("none", "ice")
        for attack, test in (("scratch", 0.3), ("finetune[lr=0.1]", 0.6), ("finetune[lr=1]", 0.8))
        if defense == "none" or attack != "scratch"
    ]
    file = tmp_path / "out.json"
    file.write_text(document(cells, report(cells)))
    return file


def test_the_command_writes_both_formats_and_says_where(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pictures"
    result = call("plot", "--from", finished, "--out", out)
    assert result.exit_code == 0, result.output
    files = [Path(line) for line in result.stdout.splitlines()]
    assert set(files) == set(out.iterdir())
    assert {file.suffix for file in files} == {".png", ".svg"}
    again = call("plot", "--from", finished, "--out", out, "--format", "svg")
    assert [Path(line) for line in again.stdout.splitlines()] == [
        file for file in files if file.suffix == ".svg"
    ]


def test_what_is_drawn_is_what_the_metrics_say(finished: Path) -> None:
    cells = read_cells(finished)
    axes = only(metrics.curves(cells), "envelopes")
    assert drawn(axes)["ice"][1][-1] == pytest.approx(80)
    assert drawn(axes)["scratch"][1][-1] == pytest.approx(30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "pdf"], "--format takes png and svg"),
        (["--from", "missing.json"], "missing.json"),
        (["--store", "missing"], "there is no store at"),
    ],
)
def test_bad_input_is_one_line_and_draws_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = call("plot", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_made_is_one_line(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = call("plot", "--from", finished, "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert result.stderr.count("\n") == 1
