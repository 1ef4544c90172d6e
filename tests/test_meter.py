from __future__ import annotations

import copy
import itertools
import mmap
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from sophon_bench.api import Batch, Samples
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.harness.meter import (
    SAME_MODEL,
    CountedSamples,
    Meter,
    PeakMemory,
    Profile,
    WatchedTask,
    flop_counter,
    profile,
)
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.timm_models import TimmModel

CPU = torch.device("cpu")
BACKBONES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]


def build(name: str) -> TimmModel:
    parameters = {"img_size": 32, "patch_size": 8} if name == "test_vit" else {}
    return Backbone.of(name, parameters).build(10, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=BACKBONES)
def measured(request: pytest.FixtureRequest) -> tuple[TimmModel, Profile]:
    model = build(request.param)
    return model, profile(model, torch.randn(2, 3, 32, 32))


def spend(meter: Meter, *steps: object) -> float:
    """Units of a plugin that calls each of ``steps`` in turn."""

    def run() -> Iterator[None]:
        for step in steps:
            step()  # type: ignore[operator]
            yield

    for _ in meter.drive(run()):
        pass
    return meter.units


def test_flops_per_unit_are_those_of_forward_and_backward(
    measured: tuple[TimmModel, Profile],
) -> None:
    model, found = measured
    with flop_counter() as counter:
        copy.deepcopy(model)(torch.randn(4, 3, 32, 32)).sum().backward()
    assert found.flops_per_unit == pytest.approx(counter.get_total_flops() / 4)


def test_an_update_on_b_examples_costs_b_units(measured: tuple[TimmModel, Profile]) -> None:
    model, found = measured
    meter = Meter(found, CPU)
    watched = meter.watch(copy.deepcopy(model))
    inputs = torch.randn(6, 3, 32, 32)
    steps = [lambda: watched(inputs).sum().backward()] * 5
    assert spend(meter, *steps) == pytest.approx(30, rel=0.03)


def test_forward_alone_costs_a_third_and_features_count_too(
    measured: tuple[TimmModel, Profile],
) -> None:
    model, found = measured
    watched = copy.deepcopy(model)
    inputs = torch.randn(6, 3, 32, 32)
    for call in (watched.forward, watched.features):
        meter = Meter(found, CPU)
        meter.watch(watched)
        with torch.no_grad():
            cost = spend(meter, *[lambda call=call: call(inputs)] * 3)
        # no gradient flows to the images, so the first layer's backward pass is half as long
        assert cost == pytest.approx(3 * 6 / 3, rel=0.1)


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_the_backward_pass_of_a_convolution_takes_twice_the_forward_pass(
    layer: type[nn.Conv2d], groups: int
) -> None:
    convolution = layer(8, 8, 3, groups=groups)
    inputs = torch.randn(2, 8, 9, 9, requires_grad=True)
    with flop_counter() as forward:
        outputs = convolution(inputs)
    # transposed: every input element meets every weight of its group, otherwise every output does
    places = 81 if layer is nn.ConvTranspose2d else 49
    assert forward.get_total_flops() == 2 * 2 * places * 9 * 8 * 8 // groups
    with flop_counter() as backward:
        outputs.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_copies_are_counted_and_a_yield_hides_no_work() -> None:
    model = build("test_resnet")
    meter = Meter(profile(model, torch.randn(2, 3, 32, 32)), CPU)
    watched = meter.watch(model)
    inputs = torch.randn(8, 3, 32, 32)

    def five_updates_in_one() -> None:
        other = copy.deepcopy(watched)
        for _ in range(5):
            other(inputs).sum().backward()

    steps = [lambda: watched(inputs).sum().backward(), *[five_updates_in_one] * 3]
    assert spend(meter, *steps) == pytest.approx(8 + 3 * 40, rel=0.03)


def test_work_outside_the_backbone_is_charged_by_its_flops() -> None:
    model = build("test_resnet")
    found = profile(model, torch.randn(2, 3, 32, 32))
    meter = Meter(found, CPU)
    extra = nn.Linear(2000, 2000)
    data = torch.randn(50, 2000)
    expected = 4 * 50 * 2 * 2000 * 2000 / found.flops_per_unit
    with torch.no_grad():
        assert spend(meter, *[lambda: extra(data)] * 4) == pytest.approx(expected)


