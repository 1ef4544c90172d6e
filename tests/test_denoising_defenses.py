"""Defenses of denoisers: their formulas in float64, the contract, roll-backs, and what they do."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import drain, same, state

from sophon_bench import testing
from sophon_bench.api import Batch, DefenseView, Domain, Incompatible, Model, Samples, defenses
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.data.tasks.denoising import Denoising
from sophon_bench.defenses._immunity import adapt, immunised
from sophon_bench.defenses._outer import Scene
from sophon_bench.defenses.imma import Imma
from sophon_bench.defenses.naive_mse import NaiveMse
from sophon_bench.defenses.sophon.dos import SophonDos
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.models.unets import UNet
from sophon_bench.plugins.selectors import SelectorError, construct

FEW = {"batch_size": 8, "watch_every": 1, "max_drop": None}
SHORT: dict[str, dict[str, Any]] = {
    "imma": {**FEW, "iterations": 3, "inner_steps": 2},
    "naive-mse": {**FEW, "iterations": 3},
    "sophon-dos": {
        **FEW, "iterations": 3, "inner_steps": 2, "ntr_steps": 1, "adapt": 5, "ntr_batch_size": 8,
    },
}  # fmt: skip
CLOSE = {"atol": 1e-9, "rtol": 1e-7}
NAMES = sorted(SHORT)

Small = tuple[Bench, Weights]


def short(name: str, **changes: Any) -> Any:
    return defenses.get(name).cls(**{**SHORT[name], **changes})


@pytest.fixture(scope="module")
def small() -> Small:
    return testing.small_bench(UNet(channels=(8, 8, 8)))


@pytest.fixture(autouse=True)
def global_draws() -> Generator[None]:
    """The task draws timesteps and noise from torch's own generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def view_of(bench: Bench) -> DefenseView:
    """Of a quarter of each image, which is quicker."""
    original, restricted = (
        dataclasses.replace(
            domain, train=quarters(domain.train), validation=quarters(domain.validation)
        )
        for domain in bench.defender()
    )
    rng = torch.Generator().manual_seed(0)
    return DefenseView(original=original, restricted=restricted, device=bench.device, rng=rng)


def quarters(samples: Samples) -> Samples:
    return Samples(samples.inputs[:, :, :16, :16], samples.targets)


@dataclasses.dataclass(frozen=True)
class Poisoned(Denoising):
    """A task whose losses and predictions are NaN from the ``last``-th on."""

    last: int = 1
    calls: Any = dataclasses.field(default_factory=lambda: itertools.count(1))

    def loss(self, model: Any, batch: Batch) -> Tensor:
        return super().loss(model, batch) * self._factor()

    def predict(self, model: Any, inputs: Tensor) -> Tensor:
        return super().predict(model, inputs) * self._factor()

    def _factor(self) -> float:
        return math.nan if next(self.calls) >= self.last else 1.0


