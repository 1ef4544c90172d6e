from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import nn

from sophon_bench.api import Batch, Incompatible, Model, attacks
from sophon_bench.fused_sgd import FusedSGD
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins.suites import trials
from sophon_bench.training import (
    OptimizerName,
    ScheduleName,
    choose_head,
    descend,
    is_norm,
    last_blocks,
    make_optimizer,
    make_schedule,
    move_only,
    scope_parameters,
)


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_a_gradient_may_lie_in_memory_in_another_order(name: OptimizerName) -> None:
    rng = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(4, 6, generator=rng) for _ in range(2))
    moved = []
    for laid_out in (gradient, gradient.t().contiguous().t()):
        parameter = nn.Parameter(start.clone())
        parameter.grad = laid_out
        make_optimizer(name, [parameter], lr=0.1).step()
        moved.append(parameter.detach())
    assert torch.equal(*moved)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_what_calls_torchs_kernel_itself_is_torchs_own_sgd(momentum: float, nesterov: bool) -> None:
    options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov}
    groups: list[list[dict[str, Any]]] = [
        [{"params": [nn.Parameter(torch.ones(3, 2))], "lr": 0.1, "weight_decay": 0.01},
         {"params": [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))], "lr": 0.3}]
        for _ in range(2)
    ]  # fmt: skip
    groups[0][1]["weight_decay"] = groups[1][1]["weight_decay"] = 0.0
    own = FusedSGD(groups[0], **options)
    theirs = torch.optim.SGD(groups[1], lr=0.1, fused=True, **options)
    for seed in range(4):
        for optimizer in (own, theirs):
            rng = torch.Generator().manual_seed(seed)
            for group in optimizer.param_groups:
                group["params"][0].grad = torch.randn(group["params"][0].shape, generator=rng)
            optimizer.step()
    for one, other in zip(own.param_groups, theirs.param_groups, strict=True):
        assert all(map(torch.equal, one["params"], other["params"]))
    within: Any = FusedSGD.step.__wrapped__  # type: ignore[attr-defined] # by no_grad
    assert not hasattr(within, "__wrapped__"), "torch wraps a step that has no mark"


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
    assert rates("warm-up", 30)[:4] == pytest.approx([0.4 / 3, 0.8 / 3, 0.4, 0.4])
    assert rates("warm-up", None) == pytest.approx([0.02, 0.04, 0.06])
    cosine = rates("cosine", 4)
    assert cosine == pytest.approx([0.4, 0.341421, 0.2, 0.058579], abs=1e-6)
    one_cycle = rates("one-cycle", 10)
    assert max(one_cycle) == pytest.approx(0.4)
    assert one_cycle[0] < 0.4 > one_cycle[-1]
    with pytest.raises(ValueError, match="schedule=cosine needs steps=N"):
        rates("cosine", None)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_an_attack_ends_with_its_schedule(schedule: str, bench: Bench, pretrained: Made) -> None:
    (trial,) = trials(attacks, [f"finetune[schedule={schedule},steps=3,batch_size=16]"])
    found = loop.attack(
        bench, pretrained.weights, trial.plugin, samples=40, seed=0, budget=640,
        tick=lambda fraction, words: None,
    )  # fmt: skip
    assert (found.status, found.cost.steps) == ("ok", 3)
    assert found.curve[-1].steps == 3


def test_only_the_scope_moves_and_a_kept_head_must_fit(bench: Bench, pretrained: Made) -> None:
    model = bench.load(pretrained.weights)
    kept = model.head
    rng = torch.Generator().manual_seed(0)
    choose_head(model, "kept", outputs=6, rng=rng)
    assert model.head is kept
    with pytest.raises(Incompatible, match="at least 7 outputs, the model has 6"):
        choose_head(model, "kept", outputs=7, rng=rng)
    choose_head(model, "fresh", outputs=7, rng=rng)
    assert model.num_outputs == 7


def test_head_only_leaves_the_body_alone(bench: Bench, pretrained: Made) -> None:
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


def build(name: str) -> Model:
    size = {"img_size": 32, "patch_size": 8} if name == "test_vit" else {}
    return Backbone.of(name, size).build(4, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "last", "norms"),
    [
        ("test_resnet", ["body.layer4"], 30),
        ("test_vit", ["body.blocks.5", "body.norm"], 26),
        ("test_convnext", ["body.stages.3", "body.head"], 28),
    ],
)
def test_a_scope_is_its_part_and_the_head(name: str, last: list[str], norms: int) -> None:
    model = build(name)
    names = {id(p): n for n, p in model.named_parameters()}
    head = {n for n in names.values() if n.startswith("head.")}

    def scope(*arguments: object) -> set[str]:
        found = [names[id(p)] for p in scope_parameters(model, *arguments)]  # type: ignore[arg-type]
        assert len(found) == len(set(found))
        return set(found)

    assert scope("all") == set(names.values())
    assert scope("head") == head
    assert [n for n, _ in last_blocks(model, 1)] == last
    blocks = scope("blocks") - head
    assert all(n.startswith(tuple(f"{b}." for b in last)) for n in blocks)
    assert {n.split(".")[1] for n in blocks} == {b.split(".")[1] for b in last}
    assert len(scope("norm") - head) == norms
    assert all(dict(model.named_parameters())[n].ndim == 1 for n in scope("norm") - head)
    assert scope("bias") - head == {n for n in names.values() if n.endswith("bias")} - head
    with pytest.raises(Incompatible, match="blocks, not 99"):
        last_blocks(model, 99)


def test_a_scope_that_the_body_does_not_have_is_refused() -> None:
    model = build("vgg11")
    assert not any(is_norm(m) for m in model.modules())
    with pytest.raises(Incompatible, match="scope=norm finds no parameter"):
        scope_parameters(model, "norm")


def test_what_does_not_move_is_frozen() -> None:
    model = build("test_resnet")
    moving = move_only(model, "blocks", count=2)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in moving}


def test_descent_clips_the_gradient_and_stops_after_its_steps() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    batch = Batch(torch.zeros(1), torch.zeros(1))
    steps = descend(
        lambda batch: (weight**2).sum() / 2, itertools.repeat(batch), [weight],
        optimizer="sgd", lr=1.0, clip=1.0, steps=2,
    )  # fmt: skip
    next(steps)
    assert weight.tolist() == pytest.approx([2.4, 3.2], rel=1e-5)
    assert len(list(steps)) == 1
