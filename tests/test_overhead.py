"""What protecting and attacking cost: by cases computed by hand, in tables and in a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Attempt, MakeCell, drawn, gather
from msgspec.structs import replace

from sophon_bench.analysis import cost
from sophon_bench.analysis.case import Reached, reached
from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.analysis.score import scores
from sophon_bench.cli import main
from sophon_bench.leaderboard import bars, overhead, tables, vega
from sophon_bench.leaderboard.columns import frame, records
from sophon_bench.leaderboard.render import from_csv
from sophon_bench.results import Results

BUDGET = 1600
COSTS = (100, 200, 400, 800, 1600)
HALF_WAY = 200 * math.sqrt(2)
"""Where a utility is in the middle of those at 200 and 400."""


def trial(
    make_cell: MakeCell, defense: str, *levels: float, attack: str = "finetune", **changes: Any
) -> Attempt:
    """One that reaches ``levels`` at the budgets; a single level throughout."""
    longer = (3200, 8000, 16000) if changes.get("stretch") == 10 else ()
    costs = (*COSTS, *longer)
    found = levels * len(costs) if len(levels) == 1 else levels
    curve = [(cost, level, level) for cost, level in zip(costs, found, strict=True)]
    return make_cell(defense=defense, attack=attack, curve=curve, budget=BUDGET, **changes)


def cells_of(make_cell: MakeCell, *defended: Attempt) -> list[Attempt]:
    """The undefended model's reaches 0.8 by way of 0.5, fresh weights 0.4: half is 0.6."""
    return [
        trial(make_cell, "none", 0.4, 0.5, 0.7, 0.8, 0.8),
        trial(make_cell, "none", 0.4, attack="scratch"),
        *defended,
    ]


def half_costs(cells: list[Attempt]) -> list[dict[str, Any]]:
    return records(cost.half_costs(Results.of(gather(cells))))


def protection(cells: list[Attempt]) -> list[dict[str, Any]]:
    return records(cost.protection(Results.of(gather(cells))))


def row_of(cells: list[Attempt], defense: str = "d", attack: str = "finetune", **at: Any) -> Any:
    (row,) = (
        row
        for row in half_costs(cells)
        if (row["defense"], row["attack"]) == (defense, attack)
        and all(row[key] == value for key, value in at.items())
    )
    return row


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([(100, 0.5), (400, 0.7)], Reached(200.0, "=")),
        ([(100, 0.5), (400, 0.6)], Reached(400.0, "=")),
        ([(100, 0.6), (400, 0.7)], Reached(100, "<=")),
        ([(100, 0.5), (400, 0.7), (800, 0.5)], Reached(200.0, "=")),
        ([(100, 0.5), (400, 0.59)], Reached(400, ">")),
    ],
)
def test_a_level_is_reached_log_linearly_between_budgets(
    levels: list[tuple[float, float]], expected: Reached
) -> None:
    found = reached(levels, 0.6)
    assert found.cost == pytest.approx(expected.cost)
    assert found.bound == expected.bound


def test_costs_to_half_are_multiples_of_the_undefended_models_and_of_scratchs(
    make_cell: MakeCell,
) -> None:
    cells = cells_of(
        make_cell,
        trial(make_cell, "none", 0.4, attack="scratch", stretch=10),
        trial(make_cell, "d", 0.4, 0.4, 0.4, 0.5, 0.7),
    )
    row = row_of(cells)
    assert row["half"] == pytest.approx(0.6)
    assert row["half_cost"] == pytest.approx(800 * math.sqrt(2))
    assert row["half_cost_bound"] == row["undefended_cost_bound"] == "="
    assert row["undefended_cost"] == pytest.approx(HALF_WAY)
    assert (row["times_undefended"], row["times_undefended_bound"]) == (pytest.approx(4), "=")
    assert (row["scratch_cost"], row["scratch_cost_bound"]) == (16000, ">")
    assert row["times_scratch"] == pytest.approx(800 * math.sqrt(2) / 16000)
    assert row["times_scratch_bound"] == "<"
    assert (row["samples"], row["seeds"], row["stretch"], row["control"]) == (200, 1, 1, False)
    own = row_of(cells, "none")
    assert (own["times_undefended"], own["control"]) == (1, True)