# The contract.


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract_on_a_denoiser(name: str, small: Small) -> None:
    assert not testing.check_defense(short(name), *small)


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_original_task_rolls_back(name: str, small: Small) -> None:
    bench, weights = small
    step = "alpha" if name == "sophon-dos" else "lr"
    plugin = short(name, max_drop=0.001, patience=1, **{step: 1.0})
    made = loop.protect(bench, weights, plugin, 0, lambda fraction, words: None)
    assert str(made.note).startswith("rolled back to iteration 0: original utility")
    assert same(made.weights, weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poisoned", ["original", "restricted"])
def test_what_is_not_finite_rolls_back_whatever_the_tolerance(
    name: str, poisoned: str, small: Small
) -> None:
    bench, weights = small
    data = view_of(bench)
    bad = dataclasses.replace(getattr(data, poisoned), task=Poisoned())
    model = bench.load(weights)
    before = state(model)
    states, note = drain(short(name).run(model, dataclasses.replace(data, **{poisoned: bad})))
    assert note == "rolled back to iteration 0: the state was not finite at iteration 1"
    assert same(states[-1], before)


@pytest.mark.parametrize("name", NAMES)
def test_the_restricted_task_is_early_and_the_original_one_is_not(name: str, small: Small) -> None:
    bench, weights = small
    latest = {"original": 0, "restricted": 0}

    def spying(which: str) -> Denoising:
        class Spying(Denoising):
            def _noisy(self, inputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
                noisy, drawn = super()._noisy(inputs, noise)
                latest[which] = max(latest[which], int(drawn.max()))
                return noisy, drawn

        return Spying()

    data = view_of(bench)
    domains = {w: dataclasses.replace(getattr(data, w), task=spying(w)) for w in latest}
    drain(short(name, timesteps=50).run(bench.load(weights), dataclasses.replace(data, **domains)))
    assert 25 < latest["restricted"] < 50
    assert latest["original"] > 500


# What they do.


@pytest.fixture(scope="module")
def skilled(small: Small) -> dict[str, Tensor]:
    """Weights that denoise the original images."""
    bench, weights = small
    model, data = bench.load(weights), view_of(bench).original
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train(model, data, torch.optim.Adam(model.parameters(), lr=5e-3), steps=60)
    return state(model)


def train(model: Model, domain: Domain, optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    batches = domain.train.batches(16, torch.Generator().manual_seed(0))
    for batch in itertools.islice(batches, steps):
        optimizer.zero_grad()
        torch.autograd.backward(domain.task.loss(model, batch))
        optimizer.step()


def mean_square(model: Model, domain: Domain) -> float:
    """Of the noise predicted in the validation images."""
    torch.manual_seed(0)
    with torch.no_grad():
        return float(domain.task.predict(model, domain.validation.inputs).square().mean())


def fine_tuned(model: Model, domain: Domain) -> float:
    """Restricted MSE after a plain fine-tuning."""
    torch.manual_seed(0)
    train(model, domain, torch.optim.SGD(model.parameters(), lr=0.01), steps=8)
    with torch.no_grad():
        return Denoising().errors(model, domain.validation)[0]


def test_naive_mse_makes_a_denoiser_predict_less(small: Small, skilled: dict[str, Tensor]) -> None:
    bench, _ = small
    model, data = bench.load(skilled), view_of(bench)
    before = mean_square(model, data.restricted)
    drain(short("naive-mse", iterations=10, weight=1.0, lr=2e-3, timesteps=1000).run(model, data))
    assert mean_square(model, data.restricted) < 0.9 * before


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "sophon-dos",
            {"iterations": 10, "inner_steps": 3, "alpha": 5e-3, "beta": 1e-3, "joint": False},
        ),
        ("sophon-dos", {"iterations": 20, "inner_steps": 3, "alpha": 1e-2, "mu": 1.0}),
        ("imma", {"iterations": 20, "weight": 100.0, "lr": 2e-2}),
    ],
)
def test_fine_tuning_ends_above_that_of_the_undefended_model(
    name: str, changes: dict[str, Any], small: Small, skilled: dict[str, Tensor]
) -> None:
    bench, _ = small
    model, data = bench.load(skilled), view_of(bench)
    drain(short(name, **changes).run(model, data))
    undefended = fine_tuned(bench.load(skilled), data.restricted)
    assert fine_tuned(model, data.restricted) > undefended + 0.02


# The formulas, on a denoiser that is smooth and small, in float64.


class Attention(nn.Linear):
    """By its name among the immunised."""


