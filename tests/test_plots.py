from __future__ import annotations

import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from click.testing import CliRunner, Result
from conftest import gather, read_cells
from hypothesis import given, settings
from hypothesis import strategies as st

from sophon_bench.analysis import series
from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.cli import main
from sophon_bench.leaderboard import bars, figures, vega
from sophon_bench.leaderboard.columns import frame, records
from sophon_bench.leaderboard.tables import document, report
from sophon_bench.leaderboard.vega import Figure
from sophon_bench.results import Results

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


def drawn(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Data of the lines of one panel, in the order of its legend."""
    return {
        name: tuple(
            [point[axis] for point in figure["data"]["values"] if point["name"] == name]
            for axis in "xy"
        )
        for name in figure["encoding"]["color"]["scale"]["domain"]
    }


def texts(figure: Figure) -> list[str]:
    """What stands in a picture of it."""
    root = xml.etree.ElementTree.fromstring(vega.encode(figure, "svg"))
    return ["".join(found.itertext()) for found in root.iter("{http://www.w3.org/2000/svg}text")]


def title(figure: Figure) -> str:
    return " ".join([figure["title"]["text"], *figure["title"]["subtitle"]])


def marks(figure: Figure) -> list[str]:
    found = [layer["mark"] for layer in figure["layer"]]
    return [mark if isinstance(mark, str) else mark["type"] for mark in found]


def pictures(curves: list[dict[str, Any]], sweeps: list[dict[str, Any]]) -> dict[str, Figure]:
    return dict(figures.pictures(frame(curves), frame(sweeps)))


def only(curves: list[dict[str, Any]], kind: str) -> Figure:
    (figure,) = (f for name, f in pictures(curves, []).items() if kind in name)
    return figure


def only_sweep(*rows: dict[str, Any]) -> list[Figure]:
    """Panels of a picture of sweeps."""
    (figure,) = pictures([], list(rows)).values()
    return figure["concat"]


def test_envelopes_are_the_rows() -> None:
    figure = only(curve_rows(), "envelopes")
    steps = [12.5, 50, 200, 2000]
    lines = drawn(figure)
    assert list(lines) == ["ice", "klu[alpha=0.1]", "undefended", "scratch"]
    assert lines["ice"] == (steps, pytest.approx([25, 35, 45, 55]))
    assert lines["undefended"] == (steps, pytest.approx([40, 50, 60, 70]))
    assert lines["scratch"] == (steps, pytest.approx([10, 20, 30, 40]))
    assert figure["encoding"]["x"]["scale"]["type"] == "log"
    (regular,) = (layer for layer in figure["layer"] if layer["mark"]["type"] == "rule")
    assert regular["data"]["values"] == [{"x": 200}]
    shown = texts(figure)
    assert [text for text in shown if text[0].isdigit()][:4] == ["12.5", "50", "200", "2000"]
    for words in ("b max", "restricted accuracy (%)", "What a tuned attacker reaches", *lines):
        assert words in shown
    for words in ("glyphs-digits[image_size=16]", "hf_hub:a/b c", "n = 200", "5 seeds",
                  "protocol 1", "95 % intervals"):  # fmt: skip
        assert words in title(figure)


def test_ticks_are_short_counts() -> None:
    units = [64 * steps for steps in (0.5, 12.5, 99.96, 100, 2000, 9999, 10_000, 123_456, 2e6)]
    row = curve_rows(protected=[(u, 0.5, None) for u in units], undefended=[], scratch=[])[1]
    figure = only([row], "envelopes")
    shown = texts(figure)
    for steps in figure["encoding"]["x"]["axis"]["values"]:
        assert figures.short_count(steps) in shown


def test_bands_are_half_widths_and_one_seed_has_none() -> None:
    figure = only(curve_rows(), "envelopes")
    undefended = [p for p in figure["data"]["values"] if p["name"] == "undefended"]
    assert [p["low"] for p in undefended] == pytest.approx([38, 48, 58, 68])
    assert [p["high"] for p in undefended] == pytest.approx([42, 52, 62, 72])
    assert undefended[0]["tip"] == "undefended: 40.0 ± 2.0 % at 12.5"
    assert "area" in marks(figure)
    single = only(curve_rows(half_width=None, seeds=1), "envelopes")
    assert "area" not in marks(single)
    assert "interval" not in title(single)
    assert "1 seed," in title(single)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_line_has_a_band_if_all_of_it_has_half_widths(missing: float | None) -> None:
    rows = curve_rows()
    rows[1]["protected"] = [(64.0, 0.5, 0.1), (128.0, 0.6, missing)]
    (first, second) = (p for p in only(rows, "envelopes")["data"]["values"] if p["name"] == "ice")
    assert not {"low", "high"} & {*first, *second}
    assert (first["tip"], second["tip"]) == ("ice: 50.0 ± 10.0 % at 1", "ice: 60.0 % at 2")


def test_a_missing_control_is_left_out() -> None:
    assert list(drawn(only(curve_rows(scratch=[]), "envelopes"))) == [
        "ice", "klu[alpha=0.1]", "undefended"
    ]  # fmt: skip
    bare = curve_rows(undefended=[], resistance=[], resistance_all=[])
    assert list(drawn(only(bare, "envelopes")))[-1] == "scratch"
    assert not [name for name in pictures(bare, []) if "resistance" in name]


def test_nothing_to_draw_is_no_picture() -> None:
    empty = {"protected": [], "undefended": [], "scratch": [], "resistance": []}
    assert not pictures(curve_rows(**empty, resistance_all=[]), [])
    assert not pictures([], [])


def test_lines_end_where_their_records_do() -> None:
    lines = drawn(only(curve_rows(undefended=levels(0.4, None)[:3]), "envelopes"))
    assert lines["undefended"][0] == [12.5, 50, 200]
    assert lines["ice"][0] == [12.5, 50, 200, 2000]


def test_resistance_is_the_rows() -> None:
    figure = only(curve_rows(), "resistance")
    assert figure["encoding"]["color"]["scale"]["domain"] == ["ice", "klu[alpha=0.1]"]
    lines = {
        part: [p["y"] for p in figure["data"]["values"] if (p["name"], p["part"]) == ("ice", part)]
        for part in ("n = 200", "all n")
    }
    assert lines["n = 200"] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert lines["all n"] == [0.5] * 4
    (dash,) = (
        layer["encoding"]["strokeDash"]
        for layer in figure["layer"]
        if "strokeDash" in layer.get("encoding", {})
    )
    assert dash["scale"] == {"domain": ["n = 200", "all n"], "range": [[1, 0], [2, 2]]}
    low, high = figure["encoding"]["y"]["scale"]["domain"]
    assert low < 0 < 1 < high


def test_resistance_of_all_n_is_drawn_where_it_is_another() -> None:
    rows = curve_rows()
    for row in rows:
        row["resistance_all"] = row["resistance"]
    figure = only(rows, "resistance")
    assert {point["part"] for point in figure["data"]["values"]} == {"n = 200"}
    assert "n = 200" not in texts(figure)


@pytest.mark.parametrize(("lowest", "ends"), [(0.01, [0, 100]), (-0.5, [40, 170])])
def test_a_sweep_is_seen_whole_and_an_interval_alone_goes_not_below_zero(
    lowest: float, ends: list[float]
) -> None:
    row = sweep_rows(("finetune",))[0]
    row["levels"] = [(0.001, 0.6, 0.02), (0.01, lowest, 0.2)]
    (panel,) = only_sweep(row)
    scale = panel["encoding"]["y"]["scale"]
    if lowest > 0:
        assert (scale["domain"], scale["clamp"]) == (ends, True)
    else:
        assert scale["domain"][0] < 38
        assert scale["domain"][1] > 170


def test_where_skill_falls_below_zero_equal_heights_are_equal_ratios_of_error() -> None:
    row = sweep_rows(("finetune",))[0]
    row["levels"] = [(0.001, 0.9, None), (0.01, 0.0, None), (0.1, -9.0, None)]
    (panel,) = only_sweep(row)
    assert [point["y"] for point in panel["data"]["values"]] == pytest.approx([10, 100, 1000])
    y = panel["encoding"]["y"]
    assert (y["scale"]["type"], y["scale"]["reverse"]) == ("log", True)
    assert y["axis"]["values"] == [1000, 400, 200, 100, 70, 50, 30, 20, 10]
    shown = texts(panel)
    assert {"\N{MINUS SIGN}900", "\N{MINUS SIGN}100", "0", "50", "90"} <= set(shown)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_a_sweep_has_one_panel_per_family(count: int) -> None:
    families = tuple(f"finetune[optimizer=o{i}]" for i in range(count))
    panels = only_sweep(*sweep_rows(families))
    assert [panel["title"] for panel in panels] == [[family] for family in families]
    for panel in panels:
        assert panel["encoding"]["x"]["scale"]["type"] == "log"
        lines = drawn(panel)
        assert list(lines) == ["ice", "klu[alpha=0.1]", "undefended"]
        assert lines["ice"] == ([0.001, 0.01, 0.1], pytest.approx([40.1, 41, 50]))
        assert "area" in marks(panel)
    (figure,) = pictures([], sweep_rows(families)).values()
    shown = texts(figure)
    assert [shown.count(name) for name in lines] == [1, 1, 1]


def test_panels_share_styles_where_the_first_has_the_fewest_lines() -> None:
    rows = sweep_rows(("b",))
    alone = {**rows[0], "family": "a"}
    first, second = (panel["encoding"] for panel in only_sweep(alone, *rows))
    assert first["color"] == second["color"]
    assert first["color"]["scale"]["domain"] == ["ice", "klu[alpha=0.1]", "undefended"]
    (figure,) = pictures([], [alone, *rows]).values()
    root = xml.etree.ElementTree.fromstring(vega.encode(figure, "svg"))
    drawn = [
        path.get("stroke")
        for group in root.iter("{http://www.w3.org/2000/svg}g")
        if "mark-line role-mark" in group.get("class", "")
        for path in group.iter("{http://www.w3.org/2000/svg}path")
    ]
    assert drawn == ["#D55E00", "#0072B2", "#009E73", "#D55E00"]


def test_what_is_of_all_n_is_dotted_even_alone() -> None:
    rows = curve_rows(resistance=[])
    (line,) = (
        layer for layer in only(rows, "resistance")["layer"] if layer["mark"]["type"] == "line"
    )
    scale = line["encoding"]["strokeDash"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True))["all n"] == [2, 2]


@pytest.mark.parametrize("bad", [(0.0, 0.5), (float("inf"), 0.5), (0.01, float("nan"))])
def test_what_has_no_place_on_an_axis_is_left_out(bad: tuple[float, float]) -> None:
    row = sweep_rows(("finetune",))[0]
    row["levels"] = [(*bad, None), (0.1, 0.6, None)]
    (panel,) = only_sweep(row)
    assert drawn(panel) == {"undefended": ([0.1], [60])}
    assert not pictures([], [{**row, "levels": [(*bad, None)]}])


def test_a_defense_keeps_its_colour_in_every_picture() -> None:
    rows = [*curve_rows(), {**curve_rows()[1], "defense": "another", "samples": 50}]
    colours = set()
    for figure in pictures(rows, sweep_rows(("finetune",))).values():
        (panel, *_) = figure.get("concat", [figure])
        scale = panel["encoding"]["color"]["scale"]
        found = dict(zip(scale["domain"], scale["range"], strict=True))
        colours |= {found["ice"]} if "ice" in found else set()
        assert found.get("undefended", "#D55E00") == "#D55E00"
    assert len(colours) == 1


def test_many_defenses_have_different_styles() -> None:
    looks = vega.styles(f"d{i}" for i in range(28))
    assert len(set(looks.values())) == 30
    assert looks == vega.styles(f"d{i}" for i in reversed(range(28)))
    assert looks["d0"].colour == "#0072B2"
    assert {look.colour for name, look in looks.items() if name[0] == "d"} == set(vega.COLOURS)


def test_a_defense_called_like_a_control_is_not_taken_for_it() -> None:
    rows = [{**row, "defense": "scratch"} for row in curve_rows()[1:2]]
    lines = drawn(only(rows, "envelopes"))
    assert list(lines) == ["scratch (defense)", "undefended", "scratch"]
    assert lines["scratch (defense)"][1] == pytest.approx([25, 35, 45, 55])


HOSTILE = "x\"'</text><script>alert(1)</script> ${datum} \x00\x1b\n\ud800 [a]=b"


def hostile() -> dict[str, Figure]:
    """All kinds of figures, with every name from records hostile."""
    place = {"scenario": HOSTILE, "backbone": HOSTILE, "protocol": HOSTILE, "utility": HOSTILE}
    curves = [{**row, **place} for row in curve_rows()]
    sweeps = [{**row, **place} for row in sweep_rows((HOSTILE,))]
    for found in [*curves, *sweeps]:
        found["defense"] = "none" if found["control"] else HOSTILE + found["defense"]
    costs = [
        {
            **row(HOSTILE, **place), "attack": ENVELOPE, "times_undefended": times,
            "times_undefended_bound": ">",
            **{f"protect_{key}_times": times for key in ("flops", "seconds", "peak_memory")},
        }
        for times in (16.0, 0.0)
    ]  # fmt: skip
    tried = [
        {
            **row(HOSTILE, **place), "axis": HOSTILE, "value": value, "family": HOSTILE,
            "resistance": 0.5, "protect_cost": 2.0,
        }
        for value in (HOSTILE, 5)
    ]  # fmt: skip
    update = {
        "defense": HOSTILE, "parameters": 2, "flops": 4.0, "seconds": 1.0, "pretrain_seconds": 1.0
    }  # fmt: skip
    fit = {
        "defense": HOSTILE, "by_parameters": 1.0, "by_flops": 1.0,
        "pretrain_by_parameters": 1.0, "pretrain_by_flops": 1.0,
    }  # fmt: skip
    updates = [update, {**update, "parameters": 20, "flops": 40.0}]
    found = {
        **pictures(curves, sweeps),
        "overhead": bars.overhead(frame(costs), frame(costs)),
        "ablation": figures.ablation(frame(tried)),
        "growth": figures.growth(frame(updates), frame([fit]), HOSTILE),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def evaluated(part: Any, key: str = "") -> Iterator[str]:
    """Everything in a compiled figure that Vega evaluates."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from evaluated(value, name)
    elif isinstance(part, list):
        for value in part:
            yield from evaluated(value, key)
    elif isinstance(part, str) and key in ("signal", "expr", "test", "update", "init"):
        yield part


def test_what_strangers_write_is_text_in_every_figure() -> None:
    found = hostile()
    assert len(found) == 6
    for figure in found.values():
        expressions = list(evaluated(vl_convert.vegalite_to_vega(vega.whole(figure), vega.VERSION)))
        assert expressions
        assert not [text for text in expressions if "alert" in text or "[a]" in text]
        assert any(
            "<script>alert(1)</script>" in text.replace("\u00a0", " ") for text in texts(figure)
        )
        assert vega.encode(figure, "png").startswith(b"\x89PNG")


def test_names_of_any_length_leave_a_picture_its_size() -> None:
    name = "d" * 20_000
    place = {"scenario": name, "backbone": name, "utility": name}
    rows = [{**found, **place, "defense": name} for found in curve_rows()[1:2]]
    sweeps = [{**found, **place, "family": name} for found in sweep_rows(("a",))[:1]]
    for figure in pictures(rows, sweeps).values():
        root = xml.etree.ElementTree.fromstring(vega.encode(figure, "svg"))
        assert float(root.attrib["width"]) < 1000
        assert float(root.attrib["height"]) < 1000


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=12))
def test_any_name_is_drawn(name: str) -> None:
    figure = only([{**curve_rows()[1], "defense": name}], "envelopes")
    assert len(texts(figure)) >= len(drawn(figure))


