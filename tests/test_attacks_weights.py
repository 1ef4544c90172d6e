"""What each attack on all weights does, by facts that can be checked by hand."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sophon_bench.api import AttackView, Incompatible, Model, Samples, attacks
from sophon_bench.attacks import _canonical
from sophon_bench.attacks._augment import Augmentation
from sophon_bench.attacks._averaged import follow
from sophon_bench.attacks._normalized import MIN_RMS, Normalized, lars, muon, orthogonal, unit
from sophon_bench.attacks._signed import Signed
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.plugins.suites import trials

STILL = "optimizer=sgd,lr=1e-30"


class Toy(Model):
    """Any body behind a linear head."""

    def __init__(self, *body: nn.Module, width: int, outputs: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(width, outputs)

    @property
    def num_outputs(self) -> int:
        return self.head.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))

    def features(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)

    def fresh_head(self, num_outputs: int, rng: torch.Generator) -> None:
        self.head = nn.Linear(self.head.in_features, num_outputs).to(self.head.weight.dtype)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        return [(f"body.{name}", child) for name, child in self.body.named_children()]


def plugin(selector: str) -> Any:
    (trial,) = trials(attacks, [selector])
    return trial.plugin


@pytest.fixture
def model(bench: Bench, pretrained: Made) -> Model:
    return bench.load(pretrained.weights)


@pytest.fixture
def view(bench: Bench) -> AttackView:
    train, validation = bench.attacker(bench.data.restricted, 40, 0)
    return AttackView(
        task=bench.data.restricted.task, train=train, validation=validation,
        auxiliary=bench.auxiliary(), device=bench.device, rng=rng(0),
        new_model=lambda: bench.new_model(rng(7)),
    )  # fmt: skip


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def body(model: Model) -> dict[str, Tensor]:
    parameters = model.named_parameters()
    return {n: p.detach().clone() for n, p in parameters if not n.startswith("head.")}


def test_shrink_perturb_starts_from_the_sum(model: Model, view: AttackView) -> None:
    before, fresh = body(model), body(view.new_model())
    attack = plugin(f"shrink-perturb[{STILL},shrink=0.5,perturb=0.25]")
    after = body(next(attack.run(model, view)))
    for name, weight in after.items():
        torch.testing.assert_close(weight, 0.5 * before[name] + 0.25 * fresh[name])


def test_partial_reinit_draws_the_last_blocks_anew(model: Model, view: AttackView) -> None:
    before, fresh = body(model), body(view.new_model())
    after = body(next(plugin(f"partial-reinit[{STILL},last_blocks=2]").run(model, view)))
    for name, weight in after.items():
        last = name.startswith(("body.layer3.", "body.layer4."))
        torch.testing.assert_close(weight, (fresh if last else before)[name])
    with pytest.raises(Incompatible, match="blocks, not 6"):
        next(plugin("partial-reinit[last_blocks=6]").run(model, view))


def test_weight_noise_is_relative_to_each_tensor(model: Model, view: AttackView) -> None:
    before = body(model)
    after = body(next(plugin(f"weight-noise[{STILL},sigma=0.1]").run(model, view)))
    for name, weight in before.items():
        if weight.numel() > 500:
            ratio = (after[name] - weight).norm() / weight.norm()
            assert float(ratio) == pytest.approx(0.1, rel=0.15)


def test_the_best_noisy_copy_goes_on(model: Model, view: AttackView) -> None:
    class Rigged(Classification):
        def utility(self, predictor: Any, samples: Samples) -> float:
            return next(scores)

    scores = iter([0.2, 0.7, 0.5])
    rigged = dataclasses.replace(view, task=Rigged(4))
    attack = plugin("weight-noise[restarts=3,race_steps=2]")
    made = list(itertools.islice(attack.run(model, rigged), 8))
    assert len({id(m) for m in made[:6]}) == 3
    assert made[6] is made[7] is made[2]


def test_lp_ft_trains_the_head_alone_first(model: Model, view: AttackView) -> None:
    run = plugin("lp-ft[lp_steps=3,batch_size=16]").run(model, view)
    state = copy.deepcopy(model.body.state_dict())
    features = len(view.train) // 16
    heads = [next(m.head.parameters()).clone() for m in itertools.islice(run, features + 3)]
    assert torch.equal(heads[0], heads[features - 1])
    assert not torch.equal(heads[features - 1], heads[-1])
    assert all(torch.equal(t, state[n]) for n, t in model.body.state_dict().items())
    next(run)
    assert torch.allclose(next(model.head.parameters()), heads[-1], atol=0.01)
    assert not torch.equal(next(model.body.parameters()), next(iter(state.values())))


def test_heal_first_learns_benign_classes_first(model: Model, view: AttackView) -> None:
    outputs = [m.num_outputs for m in itertools.islice(plugin("heal-first").run(model, view), 6)]
    assert outputs == [3, 3, 3, 3, 4, 4]
    with pytest.raises(Incompatible, match="no auxiliary data"):
        next(plugin("heal-first").run(model, dataclasses.replace(view, auxiliary=None)))


def toy_view(inputs: Tensor, targets: Tensor) -> AttackView:
    samples = Samples(inputs, targets)
    return AttackView(
        task=Classification(4), train=samples, validation=samples, auxiliary=None,
        new_model=lambda: pytest.fail("not needed"), device=inputs.device, rng=rng(0),
    )  # fmt: skip


def test_sam_steps_by_the_gradient_at_the_point_uphill() -> None:
    inputs = torch.randn(8, 3, generator=rng(0), dtype=torch.float64)
    targets = torch.arange(8) % 4
    model = Toy(nn.Linear(3, 5), nn.Tanh(), width=5).double()
    model.fresh_head = lambda outputs, rng: None  # type: ignore[method-assign]
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def loss(w: list[Tensor]) -> Tensor:
        hidden = functional.linear(inputs, w[2], w[3]).tanh()
        return functional.cross_entropy(functional.linear(hidden, w[0], w[1]), targets)

    if weights[0].shape != (4, 5):  # registration order: the head may come last
        weights = weights[2:] + weights[:2]
    gradient = torch.autograd.grad(loss(weights), weights)
    length = torch.cat([g.flatten() for g in gradient]).norm()
    uphill = [w + 0.3 * g / length for w, g in zip(weights, gradient, strict=True)]
    steps = torch.autograd.grad(loss(uphill), uphill)
    expected = [w - 0.5 * g for w, g in zip(weights, steps, strict=True)]
    next(plugin("sam[optimizer=sgd,lr=0.5,rho=0.3]").run(model, toy_view(inputs, targets)))
    found = [*model.head.parameters(), *model.body.parameters()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_lars_moves_by_a_fraction_of_the_norm() -> None:
    weight = torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = lars(weight, torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0, 5.0])
    found = lars(0 * weight, torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.6 * MIN_RMS * 2**0.5, 0.8 * MIN_RMS * 2**0.5])


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (5, 5)])
def test_muon_sends_each_singular_value_through_the_quintic(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=rng(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    value = s / s.square().sum().sqrt()
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    expected = u @ torch.diag(value) @ vh
    torch.testing.assert_close(orthogonal(matrix), expected)
    kernel = matrix.reshape(shape[0], shape[1], 1, 1)
    torch.testing.assert_close(muon(kernel).flatten(1), expected * 0.2 * max(shape) ** 0.5)
    assert muon(torch.tensor([-3.0, 0.0, 5.0])).tolist() == pytest.approx([-0.2, 0.0, 0.2])


def test_normalising_survives_gradients_that_squares_do_not() -> None:
    for size in (1e-38, 1e-30, 1.0, 1e30):
        torch.testing.assert_close(unit(torch.tensor([3.0, 4.0]) * size), torch.tensor([0.6, 0.8]))
    assert unit(torch.zeros(2)).tolist() == [0.0, 0.0]


def moved(rule: Any, factor: float) -> list[Tensor]:
    weights = [nn.Parameter(torch.randn(s, generator=rng(1))) for s in ((4, 3, 2, 2), (4,), (5, 3))]
    optimizer = Normalized(weights, rule, lr=0.1)
    draws = rng(2)
    for _ in range(4):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draws) * factor
        optimizer.step()
    return [w.detach() for w in weights]


@pytest.mark.parametrize("rule", ["lars", "sign", "muon"])
def test_the_size_of_a_gradient_does_not_matter(rule: str) -> None:
    plain = moved(rule, 1.0)
    for factor in (2.0**-40, 2.0**40):
        for one, other in zip(plain, moved(rule, factor), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_momentum_is_nine_tenths() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer = Normalized([weight], "sign", lr=0.25)
    for gradient in ([1.0, 1.0], [-0.8, -1.0]):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    assert weight.tolist() == [0.5, 1.0]  # .9 - .8 > 0 goes on, .9 - 1 < 0 turns round


def test_the_sign_that_reads_better_is_taken() -> None:
    samples = Samples(torch.eye(4), torch.arange(4))
    model = Toy(width=4)
    signed = Signed(model)
    with torch.no_grad():
        model.head.bias.zero_()
        for factor, sign in ((-1.0, -1), (-1.0, -1), (0.0, -1), (1.0, 1)):
            model.head.weight.copy_(factor * torch.eye(4))
            signed.choose(Classification(4), samples)
            assert signed.sign == sign
            torch.testing.assert_close(signed(samples.inputs), sign * factor * torch.eye(4))


def test_the_mean_follows_and_buffers_are_copied() -> None:
    mean, model = (Toy(nn.Linear(2, 2), nn.BatchNorm1d(2), width=2) for _ in range(2))
    before = copy.deepcopy(mean)
    model.body[1].running_mean.fill_(3.0)
    follow(mean, model, decay=0.75)
    for m, b, w in zip(mean.parameters(), before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(m, 0.75 * b + 0.25 * w)
    assert mean.body[1].running_mean.tolist() == [3.0, 3.0]


def test_augmentation_without_strength_changes_nothing_and_erases_a_square() -> None:
    images = torch.rand(64, 3, 16, 16, generator=rng(0)) + 1
    still = Augmentation(distortion=0.0, erase=0.0)(images, rng(1))
    torch.testing.assert_close(still, images)
    erased = Augmentation(distortion=0.0, erase=0.25)(images, rng(1))
    holes = (erased == 0).all(dim=1)
    assert 16 < int(holes.flatten(1).any(dim=1).sum()) < 48
    assert int(holes.flatten(1).sum(dim=1).max()) == 16
    torch.testing.assert_close(erased[erased > 0], images[erased > 0])
    moved = Augmentation(distortion=0.1, erase=0.0)(images, rng(1))
    assert torch.equal(moved, Augmentation(distortion=0.1, erase=0.0)(images, rng(1)))
    assert float((moved - images).abs().mean()) > 0.05
    with pytest.raises(Incompatible, match="needs images"):
        Augmentation(distortion=0.1, erase=0.0)(torch.zeros(2, 5), rng(1))


def test_distilling_trains_fresh_weights_and_reads_the_released(
    model: Model, view: AttackView
) -> None:
    before = copy.deepcopy(model.state_dict())
    run = plugin("distill").run(model, view)
    made = [next(run) for _ in range(3)]
    assert made[0] is made[2] is not model
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def conv_chain(act: Callable[[], nn.Module], norm: Callable[[int], nn.Module]) -> Toy:
    model = Toy(
        nn.Conv2d(3, 8, 3), norm(8), act(), nn.Conv2d(8, 8, 3), norm(8), act(),
        nn.Conv2d(8, 8, 3), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), width=8,
    )  # fmt: skip
    draws = rng(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, generator=draws)
    return model


def identity(_width: int) -> nn.Module:
    return nn.Identity()


IMAGES = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def settled(act: Callable[[], nn.Module] = nn.ReLU, norm: Any = nn.BatchNorm2d) -> Toy:
    """A chain whose running statistics are those of `IMAGES`, like a trained model's."""
    with torch.random.fork_rng():  # the same weights whatever ran before
        torch.default_generator.manual_seed(0)
        model = conv_chain(act, norm)
    for _ in range(60):
        model.features(IMAGES)
    return model.eval()


