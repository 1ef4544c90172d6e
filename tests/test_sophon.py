"""SOPHON's simulation against plain transcriptions of it, its loop, and its roll-back."""

import copy
import dataclasses
import itertools
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from toy import ORIGINAL, RESTRICTED, Tiny, drain, same, state, trained, view

from sophon_bench.api import Batch, DefenseView, Incompatible, Samples, defenses
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.defenses._watch import Watch
from sophon_bench.defenses.sophon import (
    Sophon,
    SophonIce,
    SophonKlu,
    inverse_cross_entropy,
    kl_from_uniform,
)
from sophon_bench.defenses.sophon.simulate import (
    draw_steps,
    first_order,
    reset,
    shared_parameters,
)
from sophon_bench.defenses.sophon.strategies import Strategy
from sophon_bench.defenses.sophon.unroll import RULES, Moments, second_order
from sophon_bench.plugins.selectors import SelectorError
from sophon_bench.plugins.suites import trials
from sophon_bench.training import make_optimizer

QUICK = {  # all that is tuned is named, so that tuning it breaks no test
    **SophonKlu.presets["paper"],
    "alpha": 2e-3,
    "beta": 1e-3,
    "iterations": 3,
    "inner_steps": 2,
    "ntr_steps": 2,
    "batch_size": 12,
    "adapt": 8,
    "ntr_batch_size": 16,
    "strategies": ("sgd@0.01", "adam@0.001"),
    "min_original": None,
    "max_drop": 0.015,
}


def quick(cls: type[Sophon] = SophonKlu, **changes: object) -> Sophon:
    return cls(**{**QUICK, **changes})


def klu(outputs: Tensor, targets: Tensor) -> Tensor:
    return kl_from_uniform(outputs)


# First order: one FTS step of the real thing against its plain transcription.


def transcribed_fts(model: Tiny, data: DefenseView, plugin: Sophon) -> None:
    """Keeps every theta_k, takes all gradients at the end, then clips and steps: the slow way."""
    rng = data.rng
    text = plugin.strategies[int(torch.randint(len(plugin.strategies), (), generator=rng))]
    name, lr = text.split("/")[0].split("@")
    fresh = plugin.head == "fresh"
    learner = copy.deepcopy(model).train()
    if fresh:
        learner.fresh_head(RESTRICTED, rng)
    optimizer = make_optimizer(name, learner.parameters(), lr=float(lr))
    visited = []
    for _ in range(plugin.inner_steps):
        order = torch.randperm(len(data.restricted.train), generator=rng)[: plugin.batch_size]
        batch = Batch(data.restricted.train.inputs[order], data.restricted.train.targets[order])
        optimizer.zero_grad()
        logits = learner(batch.inputs[: plugin.adapt])
        nn.functional.cross_entropy(logits, batch.targets[: plugin.adapt]).backward()
        optimizer.step()
        visited.append((copy.deepcopy(learner), batch))
    model.zero_grad()
    for k, (theta, batch) in enumerate(visited, start=1):
        theta.zero_grad()
        logits = theta(batch.inputs[plugin.adapt :])
        plugin.suppression_loss(logits, batch.targets[plugin.adapt :]).backward()
        weight = 1 / plugin.inner_steps if plugin.gamma == "mean" else k == plugin.inner_steps
        for (name, mine), (_, its) in zip(
            model.named_parameters(), theta.named_parameters(), strict=True
        ):
            if fresh and name.startswith("head"):
                continue
            mine.grad = weight * its.grad + (0 if mine.grad is None else mine.grad)
    nn.utils.clip_grad_norm_(model.parameters(), plugin.clip)
    torch.optim.Adam(model.parameters(), lr=plugin.alpha).step()


@pytest.mark.parametrize("cls", [SophonIce, SophonKlu])
@pytest.mark.parametrize("strategy", ["sgd@0.3", "adam@0.01", "momentum@0.1"])
@pytest.mark.parametrize("gamma", ["mean", "last"])
@pytest.mark.parametrize("head", ["fresh", "kept"])
def test_first_order_step_equals_its_transcription(cls, strategy, gamma, head):
    plugin = quick(
        cls, strategies=(strategy,), gamma=gamma, head=head, inner_steps=4, alpha=0.01, clip=1e3
    )
    model, expected = Tiny().double(), Tiny().double()
    transcribed_fts(expected, view(dtype=torch.float64), plugin)
    next(plugin.run(model, view(dtype=torch.float64)))
    assert not same(state(expected), state(Tiny().double()))
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(weights, expected.state_dict()[name], rtol=1e-9, atol=1e-12)
    kept_head = torch.equal(model.head.weight, Tiny().double().head.weight)
    assert kept_head == (head == "fresh")