def test_an_adapter_on_the_backbone_is_converted_by_flops() -> None:
    model = build("test_resnet")
    found = profile(model, torch.randn(2, 3, 32, 32))
    meter = Meter(found, CPU)
    watched = meter.watch(copy.deepcopy(model))
    extra = nn.Linear(3 * 32 * 32, 3 * 32 * 32)
    inputs = torch.randn(8, 3, 32, 32)

    def step() -> None:
        adapted = extra(inputs.flatten(1)).view_as(inputs)
        watched(adapted).sum().backward()

    with flop_counter() as counter:
        step()
    meter = Meter(found, CPU)
    meter.watch(watched := copy.deepcopy(model))
    expected = 6 * counter.get_total_flops() / found.flops_per_unit
    assert spend(meter, *[step] * 6) == pytest.approx(expected, rel=1e-6)


def test_looking_is_free_and_leaves_modes_statistics_and_randomness_alone() -> None:
    """Also where the predictor is a function around a model that the meter has never seen."""
    model = build("test_resnet")
    meter = Meter(profile(model, torch.randn(2, 3, 32, 32)), CPU)
    meter.watch(model)
    hidden = copy.deepcopy(model).train()
    frozen = next(m for m in hidden.modules() if isinstance(m, nn.BatchNorm2d))
    frozen.eval()
    before = {name: t.clone() for name, t in hidden.state_dict().items()}
    modes = [m.training for m in hidden.modules()]
    inputs = torch.randn(4, 3, 32, 32)
    expected = copy.deepcopy(hidden).eval()(inputs)
    state = torch.get_rng_state()
    with meter.looking():
        assert not torch.is_grad_enabled()
        assert torch.equal(hidden(inputs), expected)
        torch.randn(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in hidden.modules()] == modes
    assert torch.is_grad_enabled()
    assert all(torch.equal(before[name], t) for name, t in hidden.state_dict().items())
    assert spend(meter, lambda: None) == 1.0


def test_profiling_leaves_the_model_and_the_global_state_alone() -> None:
    model = build("test_efficientnet")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    inputs = torch.randn(2, 3, 32, 32)
    state = torch.get_rng_state()
    profile(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())


def test_what_the_generator_returns_is_its_note() -> None:
    def run() -> Iterator[int]:
        yield 1
        return "rolled back"

    meter = Meter(Profile(1.0, {}), CPU)
    assert list(meter.drive(run())) == [1]
    assert (meter.note, meter.steps) == ("rolled back", 1)
    assert meter.seconds >= 0