def test_figures_are_what_vega_lite_takes() -> None:
    import altair
    from jsonschema import Draft7Validator

    validator = Draft7Validator(altair.load_schema())
    for figure in [*hostile().values(), *pictures(curve_rows(), sweep_rows(("a", "b"))).values()]:
        assert not list(validator.iter_errors(vega.whole(figure)))
        if "layer" in figure:
            assert not list(validator.iter_errors(vega.on_page(figure)))


def test_frames_with_types_of_their_own_give_the_same_figures() -> None:
    curves, sweeps = frame(curve_rows()), frame(sweep_rows(("a", "b")))
    typed = [found.infer_objects() for found in (curves, sweeps)]
    assert typed[0]["control"].dtype == bool
    assert typed[0]["budget"].dtype == "int64"
    assert list(figures.pictures(*typed)) == list(figures.pictures(curves, sweeps))


def test_file_names_are_safe_and_tell_places_apart() -> None:
    rows = [*curve_rows(), *curve_rows(revision="other"), *curve_rows(samples=50)]
    names = list(pictures(rows, sweep_rows(("finetune",))))
    assert len(set(names)) == len(names) == 3 * 2 + 1
    assert set("".join(names)) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
    )
    assert names[0].startswith("glyphs-digits-image-size-16_hf-hub-a-b-c_n200_envelopes_")