@torch.no_grad()
def seen(model: Model) -> Tensor:
    return model.eval().features(IMAGES)


def same(one: Tensor, other: Tensor) -> bool:
    return float((one - other).detach().norm()) < 1e-3 * float(other.norm())


def repaired(repair: Iterator[None]) -> int:
    """How often it looked."""
    return len(list(repair))


def test_entries_that_are_not_finite_are_drawn_anew_and_the_others_kept() -> None:
    model = settled()
    fresh, before = conv_chain(nn.ReLU, nn.BatchNorm2d), copy.deepcopy(model)
    with torch.no_grad():
        fresh.body[0].weight.neg_()
        model.body[0].weight[0, 0, 0, 0] = float("nan")
        model.body[0].weight[1, 0, 0, 0] = float("inf")
        model.body[4].running_var[3] = float("nan")
    repaired(_canonical.replace_broken(model, fresh, IMAGES))
    expected = before.body[0].weight.detach().clone()
    for channel in range(2):
        expected[channel, 0, 0, 0] = fresh.body[0].weight[channel, 0, 0, 0]
    assert torch.equal(model.body[0].weight, expected)
    assert float(model.body[4].running_var[3]) == 1.0
    assert torch.equal(model.body[6].weight, before.body[6].weight)


def test_an_outlier_is_drawn_anew_unless_another_layer_makes_up_for_it() -> None:
    model, fresh = settled(norm=identity), conv_chain(nn.ReLU, identity)
    with torch.no_grad():
        model.body[0].weight[0] *= 2.0**30
        model.body[3].weight[:, 0] *= 2.0**-30
        model.body[3].weight[5] = -model.body[3].weight[5].abs()  # its ReLU is never open
        model.body[6].weight[2, 5, 0, 0] = 1e30
    before = seen(model)
    assert before.isfinite().all()
    kept = model.body[0].weight.detach().clone()
    repaired(_canonical.replace_broken(model, fresh, IMAGES))
    assert torch.equal(model.body[6].weight[2, 5, 0, 0], fresh.body[6].weight[2, 5, 0, 0])
    assert torch.equal(model.body[0].weight, kept)
    assert same(seen(model), before)


