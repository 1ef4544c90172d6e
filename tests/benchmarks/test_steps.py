"""How long one update takes: `make benchmark`. In `make test` each runs once, as a smoke test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from sophon_bench.api import AttackView, DefenseView, Domain, Model, Samples
from sophon_bench.backbones import Backbone
from sophon_bench.meter import Meter, profile
from sophon_bench.registry import attacks, defenses
from sophon_bench.selectors import trials
from sophon_bench.tasks.classification import Classification

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


def test_attack_step(benchmark: Any, backbone: str) -> None:
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
    (trial,) = trials(attacks, ["finetune"])
    steps = metered(backbone, made, trial.plugin.run(made, view))
    benchmark(lambda: next(steps))


def test_bare_forward_and_backward(benchmark: Any, backbone: str) -> None:
    restricted, made = domain(backbone, 26), model(backbone)
    batch = next(restricted.train.batches(64, torch.Generator()))

    def step() -> None:
        made.zero_grad()
        nn.functional.cross_entropy(made(batch.inputs), batch.targets).backward()

    benchmark(step)


@pytest.mark.parametrize("inner_steps", [1, 10])
def test_suppression_and_reinforcement_step(
    benchmark: Any, backbone: str, inner_steps: int
) -> None:
    made = model(backbone)
    view = DefenseView(
        original=domain(backbone, 26),
        restricted=domain(backbone, 10),
        device=CPU,
        rng=torch.Generator(),
    )
    (trial,) = trials(
        defenses,
        [
            f"sophon-ice[iterations=1000000,ntr_steps=1,inner_steps={inner_steps},watch_every=1000000]"
        ],
    )
    steps = metered(backbone, made, trial.plugin.run(made, view))

    def both() -> None:
        next(steps)
        next(steps)

    benchmark(both)
