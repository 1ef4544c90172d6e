"""How long one step of each kind takes: `make benchmark`. In `make test` each runs once.

Whatever docs/performance.md says comes from `make measure` instead: ratios of one run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import references
from synthetic import write_records

from sophon_bench.api import AttackView, DefenseView, Domain, Model, Samples, attacks, defenses
from sophon_bench.cli import main
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.harness.meter import Meter, profile
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins.suites import trials
from sophon_bench.results.records import Cell
from sophon_bench.results.store import Store

CPU = torch.device("cpu")
SIZES = {"test_resnet": 32, "resnet18": 64}


@pytest.fixture(params=sorted(SIZES))
def backbone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def model(backbone: str) -> Model:
    return Backbone.of(backbone).build(26, torch.Generator().manual_seed(0))


def domain(backbone: str, classes: int) -> Domain:
    size = SIZES[backbone]
    samples = Samples(torch.randn(300, 3, size, size), torch.arange(300) % classes)
    return Domain(Classification(classes), samples, samples)


def metered(backbone: str, made: Model, run: Any) -> Iterator[Any]:
    size = SIZES[backbone]
    return Meter(profile(made, torch.zeros(2, 3, size, size)), CPU).drive(run)


@pytest.mark.parametrize("attack", ["finetune", "finetune[optimizer=adam]", "lora"])
def test_attack_step(benchmark: Any, backbone: str, attack: str) -> None:
    if attack == "lora" and backbone == "resnet18":
        pytest.skip("one size is enough for the wrapped model")
    restricted, made = domain(backbone, 10), model(backbone)
    view = AttackView(
        task=restricted.task,
        train=restricted.train,
        validation=restricted.validation,
        auxiliary=None,
        new_model=lambda: model(backbone),
        device=CPU,
        rng=torch.Generator(),
    )
    (trial,) = trials(attacks, [attack])
    steps = metered(backbone, made, trial.plugin.run(made, view))
    benchmark(lambda: next(steps))


def test_bare_forward_and_backward(benchmark: Any, backbone: str) -> None:
    restricted, made = domain(backbone, 26), model(backbone)
    batch = next(restricted.train.batches(64, torch.Generator()))

    def step() -> None:
        made.zero_grad()
        nn.functional.cross_entropy(made(batch.inputs), batch.targets).backward()

    benchmark(step)


@pytest.mark.parametrize("kind", ["suppression", "reinforcement"])
def test_defense_step(benchmark: Any, backbone: str, kind: str) -> None:
    made = model(backbone)
    view = DefenseView(
        original=domain(backbone, 26),
        restricted=domain(backbone, 10),
        device=CPU,
        rng=torch.Generator(),
    )
    only = "iterations=1000000,ntr_steps=1,inner_steps=5,watch_every=1000000"
    (trial,) = trials(defenses, [f"sophon-ice[{only}]"])
    steps = metered(backbone, made, trial.plugin.run(made, view))
    if kind == "reinforcement":
        next(steps)

    def skip_the_other() -> None:
        next(steps)

    benchmark.pedantic(lambda: next(steps), setup=skip_the_other, rounds=3)


def test_scoring(benchmark: Any, backbone: str) -> None:
    restricted, made = domain(backbone, 26), model(backbone).eval()
    with torch.no_grad():
        found = benchmark(lambda: restricted.task.utility(made, restricted.validation))
    assert 0 <= found <= 1


def test_record_write(benchmark: Any, tmp_path: Path, make_cell: Any) -> None:
    store, counter = Store(tmp_path), iter(range(10**9))

    def fresh() -> tuple[tuple[Cell], dict[str, Any]]:
        return (make_cell(key=f"cell{next(counter)}").cell,), {}

    benchmark.pedantic(store.put_cell, setup=fresh, rounds=50)
    assert list((tmp_path / "cells").iterdir())


def test_table(benchmark: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    count = 100_000 if request.config.getoption("--benchmark-enable") else 300
    write_records(tmp_path / "store", count)
    arguments = ["table", "--store", str(tmp_path / "store"), "--format", "csv"]
    result = benchmark.pedantic(CliRunner().invoke, args=(main, arguments))
    assert result.exit_code == 0, result.output
    assert "defense[strength=1]" in result.output or count < 1000


def test_command_line_start(benchmark: Any) -> None:
    command = [sys.executable, "-m", "sophon_bench.cli", "--help"]
    done = benchmark(lambda: subprocess.run(command, check=True, capture_output=True))
    assert b"Usage" in done.stdout


def test_the_reference_loops_learn() -> None:
    """What is compared with has to be right as well."""
    import itertools

    from sophon_bench.defenses.sophon.losses import inverse_cross_entropy
    from sophon_bench.defenses.sophon.simulate import Step, draw_steps, first_order
    from sophon_bench.defenses.sophon.strategies import Strategy

    restricted, made = domain("test_resnet", 10), model("test_resnet")
    steps: list[Step] = list(
        draw_steps(
            restricted.train, 3, adapt=20, judge=8, gamma="mean", rng=torch.Generator()
        )
    )  # fmt: skip
    references.learn2learn_style(
        made, steps, lr=1e-3, task=restricted.task, objective=inverse_cross_entropy
    )
    theirs = [p.grad for p in made.parameters()]
    learner = model("test_resnet")
    strategy = Strategy.parse("sgd@0.001", batch_size=20, head="kept")
    ours = first_order(
        learner, strategy, steps, task=restricted.task, objective=inverse_cross_entropy
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    pixels = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8).numpy()
    pictures = references.Pictures(pixels, (torch.arange(128) % 2).numpy())
    run = references.loader_fine_tune(model("test_resnet"), pictures, CPU, batch_size=32, workers=0)
    losses = list(itertools.islice(run, 12))
    assert min(losses[-4:]) < losses[0]
