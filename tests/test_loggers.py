from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TINY

from sophon_bench.cli import main
from sophon_bench.execution import loggers

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN = [
    "run", "--plugin", str(TINY), "--scenario", "tiny", "--defense", "none", "--attack", "finetune",
    "--log", "kept",
]  # fmt: skip


class Kept:
    """Keeps what it is told."""

    told: list[tuple[str, Mapping[str, float], int]] = []
    closed = 0

    def __init__(self, run: str) -> None:
        assert run

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        Kept.told.append((name, dict(values), step))

    def close(self) -> None:
        Kept.closed += 1


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("kept", f"{__name__}:Kept", loggers.GROUP)]
    points += [EntryPoint("gone", "sophon_bench_no_such_module:Logger", loggers.GROUP)]
    monkeypatch.setattr(loggers, "entry_points", lambda group: points)
    monkeypatch.setattr(Kept, "told", [])
    monkeypatch.setattr(Kept, "closed", 0)


@pytest.mark.usefixtures("announced")
def test_a_logger_is_told_of_what_a_run_makes_and_of_nothing_twice(tmp_path: Path) -> None:
    for _ in range(2):
        result = CliRunner().invoke(main, [*RUN, "--store", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert Kept.closed == 2
    names = [name for name, _, _ in Kept.told]
    assert {name.split()[0] for name in names} == {"pretrain", "protect", "attack"}
    curve = [(step, values) for name, values, step in Kept.told if "with finetune" in name]
    steps = [step for step, _ in curve]
    assert steps == sorted(set(steps))
    assert len(steps) > 1
    assert all({*values} == {"selection", "test", "seconds"} for _, values in curve)
    assert len(Kept.told) == len({(name, step) for name, _, step in Kept.told})


@pytest.mark.filterwarnings("always::RuntimeWarning")
@pytest.mark.usefixtures("announced")
def test_a_logger_that_fails_is_told_no_more_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_self: Kept, name: str, *_more: object) -> None:
        Kept.told.append((name, {}, 0))
        raise ConnectionError("server is gone")

    monkeypatch.setattr(Kept, "log", gone)
    result = CliRunner().invoke(main, [*RUN, "--store", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (
        result.stderr.count("warning: --log kept failed and is told no more: server is gone") == 1
    )
    assert len(Kept.told) == Kept.closed == 1


@pytest.mark.usefixtures("announced")
def test_a_logger_that_cannot_begin_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Kept, _run: str) -> None:
        raise RuntimeError("log in first")

    monkeypatch.setattr(Kept, "__init__", refuse)
    result = CliRunner().invoke(main, [*RUN, "--store", str(tmp_path)])
    assert result.exit_code == 2
    assert "--log kept cannot begin: log in first" in result.stderr


@pytest.mark.usefixtures("announced")
@pytest.mark.parametrize(
    ("name", "words"),
    [("kep", "unknown logger 'kep'; did you mean 'kept'?"), ("gone", "pip install '.[gone]'")],
)
def test_a_logger_that_cannot_be_used_is_refused(tmp_path: Path, name: str, words: str) -> None:
    result = CliRunner().invoke(main, [*RUN, "--log", name, "--store", str(tmp_path)])
    assert result.exit_code == 2
    assert words in result.stderr
    assert Kept.told == []


def test_every_logger_has_an_extra_and_can_be_loaded() -> None:
    points = DECLARED["entry-points"][loggers.GROUP]
    assert points.keys() <= DECLARED["optional-dependencies"].keys()
    for name, value in points.items():
        assert callable(EntryPoint(name, value, loggers.GROUP).load())


class Calls:
    """Stands for a package that is not installed: notes calls."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.made.append((name, arguments, named))
            return self

        return call


def test_adapters_call_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow, wandb, tensorboard = Calls(), Calls(), Calls()
    module = SimpleNamespace(SummaryWriter=tensorboard.SummaryWriter)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    for adapter in (loggers.TensorBoard, loggers.MLflow, loggers.WeightsAndBiases):
        logger = adapter("now")
        logger.log("attack x[lr=0.1]", {"test": 0.5}, 64)
        logger.close()
    assert tensorboard.made == [
        ("SummaryWriter", ("runs/now",), {}),
        ("add_scalar", ("attack x[lr=0.1]/test", 0.5, 64), {}),
        ("close", (), {}),
    ]
    assert mlflow.made == [
        ("start_run", (), {"run_name": "now"}),
        ("log_metrics", ({"attack x_lr_0.1_/test": 0.5},), {"step": 64}),
        ("end_run", (), {}),
    ]
    assert wandb.made == [
        ("init", (), {"project": "sophon-bench", "name": "now"}),
        ("log", ({"attack x[lr=0.1]/test": 0.5, "attack x[lr=0.1]/units": 64},), {}),
        ("finish", (), {}),
    ]