def test_scratch_that_is_there_too_is_compared_with(make_cell: MakeCell) -> None:
    fresh = trial(
        make_cell, "none", 0.4, 0.4, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8, attack="scratch", stretch=10
    )
    row = row_of(cells_of(make_cell, fresh, trial(make_cell, "d", 0.4, 0.4, 0.4, 0.5, 0.7)))
    assert (row["scratch_cost"], row["scratch_cost_bound"]) == (
        pytest.approx(1600 * math.sqrt(2)),
        "=",
    )
    assert (row["times_scratch"], row["times_scratch_bound"]) == (pytest.approx(0.5), "=")


def test_what_is_never_there_is_censored_at_its_end(make_cell: MakeCell) -> None:
    cells = cells_of(make_cell, trial(make_cell, "d", 0.4))
    row = row_of(cells)
    assert (row["half_cost"], row["half_cost_bound"]) == (1600, ">")
    assert row["times_undefended"] == pytest.approx(1600 / HALF_WAY)
    assert row["times_undefended_bound"] == ">"
    assert row["times_scratch"] is row["times_scratch_bound"] is None, "neither was there"


def test_what_is_there_at_the_first_look_says_so(make_cell: MakeCell) -> None:
    row = row_of(cells_of(make_cell, trial(make_cell, "d", 0.7)))
    assert (row["half_cost"], row["half_cost_bound"]) == (100, "<=")


def test_the_envelopes_multiple_is_b50(make_cell: MakeCell) -> None:
    cells = cells_of(make_cell, trial(make_cell, "d", 0.4, 0.4, 0.4, 0.5, 0.7))
    row = row_of(cells, attack=ENVELOPE)
    (score,) = (
        found for found in records(scores(Results.of(gather(cells)))) if found["defense"] == "d"
    )
    assert row["times_undefended"] == score["b50"] == pytest.approx(4)
    assert row["parameters"] is None


def test_utilities_are_means_over_seeds_before_half_is_looked_for(make_cell: MakeCell) -> None:
    levels = {0: (0.4, 0.4, 0.7, 0.8, 0.8), 1: (0.4, 0.4, 0.4, 0.4, 0.8)}
    cells = [
        trial(make_cell, defense, *found, attack=attack, seed=seed)
        for seed, own in levels.items()
        for defense, attack, found in (
            ("none", "finetune", (0.8,)),
            ("none", "scratch", (0.4,)),
            ("d", "finetune", own),
        )
    ]
    # means of d: .4, .4, .55, .6, .8
    assert row_of(cells)["half_cost"] == pytest.approx(800)


@pytest.mark.parametrize(
    ("others", "rows"),
    [
        ([{"seed": 0}, {"seed": 1}], {"finetune", "sam", "envelope"}),
        ([{"seed": 0}], {"finetune", "envelope"}),
        ([{"seed": 0}, {"seed": 1, "status": "failed"}], {"finetune", "envelope"}),
        ([{"seed": 0}, {"seed": 1, "status": "skipped"}], {"finetune", "envelope"}),
    ],
)
def test_a_trial_that_did_not_run_on_every_seed_has_no_row(
    make_cell: MakeCell, others: list[dict[str, Any]], rows: set[str]
) -> None:
    cells = [
        trial(make_cell, defense, level, attack=attack, seed=seed)
        for defense, attack, level in (
            ("none", "finetune", 0.8), ("none", "scratch", 0.4), ("d", "finetune", 0.7)
        )
        for seed in (0, 1)
    ]  # fmt: skip
    cells += [trial(make_cell, "d", 0.7, attack="sam", **other) for other in others]
    found = half_costs(cells)
    assert {row["attack"] for row in found if row["defense"] == "d"} == rows


