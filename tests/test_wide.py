"""SOPHON against a distribution of fine-tuners: what is drawn, and where they begin."""

import copy
import math
from typing import Any

import pytest
import torch
from toy import RESTRICTED, Tiny, drain, same, state, trained, view

from sophon_bench.defenses.sophon import SophonWide
from sophon_bench.defenses.sophon.strategies import Strategy
from sophon_bench.defenses.sophon.wander import POOL, Wandering

SMALL: dict[str, Any] = {
    "iterations": 4,
    "ntr_steps": 2,
    "batch_size": 12,
    "adapt": 8,
    "ntr_batch_size": 16,
    "watch_every": 1,
    "max_drop": None,
    "horizons": (2, 3),
    "strategies": ("sgd@1e-3..1", "adam@1e-4..1e-1/6/kept"),
}


def strategy(text: str) -> Strategy:
    return Strategy.parse(text, batch_size=8, head="fresh")


def test_a_range_of_step_sizes_is_drawn_log_uniformly() -> None:
    rng, ranged = torch.Generator().manual_seed(0), strategy("adam@1e-5..1e-1/16/kept")
    assert (ranged.lr, ranged.highest, ranged.batch_size, ranged.head) == (1e-5, 0.1, 16, "kept")
    drawn = [ranged.drawn(rng) for _ in range(400)]
    decades = [math.log10(one.lr) for one in drawn]
    assert all(one.highest is None for one in drawn)
    assert -5 <= min(decades) < -4.9
    assert -1.1 < max(decades) <= -1
    assert sum(decades) / 400 == pytest.approx(-3, abs=0.15)
    fixed = strategy("sgd@0.1")
    before = rng.get_state()
    assert fixed.drawn(rng) is fixed
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("text", ["sgd@1..1e-3", "sgd@0.1..0.1"])
def test_an_empty_range_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="range of learning rates is empty; the lower one first"):
        strategy(text)


def test_every_part_of_the_distribution_is_drawn() -> None:
    plugin, rng = SophonWide(**SMALL), torch.Generator().manual_seed(0)
    drawn = [plugin.draw(rng) for _ in range(60)]
    assert {(s.optimizer, s.head, s.batch_size, k) for s, k in drawn} == {
        (*kind, k) for kind in (("sgd", "fresh", 8), ("adam", "kept", 6)) for k in (2, 3)
    }
    assert plugin.horizon == 2.5


def test_one_that_diverges_gives_no_gradient_and_ends_nothing() -> None:
    plugin = SophonWide(**{**SMALL, "strategies": ("sgd@1e30",)})
    states, note = drain(plugin.run(trained(), view()))
    assert note is None
    assert all(bool(t.isfinite().all()) for t in states[-1].values())
    assert same(states[2], states[3])  # the suppression step of the second round


@pytest.mark.parametrize("loss", ["ice", "klu"])
@pytest.mark.parametrize("changes", [{}, {"replay": 0.9}, {"noise": 0.5}], ids=str)
def test_a_run_is_deterministic_and_moves_the_body(loss: str, changes: dict[str, float]) -> None:
    plugin = SophonWide(**{**SMALL, **changes, "loss": loss})
    (one, _), (other, _) = (drain(plugin.run(trained(), view())) for _ in range(2))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0]["body.0.weight"], state(trained())["body.0.weight"])


@pytest.mark.parametrize(("margin", "suppressed"), [(0.0, True), (2.0, False)])
def test_suppression_waits_near_the_lowest_that_may_be_released(
    margin: float, suppressed: bool
) -> None:
    plugin = SophonWide(**{**SMALL, "max_drop": 0.5, "margin": margin})
    states, note = drain(plugin.run(trained(), view()))
    assert note is None
    assert same(states[0], state(trained())) is not suppressed
    assert not same(states[1], states[0])  # reinforcement goes on


