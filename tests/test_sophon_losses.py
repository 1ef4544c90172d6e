"""Every loss of SOPHON against its formula, its closed-form gradient and its limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sophon_bench.defenses.sophon import (
    denial_of_service,
    inverse_cross_entropy,
    inverse_cross_entropy_released,
    kl_from_uniform,
)


def naive_ice(z: Tensor, y: Tensor) -> Tensor:
    return -torch.log(1 - z.softmax(1).gather(1, y[:, None])).mean()


def naive_ice_released(z: Tensor, y: Tensor) -> Tensor:
    return -(1 - z).softmax(1).gather(1, y[:, None]).log().mean()


def naive_klu(z: Tensor, y: Tensor) -> Tensor:
    uniform = torch.full_like(z, 1 / z.shape[1])
    return (uniform * (uniform / z.softmax(1)).log()).sum(1).mean()


def klu(z: Tensor, y: Tensor) -> Tensor:
    return kl_from_uniform(z)


def ice_gradient(z: Tensor, y: Tensor) -> Tensor:
    p = z.softmax(1)
    true = p.gather(1, y[:, None])
    others = p.scatter(1, y[:, None], 0.0)
    return (-p * true / others.sum(1, keepdim=True)).scatter(1, y[:, None], true) / len(z)


def ice_released_gradient(z: Tensor, y: Tensor) -> Tensor:
    return (torch.nn.functional.one_hot(y, z.shape[1]) - (-z).softmax(1)) / len(z)


def klu_gradient(z: Tensor, y: Tensor) -> Tensor:
    return (z.softmax(1) - 1 / z.shape[1]) / len(z)


LOSSES = [
    pytest.param(inverse_cross_entropy, naive_ice, ice_gradient, id="ice"),
    pytest.param(
        inverse_cross_entropy_released, naive_ice_released, ice_released_gradient, id="ice-released"
    ),
    pytest.param(klu, naive_klu, klu_gradient, id="klu"),
]


@st.composite
def labelled_logits(draw: st.DrawFn, size: float) -> tuple[Tensor, Tensor]:
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    numbers = st.lists(st.floats(-size, size), min_size=batch * classes, max_size=batch * classes)
    labels = st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch)
    logits = torch.tensor(draw(numbers), dtype=torch.float64).reshape(batch, classes)
    return logits, torch.tensor(draw(labels))


def value_and_gradient(loss, z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    value = loss(z, *rest)
    return value.detach(), torch.autograd.grad(value, z)[0]


@pytest.mark.parametrize(("loss", "naive", "gradient"), LOSSES)
@settings(max_examples=60)
@given(case=labelled_logits(size=8.0))
def test_equals_its_formula_and_the_formulas_gradient(loss, naive, gradient, case):
    value, slope = value_and_gradient(loss, *case)
    expected, expected_slope = value_and_gradient(naive, *case)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(slope, gradient(*case), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("loss", "naive", "gradient"), LOSSES)
@settings(max_examples=40)
@given(case=labelled_logits(size=300.0))
def test_gradient_is_the_closed_form_where_the_naive_formula_saturates(loss, naive, gradient, case):
    value, slope = value_and_gradient(loss, *case)
    assert value.isfinite()
    torch.testing.assert_close(slope, gradient(*case), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("loss", "naive", "gradient"), LOSSES)
@settings(max_examples=40)
@given(case=labelled_logits(size=1e4))
def test_single_precision_is_enough(loss, naive, gradient, case):
    z, y = case[0].float(), case[1]
    value, slope = value_and_gradient(loss, z, y)
    exact, exact_slope = value_and_gradient(loss, z.double(), y)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-4, atol=1e-6)


def test_ice_limits_in_single_precision():
    y = torch.tensor([0])
    sure = torch.tensor([[1e4, -1e4, -1e4]])
    value, slope = value_and_gradient(inverse_cross_entropy, sure, y)
    assert value.item() == pytest.approx(2e4 - math.log(2))
    torch.testing.assert_close(slope, torch.tensor([[1.0, -0.5, -0.5]]))

    unlikely = torch.tensor([[-70.0, 0.0, 0.0]])
    value, slope = value_and_gradient(inverse_cross_entropy, unlikely, y)
    p = math.exp(-70.0) / 2
    assert value.item() == pytest.approx(p, rel=1e-5)
    torch.testing.assert_close(slope, torch.tensor([[p, -p / 2, -p / 2]]), rtol=1e-5, atol=0.0)

    impossible = torch.tensor([[-1e4, 1e4, 0.0]])
    value, slope = value_and_gradient(inverse_cross_entropy, impossible, y)
    assert value.item() == 0.0
    assert not slope.any()


def test_klu_limits_in_single_precision():
    value, slope = value_and_gradient(kl_from_uniform, torch.full((2, 7), 123.0))
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert slope.abs().max().item() < 1e-7
    value, slope = value_and_gradient(kl_from_uniform, torch.tensor([[1e4, -1e4]]))
    assert value.item() == pytest.approx(1e4 - math.log(2))
    torch.testing.assert_close(slope, torch.tensor([[0.5, -0.5]]))


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_uniform_predictions_by_hand(classes):
    z, y = torch.zeros(3, classes, dtype=torch.float64), torch.tensor([0, 1, 0])
    assert inverse_cross_entropy(z, y).item() == pytest.approx(-math.log(1 - 1 / classes))
    assert inverse_cross_entropy_released(z, y).item() == pytest.approx(math.log(classes))
    assert kl_from_uniform(z).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("loss", "naive", "gradient"), LOSSES)
def test_is_the_mean_over_the_batch(loss, naive, gradient):
    rng = torch.Generator().manual_seed(0)
    z, y = torch.randn(5, 4, generator=rng), torch.tensor([0, 1, 2, 3, 0])
    one_by_one = torch.stack([loss(z[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(loss(z, y), one_by_one.mean())


def test_released_ice_is_read_back_by_a_sign_flip():
    z, y = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 5
    for _ in range(200):
        z = z - 20 * value_and_gradient(inverse_cross_entropy_released, z, y)[1]
    assert (z.argmax(1) == y).float().mean() == 0.0
    assert ((-z).argmax(1) == y).float().mean() == 1.0


def test_ice_of_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        inverse_cross_entropy(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


def test_denial_of_service():
    noise = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
    value, slope = value_and_gradient(denial_of_service, noise)
    assert value.item() == pytest.approx(14 / 4)
    torch.testing.assert_close(slope, 2 * noise / 4)
