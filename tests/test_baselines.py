"""The baseline defenses: their formulas against naive transcriptions in float64, and their loop."""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import drain, same, trained, view

from sophon_bench.api import defenses
from sophon_bench.defenses._kernels import mmd
from sophon_bench.defenses._outer import Outer, Scene
from sophon_bench.defenses._simulated import Simulated
from sophon_bench.defenses.booster import Booster
from sophon_bench.defenses.condition_number import ConditionNumber
from sophon_bench.defenses.mlac import MLAC, calibration
from sophon_bench.defenses.naive_ascent import NaiveAscent
from sophon_bench.defenses.ntl import NTL
from sophon_bench.defenses.repnoise import RepNoise
from sophon_bench.defenses.seam import Seam
from sophon_bench.defenses.tar import TAR

OUTER = [n for n in defenses.names() if issubclass(defenses.get(n).cls, Outer)]
CLOSE = {"atol": 1e-9, "rtol": 1e-7}


def scene(seed: int = 0, *, batch_size: int = 12) -> Scene:
    model = trained().double().train()
    model.zero_grad()
    made = Scene(model, view(seed, torch.float64, n=24), batch_size=batch_size, head_lr=0.01)
    for _ in range(3):  # the fine-tuner's head has learned something
        made.restricted()
        made.advance()
    return made


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -torch.stack(
        [row.softmax(0)[y].log() for row, y in zip(logits, targets, strict=True)]
    ).mean()


def transcribed_mmd(one: Tensor, other: Tensor) -> Tensor:
    points = [*one, *other]
    distances = {
        (i, j): (points[i] - points[j]).square().sum()
        for i, j in itertools.product(range(len(points)), repeat=2)
    }
    mean = sum(float(d.detach()) for d in distances.values()) / (len(points) ** 2 - len(points))

    def kernel(i: int, j: int) -> Tensor:
        return sum(torch.exp(-distances[i, j] / (mean * 2.0**power)) for power in range(-2, 3))

    n = len(one)
    first, second = range(n), range(n, 2 * n)
    pairs = [
        sum(kernel(i, j) for i, j in itertools.product(*where)) / n**2
        for where in ((first, first), (second, second), (first, second), (second, first))
    ]
    return pairs[0] + pairs[1] - pairs[2] - pairs[3]


