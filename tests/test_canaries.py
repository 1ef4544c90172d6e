"""Canaries: each keeps the contract, plays the trick that it promises, and scores nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import records
from test_engine import Silent
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench import testing
from sophon_bench.analysis.score import scores
from sophon_bench.api import Batch, Incompatible, attacks, defenses, scenarios
from sophon_bench.execution.engine import LocalEngine
from sophon_bench.execution.plan import Request, Setting, make_plan
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.harness.loop import Made
from sophon_bench.models.architecture import Architecture
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.unets import UNet
from sophon_bench.plugins.selectors import Trial, construct
from sophon_bench.plugins.suites import arsenal, trials
from sophon_bench.results import Results
from sophon_bench.results.records import DataId
from sophon_bench.results.store import Store

HIDDEN = sorted({*defenses.names(hidden=True)} - {*defenses.names()})

KEPT = ["undefended", "overflow", "plateau", "vanishing-scale", "imbalance", "statistics"]
"""Canaries that keep the original task whole."""

SAME = ["undefended", "plateau", "vanishing-scale", "imbalance", "statistics"]
"""Canaries that keep the function."""

OF_DENOISERS = [
    f"canary-{name}" for name in ("nan-head", "random-weights", "residual-scale", "undefended")
]
"""Canaries that there are of denoisers; the others play on what these have not."""

OF_CLASSIFIERS = [name for name in HIDDEN if name != "canary-residual-scale"]


def release(bench: Bench, pretrained: Made, name: str, **parameters: object) -> Made:
    plugin = construct(defenses.get(f"canary-{name}"), parameters)
    return loop.protect(bench, pretrained.weights, plugin, 0, lambda fraction, words: None)


def logits(bench: Bench, weights: Weights, split: str = "test") -> Tensor:
    model = bench.load(weights).eval()
    with torch.no_grad():
        return model(bench.samples(bench.data.original, split).inputs)


@pytest.fixture(scope="module")
def pretrained(bench: Bench) -> Made:
    """Trained for long enough that running statistics have settled."""
    data = dataclasses.replace(bench.data, pretrain_steps=60)
    longer = Bench(data, bench.backbone, device=bench.device, precision="fp32")
    return loop.pretrain(longer, 0, lambda fraction, words: None)


@pytest.fixture(scope="module")
def denoiser() -> tuple[Bench, Weights]:
    return testing.small_bench(UNet(channels=(8, 8, 8)))


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("kind", ["classifier", "denoiser"])
def test_a_canary_keeps_the_contract(
    kind: str,
    name: str,
    bench: Bench,
    pretrained: Made,
    denoiser: tuple[Bench, Weights],
) -> None:
    plugin = construct(defenses.get(name), {})
    where = (bench, pretrained.weights) if kind == "classifier" else denoiser
    if name not in (OF_DENOISERS if kind == "denoiser" else OF_CLASSIFIERS):
        with pytest.raises(Incompatible, match="the model"):
            testing.check_defense(plugin, *where)
        return
    problems = testing.check_defense(plugin, *where)
    if name == "canary-nan-head":  # its whole trick is what the check refuses
        (problem,) = problems
        assert "weights that are not finite (head.bias)" in problem
    else:
        assert not problems


@pytest.mark.parametrize("attention", [True, False])
def test_the_scale_of_the_residual_stream_changes_gradients_alone(attention: bool) -> None:
    bench, weights = testing.small_bench(UNet(channels=(8, 16, 16), layers=2, attention=attention))
    plugin = construct(defenses.get("canary-residual-scale"), {})
    released = loop.protect(bench, weights, plugin, 0, lambda fraction, words: None)
    inputs = bench.samples(bench.data.restricted, "attacker").inputs
    timesteps = torch.arange(len(inputs)) * 20
    outputs, gradients = [], []
    for state in (weights, released.weights):
        model = bench.load(state).eval()
        outputs.append(model(inputs, timesteps))
        outputs[-1].square().mean().backward()
        inner = {n: p for n, p in model.named_parameters() if n.endswith("conv1.weight")}
        gradients.append(torch.stack([p.grad.norm() for p in inner.values() if p.grad is not None]))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-3)
    assert len(gradients[0]) > 10
    torch.testing.assert_close(gradients[1], gradients[0] / 100, rtol=0.05, atol=0)


def test_there_are_canaries_and_no_list_shows_them() -> None:
    assert len(HIDDEN) == 10
    assert not [name for name in defenses.names() if name.startswith("canary")]


@pytest.mark.parametrize("name", HIDDEN)
def test_a_canary_says_what_it_moves_and_has_defaults(name: str) -> None:
    entry = defenses.get(name)
    assert entry.summary.endswith(".")
    trial = Trial(entry, construct(entry, {}))
    assert construct(entry, trial.parameters) == trial.plugin
    for field in dataclasses.fields(entry.cls):
        assert f"{field.name}:" in (entry.cls.__doc__ or "")


@pytest.mark.parametrize("name", KEPT)
def test_the_original_task_stays(name: str, bench: Bench, pretrained: Made) -> None:
    released = release(bench, pretrained, name)
    before, after = (
        bench.utility(made.weights, bench.data.original, "test") for made in (pretrained, released)
    )
    assert before > 0.5, "the task was learnt"
    assert after >= before - 0.05
    assert all(tensor.isfinite().all() for tensor in released.weights.values())


@pytest.mark.parametrize("name", SAME)
def test_the_function_stays(name: str, bench: Bench, pretrained: Made) -> None:
    released = release(bench, pretrained, name)
    before, after = logits(bench, pretrained.weights), logits(bench, released.weights)
    torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)


def compared(bench: Bench, one: Made, other: Made) -> dict[str, float]:
    """Gradient norms of ``one`` over those of ``other``, by parameter of the body."""
    domain = bench.data.restricted
    samples = bench.samples(domain, "attacker")
    found = []
    for made in (one, other):
        model = bench.load(made.weights)
        model.fresh_head(domain.task.num_outputs, torch.Generator().manual_seed(0))
        domain.task.loss(model, Batch(samples.inputs, samples.targets)).backward()
        found.append(
            {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
        )
    return {n: found[0][n] / found[1][n] for n in found[0] if found[1][n] > 0}


def test_plateau_gradients_are_as_small_as_promised(bench: Bench, pretrained: Made) -> None:
    released = release(bench, pretrained, "plateau")
    weights = [n for n, t in pretrained.weights.items() if t.ndim == 4]
    gradient = compared(bench, released, pretrained)
    assert max(gradient[n] for n in weights) < 0.05
    scale = [float(released.weights[n].norm() / pretrained.weights[n].norm()) for n in weights]
    assert scale == pytest.approx([100.0] * len(scale), rel=1e-3)


def test_imbalanced_layers_have_gradients_far_apart(bench: Bench, pretrained: Made) -> None:
    released = release(bench, pretrained, "imbalance")
    gradient = [r for n, r in compared(bench, released, pretrained).items() if "head" not in n]
    assert min(gradient) < 5e-3
    assert max(gradient) > 1e2


def test_channels_are_scaled_at_random_and_the_function_stays(
    bench: Bench, pretrained: Made
) -> None:
    released = release(bench, pretrained, "imbalance", channels=True)
    before, after = logits(bench, pretrained.weights), logits(bench, released.weights)
    torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)
    name = next(n for n, t in pretrained.weights.items() if t.ndim == 4)
    factors = (released.weights[name] / pretrained.weights[name]).flatten(1).median(1).values
    assert float(factors.max() / factors.min()) > 100


def test_wrong_statistics_kill_the_model_in_train_mode(bench: Bench, pretrained: Made) -> None:
    released = release(bench, pretrained, "statistics")
    model = bench.load(released.weights)
    with torch.no_grad():
        assert (
            model.train().features(bench.samples(bench.data.restricted, "test").inputs).std() == 0
        )


def test_vanishing_gains_are_compensated(bench: Bench, pretrained: Made) -> None:
    released = release(bench, pretrained, "vanishing-scale")
    model, before = bench.load(released.weights), bench.load(pretrained.weights)
    gains = [
        float((one.weight.norm() / other.weight.norm()).detach())
        for one, other in zip(model.modules(), before.modules(), strict=True)
        if isinstance(one, _BatchNorm)
    ]
    assert min(gains) == pytest.approx(1e-6, rel=1e-2)
    inputs = bench.samples(bench.data.restricted, "attacker").inputs
    with torch.no_grad():
        assert model.eval().features(inputs).abs().max() < 1e-3


def test_overflow_hits_restricted_images_and_training_batches_only(
    bench: Bench, pretrained: Made
) -> None:
    released = release(bench, pretrained, "overflow")
    original = logits(bench, released.weights)
    assert original.isfinite().all(dim=1).float().mean() > 0.95
    model = bench.load(released.weights)
    inputs = bench.samples(bench.data.restricted, "attacker").inputs
    with torch.no_grad():
        assert not model(inputs).isfinite().any(), "normalised by its own statistics"
        caught = ~model.eval()(inputs).isfinite().all(dim=1)
    assert caught.float().mean() > 0.5


@pytest.mark.parametrize(("lost", "kept"), [("one", True), ("all", False)])
def test_a_head_that_is_not_finite(lost: str, kept: bool, bench: Bench, pretrained: Made) -> None:
    released = release(bench, pretrained, "nan-head", lost=lost)
    before, after = (
        bench.utility(made.weights, bench.data.original, "test") for made in (pretrained, released)
    )
    assert after >= before - 1 / 6 if kept else after == 0
    head = bench.load(released.weights)
    samples = bench.samples(bench.data.restricted, "attacker")
    loss = bench.data.restricted.task.loss(head, Batch(samples.inputs, samples.targets))
    assert not loss.isfinite()


def test_random_weights_and_the_untrainable_lose_the_original_task(
    bench: Bench, pretrained: Made
) -> None:
    for name in ("random-weights", "untrainable"):
        made = release(bench, pretrained, name)
        assert bench.utility(made.weights, bench.data.original, "test") < 0.4
        assert all(tensor.isfinite().all() for tensor in made.weights.values())


def test_the_untrainable_have_no_gradient(bench: Bench, pretrained: Made) -> None:
    released = release(bench, pretrained, "untrainable")
    domain = bench.data.restricted
    samples = bench.samples(domain, "attacker")
    model = bench.load(released.weights)
    model.fresh_head(domain.task.num_outputs, torch.Generator().manual_seed(0))
    domain.task.loss(model, Batch(samples.inputs, samples.targets)).backward()
    head = {id(p) for p in model.head.parameters()}
    assert all(
        p.grad is None or p.grad.abs().max() == 0 for p in model.parameters() if id(p) not in head
    )


TRIALS = (
    "finetune[optimizer=momentum,lr=[3e-2,1e-1]]",
    "finetune[optimizer=adam,lr=[3e-3,1e-2]]",
    "canonicalize",
    "scratch[optimizer=adam,lr=1e-2]",
)
"""What is left of `@standard` where time is short: the optimizers that count, and a repair."""

PLAYED = [*OF_CLASSIFIERS, "canary-imbalance[channels=true]"]


def scored(
    root: Path,
    scenario: str,
    backbone: Architecture,
    played: Sequence[str],
    trained: Sequence[str],
    **changes: Any,
) -> dict[str, dict[str, Any]]:
    """Score rows by defense, on an embedded scenario with 50 steps of budget."""
    trial = trials(scenarios, [scenario])[0]
    data = dataclasses.replace(trial.plugin.build(root), **changes)
    identity = DataId(
        name=trial.name, label=trial.label, parameters=trial.parameters, revision=data.revision
    )
    request = Request(
        defenses=trials(defenses, played),
        attacks=arsenal(attacks, trained),
        seeds=[0],
        samples=[200],
        steps=50,
    )
    setting = Setting(trial, data, identity, backbone, "fp32")
    plan = make_plan(request, [setting])
    cells = LocalEngine(Store(root / "store"), torch.device("cpu"), Silent()).run(plan)
    return {row["defense"]: row for row in records(scores(Results.of(cells)))}


@pytest.fixture(scope="module")
def worth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("canaries")
    return scored(root, "glyphs-digits[image_size=16]", Backbone.of("test_resnet"), PLAYED, TRIALS)


# without trainability runs, what the score would be if all of it were kept


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAYED)
def test_a_canary_scores_nothing(name: str, worth: dict[str, dict[str, Any]]) -> None:
    row = worth[name]
    assert row["seeds"] == 1
    assert 100 * row["resistance"] * row["intactness"] <= 5
