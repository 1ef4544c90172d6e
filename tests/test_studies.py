"""Named experiments: their files, what records say of an axis, the table and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Attempt, MakeCell, drawn, gather, records

from sophon_bench import protocol
from sophon_bench.analysis.series import ablation, magnitude, shown
from sophon_bench.api import attacks, defenses
from sophon_bench.cli import main
from sophon_bench.execution.runs import find_backbone, find_scenarios
from sophon_bench.leaderboard import figures, studies
from sophon_bench.leaderboard.columns import frame
from sophon_bench.leaderboard.studies import Study, load_study, study_files, varied
from sophon_bench.plugins.selectors import SelectorError
from sophon_bench.plugins.suites import trials
from sophon_bench.results import Results

BUDGET = 1600
COSTS = [BUDGET * at for at in protocol.SCORED_AT]
TEXT = """\
version: 1
question: Do more updates protect more?
axis: inner_steps
defenses: ["sophon-klu[iterations=1,watch_every=1,batch_size=16,adapt=8,inner_steps=[2,1]]"]
attacks: ["finetune[optimizer=adam,lr=[1e-3,1e-2]]"]
seeds: [0]
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def study(folder: Path, *, text: str = TEXT, name: str = "mine") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("name", sorted(study_files()))
def test_every_study_is_a_question_with_defenses_and_attacks(name: str) -> None:
    found = load_study(name)
    assert found.question.endswith("?")
    assert f"v{found.version}: {found.question}" in call("list", "studies").stdout
    if found.view == "sizes":
        assert len({*found.backbones}) == len(found.backbones) >= 2
        return
    listed = varied(found, defenses)
    if found.view == "axis":
        assert len({shown(trial.parameters[found.axis]) for trial in listed}) >= 2
    assert listed
    assert trials(attacks, found.attacks)
    assert find_scenarios(found.scenarios, None)
    for backbone in found.backbones:
        assert find_backbone(backbone).task == "classification"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("axis:", "axes:", "unknown key 'axes'; did you mean 'axis'"),
        ("version: 1", "version: 0", "version: Input should be greater than or equal to 1"),
        ("seeds: [0]", "seeds: []", "seeds: List should have at least 1 item"),
        ("seeds: [0]", "seeds: [-1]", "seeds.0: Input should be greater than or equal to 0"),
        ("seeds: [0]", "seeds: [0", "is not YAML of a study"),
        ("axis: inner_steps", "axis: inner_step", "did you mean 'inner_steps'"),
        ("sophon-klu[", "sophon-kly[", "did you mean 'sophon-klu'"),
        ("inner_steps=[2,1]", "inner_steps=0", "inner_steps should be greater than or equal to 1"),
        ("finetune[", "finetun[", "did you mean 'finetune'"),
        (
            "axis: inner_steps",
            "axis: strategies",
            "study 'mine': sophon-klu[iterations=1,inner_steps=2,",
        ),
    ],
)
def test_a_bad_study_is_one_line_and_exit_code_two_before_any_work(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = TEXT.replace(old, new)
    if new == "axis: strategies":
        text = text.replace("inner_steps=[2,1]", "inner_steps=2,strategies=[[sgd@1],[sgd@2]]")
    file = study(tmp_path, text=text)
    store = tmp_path / "store"
    result = call("study", file, "--scenario", "tiny", "--store", store, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not list(store.glob("models/*"))


@pytest.mark.parametrize(
    ("name", "text"), [("my_study", TEXT), ("=1+1", TEXT), ("mine", f"{TEXT}name: ../up\n")]
)
def test_a_study_is_called_as_a_plugin_is(name: str, text: str, tmp_path: Path) -> None:
    result = call("study", study(tmp_path, name=name, text=text), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "should be lower-case letters and digits joined by hyphens" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_study_suggests() -> None:
    result = call("study", "horizont", "--out", "x")
    assert result.exit_code == 2
    assert "unknown study 'horizont'; did you mean 'horizon'?" in result.stderr
    with pytest.raises(SelectorError, match="unknown study 'zzz'; there are: "):
        load_study("zzz")


def test_an_output_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["--scenario", "tiny", "--store", tmp_path / "s", "--out", tmp_path / "file" / "x"]
    result = call("study", study(tmp_path), *arguments)
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert not list((tmp_path / "s").glob("models/*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object], Result]:
    folder = tmp_path_factory.mktemp("study")
    arguments = [
        "study", study(folder), "--scenario", "tiny", "--steps", "2", "--samples", "20",
        "--attack", "finetune[optimizer=adam,lr=1e-2]", "--store", folder / "store",
        "--out", folder / "out",
    ]  # fmt: skip
    return folder, arguments, call(*arguments)


def test_a_study_writes_a_table_its_rows_and_a_picture(
    finished: tuple[Path, list[object], Result],
) -> None:
    folder, _, result = finished
    assert result.exit_code == 0, result.output
    text = (folder / "out" / "mine.md").read_text()
    lines = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert lines == ["inner_steps", ":" + lines[1].strip(":"), "none", "scratch", "1", "2"]
    command = (
        f"sophon-bench study {folder}/mine.yaml --attack 'finetune[optimizer=adam,lr=1e-2]' "
        "--scenario tiny --samples 20 --steps 2"
    )
    for words in (
        "# mine: Do more updates protect more?",
        f"command: {command}",
        "attacks: finetune[optimizer=adam,lr=1e-2]; seeds 0; n = 20",
        "records: sophon-bench 0.",
        "in part: --attack, --scenario, --samples, --steps in place of what the study declares",
        "\n¹ ",
        "† provisional",
        "inner_steps 1: sophon-klu[iterations=1,inner_steps=1,",
    ):
        assert words in text
    assert "Scores, n = 20, 1 seed, by inner_steps" in result.stdout
    document = json.loads((folder / "out" / "mine.json").read_text())
    assert document["study"]["question"] == "Do more updates protect more?"
    assert document["command"] == command
    assert [row["value"] for row in document["rows"]] == [None, 1, 2]
    assert all(row["protect_cost"] > 0 for row in document["rows"][1:])
    assert (folder / "out" / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_does_nothing_anew_and_says_the_same(
    finished: tuple[Path, list[object], Result],
) -> None:
    folder, arguments, first = finished
    before = {file: file.read_bytes() for file in (folder / "out").iterdir()}
    records = {file: file.stat().st_mtime_ns for file in folder.glob("store/*/*.json")}
    again = call(*arguments)
    assert again.stdout == first.stdout
    assert {file: file.read_bytes() for file in (folder / "out").iterdir()} == before
    assert {f: f.stat().st_mtime_ns for f in folder.glob("store/*/*.json")} == records
    plan = call(*arguments, "--dry-run")
    assert "0 to do" in plan.stdout


def test_a_study_whose_defenses_fail_says_so_and_exits_with_one(
    finished: tuple[Path, list[object], Result], tmp_path: Path
) -> None:
    plugin = tmp_path / "falling.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from sophon_bench.plugins.registry import defenses\n"
        "@defenses.register('falling')\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Falling:\n"
        "    far: int = 1\n"
        "    def run(self, model, view):\n"
        "        raise RuntimeError('fell')\n"
        "        yield model\n"
    )
    text = TEXT.split("axis:")[0] + (
        "axis: far\ndefenses: ['falling[far=[1,2]]']\nattacks: [finetune]\nseeds: [0]\n"
    )
    _, _, *options = finished[1]
    out = ["--plugin", plugin, "--out", tmp_path / "out"]
    try:
        result = call("study", study(tmp_path, text=text), *options, *out)
    finally:
        defenses.remove("falling")
    assert result.exit_code == 1, result.output
    assert "failed: finetune[optimizer=adam] against falling[far=2]" in result.stderr
    assert "RuntimeError: fell (falling.py:8)" in result.stderr
    assert "no seed on which attacks" in result.stdout
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["mine.json", "mine.md"]


def trial(
    make_cell: MakeCell, defense: str, level: float, *, attack: str = "finetune", **changes: Any
) -> Attempt:
    curve = [(cost, level, level) for cost in COSTS]
    return make_cell(defense=defense, attack=attack, curve=curve, budget=BUDGET, **changes)


@pytest.fixture
def rows(make_cell: MakeCell) -> list[dict[str, Any]]:
    """Undefended .8, scratch .3; K = 20 lets .4 through, by its search .5, and K = 5 .2."""
    cells = [
        trial(make_cell, "none", 0.8),
        trial(make_cell, "none", 0.3, attack="scratch"),
        trial(make_cell, "d[k=20]", 0.35),
        trial(make_cell, "d[k=20]", 0.4, attack="finetune[lr=1]"),
        trial(make_cell, "d[k=20]", 0.5, attack="finetune[lr=2]", derived=True),
        trial(make_cell, "d[k=5]", 0.2),
        trial(make_cell, "e[k=5]", 0.7),
    ]
    return records(ablation(Results.of(gather(cells)), "k"))


def test_rows_are_in_order_of_family_and_value_the_undefended_model_first(
    rows: list[dict[str, Any]],
) -> None:
    assert [(row["family"], row["value"]) for row in rows] == [
        ("none", None), ("d", 5), ("d", 20), ("e", 5),
    ]  # fmt: skip


def test_listed_trials_are_told_apart_from_search_and_fresh_weights(
    rows: list[dict[str, Any]],
) -> None:
    assert [row["listed_after"] for row in rows] == pytest.approx([0.8, 0.2, 0.4, 0.7])
    assert [row["restricted_after"] for row in rows] == pytest.approx([0.8, 0.3, 0.5, 0.7])
    assert [row["resistance"] for row in rows] == pytest.approx([0, 1, 0.6, 0.2])


def test_listed_trials_are_a_mean_over_seeds_and_n(make_cell: MakeCell) -> None:
    cells = [
        trial(make_cell, "d[k=1]", level, seed=seed, samples=n)
        for seed, n, level in ((0, 50, 0.2), (0, 200, 0.4), (1, 50, 0.6), (1, 200, 0.8))
    ]
    (row,) = records(ablation(Results.of(gather(cells)), "k"))
    assert row["listed_after"] == pytest.approx(0.5)


def test_a_table_names_defenses_where_there_are_several(rows: list[dict[str, Any]]) -> None:
    named = [{**row, "defense_name": row["family"]} for row in rows]
    (place,) = studies.ablation(frame(named), ["a note"])
    (table,) = map(drawn, place.tables)
    assert table.columns[:2] == ["k", "defense"]
    assert [line[:2] for line in table.body] == [["5", "d"], ["20", "d"], ["5", "e"]]
    assert [line[0] for line in table.quiet] == ["none", "scratch"]
    listed = table.columns.index("listed")
    assert [line[listed] for line in table.body] == ["20.0", "40.0", "70.0"]
    assert table.quiet[1][table.columns.index("restricted")] == "30.0"
    assert table.notes[-1] == "a note"
    (place,) = studies.ablation(frame(row for row in named if row["family"] != "e"), [])
    (alone,) = map(drawn, place.tables)
    assert alone.columns[:2] == ["k", "score"]
    assert {len(line) for line in (*alone.body, *alone.quiet)} == {8}


def test_the_picture_has_resistance_and_cost_at_the_values(rows: list[dict[str, Any]]) -> None:
    figure = figures.ablation(frame(rows))
    assert figure is not None
    above, below = figure["vconcat"]

    def points(panel: Any, name: str) -> list[tuple[float, float]]:
        return [(p["x"], p["y"]) for p in panel["data"]["values"] if p["name"] == name]

    assert points(above, "d") == [(5, pytest.approx(1)), (20, pytest.approx(0.6))]
    assert points(below, "d") == [(5, pytest.approx(2)), (20, pytest.approx(2))]
    for panel in (above, below):
        x = panel["encoding"]["x"]
        assert (x["axis"]["title"], x["axis"]["values"]) == ("k", [5, 20])
        assert (x["type"], x["scale"]["type"]) == ("quantitative", "log")


@pytest.mark.parametrize(("lowest", "scale"), [(0, "linear"), (0.001, "log")])
def test_numbers_that_begin_at_zero_have_a_linear_axis(
    rows: list[dict[str, Any]], lowest: float, scale: str
) -> None:
    tried = [row for row in rows if row["family"] == "d"]
    figure = figures.ablation(frame([{**tried[0], "value": lowest}, *tried[1:]]))
    assert figure is not None
    above, _ = figure["vconcat"]
    assert above["encoding"]["x"]["scale"]["type"] == scale
    assert [point["x"] for point in above["data"]["values"]] == [lowest, 20]


def test_words_stand_side_by_side(rows: list[dict[str, Any]]) -> None:
    words = [{**row, "value": f"w{i}"} for i, row in enumerate(rows)]
    figure = figures.ablation(frame(words[:3]))
    assert figure is not None
    for panel in figure["vconcat"]:
        x = panel["encoding"]["x"]
        assert (x["type"], x["scale"]["domain"]) == ("ordinal", ["w1", "w2"])
        assert [point["x"] for point in panel["data"]["values"]] == ["w1", "w2"]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_what_a_defense_does_not_have_is_left_out(
    rows: list[dict[str, Any]], missing: float | None
) -> None:
    tried = [row for row in rows if row["family"] == "d"]
    figure = figures.ablation(frame([{**tried[0], "resistance": missing}, *tried[1:]]))
    assert figure is not None
    above, below = figure["vconcat"]
    assert [len(panel["data"]["values"]) for panel in (above, below)] == [1, 2]
    unscored = figures.ablation(frame([{**row, "resistance": missing} for row in tried]))
    assert unscored is not None
    assert len(unscored["vconcat"]) == 1


def test_without_a_single_cost_there_is_no_picture(rows: list[dict[str, Any]]) -> None:
    failed = [{**row, "protect_cost": None} for row in rows]
    assert figures.ablation(frame(failed)) is None


@pytest.mark.parametrize(
    ("value", "number", "text"),
    [(5, 5.0, "5"), (0.001, 0.001, "0.001"), (["a", "b"], 2.0, "2"), ("ice", None, "ice"),
     (None, None, "None")],
)  # fmt: skip
def test_a_list_counts_by_its_length(value: Any, number: float | None, text: str) -> None:
    assert magnitude(value) == number
    assert shown(value) == text


def test_a_study_has_a_label() -> None:
    found = Study(
        name="x", version=2, question="q", axis="a", defenses=["d"], attacks=["t"], seeds=[0]
    )
    assert found.label == "x v2"