def test_a_trial_that_the_undefended_model_did_not_meet_is_no_multiple(
    make_cell: MakeCell,
) -> None:
    row = row_of(cells_of(make_cell, trial(make_cell, "d", 0.7, attack="sam")), attack="sam")
    assert row["undefended_cost"] is row["undefended_cost_bound"] is row["times_undefended"] is None
    assert row["half_cost"] == 100


def test_a_crash_at_once_costs_what_the_undefended_model_does(make_cell: MakeCell) -> None:
    crash = make_cell(defense="d", status="diverged", curve=[], nonfinite_step=1, budget=BUDGET)
    row = row_of(cells_of(make_cell, crash))
    assert row["half_cost"] == pytest.approx(HALF_WAY)
    assert row["times_undefended"] == 1


def test_a_trial_that_diverges_before_any_look_is_not_there(make_cell: MakeCell) -> None:
    late = make_cell(
        defense="d", status="diverged", curve=[], nonfinite_step=5, budget=BUDGET, attack="sam"
    )
    row = row_of(cells_of(make_cell, trial(make_cell, "d", 0.7), late), attack="sam")
    assert (row["half_cost"], row["half_cost_bound"]) == (1600, ">")


def test_where_pretraining_is_worth_nothing_there_is_no_half(make_cell: MakeCell) -> None:
    cells = [
        trial(make_cell, "none", 0.43),
        trial(make_cell, "none", 0.4, attack="scratch"),
        trial(make_cell, "d", 0.4),
    ]
    assert half_costs(cells) == []


def made(make_cell: MakeCell, *, threads: int = 1) -> list[Attempt]:
    """Two seeds: pre-training takes 2 s and 4 s, the defense 6 s on both; else twice as much."""
    found = []
    for seed, seconds in ((0, 2.0), (1, 4.0)):
        cell = make_cell(defense="d", seed=seed)
        before = replace(
            cell.pretrained,
            cost=replace(cell.pretrained.cost, seconds=seconds, peak_bytes=100),
        )
        after = replace(
            cell.released,
            cost=replace(cell.released.cost, seconds=6.0, flops=2e9, peak_bytes=300, examples=1280),
            provenance=replace(cell.released.provenance, threads=threads if seed else 1),
        )
        # two trials of one model are no two models
        found += [
            replace(cell, key=f"{seed}{n}", pretrained=before, released=after) for n in range(2)
        ]
    return found


def test_protecting_is_a_multiple_of_pretraining_by_seed(make_cell: MakeCell) -> None:
    base, row = protection(made(make_cell))
    assert (base["defense"], base["control"], base["seeds"]) == (cost.PRETRAINING, True, 2)
    assert (base["protect_seconds"], base["protect_seconds_times"]) == (3, 1)
    assert (row["defense"], row["control"], row["seeds"]) == ("d", False, 2)
    assert (row["protect_seconds"], row["protect_seconds_times"]) == (6, (3 + 1.5) / 2)
    assert (row["protect_flops"], row["protect_flops_times"]) == (2e9, 2)
    assert (row["protect_peak_memory"], row["protect_peak_memory_times"]) == (300, 3)
    assert (row["protect_examples"], row["protect_examples_times"]) == (1280, 2)


def test_seconds_and_memory_are_compared_on_one_machine_only(make_cell: MakeCell) -> None:
    _, row = protection(made(make_cell, threads=2))
    assert (row["protect_seconds_times"], row["protect_peak_memory_times"]) == (3, 3)
    assert row["protect_flops_times"] == 2
    other = [cell for cell in made(make_cell, threads=2) if cell.seed]
    assert protection(other)[1]["protect_seconds_times"] is None


def test_the_undefended_model_and_missing_costs_are_no_numbers(make_cell: MakeCell) -> None:
    (base,) = protection([make_cell()])
    assert base["defense"] == cost.PRETRAINING
    (_, row) = protection([make_cell(defense="d", released={"cost": None})])
    assert row["protect_flops"] is row["protect_flops_times"] is None


