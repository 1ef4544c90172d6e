from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import fine_tune

from sophon_bench.api import AttackView, Batch, DefenseView, Incompatible, Model, Predictor, attacks
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.honesty import NoUpdate
from sophon_bench.harness.loop import Attacked, Made
from sophon_bench.plugins.suites import trials
from sophon_bench.protocol import PRETRAIN_BATCH

BUDGET = 8 * 64


def quiet(_fraction: float | None, _words: str) -> None:
    pass


Run = Callable[[Model, AttackView], Iterator[Predictor]]


@dataclass
class Plain:
    """An attack made of a generator function."""

    generator: Any

    def run(self, model: Model, view: Any) -> Any:
        return self.generator(model, view)


def attack(bench: Bench, made: Made, run: Any, **options: Any) -> Attacked:
    plugin = run if hasattr(run, "run") else Plain(run)
    chosen = {"samples": 40, "seed": 0, "budget": BUDGET, "tick": quiet, **options}
    return loop.attack(bench, made.weights, plugin, **chosen)


def sgd(model: Model, view: AttackView, lr: float = 0.05) -> Iterator[Model]:
    return fine_tune(model, view, lr)


def last(seen: SimpleQueue[Any]) -> Any:
    """What was put there last; nothing is left."""
    found = [seen.get_nowait() for _ in range(seen.qsize())]
    return found[-1]


def scores(found: Attacked) -> list[tuple[int, float, float, float]]:
    return [(p.steps, p.selection, p.test, p.second_test) for p in found.curve]


def test_an_attack_stops_at_its_budget_and_is_scored_on_the_way(
    bench: Bench, pretrained: Made
) -> None:
    found = attack(bench, pretrained, sgd)
    assert found.status == "ok"
    assert [p.steps for p in found.curve] == [2, 4, 8, 16, 32]
    assert found.cost.units == pytest.approx(BUDGET, rel=0.01)
    assert found.cost.units <= BUDGET * (1 + 1e-6)
    assert found.cost.examples == 32 * 16
    assert found.cost.flops == pytest.approx(found.cost.units * bench.profile.flops_per_unit)


def test_looking_never_changes_the_run(bench: Bench, pretrained: Made) -> None:
    """Scoring at every step or only at the end gives bit-identical weights, dropout included."""
    seen: SimpleQueue[list[Tensor]] = SimpleQueue()  # lists are put back after a trial

    def with_dropout(model: Model, view: AttackView) -> Iterator[Model]:
        dropout = nn.Dropout(0.2)
        model.fresh_head(view.task.num_outputs, view.rng)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for batch in view.batches(16):
            optimizer.zero_grad()
            noisy = batch._replace(inputs=dropout(batch.inputs))
            view.task.loss(model, noisy).backward()
            optimizer.step()
            seen.put([t.detach().clone() for t in model.state_dict().values()])
            yield model

    endings = []
    for grid in ([1.0], [i / 32 for i in range(1, 33)]):
        attack(bench, pretrained, with_dropout, score_at=grid)
        endings.append(last(seen))
    assert all(torch.equal(a, b) for a, b in zip(*endings, strict=True))
    assert len(endings[0]) > 10


def test_the_same_seed_gives_the_same_attack_and_another_seed_another(
    bench: Bench, pretrained: Made
) -> None:
    one, two, other = (attack(bench, pretrained, sgd, seed=seed) for seed in (0, 0, 1))
    assert scores(one) == scores(two)
    assert scores(one) != scores(other)


def test_the_global_random_state_is_left_alone(bench: Bench, pretrained: Made) -> None:
    state = torch.get_rng_state()
    attack(bench, pretrained, sgd)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_an_attack_starts_from_is_trainable_in_train_mode_and_hookless_weights(
    bench: Bench, pretrained: Made
) -> None:
    def look(model: Model, view: AttackView) -> Iterator[Model]:
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
        weights = model.state_dict()
        assert all(torch.equal(weights[n], t) for n, t in pretrained.weights.items())
        assert len(view.train) + len(view.validation) == 40
        assert view.auxiliary is not None
        fresh = view.new_model()
        assert fresh.num_outputs == model.num_outputs
        assert not torch.equal(
            next(iter(fresh.parameters())), next(iter(view.new_model().parameters()))
        )
        yield from sgd(model, view)

    assert attack(bench, pretrained, look).status == "ok"


