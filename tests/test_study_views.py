"""Studies that show more than a hyperparameter: domains, claims, and a paper's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import MakeCell, drawn, gather, records
from test_studies import trial

from sophon_bench.analysis.domains import domains
from sophon_bench.analysis.score import scores
from sophon_bench.cli import main
from sophon_bench.execution.relatedness import similarity
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import granularity, reported
from sophon_bench.leaderboard.columns import frame
from sophon_bench.leaderboard.reported import Reported
from sophon_bench.leaderboard.studies import robustness
from sophon_bench.results import Results

FAST = "iterations=1,watch_every=1,batch_size=16,adapt=8,inner_steps=1"
TEXT = f"""\
version: 1
question: How far does it reach?
view: domains
scenarios: [tiny]
defenses: ["sophon-klu[{FAST}]"]
attacks: ["finetune[optimizer=adam,lr=[1e-3,1e-2]]", scratch]
benign: true
seeds: [0, 1]
"""
PAPER = """\
paper:
  - {model: SOPHON, ours: [sophon-klu], scenario: tiny, backbone: test_resnet, original: 96.2,
     restricted: 15.2, recipe: 20 epochs, source: somebody's notes}
  - {model: scratch, ours: [scratch], backbone: vgg13, restricted: 64, source: somebody's notes}
"""


def run_study(folder: Path, text: str, *more: object, name: str = "mine") -> Result:
    file = folder / f"{name}.yaml"
    file.write_text(text)
    options = ["--steps", 2, "--store", folder / "store", "--out", folder / "out", *more]
    return CliRunner().invoke(main, ["study", str(file), *map(str, options)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("views")


def read(folder: Path, name: str) -> tuple[str, list[dict[str, Any]]]:
    document = json.loads((folder / "out" / f"{name}.json").read_text())
    return (folder / "out" / f"{name}.md").read_text(), document["rows"]


def first_cells(text: str) -> list[str]:
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]


def test_domains_are_shown_by_similarity(folder: Path) -> None:
    result = run_study(folder, TEXT)
    assert result.exit_code == 0, result.output
    text, rows = read(folder, "mine")
    assert first_cells(text) == ["", "original, as released", "narrow (restricted)", "broad"]
    assert "in part: --steps in place of what the study declares" in text
    assert "seeds 0, 1; n = 20" in text
    tried = [row for row in rows if not row["control"]]
    assert [(row["domain"], row["role"], row["seeds"]) for row in tried] == [
        ("narrow", "restricted", 2),
        ("broad", "benign", 2),
    ]
    for row in tried:
        assert row["lost"] == pytest.approx(row["undefended"] - row["protected"])
        assert 0 <= row["similarity"] <= 1
        assert row["scratch"] is not None
    assert (folder / "out" / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_claims_show_domains_and_what_the_attacker_chooses(folder: Path) -> None:
    result = run_study(folder, TEXT.replace("domains", "claims"), name="claims")
    assert result.exit_code == 0, result.output
    text, rows = read(folder, "claims")
    assert first_cells(text)[-3:] == ["trials with", "lr 0.001", "lr 0.01"]
    assert "similarity" not in text
    chosen = [row for row in rows if row.get("choice") and not row["control"]]
    assert [(row["choice"], row["value"]) for row in chosen] == [("lr", "0.001"), ("lr", "0.01")]
    assert all(row["protected_trials"] == 1 for row in chosen)


def test_a_step_size_that_an_attack_chooses_itself_is_a_value_too(make_cell: MakeCell) -> None:
    attacks = (
        "normalized-update[lr=null]",
        "normalized-update[lr=0.1]",
        "normalized-update[lr=0.01]",
    )
    cells = [make_cell(attack=attack) for attack in (*attacks, "probe", "scratch")]
    found = robustness(Results.of(gather(cells)), [])
    chosen = [row for row in found.rows if row["choice"] == "lr"]
    assert [row["value"] for row in chosen] == ["0.01", "0.1", "None"]
    assert {row["undefended_trials"] for row in chosen} == {1}


def test_a_papers_figures_stand_beside_ours_and_are_marked(folder: Path) -> None:
    result = run_study(folder, TEXT.replace("domains", "paper") + PAPER, name="paper")
    assert result.exit_code == 0, result.output
    text, rows = read(folder, "paper")
    assert "the paper's columns are the paper's figures, not measured here" in text
    assert "the paper's figures: somebody's notes" in text
    sophon, scratch = rows
    assert sophon["paper_restricted"] == 15.2
    assert sophon["defense"].startswith("sophon-klu[")
    assert 0 <= sophon["restricted"] <= 1
    assert (scratch["scenario"], scratch["defense"]) == ("not on record", None)
    assert "### tiny (data " in text


def test_a_defense_may_be_given_in_place_of_the_studys(folder: Path) -> None:
    result = run_study(folder, TEXT, "--defense", "none", "--seeds", 0, name="other")
    assert result.exit_code == 0, result.output
    text, rows = read(folder, "other")
    assert "in part: --defense, --seeds, --steps in place" in text
    assert {row["defense"] for row in rows} == {"none"}
    assert not (folder / "out" / "other.png").exists()


@pytest.fixture
def results(make_cell: MakeCell) -> Results:
    levels = {("d", "digits"): 0.4, ("none", "digits"): 0.8, ("d", "greek"): 0.7,
              ("none", "greek"): 0.75}  # fmt: skip
    cells = [
        trial(make_cell, defense, level + 0.02 * seed * (defense == "d"), domain=domain, seed=seed,
              role="restricted" if domain == "digits" else "benign")
        for (defense, domain), level in levels.items()
        for seed in (0, 1)
    ]  # fmt: skip
    cells += [
        trial(make_cell, "none", 0.3, attack="scratch", domain=domain, seed=seed,
              role="restricted" if domain == "digits" else "benign")
        for domain in ("digits", "greek")
        for seed in (0, 1)
    ]  # fmt: skip
    return Results.of(gather(cells))


def test_what_is_lost_is_paired_by_seed(results: Results) -> None:
    rows = {(row["defense"], row["domain"]): row for row in records(domains(results))}
    lost = rows["d", "digits"]
    assert (lost["protected"], lost["undefended"], lost["scratch"]) == pytest.approx(
        (0.41, 0.8, 0.3)
    )
    assert lost["lost"] == pytest.approx(0.39)
    assert lost["lost_half_width"] == pytest.approx(12.706 * 0.01, rel=1e-3)
    assert rows["d", "greek"]["lost"] == pytest.approx(0.04)
    assert rows["none", "greek"]["lost"] == 0
    assert next(iter(rows)) == ("none", "digits")


def test_the_closest_domain_comes_first(results: Results) -> None:
    where = {key: records(domains(results))[0][key] for key in ("scenario", "backbone")}
    known = [
        {**where, "domain": "greek", "similarity": 0.2},
        {**where, "domain": "greek", "similarity": 0.4},
    ]
    found = granularity.with_similarity(analysis.by_domain(results), known)
    (place,) = granularity.places(found, scores(results), ["a note"])
    (table,) = map(drawn, place.tables)
    assert table.columns == ["", "n", "similarity", "scratch", "undefended", "d"]
    assert [line[0] for line in table.body] == ["digits (restricted)", "greek"]
    assert table.body[1][2:] == ["0.30", "30.0", "75.0", "71.0 (4.0 ± 12.7)"]
    assert "a note" in table.notes
    figure = granularity.figure(found)
    assert figure is not None
    (point,) = figure["data"]["values"]
    assert (point["x"], point["y"]) == pytest.approx((0.3, 4))
    assert granularity.figure(granularity.with_similarity(found, [])) is None


def test_a_domain_is_like_itself_and_unlike_another(bench: Bench, pretrained: Made) -> None:
    found = similarity(bench, pretrained.weights)
    assert found["narrow"] > 0.6
    assert found["wide"] < found["narrow"]
    assert all(0 <= value <= 1 for value in found.values())
    assert found == similarity(bench, pretrained.weights), "no draw of its own"


def test_papers_figures_are_matched_by_scenario_backbone_and_defense(
    make_cell: MakeCell,
) -> None:
    cells = [
        trial(make_cell, "none", 0.8),
        trial(make_cell, "none", 0.3, attack="scratch"),
        trial(make_cell, "d[k=20]", 0.4),
    ]
    found = scores(Results.of(gather(cells)))
    (one, *_) = records(found)
    named = frame({**row, "defense_name": row["defense"].split("[")[0]} for row in records(found))
    place = {"scenario": one["scenario"].split("[")[0], "backbone": one["backbone"]}
    paper = [
        Reported(model="A", ours=["d"], restricted=15.2, source="notes", **place),
        Reported(model="B", ours=["none", "scratch"], original=99.6, source="notes", **place),
        Reported(model="C", ours=["d"], restricted=1, source="notes", backbone="other"),
    ]
    rows = reported.beside(paper, named)
    assert [(row["model"], row["defense"]) for row in rows] == [
        ("A", "d[k=20]"), ("B", "none"), ("B", "scratch"), ("C", None),
    ]  # fmt: skip
    assert [row["restricted"] for row in rows] == pytest.approx([0.4, 0.8, 0.3, None])
    figure = reported.figure(rows, named)
    assert figure is not None
    marks = {(p["name"], round(p["y"], 6)) for p in figure["data"]["values"]}
    assert {("the paper's", 15.2), ("undefended", 80), ("d[k=20]", 40)} <= marks
    (table,) = map(drawn, reported.place(rows, []).tables)
    assert table.body[0][4] == "15.2"
    assert table.body[3][-4:] == ["·", "·", "·", "·"]