class TinyDenoiser(Model):
    """Noise of ``(B, 3, 4, 4)`` from a pixel's channels and the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(4, 6), nn.Linear(6, 6)
        self.last, self.attention = nn.Linear(6, 6), Attention(6, 6)
        self.head = nn.Linear(6, 3)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=rng))

    @property
    def num_outputs(self) -> int:
        return self.head.out_features

    def forward(self, inputs: Tensor, timesteps: Tensor) -> Tensor:
        when = (timesteps / 1000).to(inputs)[:, None, None, None].expand(-1, 1, 4, 4)
        hidden = torch.cat([inputs, when], 1).movedim(1, -1)
        for layer in (self.first, self.middle, self.last, self.attention):
            hidden = layer(hidden).tanh()
        return self.head(hidden).movedim(-1, 1)

    def fresh_head(self, num_outputs: int, rng: torch.Generator) -> None:
        self.head = nn.Linear(6, num_outputs, dtype=self.head.weight.dtype)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        return [("first", self.first), ("middle", self.middle), ("last", self.last)]


def images(n: int, seed: int) -> Samples:
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.rand(n, 3, 4, 4, generator=rng, dtype=torch.float64) * 2 - 1
    return Samples(drawn, torch.zeros(n, dtype=torch.long))


def scene(task: Any = None) -> Scene:
    domains = [Domain(task or Denoising(), images(8, seed), images(8, seed + 2)) for seed in (0, 1)]
    data = DefenseView(
        original=domains[0], restricted=domains[1], device=torch.device("cpu"),
        rng=torch.Generator().manual_seed(0),
    )  # fmt: skip
    model = TinyDenoiser().double().train()
    made = Scene(model, data, batch_size=8, head_lr=0.01)
    torch.manual_seed(1)
    return made


def noisy(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the task draws, in its order: noisy images, timesteps, noise."""
    noise = torch.randn_like(images)
    timesteps = torch.randint(1000, (len(images),))
    kept = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)[timesteps].to(images)
    kept = kept[:, None, None, None]
    return kept.sqrt() * images + (1 - kept).sqrt() * noise, timesteps, noise


def mse(model: Model, samples: Tensor) -> Tensor:
    given, timesteps, noise = noisy(samples)
    errors = zip(model(given, timesteps), noise, strict=True)
    return sum((e - n).square().sum() for e, n in errors) / noise.numel()


def naive_mse_objective(plugin: NaiveMse, made: Scene) -> Tensor:
    original = mse(made.model, made.original_batch.inputs)
    given, timesteps, noise = noisy(made.restricted_batch.inputs)
    predicted = made.model(given, timesteps)
    return original + plugin.weight * sum(e.square().sum() for e in predicted) / noise.numel()