def test_fewer_samples_are_a_subset_of_more_and_no_validation_sample_is_trained_on(
    bench: Bench,
) -> None:
    def rows(samples: Any) -> set[bytes]:
        return {x.numpy().tobytes() for x in samples.inputs}

    few, many = (
        bench.attacker(bench.data.restricted, 8, 3),
        bench.attacker(bench.data.restricted, 40, 3),
    )
    assert rows(few[0]) | rows(few[1]) < rows(many[0]) | rows(many[1])
    assert not rows(many[0]) & rows(many[1])
    assert (len(few[0]), len(few[1])) == (6, 2)
    assert torch.bincount(torch.cat([few[0].targets, few[1].targets])).tolist() == [2, 2, 2, 2]
    assert rows(bench.attacker(bench.data.restricted, 8, 4)[0]) != rows(few[0])


def test_defender_and_attacker_share_no_sample(bench: Bench) -> None:
    _, restricted = bench.defender()
    mine = {x.numpy().tobytes() for x in restricted.train.inputs}
    theirs = {x.numpy().tobytes() for x in bench.attacker(bench.data.restricted, 40, 0)[0].inputs}
    assert not mine & theirs


def no_yield(_model: Model, _view: AttackView) -> Iterator[Model]:
    yield from ()


def no_sample(model: Model, _view: AttackView) -> Iterator[Model]:
    for parameter in model.parameters():
        parameter.data.add_(1e-3)
        yield model


def no_step(model: Model, view: AttackView) -> Iterator[Model]:
    model.fresh_head(view.task.num_outputs, view.rng)
    for batch in view.batches(16):
        view.task.loss(model, batch).backward()
        yield model


def random_head(model: Model, view: AttackView) -> Iterator[Model]:
    model.fresh_head(view.task.num_outputs, view.rng)
    for _ in view.batches(16):
        yield model


def random_head_and_statistics(model: Model, view: AttackView) -> Iterator[Model]:
    """Looks at a loss and forgets to step; BatchNorm's statistics move all the same."""
    for made in random_head(model, view):
        view.task.loss(made, Batch(view.train.inputs, view.train.targets))
        yield made


def zero_lr(model: Model, view: AttackView) -> Iterator[Model]:
    yield from sgd(model, view, lr=0.0)


def one_idle_yield(model: Model, view: AttackView) -> Iterator[Model]:
    next(view.batches(16))
    yield model


def idle_function(model: Model, view: AttackView) -> Iterator[Predictor]:
    next(view.batches(16))
    yield lambda inputs: model(inputs)


@pytest.mark.parametrize(
    ("idle", "message"),
    [
        (no_yield, "yielded nothing"),
        (no_sample, "drew no sample"),
        (no_step, "never changed a weight"),
        (random_head, "whose head is the random one that fresh_head drew"),
        (random_head_and_statistics, "whose head is the random one that fresh_head drew"),
        (zero_lr, "never changed a weight"),
        (one_idle_yield, "never changed a weight"),
        (idle_function, "what the released model computes"),
    ],
)
def test_an_attack_that_does_nothing_is_an_error_not_protection(
    bench: Bench, pretrained: Made, idle: Run, message: str
) -> None:
    with pytest.raises(NoUpdate, match=message):
        attack(bench, pretrained, idle)


def test_a_function_predictor_is_scored_as_it_is(bench: Bench, pretrained: Made) -> None:
    def nearest_mean(model: Model, view: AttackView) -> Iterator[Predictor]:
        model.eval()
        with torch.no_grad():
            features = model.features(view.train.inputs)
        classes = range(view.task.num_outputs)
        means = torch.stack([features[view.train.targets == c].mean(0) for c in classes])
        yield lambda x: -torch.cdist(model.features(x), means)

    found = attack(bench, pretrained, nearest_mean)
    assert found.status == "ok"
    assert len(found.curve) == 1
    assert found.cost.units == pytest.approx(32 / 3, rel=0.1)