def test_counted_samples_know_what_was_drawn() -> None:
    counted = CountedSamples(Samples(torch.zeros(10, 1), torch.zeros(10, dtype=torch.long)))
    assert len(counted) == 10
    assert not counted.touched
    list(itertools.islice(counted.batches(4, torch.Generator()), 3))
    assert (counted.drawn, counted.touched) == (12, True)
    other = CountedSamples(counted)
    assert len(other.inputs) == 10
    assert (other.drawn, other.touched) == (0, True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_last_loss_that_trains_decides_whether_all_is_finite(bad: float) -> None:
    task = WatchedTask(Classification(2))
    fine = Samples(torch.ones(3, 2, requires_grad=True), torch.zeros(3, dtype=torch.long))
    batch = next(fine.batches(3, torch.Generator()))

    def broken(inputs: torch.Tensor) -> torch.Tensor:
        return functional.pad(inputs[:, :1], (0, 1), value=bad)

    assert task.finite()
    with torch.no_grad():
        task.loss(broken, batch)
    assert task.finite(), "a candidate that was tried and thrown away"
    task.loss(broken, batch)
    assert not task.finite()
    task.loss(lambda x: x, batch)
    assert task.finite(), "repaired"


def test_losses_may_be_differentiated_by_torch_func() -> None:
    task = WatchedTask(Classification(2))
    batch = Batch(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    gradient = torch.func.grad(lambda w: task.loss(lambda x: x * w, batch))(torch.ones(2))
    assert gradient.isfinite().all()
    assert task.finite()


def test_peak_memory_sees_what_was_held() -> None:
    with PeakMemory(CPU) as idle:
        pass
    if idle.bytes is None:
        pytest.skip("this platform cannot reset its peak memory")
    # pages that are new to the process: an allocator would hand out what it has kept
    with PeakMemory(CPU) as busy, mmap.mmap(-1, 64 * 2**20) as held:
        held.write(b"\1" * len(held))
    assert busy.bytes is not None
    assert busy.bytes - idle.bytes > 48 * 2**20


@pytest.mark.parametrize("cycle", [2, 3, 4, 11])
def test_several_kinds_of_update_are_each_converted_by_their_own_flops(cycle: int) -> None:
    """One long update with work outside the backbone, then short ones without, in turns."""
    model = build("test_resnet")
    found = profile(model, torch.randn(2, 3, 32, 32))
    extra = nn.Linear(3 * 32 * 32, 3 * 32 * 32)
    many, few = torch.randn(16, 3, 32, 32), torch.randn(4, 3, 32, 32)

    def long() -> None:
        model(extra(many.flatten(1)).view_as(many)).sum().backward()

    def short() -> None:
        model(few).sum().backward()

    with flop_counter() as counter:
        long()
    expected = 3 * (counter.get_total_flops() / found.flops_per_unit + 4 * (cycle - 1))
    meter = Meter(found, CPU)
    meter.watch(model)
    assert spend(meter, *[long, *[short] * (cycle - 1)] * 3) == pytest.approx(expected, rel=0.02)


class Interrupted(Exception):
    """Ends a pass half way."""


def called(model: nn.Module, found: Profile) -> list[tuple[str, float]]:
    """Grows with every call of a charged layer: its name, and what a call of that size costs."""
    calls: list[tuple[str, float]] = []

    def follow(name: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            calls.append((name, found.charges[name] * output.numel()))

        model.get_submodule(name).register_forward_hook(hook)

    for name in found.charges:
        follow(name)
    return calls


def warmed(model: TimmModel, found: Profile) -> tuple[Meter, nn.Module, torch.Tensor]:
    """A meter that has seen three plain updates, the model and the inputs of them.

    Update 4 is not sampled, and so is counted by the hooks alone.
    """
    meter = Meter(found, CPU)
    watched = meter.watch(copy.deepcopy(model))
    inputs = torch.randn(6, 3, 32, 32)
    spend(meter, *[lambda: watched(inputs).sum().backward()] * 3)
    return meter, watched, inputs


def test_a_gradient_counts_for_the_layers_that_it_can_reach(
    measured: tuple[TimmModel, Profile],
) -> None:
    _, found = measured
    meter, watched, inputs = warmed(*measured)
    layers = list(found.charges)
    moving = layers[len(layers) // 3 :]
    before, calls = meter.units, called(watched, found)
    watched.requires_grad_(False)
    for name in moving:
        watched.get_submodule(name).requires_grad_(True)
    spent = spend(meter, lambda: watched(inputs).sum().backward()) - before
    reached = sum(charge for name, charge in calls if name in moving)
    forward = sum(charge for _, charge in calls)
    assert 0.05 < reached / forward < 0.95
    assert spent == pytest.approx(forward + 2 * reached)


def test_a_layer_called_by_itself_counts_even_after_a_pass_that_failed(
    measured: tuple[TimmModel, Profile],
) -> None:
    _, found = measured
    meter, watched, inputs = warmed(*measured)
    first, *_, last = (name for name in found.charges if name.startswith("body."))
    before, calls = meter.units, called(watched, found)

    def interrupt(_module: nn.Module, _inputs: object) -> None:
        raise Interrupted

    def fail_and_call_the_first_layer() -> None:
        with pytest.raises(Interrupted):
            watched(inputs)
        watched.get_submodule(first)(inputs).sum().backward()

    watched.get_submodule(last).register_forward_pre_hook(interrupt)
    spent = spend(meter, fail_and_call_the_first_layer) - before
    assert calls[-1][0] == first
    assert spent == pytest.approx(sum(charge for _, charge in calls) + 2 * calls[-1][1])


def test_a_loss_inside_the_body_is_converted_by_its_flops(
    measured: tuple[TimmModel, Profile],
) -> None:
    model, found = measured
    meter = Meter(found, CPU)
    watched = meter.watch(copy.deepcopy(model))
    inputs = torch.randn(6, 3, 32, 32)
    seen: list[torch.Tensor] = []
    middle = watched.blocks()[len(watched.blocks()) // 2][1]
    middle.register_forward_hook(lambda _module, _inputs, output: seen.append(output))

    def step() -> None:
        watched(inputs)
        seen.pop().sum().backward()

    with flop_counter() as counter:
        step()
    expected = 6 * counter.get_total_flops() / found.flops_per_unit
    assert spend(meter, *[step] * 6) == pytest.approx(expected, rel=SAME_MODEL)