def heads(made: Scene) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of both batches and their losses, from plain calls."""
    one, other = made.original_batch, made.restricted_batch
    first, second = made.model.body(one.inputs), made.model.body(other.inputs)
    losses = (
        cross_entropy(made.model.head(first), one.targets),
        cross_entropy(made.head(second), other.targets),
    )
    return first, second, *losses


def naive_objective(plugin: NaiveAscent, made: Scene) -> Tensor:
    _, _, original, restricted = heads(made)
    return original - plugin.weight * min(restricted, torch.tensor(plugin.cap))


def ntl_objective(plugin: NTL, made: Scene) -> Tensor:
    one, other, source, target = heads(made)
    near = min(torch.tensor(1.0).double(), plugin.beta * transcribed_mmd(one, other))
    return source - min(torch.tensor(1.0).double(), plugin.alpha * target * near)


def repnoise_objective(plugin: RepNoise, made: Scene) -> Tensor:
    _, _, original, restricted = heads(made)
    hidden = made.model.body(made.restricted_batch.inputs)
    noise = torch.randn(hidden.shape, generator=made.view.rng)
    distance = transcribed_mmd(hidden, noise.double())
    return original + plugin.beta * distance - plugin.alpha * (restricted + 1).log()


def condition_objective(plugin: ConditionNumber, made: Scene) -> Tensor:
    one, other, original, _ = heads(made)
    k = one.shape[1]
    good, bad = (torch.linalg.eigvalsh(f.T @ f / len(f)) for f in (one, other))
    ill = 1 / ((bad**2).sum() / (2 * k) - bad.min() ** 2 / 2)
    well = good.max() ** 2 / 2 - (good**2).sum() / (2 * k)
    return original + plugin.ill * ill + plugin.well * well


def seam_objective(plugin: Seam, made: Scene) -> Tensor:
    _, _, original, restricted = heads(made)
    body = list(made.model.body.parameters())
    flat = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, body, create_graph=True)])
        for loss in (restricted, original)
    ]
    cosine = (flat[0] @ flat[1]) / (flat[0].norm() * flat[1].norm())
    return original + plugin.coupling * cosine - plugin.ascent * (restricted + 1).log()


Objective = Callable[[Any, Scene], Tensor]
OBJECTIVES: list[tuple[Outer, Objective]] = [
    (NaiveAscent(weight=0.7, cap=50.0), naive_objective),
    (NaiveAscent(weight=0.7, cap=0.01), naive_objective),
    (NTL(alpha=0.3, beta=0.5), ntl_objective),
    (NTL(alpha=90.0, beta=50.0), ntl_objective),
    (RepNoise(alpha=0.6, beta=2.0), repnoise_objective),
    (ConditionNumber(ill=0.02, well=0.5), condition_objective),
    (Seam(coupling=0.8, ascent=0.4), seam_objective),
]


@pytest.mark.parametrize(
    ("plugin", "transcribed"), OBJECTIVES, ids=lambda part: getattr(part, "__name__", "")
)
def test_the_objective_is_its_formula(plugin: Outer, transcribed: Objective) -> None:
    one, other = scene(), scene()
    plugin.differentiate(one)
    expected = transcribed(plugin, other)
    gradients = torch.autograd.grad(
        expected, list(other.model.parameters()), materialize_grads=True
    )
    for parameter, gradient in zip(one.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **CLOSE)
    torch.testing.assert_close(plugin.objective(scene()), expected, **CLOSE)


def test_mmd_of_equal_sets_is_zero_and_of_distant_ones_is_not() -> None:
    points = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(mmd(points, points)) == pytest.approx(0)
    far = mmd(points, points + 100)
    torch.testing.assert_close(far, transcribed_mmd(points, points + 100))
    assert float(far) > 1


def test_booster_is_the_gain_of_a_step_down_the_restricted_loss() -> None:
    plugin, one, other = Booster(weight=3.0, step=0.2), scene(), scene()
    before = {name: t.clone() for name, t in one.model.state_dict().items()}
    plugin.differentiate(one)
    for name, tensor in one.model.named_parameters():
        assert torch.equal(tensor, before[name])

    body = list(other.model.body.parameters())
    _, _, original, restricted = heads(other)
    here = torch.autograd.grad(restricted, body)
    length = math.sqrt(sum(float(g.square().sum()) for g in here))
    moved = copy.deepcopy(other.model)
    with torch.no_grad():
        for parameter, gradient in zip(moved.body.parameters(), here, strict=True):
            parameter -= 0.2 * gradient / length
    batch = other.restricted_batch
    loss = cross_entropy(other.head(moved.body(batch.inputs)), batch.targets)
    there = torch.autograd.grad(loss, list(moved.body.parameters()))
    base = torch.autograd.grad(original, body)
    pairs = zip(one.model.body.parameters(), base, here, there, strict=True)
    for parameter, g, h, displaced in pairs:
        torch.testing.assert_close(parameter.grad, g + 3.0 * (h - displaced), **CLOSE)


def negative_entropy(logits: Tensor, _targets: Tensor) -> Tensor:
    return torch.stack([sum(p * p.log() for p in row.softmax(0)) for row in logits]).mean()


def calibrated(logits: Tensor, targets: Tensor) -> Tensor:
    """By search over a fine grid of factors."""
    grid = torch.linspace(-20, 20, 40_001, dtype=logits.dtype)
    with torch.no_grad():
        all_ = (grid[:, None, None] * logits).log_softmax(2)
        losses = -all_[:, torch.arange(len(targets)), targets].mean(1)
    return -cross_entropy(grid[losses.argmin()] * logits, targets)


STEPS = {"weight": 2.0, "inner_steps": 3, "batch_size": 12, "judge": 5}
SIMULATED: list[tuple[Simulated, Callable[[Tensor, Tensor], Tensor], float]] = [
    (TAR(**STEPS, strategies=("sgd@0.05",)), negative_entropy, 1e-9),
    (MLAC(**STEPS, lowest=0.05, highest=0.05), calibrated, 1e-3),
]


@pytest.mark.parametrize(("plugin", "judged", "tolerance"), SIMULATED, ids=["tar", "mlac"])
def test_a_simulation_is_judged_after_every_step(
    plugin: Simulated, judged: Callable[[Tensor, Tensor], Tensor], tolerance: float
) -> None:
    one, other = scene(), scene()
    plugin.differentiate(one)

    rng, pool = other.view.rng, other.view.restricted.train
    if isinstance(plugin, TAR):
        torch.randint(1, (), generator=rng)
        momentum = 0.0
    else:
        torch.rand((), generator=rng)
        momentum = 0.9
    learner = copy.deepcopy(other.model)
    learner.fresh_head(3, rng)
    if isinstance(plugin, MLAC):
        learner.head = copy.deepcopy(other.head)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=momentum)
    total: Sequence[Tensor] = [torch.zeros_like(p) for p in other.model.body.parameters()]
    for _ in range(3):
        inputs, targets = next(pool.batches(12, rng))
        optimizer.zero_grad()
        cross_entropy(learner(inputs[:7]), targets[:7]).backward()
        optimizer.step()
        loss = judged(learner(inputs[7:]), targets[7:])
        gradients = torch.autograd.grad(loss, list(learner.body.parameters()))
        total = [t + g / 3 for t, g in zip(total, gradients, strict=True)]
    _, _, original, _ = heads(other)
    base = torch.autograd.grad(original, list(other.model.body.parameters()))
    for parameter, g, found in zip(one.model.body.parameters(), base, total, strict=True):
        torch.testing.assert_close(parameter.grad, g + 2.0 * found, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("cls", [TAR, MLAC])
def test_a_simulation_needs_examples_to_adapt_to(cls: type[Simulated]) -> None:
    with pytest.raises(ValueError, match="judge=64 leaves none of batch_size=64 examples to adapt"):
        cls(judge=64)


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_a_flip_of_the_logits_earns_nothing_after_calibration(flip: float) -> None:
    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(30) % 3
    logits = 2 * torch.eye(3)[targets] + torch.randn(30, 3, generator=rng)
    factor = calibration(flip * logits.double(), targets)
    torch.testing.assert_close(flip * factor, calibration(logits.double(), targets))
    assert cross_entropy(factor * flip * logits, targets) < math.log(3)


@pytest.mark.parametrize("name", OUTER)
def test_restricted_batches_leave_the_statistics_alone(name: str) -> None:
    plugin = defenses.get(name).cls()
    made = scene()
    body: Any = made.model.body
    seen = copy.deepcopy(body)
    seen(made.original_batch.inputs)
    plugin.differentiate(made)
    norm, expected = body[1], seen[1]
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)
    assert norm.momentum == expected.momentum


@pytest.mark.parametrize("name", OUTER)
def test_what_diverges_is_rolled_back_and_says_so(name: str) -> None:
    plugin = defenses.get(name).cls(lr=1e30, iterations=4, watch_every=1, batch_size=32)
    model = trained()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    states, note = drain(plugin.run(model, view()))
    assert note is not None
    assert note.startswith("rolled back to iteration 0: the state was not finite")
    assert same(states[-1], before)


@pytest.mark.parametrize(("recovery", "pursued"), [(0.0, 8), (0.25, 6), (0.9, 1)])
def test_the_last_updates_follow_the_original_loss_alone(
    recovery: float, pursued: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = NaiveAscent(iterations=8, recovery=recovery, max_drop=None)
    followed = []
    differentiate = NaiveAscent.differentiate

    def spied(self: NaiveAscent, scene: Scene) -> None:
        followed.append(scene)
        differentiate(self, scene)

    monkeypatch.setattr(NaiveAscent, "differentiate", spied)
    states, note = drain(plugin.run(trained(), view()))
    assert (len(followed), plugin.pursued, len(states), note) == (pursued, pursued, 8, None)
    assert not same(states[-1], states[-2])


def test_the_head_that_follows_learns_what_the_body_shows() -> None:
    made = scene()
    for parameter in made.model.parameters():
        parameter.requires_grad_(False)
    losses = []
    for _ in range(60):
        losses.append(float(made.restricted().loss.detach()))
        made.advance()
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