def test_a_run_that_is_no_generator_says_so(bench: Bench, pretrained: Made) -> None:
    def returns(model: Model, view: AttackView) -> Any:
        return None

    def leaves(model: Model, view: AttackView) -> Iterator[Model]:
        yield model
        raise SystemExit(0)

    with pytest.raises(TypeError, match="run returned NoneType; make it a generator"):
        attack(bench, pretrained, returns)
    with pytest.raises(RuntimeError, match=r"called sys\.exit"):
        attack(bench, pretrained, leaves)


def test_a_non_finite_first_update_is_recorded_as_such(bench: Bench, pretrained: Made) -> None:
    broken = dict(pretrained.weights)
    name = next(n for n in broken if n.endswith("conv1.weight") or "conv" in n)
    broken[name] = torch.full_like(broken[name], math.inf)
    found = attack(bench, Made(broken, pretrained.cost), sgd)
    assert (found.status, found.nonfinite_step, found.curve) == ("diverged", 1, [])


def test_what_is_done_before_the_first_yield_is_charged_too(bench: Bench, pretrained: Made) -> None:
    def eager(model: Model, view: AttackView) -> Iterator[Model]:
        """No generator: works first, then hands one over."""
        for _ in itertools.islice(sgd(model, view), 10):
            pass
        return iter([model])

    found = attack(bench, pretrained, eager)
    assert found.cost.units == pytest.approx(10 * 16, rel=0.05)


def test_one_expensive_update_does_not_end_the_attack(bench: Bench, pretrained: Made) -> None:
    def search_first(model: Model, view: AttackView) -> Iterator[Model]:
        steps = sgd(model, view)
        for _ in range(18):
            next(steps)
        yield model
        yield from steps

    found = attack(bench, pretrained, search_first)
    assert found.cost.steps == 1 + (32 - 18)
    assert found.cost.units == pytest.approx(BUDGET, rel=0.02)
    assert found.curve[-1].units <= BUDGET * (1 + 1e-6)


def snapshot(model: Model, view: AttackView) -> Iterator[Model]:
    """Yields the first state again and again: later ones are no better on validation."""
    steps = sgd(model, view)
    best = copy.deepcopy(next(steps))
    yield best
    for _ in steps:
        yield best


def statistics_only(model: Model, view: AttackView) -> Iterator[Model]:
    """Only the normalisation statistics adapt."""
    for batch in view.batches(16):
        with torch.no_grad():
            view.task.predict(model, batch.inputs)
        yield model


def closed_form(model: Model, view: AttackView) -> Iterator[Model]:
    """Solves for the head once, and goes on yielding."""
    model.eval()
    with torch.no_grad():
        features = model.features(view.train.inputs)
        targets = torch.eye(view.task.num_outputs)[view.train.targets]
        model.fresh_head(view.task.num_outputs, view.rng)
        for parameter in model.head.parameters():
            solved = torch.linalg.lstsq(features, targets).solution.T
            parameter.copy_(solved if parameter.ndim == 2 else torch.zeros_like(parameter))
    while True:
        yield model


@pytest.mark.parametrize("honest", [snapshot, statistics_only, closed_form])
def test_an_attack_that_moved_once_is_no_idle_one(
    bench: Bench, pretrained: Made, honest: Run
) -> None:
    assert attack(bench, pretrained, honest).status == "ok"


def test_a_predictor_may_draw_random_numbers_without_changing_the_run(
    bench: Bench, pretrained: Made
) -> None:
    seen: SimpleQueue[Tensor] = SimpleQueue()

    def smoothed(model: Model, view: AttackView) -> Iterator[Predictor]:
        for made in sgd(model, view):
            noise = torch.rand(1)
            next(made.parameters()).data.mul_(1 + 1e-3 * float(noise))
            seen.put(next(made.parameters()).detach().clone())
            yield (
                lambda x, made=made: (
                    made(x + torch.randn_like(x)) + torch.rand(1, generator=view.rng)
                )
            )

    endings = []
    for grid in ([1.0], [i / 32 for i in range(1, 33)]):
        attack(bench, pretrained, smoothed, score_at=grid)
        endings.append(last(seen))
    assert torch.equal(*endings)