@pytest.fixture
def whole(make_cell: MakeCell) -> list[Attempt]:
    grid = "finetune[lr={}]"
    return [
        trial(make_cell, "none", 0.7, 0.7, 0.8, 0.8, 0.8, attack=grid.format(0.1)),
        trial(make_cell, "none", 0.4, 0.5, 0.7, 0.8, 0.8, attack=grid.format(0.01)),
        trial(make_cell, "none", 0.4, attack="scratch"),
        trial(make_cell, "d", 0.4, 0.4, 0.4, 0.5, 0.7, attack=grid.format(0.1)),
        trial(make_cell, "d", 0.4, attack=grid.format(0.01)),
    ]


def tables_of(cells: list[Attempt]) -> list[Any]:
    (place,) = overhead.places(overhead.overhead(gather(cells)))
    assert place.title.startswith("s (data r), b, fp32, protocol 1, 25 steps")
    return [drawn(table) for table in place.tables]


def test_tables_show_costs_multiples_and_bounds(whole: list[Attempt]) -> None:
    protecting, halves = tables_of(whole)
    assert protecting.quiet == [["pre-training", "1", "2", "0.001", "100", "640"]]
    ((name, seeds, *costs),) = protecting.body
    assert (name, seeds) == ("d", "1")
    assert costs == ["2 (1×)", "0.001 (1×)", "100 (1×)", "640 (1×)"]
    assert halves.columns == ["", "none", "d"]
    assert halves.quiet[0][1:] == ["60.0", "60.0"]
    assert halves.quiet[1] == ["scratch's envelope", ">25", ">25"]
    assert halves.body == [
        ["finetune[lr=0.01]", "4.42 (1×, <0.18×)", ">25 (>5.7×, ·)"],
        ["finetune[lr=0.1]", "≤1.56 (1×, <0.062×)", "17.7 (11×, <0.71×)"],
    ]
    assert halves.loud == [["tuned envelope", "≤1.56 (1×, <0.062×)", "17.7 (11×, <0.71×)"]]
    assert "n = 200, 1 seed:" in halves.title


def test_no_half_says_why(make_cell: MakeCell) -> None:
    (protecting,) = tables_of([make_cell(defense="d", budget=BUDGET)])
    assert "not 5 points above scratch" in protecting.notes[0]


def test_every_format_has_the_same_rows(whole: list[Attempt]) -> None:
    found = overhead.overhead(gather(whole))
    rows = json.loads(overhead.show("json", found))
    lines = from_csv(overhead.show("csv", found))
    assert len(rows) == len(lines) == 2 + 6
    assert "attack" not in rows[0]
    assert "parameters" not in lines[0]
    for row, line in zip(rows, lines, strict=True):
        for key in ("protect_seconds_times", "half_cost", "times_scratch"):
            value = row.get(key)
            assert line[key] == ("" if value is None else str(value))
    for form in ("console", "md"):
        assert "17.7 (11×, <0.71×)" in overhead.show(form, found)


def panels(cells: list[Attempt]) -> list[vega.Figure]:
    found = overhead.overhead(gather(cells))
    figure = bars.overhead(found.protection, found.half_costs)
    assert figure is not None
    return [panel for line in figure["vconcat"] for panel in line["hconcat"]]


def bars_of(panel: vega.Figure) -> list[tuple[str, str, float, str]]:
    keys = ("defense", "series", "times", "text")
    return [tuple(bar[key] for key in keys) for bar in panel["data"]["values"]]