def test_clip_bounds_the_suppression_gradient():
    model = Tiny()
    next(quick(SophonIce, clip=1e-3).run(model, view()))
    total = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert math.sqrt(total) == pytest.approx(1e-3, rel=1e-3)


def test_alternating_heads_keep_their_widths():
    plugin = quick(strategies=("sgd@0.1/fresh", "sgd@0.1/kept"), iterations=12, max_drop=None)
    model = Tiny()
    states, sentence = drain(plugin.run(model, view()))
    assert (len(states), sentence) == (plugin.steps, None)
    assert model.head.out_features == ORIGINAL


# Second order.


def simulation(
    optimizer: str, head: str, steps: int
) -> tuple[Tiny, Strategy, list, Callable[[], float]]:
    """A learner, a strategy, fixed steps, and the outer loss of the learner's present weights."""
    learner, data = Tiny(width=3).double(), view(dtype=torch.float64)
    lr = {"sgd": 0.5, "momentum": 0.3, "adam": 0.05}[optimizer]
    strategy = Strategy(optimizer=optimizer, lr=lr, batch_size=8, head=head)
    reset(learner, copy.deepcopy(learner), head, task=data.restricted.task, rng=data.rng)
    drawn = list(
        draw_steps(data.restricted.train, steps, adapt=8, judge=6, gamma="mean", rng=data.rng)
    )

    def outer() -> float:
        copied = copy.deepcopy(learner)
        inner = make_optimizer(optimizer, copied.parameters(), lr=lr)
        total = 0.0
        for adapt, judge, weight in drawn:
            inner.zero_grad()
            nn.functional.cross_entropy(copied(adapt.inputs), adapt.targets).backward()
            inner.step()
            with torch.no_grad():
                total += weight * float(klu(copied(judge.inputs), judge.targets))
        return total

    return learner, strategy, drawn, outer