def test_a_model_that_overflows_is_brought_back() -> None:
    model, fresh = conv_chain(nn.ReLU, identity), conv_chain(nn.ReLU, identity)
    with torch.no_grad():
        model.body[0].weight *= 1e25
        model.body[3].weight *= 1e25
    assert not seen(model).isfinite().all()
    repaired(_canonical.replace_broken(model, fresh, IMAGES))
    assert seen(model).isfinite().all()


def test_statistics_become_those_of_the_images_and_the_function_stays() -> None:
    model = settled()
    norm = model.body[1]
    with torch.no_grad():
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.running_mean -= 50 / slope  # every ReLU is dead in train mode, and none in eval mode
        norm.bias -= 50
        norm.running_var[:4] *= 1e4
        norm.weight[:4] *= 1e2
    before, released = seen(model), copy.deepcopy(model.state_dict())
    assert not same(model.train().features(IMAGES), before)
    model.load_state_dict(released)
    honest = model.body[0](IMAGES)
    assert repaired(_canonical.restate(model, IMAGES)) == 1
    assert same(seen(model), before)
    torch.testing.assert_close(norm.running_mean, honest.mean(dim=(0, 2, 3)).detach())
    assert same(model.train().features(IMAGES), before)


def test_channels_below_the_eps_of_batch_norm_are_lifted() -> None:
    model = settled()
    layer, norm = model.body[0], model.body[1]
    with torch.no_grad():
        before = seen(model)
        factor = torch.tensor([1e-4] * 4 + [1.0] * 4)
        layer.weight *= factor.view(-1, 1, 1, 1)
        layer.bias *= factor
        slope = norm.weight / (norm.running_var + norm.eps).sqrt() / factor
        norm.running_mean *= factor
        norm.running_var *= factor**2
        norm.weight.copy_(slope * (norm.running_var + norm.eps).sqrt())
    assert same(seen(model), before)
    kept = layer.weight[4:].detach().clone()
    repaired(_canonical.lift(model, IMAGES))
    assert norm.running_var.min() > 0.01
    assert torch.equal(layer.weight[4:], kept)
    assert same(seen(model), before)
    assert same(model.train().features(IMAGES), before)