def test_where_it_waits_goes_by_where_it_began() -> None:
    """0.4 above the lowest is reached with a fall of 0.5 allowed, and not with one of 0.3."""
    for fall, suppressed in ((0.5, True), (0.3, False)):
        plugin = SophonWide(**{**SMALL, "max_drop": fall, "margin": 0.4})
        states, _ = drain(plugin.run(trained(), view()))
        assert same(states[0], state(trained())) is not suppressed


def learner_of(model: Tiny) -> Tiny:
    made = copy.deepcopy(model)
    made.fresh_head(RESTRICTED, torch.Generator().manual_seed(1))
    return made


def test_a_replayed_one_goes_on_as_far_from_the_weights_as_it_was() -> None:
    wandering = Wandering(replay=1.0, farthest=100, noise=0.0)
    rng, model = torch.Generator().manual_seed(0), Tiny()
    first = learner_of(model)
    wandering.begin(first, strategy("sgd@0.1"), 5, rng)
    assert same(state(first), state(learner_of(model)))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.5)
    wandering.end(first, model)

    with torch.no_grad():
        for parameter in model.body.parameters():
            parameter.mul_(2.0)
    second = learner_of(model)
    wandering.begin(second, strategy("adam@0.1"), 5, rng)
    for went_on, own in zip(second.body.parameters(), model.body.parameters(), strict=True):
        torch.testing.assert_close(went_on, own + 0.5)
    assert same(second.head.state_dict(), first.head.state_dict())

    kept = copy.deepcopy(model)
    wandering.begin(kept, strategy("sgd@0.1/kept"), 5, rng)
    assert same(state(kept), state(model))  # nobody with such a head has been anywhere


@pytest.mark.parametrize(("farthest", "known"), [(11, True), (10, False)])
def test_after_so_many_updates_it_is_forgotten(farthest: int, known: bool) -> None:
    wandering = Wandering(replay=1.0, farthest=farthest, noise=0.0)
    rng, model = torch.Generator().manual_seed(0), Tiny()
    for _ in range(2):
        learner = learner_of(model)
        wandering.begin(learner, strategy("sgd@0.1"), 5, rng)
        with torch.no_grad():
            next(learner.parameters()).add_(1.0)
        wandering.end(learner, model)
    found = set()
    for _ in range(20):
        learner = learner_of(model)
        wandering.begin(learner, strategy("sgd@0.1"), 5, rng)
        moved = next(learner.parameters()).detach() - next(model.parameters()).detach()
        found.add(round(float(moved.mean()), 3))
    assert found == ({1.0, 2.0} if known else {1.0})


def test_what_is_not_finite_is_not_remembered_and_the_latest_ones_are() -> None:
    wandering = Wandering(replay=0.0, farthest=1000, noise=0.0)
    rng, model = torch.Generator().manual_seed(0), Tiny()
    for distance in (*range(1, POOL + 3), math.nan):
        learner = learner_of(model)
        wandering.begin(learner, strategy("sgd@0.1"), 1, rng)
        with torch.no_grad():
            next(learner.parameters()).add_(distance)
        wandering.end(learner, model)
    distances = [round(float(trace.moved[0].mean())) for trace in wandering._pool]
    assert distances == [*range(3, POOL + 3)]


def test_noise_is_relative_to_each_weight() -> None:
    wandering = Wandering(replay=0.0, farthest=1, noise=0.1)
    model = Tiny(width=400)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.body[0].weight.mul_(100)
    sizes = []
    for _ in range(20):
        learner = learner_of(model)
        wandering.begin(learner, strategy("sgd@0.1"), 1, rng)
        pairs = zip(learner.body.parameters(), model.body.parameters(), strict=True)
        shares = [float(((a - b).norm() / b.norm()).detach()) for a, b in pairs]
        assert max(shares) < 1.2 * min(shares)
        sizes.append(shares[0])
    assert 0 < min(sizes) < 0.03
    assert 0.07 < max(sizes) < 0.11