def test_naive_mse_is_its_formula() -> None:
    plugin, one, other = NaiveMse(weight=0.7), scene(), scene()
    plugin.differentiate(one)
    torch.manual_seed(1)
    expected = naive_mse_objective(plugin, other)
    gradients = torch.autograd.grad(expected, list(other.model.parameters()))
    for parameter, gradient in zip(one.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cap", [50.0, 0.01])
def test_imma_is_its_formula_with_a_fine_tuner_that_goes_on(cap: float) -> None:
    plugin = Imma(weight=0.7, cap=cap, inner_steps=2, inner_lr=0.1, batch_size=8)
    one, other = scene(), scene()
    tuner = copy.deepcopy(other.model)
    immune = [n for n, _ in tuner.named_parameters() if n.split(".")[0] in ("middle", "attention")]
    for moved in range(2):
        with torch.no_grad():  # both models take the same step in between
            for made in (one, other):
                for name in immune:
                    made.model.get_parameter(name).add_(0.05 * moved)
        torch.manual_seed(2 + moved)
        one.model.zero_grad()
        plugin.differentiate(one)

        torch.manual_seed(2 + moved)
        with torch.no_grad():
            for name in immune:
                tuner.get_parameter(name).copy_(other.model.get_parameter(name))
        batches = other.view.restricted.train.batches(8, other.view.rng)
        for batch in itertools.islice(batches, 2):
            gradients = torch.autograd.grad(mse(tuner, batch.inputs), list(tuner.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(tuner.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
        original = mse(other.model, other.original_batch.inputs)
        restricted = mse(tuner, other.restricted_batch.inputs)
        assert (float(restricted.detach()) > cap) == (cap < 1)
        at = [[m.get_parameter(n) for n in immune] for m in (other.model, tuner)]
        kept, raised = torch.autograd.grad(original, at[0]), torch.autograd.grad(restricted, at[1])
        rise = 0.0 if cap < 1 else 0.7
        for name, first, second in zip(immune, kept, raised, strict=True):
            found = one.model.get_parameter(name).grad
            torch.testing.assert_close(found, first - rise * second, atol=1e-6, rtol=1e-5)
        rest = [p.grad for n, p in one.model.named_parameters() if n not in immune]
        assert rest
        assert all(gradient is None for gradient in rest)


def test_a_u_net_is_immunised_in_its_middle_and_its_attention(small: Small) -> None:
    bench, weights = small
    model = bench.load(weights)
    own = {id(p) for p in immunised(model)}
    names = {n for n, p in model.named_parameters() if id(p) in own}
    assert names == {
        n for n, _ in model.named_parameters() if "mid_block" in n or ".attentions." in n
    }
    assert any("up_blocks" in n for n in names)
    assert any("down_blocks" in n for n in names)


def test_imma_keeps_the_head_and_needs_enough_outputs() -> None:
    made = scene(Classification(4))
    with pytest.raises(Incompatible, match="at least 4 outputs, the model has 3"):
        adapt(made, steps=1, lr=0.1, batch_size=4)


# SOPHON's.


def test_suppression_by_dos_is_the_mean_square() -> None:
    predicted = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    loss = SophonDos().suppression_loss(predicted, torch.zeros(3))
    naive = sum(float(e) ** 2 for e in predicted.detach().flatten()) / predicted.numel()
    assert float(loss.detach()) == pytest.approx(naive, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, predicted)
    torch.testing.assert_close(gradient, 2 * predicted.detach() / predicted.numel(), **CLOSE)


class Tilted(Denoising):
    """A loss whose gradient is -1 at every other parameter, and -2 at the rest."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        sums = [(1 + index % 2) * p.sum() for index, p in enumerate(model.parameters())]
        return -torch.stack(sums).sum()


class Pulled(SophonDos):
    """Suppression has the gradient 3 everywhere."""

    def _simulate(self, model: Model, *others: Any) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)


def test_a_joint_step_goes_down_both_terms(small: Small) -> None:
    bench, weights = small
    data = view_of(bench)
    data = dataclasses.replace(data, original=dataclasses.replace(data.original, task=Tilted()))
    plugin = Pulled(**{**SHORT["sophon-dos"], "ntr_steps": 3, "mu": 2.0, "alpha": 1e-3})
    model = bench.load(weights)
    before = [p.detach().clone() for p in model.parameters()]
    next(plugin.run(model, data))
    for index, (old, new) in enumerate(zip(before, model.parameters(), strict=True)):
        down = 3.0 - 2.0 * (1 + index % 2) > 0  # the first step of Adam goes by the sign
        torch.testing.assert_close(
            new.detach() - old, torch.full_like(old, -1e-3 if down else 1e-3)
        )


def test_steps_get_smaller_along_a_cosine(small: Small) -> None:
    bench, weights = small
    data = view_of(bench)
    data = dataclasses.replace(data, original=dataclasses.replace(data.original, task=Tilted()))
    plugin = Pulled(**{**SHORT["sophon-dos"], "iterations": 4, "mu": 1e-9, "alpha": 1e-3})
    states, _ = drain(plugin.run(bench.load(weights), data))
    name = next(iter(states[0]))
    moved = [float((b[name] - a[name]).mean()) for a, b in itertools.pairwise([weights, *states])]
    assert moved == pytest.approx(
        [-1e-3 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)], rel=0.01
    )


def test_the_papers_preset_counts_its_cost() -> None:
    entry = defenses.get("sophon-dos")
    plugin = construct(entry, entry.declared.presets["paper"])
    assert plugin.steps == 200 * (1 + 10)
    assert short("sophon-dos", iterations=7).steps == 7
    assert plugin.planned_units == 200 * (50 * (130 + 20) + 10 * 150)


def test_a_planned_cost_is_what_a_denoiser_is_charged(small: Small) -> None:
    bench, weights = small
    plugin = short("sophon-dos")
    made = loop.protect(bench, weights, plugin, 0, lambda fraction, words: None)
    looks = plugin.iterations * len(bench.defender()[0].validation) / 3
    assert made.cost.units == pytest.approx(plugin.planned_units + looks, rel=0.01)


def test_second_order_is_refused() -> None:
    with pytest.raises(ValueError, match="the timestep too; use order=1"):
        SophonDos(order=2)
    with pytest.raises(ValueError, match="adapt=150 leaves none of batch_size=150"):
        SophonDos(batch_size=150, adapt=150)
    with pytest.raises(SelectorError, match="use order=1"):
        construct(defenses.get("sophon-dos"), {"order": 2})
