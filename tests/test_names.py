"""What tables call defenses and attacks: given names, and numbers in place of long selectors."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import MakeCell, gather

from sophon_bench.cli import main
from sophon_bench.leaderboard import tables
from sophon_bench.leaderboard.names import LONGEST, Legend
from sophon_bench.leaderboard.render import FORMATS
from sophon_bench.leaderboard.tables import Report

LONG = "ice[" + ",".join(f"parameter_{i}=0.{i}" for i in range(6)) + "]"
OTHER = LONG.replace("0.5", "0.7")
LONG_ATTACK = "finetune[" + ",".join(f"parameter_{i}=0.{i}" for i in range(7)) + "]"


def reported(make_cell: MakeCell, *defenses: str, attack: str = "finetune", **names: str) -> Report:
    cells = [
        make_cell(defense=defense, attack=each, seed=seed, curve=[(12800.0, level, level)])
        for seed in (0, 1)
        for defense, each, level in [
            ("none", "scratch", 0.3), ("none", attack, 0.8), ("none", "finetune", 0.7),
            *((defense, each, 0.5) for defense in defenses for each in (attack, "finetune")),
        ]
    ]  # fmt: skip
    return tables.report(gather(list({c.key: c for c in cells}.values())), names=names)


TEXTS = FORMATS[:3]


@pytest.mark.parametrize("form", TEXTS)
def test_long_selectors_are_numbered_and_stand_in_a_legend(
    form: str, make_cell: MakeCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    shown = tables.show(form, reported(make_cell, LONG, OTHER, "short[k=1]"))
    plain = shown.replace(r"\#", "#").replace(r"\_", "_")
    assert f"ice #1: {LONG}" in plain
    assert f"ice #2: {OTHER}" in plain
    assert "short[k=1]" in plain
    for line in plain.splitlines():
        if re.match(r"\W*ice #1\b", line) and "caption" not in line:
            assert LONG not in line.replace(f"ice #1: {LONG}", "")


def test_numbers_are_the_same_in_all_tables_of_a_report(make_cell: MakeCell) -> None:
    shown = tables.show("md", reported(make_cell, OTHER, LONG))
    legends = set(re.findall(r"^(ice #\d): (\S+)$", shown, flags=re.MULTILINE))
    assert len(legends) == 2
    assert {label for _, label in legends} == {LONG, OTHER}


@pytest.mark.parametrize("defense", [LONG, "short[k=1]"])
def test_a_given_name_stands_for_a_selector_of_any_length(
    defense: str, make_cell: MakeCell
) -> None:
    report = reported(make_cell, defense, **{defense: "mine", "finetune": "plain"})
    shown = tables.show("md", report)
    assert re.search(r"^\| mine +\|", shown, flags=re.MULTILINE)
    assert re.search(r"^\| plain +\|", shown, flags=re.MULTILINE)
    assert f"mine: {defense}" in shown
    assert "plain: finetune" in shown
    assert "#1" not in shown
    assert "against mine" in tables.meaning(report)


def test_a_long_attack_is_numbered(make_cell: MakeCell) -> None:
    shown = tables.show("md", reported(make_cell, "ice", attack=LONG_ATTACK))
    assert len(LONG_ATTACK) > LONGEST["attack"]
    assert f"finetune #1: {LONG_ATTACK}" in shown
    assert re.search(r"^\| finetune #1 +\|", shown, flags=re.MULTILINE)


def test_data_keep_the_selector_and_have_names_where_there_are_some(make_cell: MakeCell) -> None:
    report = reported(make_cell, LONG, **{LONG: "mine", "finetune": "plain"})
    rows = json.loads(tables.show("json", report))
    assert {row["name"] for row in rows if row["defense"] == LONG} == {"mine"}
    assert {row["name"] for row in rows if row["defense"] == "none"} == {None}
    named = {row["attack"]: row["trial_name"] for row in rows if "attack" in row}
    assert named == {"finetune": "plain", "scratch": None, "envelope": None}
    lines = list(csv.DictReader(io.StringIO(tables.show("csv", report))))
    assert {line["name"] for line in lines} == {"mine", ""}
    for form in ("csv", "json"):
        assert "name" not in tables.show(form, reported(make_cell, LONG)).replace(LONG, "")
        assert "#1" not in tables.show(form, reported(make_cell, LONG))


def test_a_legend_leaves_short_labels_alone() -> None:
    edge = "d" * LONGEST["defense"]
    legend = Legend({edge: "d", f"{edge}e": "d", "x" * 50: "x", "y" * 50: "x"}, {})
    assert legend(edge) == edge
    assert [legend(label) for label in (f"{edge}e", "x" * 50, "y" * 50)] == ["d #1", "x #1", "x #2"]
    assert legend.notes([edge, "x" * 50, "x" * 50]) == [f"x #1: {'x' * 50}"]


TINY = Path(__file__).with_name("tiny_scenario.py")


def run(*words: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(
        main,
        ["run", "--scenario", "tiny", "--steps", "4", "--threads", "1", "--plugin", str(TINY),
         *words],
    )  # fmt: skip
    return result.exit_code, result.output


def test_a_run_calls_plugins_by_their_given_names(tmp_path: Path) -> None:
    store, file = ["--store", str(tmp_path / "s")], tmp_path / "out.json"
    selectors = ("naive-ascent[iterations=2]", "finetune[lr=0.03]")
    named = ["--defense", f"mine={selectors[0]}", "--attack", f"fast={selectors[1]}"]
    code, output = run(*named, *store, "--json", str(file))
    assert code == 0, output
    assert f"mine: {selectors[0]}" in output
    assert f"fast: {selectors[1]}" in output
    summary = json.loads(file.read_text())["summary"]
    assert {row["name"] for row in summary if row["defense"] == selectors[0]} == {"mine"}
    keys = set(json.loads(file.read_text())["hashes"]["cells"])
    plain = ["--defense", selectors[0], "--attack", selectors[1]]
    code, output = run(*plain, *store, "--json", str(file))
    assert code == 0, output
    assert "mine" not in output
    assert set(json.loads(file.read_text())["hashes"]["cells"]) == keys


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--defense", "Mine=none"], "'Mine'"),
        (["--defense", "=none"], "''"),
        (["--defense", "a--b=none"], "'a--b'"),
        (["--defense", f"{'a' * 41}=none"], "40 at most"),
        (["--defense", "finetune=none"], "is registered as attack"),
        (["--defense", "none=naive-ascent"], "is registered as defense"),
        (["--defense", "tiny=naive-ascent"], "is registered as scenario"),
        (["--defense", "m=@all"], "not for a list of them"),
        (["--attack", "m=@smoke"], "not for a list of them"),
        (["--attack", "m=finetune[lr=[0.1,0.2]]"], "stands for 2"),
        (["--attack", "m=finetune[lr=0.1]", "--attack", "m=lora"], "'m' is given twice"),
        (["--attack", "m=finetune", "--defense", "m=naive-ascent"], "'m' is given twice"),
        (["--attack", "m=finetune", "--attack", "k=finetune"], "'m' and 'k' name one: finetune"),
        (["--attack", "m="], "'' ends where a name was expected"),
        (["--attack", "m=fintune"], "did you mean 'finetune'"),
        (["--scenario", "m=tiny"], "no scenario"),
        (["--backbone", "m=test_resnet"], "expected the end"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(words: list[str], said: str) -> None:
    code, output = run(*words)
    assert code == 2, output
    assert said in output
    assert len(output.splitlines()) == 1
