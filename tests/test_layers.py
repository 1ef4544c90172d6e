from __future__ import annotations

import copy

import pytest
import torch

from sophon_bench.api import Batch, Model
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.models import layers


@pytest.fixture
def model(bench: Bench, pretrained: Made) -> Model:
    return bench.load(pretrained.weights)


@pytest.fixture
def batch(bench: Bench) -> Batch:
    samples = bench.samples(bench.data.restricted, "attacker")
    return Batch(samples.inputs, samples.targets)


TASK = Classification(4)


def test_a_model_and_itself_have_ratio_one(model: Model, batch: Batch) -> None:
    for found in layers.ratios(model, model, TASK, batch, 0):
        assert found.smallest == found.largest == 1.0


def test_a_scaled_convolution_before_batchnorm_shows_in_both(model: Model, batch: Batch) -> None:
    scaled = copy.deepcopy(model)
    name, weight = next(
        (n, p) for n, p in scaled.named_parameters() if p.ndim == 4 and "conv1" in n
    )
    with torch.no_grad():
        weight.mul_(1e3)
    sigma, gradient = layers.ratios(scaled, model, TASK, batch, 0)
    assert (sigma.largest_at, gradient.smallest_at) == (name, name)
    assert sigma.largest == pytest.approx(1e3, rel=1e-4)
    assert gradient.smallest == pytest.approx(1e-3, rel=0.05)
    assert sigma.smallest == 1.0


def test_the_head_does_not_count(model: Model, batch: Batch) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.head.parameters():
            parameter.mul_(1e3)
    for found in layers.ratios(other, model, TASK, batch, 0):
        assert found.smallest == found.largest == 1.0


def test_what_is_not_finite_has_no_ratio(model: Model, batch: Batch) -> None:
    broken = copy.deepcopy(model)
    name, weight = next((n, p) for n, p in broken.named_parameters() if p.ndim == 4)
    with torch.no_grad():
        weight[0] = torch.nan
    sigma, gradient = layers.ratios(broken, model, TASK, batch, 0)
    assert (sigma.largest, sigma.largest_at) == (None, name)
    assert sigma.smallest == 1.0
    assert gradient.smallest is gradient.largest is None


def test_nothing_given_changes_and_no_global_random_state_moves(model: Model, batch: Batch) -> None:
    before = copy.deepcopy(model.state_dict())
    model.eval()
    state = torch.get_rng_state()
    first = layers.ratios(model, model, TASK, batch, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == layers.ratios(model, model, TASK, batch, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.num_outputs == 6


def test_a_model_without_weights_in_the_body_is_refused(batch: Batch) -> None:
    class HeadOnly(Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

    with pytest.raises(ValueError, match="outside the head"):
        layers.ratios(HeadOnly(), HeadOnly(), TASK, batch, 0)
