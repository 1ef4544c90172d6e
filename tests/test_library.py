"""The library says what the command line says."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import TINY
from safetensors.torch import save_file

import sophon_bench
from sophon_bench.analysis.trials import trials
from sophon_bench.cli import main
from sophon_bench.data.scenario import ScenarioError
from sophon_bench.execution import runs
from sophon_bench.execution.plan import PlanError
from sophon_bench.leaderboard.columns import records
from sophon_bench.plugins.registry import UnknownName
from sophon_bench.plugins.selectors import SelectorError
from sophon_bench.plugins.suites import Arsenal
from sophon_bench.results import Results
from sophon_bench.results.documents import document
from sophon_bench.results.store import Store, StoreError

FAST: dict[str, Any] = {"scenario": "tiny", "steps": 2, "samples": 20, "threads": 1}
ATTACK = "finetune[lr=0.03]"
DEFENSE = "naive-ascent[iterations=2]"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    store = tmp_path_factory.mktemp("store")
    return store, sophon_bench.run(defense=DEFENSE, attack=ATTACK, store=store, **FAST)


def test_importing_it_imports_nothing_heavy() -> None:
    script = (
        "import sys, sophon_bench\n"
        "import sophon_bench.execution.news\n"  # what a cluster imports for progress alone
        "assert 'run' in dir(sophon_bench)\n"
        "print([m for m in ('torch', 'pandas', 'timm', 'click') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        sophon_bench.rum  # noqa: B018


def test_sets_are_looked_for_where_the_call_says_and_nowhere_else_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOPHON_BENCH_DATA", raising=False)
    with pytest.raises(ScenarioError, match=f"not in '{tmp_path}'"):
        sophon_bench.run(scenario="imagenette-cifar10", data=tmp_path, store=tmp_path / "store")
    with pytest.raises(ScenarioError, match="by --data or SOPHON_BENCH_DATA"):
        sophon_bench.run(scenario="imagenette-cifar10", store=tmp_path / "store")


def test_a_run_is_the_run_of_the_command_line(ran: tuple[Path, Results], tmp_path: Path) -> None:
    store, results = ran
    out = tmp_path / "out.json"
    words = ["run", "--scenario", "tiny", "--steps", "2", "--samples", "20", "--threads", "1"]
    words += ["--defense", DEFENSE, "--attack", ATTACK, "--store", str(store), "--json", str(out)]
    records_before = sorted(store.glob("cells/*.json"))
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert sorted(store.glob("cells/*.json")) == records_before, "nothing was done again"
    again = sophon_bench.load_results(out)
    assert again.cells.drop(columns="suite").equals(results.cells.drop(columns="suite"))
    assert again.points.equals(results.points)
    summary = [row for row in json.loads(out.read_text())["summary"] if "attack" in row]
    found = records(trials(results))
    assert [row["restricted_after"] for row in found] == [r["restricted_after"] for r in summary]
    whole = sophon_bench.load_results(store)
    assert set(whole.cells.index) == set(results.cells.index)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_a_run_leaves_torch_its_threads(ran: tuple[Path, Results]) -> None:
    sophon_bench.run(defense=DEFENSE, attack=ATTACK, store=ran[0], **FAST)
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("executor", "workers", "threads"),
    [
        ("auto", None, 4),
        ("auto", 2, 2),
        ("in-process", None, 4),
        ("processes", None, 4),
        ("processes", 8, 1),
        ("ray", None, 1),
    ],
)
def test_threads_are_shared_out_to_the_stages_that_run_at_once(
    executor: str, workers: int | None, threads: int, tmp_path: Path
) -> None:
    options = runs.Options(scenario=["tiny"], store=tmp_path, executor=executor, workers=workers)
    job = runs.prepare(options, defenses=[], attacks=Arsenal([]))
    assert (job.threads, torch.get_num_threads()) == (threads, threads)


def test_the_released_model_is_the_one_that_was_attacked(ran: tuple[Path, Results]) -> None:
    store, results = ran
    model = sophon_bench.load_model(results, DEFENSE)
    (row,) = (r for r in records(results.models) if r["defense"] == DEFENSE)
    weights = Store(store, reading=True).weights(Store(store, reading=True).model(row["key"]))
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"defense": "naive-ascend"}, "did you mean 'naive-ascent"),
        ({"defense": DEFENSE, "seed": 7}, f"no model of {DEFENSE.replace('[', '.')[:5]}"),
        ({"defense": DEFENSE, "backbone": "test_resnett"}, "did you mean 'test_resnet'"),
    ],
)
def test_a_model_that_there_is_not_is_named(
    ran: tuple[Path, Results], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(StoreError, match=words):
        sophon_bench.load_model(ran[1], **arguments)


@pytest.mark.parametrize("option", ["executor", "precision", "compiled"])
def test_a_word_that_an_option_does_not_know_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"unknown .* 'fp16'; .*(off|fp32|auto)"):
        sophon_bench.run(attack=ATTACK, store=tmp_path, **{**FAST, option: "fp16"})


@pytest.mark.parametrize("seeds", [np.int64(0), np.arange(1), [np.int32(0)], 0, range(1)])
def test_seeds_are_whole_numbers_of_any_library(ran: tuple[Path, Results], seeds: Any) -> None:
    store, results = ran
    again = sophon_bench.run(defense=DEFENSE, attack=ATTACK, store=store, seeds=seeds, **FAST)
    assert set(again.cells.index) == set(results.cells.index)


@pytest.mark.parametrize("before", ["file://{}", "~"])
def test_records_are_read_wherever_they_lie(
    before: str, ran: tuple[Path, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, results = ran
    monkeypatch.setenv("HOME", str(store.parent))
    place = f"{before.format(store.parent)}/{store.name}"
    assert len(sophon_bench.load_results(place).cells) == len(results.cells)
    records = Store(store, reading=True).records()
    store.with_name("run.json").write_text(document(records, []))
    place = f"{before.format(store.parent)}/run.json"
    assert len(sophon_bench.load_results(place).cells) == len(results.cells)


def test_results_of_a_file_have_no_models() -> None:
    published = sophon_bench.load_results("published")
    with pytest.raises(StoreError, match="of a file, which holds no models"):
        sophon_bench.load_model(published, "none")
    one = sophon_bench.load_results("published/provisional-three-seeds")
    assert 0 < len(one.cells) < len(published.cells)
    with pytest.raises(StoreError, match="did you mean 'provisional-three-seeds'"):
        sophon_bench.load_results("published/provisional-three-seed")


def test_a_module_is_audited_like_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=6)
    file = tmp_path / "model.safetensors"
    save_file({name: t.contiguous() for name, t in module.state_dict().items()}, file)
    common = {"attack": ATTACK, "seeds": 0, "store": tmp_path / "store", **FAST}
    with pytest.warns(UserWarning, match="no better than guessing"):
        one, other = sophon_bench.audit(module, **common), sophon_bench.audit(file, **common)
    assert one.words == other.words
    assert one.words.startswith("Verdict, provisional: cannot be told")
    assert (one.kept, one.interval) == (None, None)
    assert (
        one.results.cells["test_examples"].tolist() == other.results.cells["test_examples"].tolist()
    )
    with pytest.raises(PlanError, match="attacks no released model"):
        sophon_bench.audit(file, **{**common, "attack": "scratch"})


def test_a_plugin_is_checked(tmp_path: Path) -> None:
    report = sophon_bench.check(TINY)
    assert report.passed
    assert "scenario tiny: splits: passed" in str(report)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"defense": "sophon-ise"}, UnknownName),
        ({"attack": "finetune[lr=x]"}, SelectorError),
        ({"device": "tpu"}, PlanError),
        ({"samples": [1]}, PlanError),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        sophon_bench.run(**{**FAST, "attack": ATTACK, "store": tmp_path, **arguments})
    assert not list(tmp_path.glob("cells/*"))


def test_examples_in_docstrings_hold() -> None:
    found = doctest.testmod(sophon_bench)
    assert found.failed == 0
    assert found.attempted >= 3