def test_what_a_plugin_overwrites_is_its_own(bench: Bench, pretrained: Made) -> None:
    def vandal(model: Model, view: AttackView) -> Iterator[Model]:
        assert view.auxiliary is not None
        view.auxiliary.inputs.zero_()
        view.train.inputs.zero_()
        yield from sgd(model, view)

    honest = attack(bench, pretrained, sgd)
    attack(bench, pretrained, vandal)
    assert scores(attack(bench, pretrained, sgd)) == scores(honest)
    assert bench.samples(bench.data.benign[0], "train").inputs.any()


def test_a_later_divergence_keeps_the_curve_before_it(bench: Bench, pretrained: Made) -> None:
    def explode(model: Model, view: AttackView) -> Iterator[Model]:
        for step, made in enumerate(sgd(model, view), start=1):
            if step == 6:
                next(model.parameters()).data.fill_(math.nan)
            yield made

    found = attack(bench, pretrained, explode)
    assert found.status == "diverged"
    assert [p.steps for p in found.curve] == [2, 4]
    assert found.nonfinite_step == 8
    assert "non-finite" in str(found.reason)


def test_a_plugin_that_says_it_cannot_apply_is_heard(bench: Bench, pretrained: Made) -> None:
    def cannot(_model: Model, _view: AttackView) -> Iterator[Model]:
        raise Incompatible("no attention to adapt")
        yield

    with pytest.raises(Incompatible, match="no attention"):
        attack(bench, pretrained, cannot)


@pytest.mark.parametrize("name", [n for n in attacks.names() if attacks.get(n).control])
def test_fresh_weights_do_not_look_at_what_was_released(
    name: str, bench: Bench, pretrained: Made
) -> None:
    (trial,) = trials(attacks, [name])
    spoiled = {n: torch.zeros_like(t) for n, t in pretrained.weights.items()}
    good = attack(bench, pretrained, trial.plugin)
    bad = attack(bench, Made(spoiled, pretrained.cost), trial.plugin)
    assert scores(good) == scores(bad)


def protect(bench: Bench, made: Made, run: Any) -> Made:
    return loop.protect(bench, made.weights, Plain(run), 0, quiet)


def test_only_the_state_dict_is_released(bench: Bench, pretrained: Made) -> None:
    def trap(model: Model, _view: DefenseView) -> Iterator[Model]:
        model.register_forward_hook(lambda _m, _i, output: output * math.nan)
        model.requires_grad_(False)
        yield model

    released = protect(bench, pretrained, trap)
    assert all(torch.equal(t, pretrained.weights[n]) for n, t in released.weights.items())
    honest = attack(bench, pretrained, sgd)
    assert scores(attack(bench, released, sgd)) == scores(honest)


def test_the_last_yield_is_released_with_its_note(bench: Bench, pretrained: Made) -> None:
    def shift(model: Model, view: DefenseView) -> Iterator[Model]:
        for _ in itertools.islice(view.restricted.train.batches(16, view.rng), 3):
            for parameter in model.parameters():
                parameter.data.add_(1.0)
            yield model
        return "three shifts"

    released = protect(bench, pretrained, shift)
    name = next(n for n, _ in bench.load(pretrained.weights).named_parameters())
    assert torch.allclose(released.weights[name], pretrained.weights[name] + 3)
    assert (released.note, released.cost.steps, released.cost.examples) == ("three shifts", 3, 48)


def test_a_defense_that_yields_nothing_or_another_architecture_is_refused(
    bench: Bench, pretrained: Made
) -> None:
    def other_head(model: Model, view: DefenseView) -> Iterator[Model]:
        model.fresh_head(3, view.rng)
        yield model

    with pytest.raises(ValueError, match="yielded no model"):
        protect(bench, pretrained, no_yield)
    with pytest.raises(ValueError, match="do not fit test_resnet"):
        protect(bench, pretrained, other_head)


def test_pretraining_follows_the_seed(bench: Bench, pretrained: Made) -> None:
    again, other = (loop.pretrain(bench, seed, quiet) for seed in (0, 1))
    assert all(torch.equal(t, pretrained.weights[n]) for n, t in again.weights.items())
    assert any(not torch.equal(t, pretrained.weights[n]) for n, t in other.weights.items())
    assert pretrained.cost.steps == 8
    assert pretrained.cost.examples == 8 * PRETRAIN_BATCH