def test_dead_gains_become_one_unless_the_next_layer_makes_up_for_them() -> None:
    model = settled()
    with torch.no_grad():
        model.body[4].weight[:2] = torch.tensor([1e-9, 0.0])
        model.body[4].bias[:2] = 0.0
        model.body[1].weight[:3] *= 1e-5
        model.body[1].bias[:3] = 0.0
        model.body[3].weight[:, :3] *= 1e5
    kept = model.body[1].weight.detach().clone()
    repaired(_canonical.revive(model, IMAGES))
    assert model.body[4].weight.tolist() == [1.0] * 8
    assert torch.equal(model.body[1].weight, kept)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda width: nn.GroupNorm(2, width), identity])
def test_factors_hidden_between_channels_change_no_update(norm: Any, view: AttackView) -> None:
    """What canonicalize trains does not depend on how a released function is scaled inside."""
    plain, fresh = settled(norm=norm), conv_chain(nn.ReLU, norm)
    scaled = copy.deepcopy(plain)
    factors = torch.logspace(-3, 3, 8)[torch.randperm(8, generator=rng(1))]
    with torch.no_grad():
        first = scaled.body[0] if norm is identity else scaled.body[1]
        for parameter in first.parameters():
            parameter *= factors.view(-1, *[1] * (parameter.ndim - 1))
        scaled.body[3].weight /= factors.view(1, -1, 1, 1)
        scaled.body[6].weight *= 1e4
        scaled.body[6].bias *= 1e4
    targets = torch.arange(32) % 4
    shown = dataclasses.replace(
        view, task=Classification(4), train=Samples(IMAGES, targets),
        validation=Samples(IMAGES, targets), new_model=lambda: copy.deepcopy(fresh),
    )  # fmt: skip

    def trained(model: Model, attack: Any) -> Tensor:
        torch.manual_seed(0)  # the toy's fresh head is drawn from it
        *_, last = itertools.islice(attack.run(model, shown), 30)
        with torch.no_grad():
            return last.eval()(IMAGES)

    with torch.random.fork_rng():
        for attack, equal in (
            (plugin("canonicalize"), True),
            (plugin("finetune[optimizer=adam]"), False),
        ):
            outputs = [trained(copy.deepcopy(model), attack) for model in (plain, scaled)]
            difference = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
            assert (float(difference) < 0.2) is equal


def test_a_sign_reads_back_what_is_ranked_last(model: Model, view: AttackView) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for batch in itertools.islice(view.batches(32), 40):
        optimizer.zero_grad()
        functional.cross_entropy(-model(batch.inputs), batch.targets).backward()
        optimizer.step()

    def utility(selector: str) -> float:
        made = next(plugin(selector).run(copy.deepcopy(model), view))
        with torch.no_grad():
            return view.task.utility(made.eval(), view.validation)

    assert utility("finetune[head=kept,lr=1e-4]") < 0.2
    assert utility("sign-flip[lr=1e-4]") > 0.6