@pytest.mark.parametrize("theme", vega.THEMES)
@pytest.mark.parametrize("form", vega.FORMATS)
def test_pictures_are_the_same_bytes_again(form: str, theme: vega.Theme) -> None:
    first, again = (
        [
            vega.encode(figure, form, theme)
            for figure in pictures(curve_rows(), sweep_rows(("a", "b"))).values()
        ]
        for _ in range(2)
    )
    assert first == again
    start = b"\x89PNG" if form == "png" else b"<svg"
    assert all(content.startswith(start) for content in first)
    if form == "svg":
        assert vega.THEMES[theme].encode() in first[0]


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
    file.write_text(document(gather(cells), report(gather(cells))))
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


def test_what_is_drawn_is_what_the_analysis_says(finished: Path) -> None:
    cells = read_cells(finished)
    lines = drawn(only(records(series.curves(Results.of(gather(cells)))), "envelopes"))
    assert lines["ice"][1][-1] == pytest.approx(80)
    assert lines["scratch"][1][-1] == pytest.approx(30)


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


@pytest.mark.parametrize(
    "command",
    [
        ["plot", "--out", "out"],
        ["pictures", "--out", "x.png"],
        ["overhead", "--plot", "x.svg"],
        ["overhead", "--growth", "--defense", "none", "--plot", "x.png"],
        ["page", "--out", "out"],
        ["study", "horizon", "--out", "out"],
    ],
)
def test_a_missing_renderer_is_one_line_before_any_work(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    records = [] if {"--growth", "study"} & set(command) else ["--from", finished]
    result = call(*command, *records)
    assert result.exit_code == 2
    assert "needs vl_convert, which is not installed: in a clone" in result.stderr
    assert "pip install '.[page]'" in result.stderr
    assert result.stderr.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} <= {finished.name, "cache"}
