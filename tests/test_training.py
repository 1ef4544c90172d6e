from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from torch import nn

from sophon_bench import stages
from sophon_bench.api import Incompatible
from sophon_bench.registry import attacks
from sophon_bench.selectors import trials
from sophon_bench.training import (
    OptimizerName,
    ScheduleName,
    choose_head,
    make_optimizer,
    make_schedule,
)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_descends(name: OptimizerName) -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = make_optimizer(name, [weight], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert abs(weight.item()) < 3
    assert optimizer.param_groups[0]["lr"] == 0.1


def rates(name: ScheduleName, steps: int | None) -> list[float]:
    optimizer = make_optimizer("sgd", [nn.Parameter(torch.zeros(1))], lr=0.4)
    schedule = make_schedule(name, optimizer, steps=steps)
    found = []
    for _ in range(steps or 3):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_have_the_shape_that_they_are_named_for() -> None:
    assert rates("constant", None) == [0.4] * 3
    cosine = rates("cosine", 4)
    assert cosine == pytest.approx([0.4, 0.341421, 0.2, 0.058579], abs=1e-6)
    one_cycle = rates("one-cycle", 10)
    assert max(one_cycle) == pytest.approx(0.4)
    assert one_cycle[0] < 0.4 > one_cycle[-1]
    with pytest.raises(ValueError, match="needs a number of steps"):
        rates("cosine", None)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_an_attack_ends_with_its_schedule(
    schedule: str, bench: stages.Bench, pretrained: stages.Made
) -> None:
    (trial,) = trials(attacks, [f"finetune[schedule={schedule},steps=3,batch_size=16]"])
    found = stages.attack(
        bench, pretrained.weights, trial.plugin, samples=40, seed=0, budget=640,
        tick=lambda fraction, words: None,
    )  # fmt: skip
    assert (found.status, found.cost.steps) == ("ok", 3)
    assert found.curve[-1].steps == 3


def test_only_the_scope_moves_and_a_kept_head_must_fit(
    bench: stages.Bench, pretrained: stages.Made
) -> None:
    model = bench.load(pretrained.weights)
    kept = model.head
    rng = torch.Generator().manual_seed(0)
    choose_head(model, "kept", outputs=6, rng=rng)
    assert model.head is kept
    with pytest.raises(Incompatible, match="at least 7 outputs, the model has 6"):
        choose_head(model, "kept", outputs=7, rng=rng)
    choose_head(model, "fresh", outputs=7, rng=rng)
    assert model.num_outputs == 7


def test_head_only_leaves_the_body_alone(bench: stages.Bench, pretrained: stages.Made) -> None:
    from sophon_bench.api import AttackView

    model = bench.load(pretrained.weights)
    train, validation = bench.attacker(bench.data.restricted, 40, 0)
    view = AttackView(
        task=bench.data.restricted.task, train=train, validation=validation, auxiliary=None,
        new_model=lambda: model, device=bench.device, rng=torch.Generator(),
    )  # fmt: skip
    (trial,) = trials(attacks, ["finetune[scope=head,lr=0.1]"])
    before = [p.detach().clone() for p in model.body.parameters()]
    heads = []
    for made in itertools.islice(trial.plugin.run(model, view), 3):
        heads.append(next(made.head.parameters()).detach().clone())
    assert all(torch.equal(b, p) for b, p in zip(before, model.body.parameters(), strict=True))
    assert not torch.equal(heads[0], heads[-1])
