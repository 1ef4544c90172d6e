"""The search over hyperparameters, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sophon_bench.analysis.tuning import chosen
from sophon_bench.api import defenses
from sophon_bench.cli import main
from sophon_bench.leaderboard import tuning
from sophon_bench.leaderboard.columns import frame
from sophon_bench.plugins.selectors import Trial

SEARCHES = Path(tuning.__file__).resolve().parent / "tuning"

PLUGIN = '''
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt

from sophon_bench.api import defenses


@defenses.register("fading")
@dataclass(frozen=True, kw_only=True)
class Fading:
    """Shrink all weights."""

    keep: Annotated[float, Gt(0)] = 0.9
    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {"keep": (0.5, 0.9, 0.99)}

    def run(self, model, view):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(self.keep)
        yield model
'''


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def search(folder: Path, *arguments: object) -> list[object]:
    return [
        "tune", "fading", "--configurations", "3", "--scenario", "tiny", "--steps", "2",
        "--samples", "8", "--seeds", "100", "--plugin", folder / "fading.py",
        "--store", folder / "store", "--out", folder / "out", *arguments,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "fading.py").write_text(PLUGIN)
    return folder, call(*search(folder))


def test_all_configurations_are_shown_one_is_chosen_and_all_is_kept(
    finished: tuple[Path, Result],
) -> None:
    folder, result = finished
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "out" / "fading.json").read_text())
    labels = [row["defense"] for row in found["rows"]]
    assert labels[0] == "fading"
    assert set(labels) == {"fading", "fading[keep=0.5]", "fading[keep=0.99]"}
    best = chosen(frame(found["rows"]))
    assert best is not None
    assert found["chosen"] == {"selector": best["defense"], "parameters": best["parameters"]}
    assert f"chosen: {best['defense']} " in result.stdout
    for label in labels:
        assert f"\n{label} " in result.stdout
    assert found["grid"] == {"keep": [0.5, 0.9, 0.99]}
    assert found["seeds"] == [100]
    assert {row["suite"] for row in found["rows"]} == {"@tuning v1"}
    assert found["command"] == (
        "sophon-bench tune fading --configurations 3 --scenario tiny --seeds 100 --samples 8 "
        f"--steps 2 --plugin {folder}/fading.py"
    )
    assert {"version", "commit", "torch", "device"} <= set(found["versions"][0])
    assert "finished" not in found["versions"][0]


def test_models_are_scored_on_the_original_validation_split(finished: tuple[Path, Result]) -> None:
    stages = [json.loads(f.read_text()) for f in (finished[0] / "store" / "models").glob("*.json")]
    assert len(stages) == 1 + 1 + 3
    assert all(0 <= stage["original_validation"] <= 1 for stage in stages)


def test_the_same_search_again_is_at_peace_and_another_is_refused_unless_forced(
    finished: tuple[Path, Result],
) -> None:
    folder, first = finished
    file = folder / "out" / "fading.json"
    content = file.read_bytes()
    again = call(*search(folder))
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert file.read_bytes() == content
    fewer = call(*search(folder, "--configurations", "2"))
    assert fewer.exit_code == 2
    assert "is there, made by 'sophon-bench tune fading --configurations 3" in fewer.stderr
    assert "--force replaces it" in fewer.stderr
    file.write_bytes(content.replace(b'"seeds": 1', b'"seeds": 2'))
    other = call(*search(folder))
    assert other.exit_code == 2
    assert "is there with other results; --force replaces it" in other.stderr
    assert call(*search(folder, "--force")).exit_code == 0
    assert file.read_bytes() == content


def test_a_dry_run_shows_every_configuration_and_writes_nothing(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    folder = finished[0]
    arguments = ["--store", tmp_path / "store", "--out", tmp_path / "out", "--dry-run"]
    result = call(*search(folder, *arguments))
    assert result.exit_code == 0, result.output
    assert "to do  protect fading[keep=0.5] seed=100" in result.stdout
    assert not (tmp_path / "out").exists()


def test_nothing_to_choose_by_is_a_failure_that_is_kept(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sophon_bench.protocol.FLOOR", 2.0)
    result = call(*search(finished[0], "--out", tmp_path))
    assert result.exit_code == 1
    assert "failed: no configuration of fading can be chosen" in result.stderr
    assert "points above scratch" in result.stdout
    assert json.loads((tmp_path / "fading.json").read_text())["chosen"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "defense 'none' declares no grid to search; add one to the body of its class"),
        (["sophon-icy"], "unknown defense 'sophon-icy'; did you mean 'sophon-ice'"),
        (["sophon-ice[alfa=[1,2]]"], "has no parameter 'alfa'; did you mean 'alpha'"),
        (
            ["sophon-ice", "sophon-ice[mu=[1,2]]"],
            "sophon-ice is searched twice; give it one selector",
        ),
        (["sophon-ice", "--configurations", "0"], "0 is not in the range x>=1"),
        (["sophon-ice", "--seeds", "x"], "--seeds takes numbers and ranges"),
        (["sophon-ice", "--steps", "0"], "at least 1 step"),
        ([], "Missing argument 'DEFENSE...'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two_before_any_work(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    place = ["--scenario", "tiny", "--store", tmp_path / "s", "--out", tmp_path / "out"]
    result = call("tune", *arguments, *place)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "s").glob("models/*"))


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_file_of_something_else_is_never_written_over(tmp_path: Path, content: str) -> None:
    file = tmp_path / "d.json"
    tuning.check(file, "a command")
    file.write_text(content)
    with pytest.raises(tuning.Occupied, match="made by something else; --force"):
        tuning.check(file, "a command")


def test_show_tells_the_grid() -> None:
    assert "tuning alpha: " in call("show", "sophon-ice").stdout
    assert defenses.get("none").declared.tuning == {}


@pytest.mark.parametrize("file", sorted(SEARCHES.glob("*.json")), ids=lambda f: f.stem)
def test_defaults_are_what_the_published_search_chose(file: Path) -> None:
    document = json.loads(file.read_bytes())
    entry = defenses.get(document["defense"])
    assert file.stem == entry.name
    assert Trial(entry, entry.cls()).parameters == document["chosen"]["parameters"]
    commands = {json.loads(other.read_bytes())["command"].replace(other.stem, "")
                for other in SEARCHES.glob("*.json")}  # fmt: skip
    assert len(commands) == 1, "every defense has the same budget"


@pytest.mark.parametrize("file", sorted(SEARCHES.glob("*/*.json")), ids=lambda f: f.stem)
def test_a_search_on_another_scenario_chose_its_best(file: Path) -> None:
    """What is published there is run with it, whatever the defaults are."""
    document = json.loads(file.read_bytes())
    best = max(document["rows"], key=lambda row: row["criterion"])
    assert file.stem == document["defense"] == defenses.get(document["defense"]).name
    assert document["chosen"] == {"selector": best["defense"], "parameters": best["parameters"]}