@pytest.mark.parametrize("head", ["fresh", "kept"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_second_order_equals_finite_differences(optimizer, head):
    learner, strategy, steps, outer = simulation(optimizer, head, steps=3)
    task = Classification(RESTRICTED)
    exact = second_order(learner, strategy, steps, task=task, objective=klu)
    wanted, h = shared_parameters(learner, head), 1e-5
    assert len(wanted) == (4 if head == "fresh" else 6)
    for parameter, gradient in zip(wanted, exact, strict=True):
        for entry, slope in zip(parameter.data.view(-1), gradient.view(-1), strict=True):
            middle = float(entry)
            entry.fill_(middle + h)
            above = outer()
            entry.fill_(middle - h)
            below = outer()
            entry.fill_(middle)
            assert float(slope) == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-7)


def test_one_sgd_step_of_second_order_by_hand():
    learner, strategy, steps, _ = simulation("sgd", "kept", steps=1)
    (adapt, judge, _), names = steps[0], [n for n, _ in learner.named_parameters()]
    shapes = [p.shape for p in learner.parameters()]
    start = torch.cat([p.detach().flatten() for p in learner.parameters()])

    def loss(flat: Tensor, batch: Batch, objective: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return objective(functional_call(learner, weights, batch.inputs), batch.targets)

    def adaptation(flat: Tensor) -> Tensor:
        return loss(flat, adapt, nn.functional.cross_entropy)

    slope = torch.autograd.functional.jacobian(adaptation, start)
    curvature = torch.autograd.functional.hessian(adaptation, start)
    moved = start - strategy.lr * slope
    at_end = torch.autograd.functional.jacobian(lambda flat: loss(flat, judge, klu), moved)
    expected = at_end - strategy.lr * curvature @ at_end
    exact = second_order(learner, strategy, steps, task=Classification(RESTRICTED), objective=klu)
    torch.testing.assert_close(torch.cat([g.flatten() for g in exact]), expected)
    first = first_order(learner, strategy, steps, task=Classification(RESTRICTED), objective=klu)
    torch.testing.assert_close(torch.cat([g.flatten() for g in first]), at_end)


@pytest.mark.parametrize("name", sorted(RULES))
def test_update_rule_equals_torch(name):
    rng = torch.Generator().manual_seed(0)
    theirs = nn.Parameter(torch.randn(7, generator=rng, dtype=torch.float64))
    mine = theirs.detach().clone()
    optimizer = make_optimizer(name, [theirs], lr=0.1)
    moments = Moments(torch.zeros_like(mine), torch.zeros_like(mine))
    for step in range(1, 8):
        gradient = torch.randn(7, generator=rng, dtype=torch.float64)
        gradient[0] = 0.0  # a dead unit
        theirs.grad = gradient
        optimizer.step()
        update, moments = RULES[name](gradient, moments, step)
        mine = mine - 0.1 * update
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_second_order_adam_survives_dead_units():
    gradient = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(2, dtype=torch.float64)
    update, _ = RULES["adam"](gradient, Moments(zeros, zeros), 1)
    slope = torch.autograd.grad(update.sum(), gradient)[0]
    assert slope[0].item() == pytest.approx(1e8)  # that of g / (|g| + eps) at 0
    assert slope.isfinite().all()


def test_second_order_runs_in_the_loop():
    model = Tiny()
    plugin = quick(SophonIce, order=2, strategies=("sgd@0.1", "momentum@0.1", "adam@0.01/kept"))
    states, sentence = drain(plugin.run(model, view()))
    assert (len(states), sentence) == (plugin.steps, None)
    assert all(p.isfinite().all() for p in model.parameters())


# Memory.


class Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def most_saved(differentiate: Callable, inner_steps: int) -> int:
    """The most tensors that autograd keeps for a backward pass at any one time."""
    learner, strategy, steps, _ = simulation("adam", "kept", inner_steps)
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()
    most = 0

    def pack(tensor: Tensor) -> Saved:
        nonlocal most
        saved = Saved(tensor)
        alive.add(saved)
        most = max(most, len(alive))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        differentiate(learner, strategy, steps, task=Classification(RESTRICTED), objective=klu)
    return most


def test_first_order_memory_does_not_grow_with_the_inner_steps():
    assert 0 < most_saved(first_order, 2) == most_saved(first_order, 20)


def test_second_order_holds_the_graph_of_one_update_at_a_time():
    assert 0 < most_saved(second_order, 2) == most_saved(second_order, 20)


@pytest.mark.parametrize("inner_steps", [1, 2, 7, 9])
def test_second_order_equals_one_graph_of_all_updates_with_dropout(inner_steps):
    learner, strategy, steps, _ = simulation("momentum", "kept", inner_steps)
    learner.body.append(nn.Dropout(0.3))
    task, names = Classification(RESTRICTED), [n for n, _ in learner.named_parameters()]
    torch.manual_seed(5)
    begin = torch.get_rng_state()
    exact = second_order(learner, strategy, steps, task=task, objective=klu)
    end = torch.get_rng_state()

    torch.set_rng_state(begin)
    weights = list(learner.parameters())
    moments = [Moments(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    total = torch.zeros(())
    for number, (adapt, judge, weight) in enumerate(steps, start=1):

        def predict(inputs: Tensor, now: list[Tensor] = weights) -> Tensor:
            return functional_call(learner, dict(zip(names, now, strict=True)), inputs)

        slopes = torch.autograd.grad(task.loss(predict, adapt), weights, create_graph=True)
        moved = [RULES["momentum"](g, m, number) for g, m in zip(slopes, moments, strict=True)]
        weights = [w - strategy.lr * u for w, (u, _) in zip(weights, moved, strict=True)]
        moments = [m for _, m in moved]
        state = torch.get_rng_state()
        total = total + weight * klu(predict(judge.inputs, weights), judge.targets)
        if number < len(steps):  # the next update draws what judging this one drew
            torch.set_rng_state(state)
    for one, other in zip(
        exact, torch.autograd.grad(total, list(learner.parameters())), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert torch.equal(end, torch.get_rng_state())


# Data.


def test_inner_steps_split_disjointly_and_draw_anew():
    numbered = Samples(torch.arange(10.0)[:, None], torch.arange(10))
    rng = torch.Generator().manual_seed(0)
    drawn = list(draw_steps(numbered, 30, adapt=4, judge=3, gamma="last", rng=rng))
    for adapt, judge, _ in drawn:
        assert (len(adapt.targets), len(judge.targets)) == (4, 3)
        assert len({*adapt.targets.tolist(), *judge.targets.tolist()}) == 7
    assert len({tuple(adapt.targets.tolist()) for adapt, _, _ in drawn}) == 30
    assert [weight for _, _, weight in drawn] == [0.0] * 29 + [1.0]


@pytest.mark.parametrize(
    ("n", "adapt", "judge", "expected"),
    [(10, 130, 20, (9, 1)), (2, 130, 20, (1, 1)), (6, 64, 32, (4, 2)), (3, 1, 99, (1, 2))],
)
def test_few_samples_are_split_in_proportion(n, adapt, judge, expected):
    few = Samples(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long))
    rng = torch.Generator().manual_seed(0)
    (step,) = draw_steps(few, 1, adapt=adapt, judge=judge, gamma="mean", rng=rng)
    assert (len(step.adapt.targets), len(step.judge.targets)) == expected


# The loop.


@pytest.mark.parametrize("changes", [{}, {"fts_steps": 2, "ntr_steps": 3, "iterations": 2}])
def test_yields_after_every_update(changes):
    plugin = quick(**changes)
    before, seen = Tiny(), 0
    model, last = Tiny(), state(Tiny())
    for yielded in plugin.run(model, view()):
        assert yielded is model
        assert not same(last, state(model))
        last, seen = state(model), seen + 1
    assert seen == plugin.steps
    assert type(model) is type(before)
    assert vars(model).keys() == vars(before).keys()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_suppression_leaves_the_statistics_alone_and_reinforcement_moves_them():
    model = Tiny()
    run = quick(fts_steps=2).run(model, view())
    start = {name: b.clone() for name, b in model.named_buffers()}
    for _ in range(2):
        next(run)
        assert same(start, dict(model.named_buffers()))
    next(run)
    assert not torch.equal(start["body.1.running_mean"], model.body[1].running_mean)


@pytest.mark.parametrize("cls", [SophonIce, SophonKlu])
def test_is_deterministic_and_leaves_the_global_generator_alone(cls):
    models = [Tiny(), Tiny(), Tiny()]
    before, runs = torch.get_rng_state(), []
    for model, seed in zip(models, (0, 0, 1), strict=True):
        drain(quick(cls).run(model, view(seed)))
        runs.append(state(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    assert torch.equal(before, torch.get_rng_state())


def test_looking_changes_nothing():
    runs = []
    for every in (1, 100):
        model = trained()
        drain(quick(SophonIce, watch_every=every, max_drop=1.0).run(model, view()))
        assert all(module.training for module in model.modules())
        runs.append(state(model))
    assert same(*runs)


def fine_tuned(model: Tiny, lr: float = 0.05, steps: int = 15) -> float:
    """Restricted accuracy of a copy after fine-tuning behind a fresh head."""
    model, data = copy.deepcopy(model), view().restricted
    model.fresh_head(RESTRICTED, torch.Generator().manual_seed(9))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    batches = data.train.batches(16, torch.Generator().manual_seed(9))
    for batch in itertools.islice(batches, steps):
        optimizer.zero_grad()
        torch.autograd.backward(data.task.loss(model, batch))
        optimizer.step()
    return data.task.utility(model.eval(), data.validation)


@pytest.mark.parametrize("cls", [SophonIce, SophonKlu])
def test_protection_slows_the_simulated_fine_tuner_and_keeps_the_original_task(cls):
    model, original = trained(), view().original
    before = original.task.utility(copy.deepcopy(model).eval(), original.validation)
    plugin = quick(
        cls,
        iterations=60,
        inner_steps=8,
        batch_size=24,
        adapt=16,
        ntr_batch_size=32,
        alpha=2e-2,
        beta=2e-2,
        strategies=("sgd@0.05",),
        max_drop=0.02,
    )
    undefended = fine_tuned(model)
    drain(plugin.run(model, view()))
    assert original.task.utility(model.eval(), original.validation) >= before - 0.02
    assert fine_tuned(model) < undefended - 0.1


# Roll-back.


class Scripted(Classification):
    """A task whose utility follows a script."""

    def __init__(self, *script: float) -> None:
        super().__init__(ORIGINAL)
        object.__setattr__(self, "script", iter(script))

    def utility(self, predictor, samples) -> float:
        assert not predictor.training
        return next(self.script)


def scripted(*script: float) -> DefenseView:
    data = view()
    return dataclasses.replace(
        data, original=dataclasses.replace(data.original, task=Scripted(*script))
    )


def test_lost_intactness_rolls_back_to_the_last_good_state():
    model = Tiny()
    plugin = quick(iterations=9, watch_every=1, max_drop=0.02, patience=2)
    # Good, lost, won back, lost twice: the third look holds the state to release.
    run = plugin.run(model, scripted(0.9, 0.89, 0.5, 0.88, 0.7, 0.6))
    after, sentence = drain(run)
    assert sentence == (
        "rolled back to iteration 3: original utility 0.600 was below 0.880 at iteration 5"
    )
    assert len(after) == 5 * 3 + 1
    assert same(after[-1], after[3 * 3 - 1])


def test_patience_ends_with_the_run():
    model = Tiny()
    start = state(model)
    plugin = quick(iterations=3, watch_every=2, max_drop=0.0, patience=9)
    states, sentence = drain(plugin.run(model, scripted(0.9, 0.1, 0.8)))
    assert sentence is not None
    assert sentence.startswith("rolled back to iteration 0: original utility 0.800")
    assert len(states) == plugin.steps + 1
    assert same(start, state(model))


def test_a_real_collapse_rolls_back():
    model = trained()
    start = state(model)
    plugin = quick(alpha=3.0, beta=1e-6, watch_every=1, patience=1, iterations=5)
    _, sentence = drain(plugin.run(model, view()))
    assert sentence is not None
    assert "original utility" in sentence
    assert same(start, state(model))


class Poisoned(Classification):
    """A task whose loss is NaN from its ``last``-th call on."""

    def __init__(self, num_outputs: int, last: int) -> None:
        super().__init__(num_outputs)
        object.__setattr__(self, "calls", itertools.count(1))
        object.__setattr__(self, "last", last)

    def loss(self, model, batch) -> Tensor:
        return super().loss(model, batch) * (math.nan if next(self.calls) >= self.last else 1.0)


@pytest.mark.parametrize("poisoned", ["original", "restricted"])
def test_a_loss_that_is_not_finite_rolls_back_at_once_whatever_the_tolerance(poisoned):
    model, data = trained(), view()
    plugin = quick(max_drop=None, watch_every=1, patience=9)
    domain = getattr(data, poisoned)
    # Both losses are computed twice per iteration; the fifth call is in the third.
    data = dataclasses.replace(
        data,
        **{poisoned: dataclasses.replace(domain, task=Poisoned(domain.task.num_outputs, last=5))},
    )
    states, sentence = drain(plugin.run(model, data))
    assert sentence == "rolled back to iteration 2: the state was not finite at iteration 3"
    assert same(states[-1], states[5])


@pytest.mark.parametrize("changes", [{"alpha": 1e30}, {"beta": 1e30}])
def test_divergence_is_never_released(changes):
    model = trained()
    start = state(model)
    _, sentence = drain(quick(**{"watch_every": 1, **changes}).run(model, view()))
    assert sentence is not None
    assert sentence.startswith("rolled back to iteration 0")
    assert same(start, state(model))


def test_absolute_floor():
    plugin = quick(iterations=1, min_original=0.8, max_drop=None)
    assert drain(plugin.run(Tiny(), scripted(0.95, 0.8)))[1] is None
    assert "below 0.800" in str(drain(plugin.run(Tiny(), scripted(0.95, 0.79)))[1])
    both = dataclasses.replace(plugin, max_drop=0.05)
    assert "below 0.900" in str(drain(both.run(Tiny(), scripted(0.95, 0.89)))[1])
    with pytest.raises(Incompatible, match=r"0\.700 before protection, below min_original=0\.8"):
        next(plugin.run(Tiny(), scripted(0.7)))


def test_watch_restores_modes():
    model, data = Tiny(), view()
    model.body[1].eval()
    watch = Watch(model, data.original, floor=0.0, patience=1, every=1, last=2)
    assert watch.look(1) is None
    assert model.training
    assert model.body[0].training
    assert not model.body[1].training


# Hyperparameters.


def test_strategies_parse():
    parsed = Strategy.parse("sgd@0.01", batch_size=64, head="fresh")
    assert parsed == Strategy(optimizer="sgd", lr=0.01, batch_size=64, head="fresh")
    parsed = Strategy.parse("adamw@1e-3/32/kept", batch_size=64, head="fresh")
    assert parsed == Strategy(optimizer="adamw", lr=1e-3, batch_size=32, head="kept")
    assert Strategy.parse("adam@1/fresh", batch_size=64, head="kept").head == "fresh"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sgd", "strategy 'sgd' is not of the form optimizer@lr"),
        ("sgd@", "is not of the form"),
        ("sgd@0.1/half", r"is not of the form optimizer@lr\[..lr\]\[/batch\]\[/fresh\|kept\]"),
        ("sgd@0.1/kept/32", "is not of the form"),
        ("adm@0.1", "unknown optimizer 'adm'; did you mean 'adam'"),
        ("sgd@fast", "learning rate must be positive, got 'fast'"),
        ("sgd@-0.1", "learning rate must be positive, got '-0.1'"),
        ("sgd@inf", "learning rate must be positive, got 'inf'"),
        ("sgd@0.1/0", "batch must be at least 1, got 0"),
    ],
)
def test_strategy_errors_name_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        quick(strategies=("sgd@0.1", text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt": 12}, "adapt=12 leaves none of batch_size=12"),
        ({"strategies": ()}, "strategies is empty"),
        ({"order": 2, "strategies": ("rmsprop@0.1",)}, r"'rmsprop@0\.1': order=2 .* sgd, momentum"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        quick(**changes)


@pytest.mark.parametrize("name", ["sophon-ice", "sophon-klu"])
@pytest.mark.parametrize(
    "given",
    [
        "alpha=-1",
        "alpha=0",
        "order=3",
        "order=0",
        "clip=0",
        "gamma=first",
        "head=new",
        "loss=dos",
        "inner_steps=0",
        "max_drop=-0.1",
        "strategies=[sgd]",
        "watch_every=0",
    ],
)
def test_the_command_line_refuses_what_makes_no_sense(name, given):
    with pytest.raises(SelectorError, match=given.split("=")[0]):
        trials(defenses, [f"{name}[{given}]"])


@pytest.mark.parametrize("preset", ["paper", "released", "embedded"])
@pytest.mark.parametrize("name", ["sophon-ice", "sophon-klu"])
def test_presets(name, preset):
    (trial,) = trials(defenses, [f"{name}[preset={preset}]"])
    assert trial.plugin.steps > 0
    (again,) = trials(defenses, [trial.label])
    assert again.plugin == trial.plugin


def test_presets_of_the_paper_depend_on_no_default():
    fields = {field.name for field in dataclasses.fields(Sophon)}
    for cls in (SophonIce, SophonKlu):
        assert fields <= cls.presets["paper"].keys()
        assert fields <= cls.presets["released"].keys()


def test_preset_values():
    paper = SophonIce(**SophonIce.presets["paper"])
    assert (paper.alpha, paper.beta, paper.inner_steps, paper.iterations) == (3e-4, 5e-4, 50, 800)
    assert (paper.fts_steps, paper.ntr_steps, paper.clip) == (1, 1, 0.5)
    assert (paper.batch_size, paper.adapt, paper.strategies) == (150, 130, ("sgd@1e-4",))
    assert (paper.min_original, paper.max_drop, paper.patience) == (0.8, None, 1)
    assert SophonIce(**SophonIce.presets["released"]).loss == "ice-released"
    released = SophonKlu(**SophonKlu.presets["released"])
    assert (released.alpha, released.beta, released.ntr_steps) == (1e-4, 1e-4, 5)
    assert released.head == "kept"
    assert "sgd@0.01" in SophonKlu().strategies


def test_released_loss_is_a_variant_of_ice():
    z, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    assert SophonIce().suppression_loss(z, y) == inverse_cross_entropy(z, y)
    released = SophonIce(loss="ice-released").suppression_loss(z, y)
    torch.testing.assert_close(released, nn.functional.cross_entropy(1 - z, y))


def test_incompatible_models_say_why():
    wide = dataclasses.replace(
        view(), restricted=dataclasses.replace(view().restricted, task=Classification(5))
    )
    with pytest.raises(Incompatible, match="at least 5 outputs, the model has 4"):
        next(quick(strategies=("sgd@0.1/kept",)).run(Tiny(), wide))
    with pytest.raises(Incompatible, match="at least 2 restricted samples"):
        next(quick().run(Tiny(), view(n=1)))


def test_none_releases_the_model_unchanged():
    assert "none" in defenses.controls()
    model = Tiny()
    (released,) = defenses.get("none").cls().run(model, view())
    assert released is model
    assert same(state(model), state(Tiny()))