def test_bars_are_the_rows_from_one_on(make_cell: MakeCell) -> None:
    costs = {"cost": replace(make_cell().released.cost, flops=4e9, seconds=10.0)}
    cells = cells_of(
        make_cell,
        trial(make_cell, "c", 0.4),
        trial(make_cell, "d", 0.4, 0.4, 0.4, 0.5, 0.7, released=costs),
    )
    left, right = panels(cells)
    for panel in (left, right):
        assert panel["encoding"]["y"]["scale"]["domain"] == ["c", "d"]
        (bar, _) = panel["layer"]
        assert bar["encoding"]["x"]["scale"]["type"] == "log"
        assert bar["encoding"]["x2"] == {"datum": 1}
    assert left["height"] == right["height"]
    assert bars_of(left) == [
        ("c", "FLOPs", 1, "1×"),
        ("d", "FLOPs", 4, "4×"),
        ("c", "seconds", 1, "1×"),
        ("d", "seconds", 5, "5×"),
        ("c", "peak memory", 1, "1×"),
        ("d", "peak memory", 1, "1×"),
    ]
    assert bars_of(right) == [
        ("c", "n = 200", pytest.approx(4 * math.sqrt(2)), ">5.7×"),
        ("d", "n = 200", pytest.approx(4), "4×"),
    ]
    assert [bar["open"] for bar in right["data"]["values"]] == [True, False]


@pytest.mark.parametrize(("times", "end"), [(0.0, 0.76), (0.5, 0.5), (3.0, 3.0)])
def test_a_bar_of_no_cost_ends_at_the_edge(times: float, end: float) -> None:
    keys = ("flops", "seconds", "peak_memory")
    costs = dict.fromkeys((f"protect_{key}_times" for key in keys), times)
    figure = bars.protection(frame([{"defense": "d", "control": False, **costs}]))
    assert figure is not None
    low, high = figure["layer"][0]["encoding"]["x"]["scale"]["domain"]
    for bar in figure["data"]["values"]:
        assert bar["end"] == pytest.approx(end, rel=0.1)
        assert low <= bar["end"] <= high
        assert bar["right"] == max(1, times)


def test_every_place_has_its_panels_and_the_control_alone_none(make_cell: MakeCell) -> None:
    cells = [make_cell(defense="d"), make_cell(defense="d", backbone="other")]
    assert len(panels(cells)) == 4
    assert bars.overhead(cost.protection(Results.of(gather([make_cell()]))), frame([])) is None


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["overhead", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path, whole: list[Attempt]) -> Path:
    made = tmp_path / "out.json"
    made.write_text(tables.document(gather(whole), tables.report(gather(whole))))
    return made


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_command_prints_and_draws(file: Path, form: str) -> None:
    picture = file.with_suffix(f".{form}")
    result = call("--from", file, "--plot", picture)
    assert result.exit_code == 0, result.output
    assert "tuned envelope" in result.output
    assert picture.read_bytes()[:5] == {"png": b"\x89PNG\r", "svg": b"<svg "}[form]
    assert json.loads(call("--from", file, "--format", "json").output)[1]["defense"] == "d"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--roofline", "--growth"], "give one"),
        (["--growth", "--from", "x.json"], "--from is for records, and --growth measures"),
        (["--roofline", "--format", "md"], "--format is for records"),
        (["--roofline", "--plot", "x.png"], "--plot goes with --growth, not with --roofline"),
        (["--growth", "--rounds", "3"], "--rounds goes with --roofline, not with --growth"),
        (["--roofline", "--updates", "3"], "--updates goes with --growth, not with --roofline"),
        (["--backbone", "resnet18"], "--backbone goes with --roofline or --growth"),
        (["--json", "x.json"], "--json goes with --roofline or --growth"),
        (["--plot", "x.pdf"], ".png or .svg"),
        (["--plot", "/nowhere/x.png"], "--plot '/nowhere/x.png' cannot be written"),
        (["--store", "/nowhere"], "there is no store"),
        (["--format", "pdf"], "'console'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_records_without_a_defense_are_not_drawn(tmp_path: Path, make_cell: MakeCell) -> None:
    source = tmp_path / "out.json"
    source.write_text(tables.document(gather([make_cell()]), tables.report(gather([make_cell()]))))
    result = call("--from", source, "--plot", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "no record of a defense to draw" in result.output
    assert not (tmp_path / "x.png").exists()
