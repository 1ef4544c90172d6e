"""Depthwise convolutions of small maps: padded beforehand, and nothing else changes."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from sophon_bench.models.backbones import Backbone
from sophon_bench.models.small_maps import speed_up

Seen = tuple[Tensor, ...]


def seen(conv: nn.Conv2d, inputs: Tensor) -> Seen:
    """Outputs, and gradients of both orders."""
    inputs = inputs.clone().requires_grad_()
    outputs = conv(inputs)
    wanted = (inputs, *conv.parameters())
    first = torch.autograd.grad(outputs.square().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    return (outputs, *first, *second)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(
    ("kernel", "more"),
    [(5, {"padding": 2}), (5, {"padding": 2, "stride": 2}), (7, {"padding": 3, "bias": False}),
     (3, {"padding": 2, "dilation": 2}), ((5, 3), {"padding": (2, 1)})],
)  # fmt: skip
def test_outputs_and_gradients_of_both_orders_stay(
    side: int, kernel: int, more: dict[str, object]
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 12, kernel, groups=6, dtype=torch.float64, **more)  # type: ignore[arg-type]
    fast = copy.deepcopy(plain)
    speed_up(nn.Sequential(fast))
    inputs = torch.randn(2, 6, side, side, dtype=torch.float64)
    for one, other in zip(seen(plain, inputs), seen(fast, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_a_copy_has_weights_of_its_own() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    speed_up(nn.Sequential(conv))
    copied = copy.deepcopy(conv)
    with torch.no_grad():
        copied.weight.zero_()
        copied.bias.zero_()  # type: ignore[union-attr]
    inputs = torch.ones(1, 4, 2, 2)
    assert not copied(inputs).any()
    assert conv(inputs).any()
    assert type(copied) is nn.Conv2d


def test_a_model_can_be_saved_whole() -> None:
    model = Backbone.of("test_convnext").build(3, torch.Generator())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    inputs = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(inputs), model.eval()(inputs))
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert not torch.equal(loaded(inputs), model(inputs))


def test_it_is_padded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the map is smaller than the kernel, and only depthwise ones."""
    padded: list[tuple[int, ...]] = []
    pad = nn.functional.pad

    def watched(inputs: Tensor, widths: tuple[int, ...]) -> Tensor:
        padded.append(tuple(inputs.shape))
        return pad(inputs, widths)

    monkeypatch.setattr("sophon_bench.models.small_maps.functional.pad", watched)
    deep, full = nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Conv2d(4, 4, 5, padding=2)
    speed_up(nn.ModuleList([deep, full]))
    for conv in (deep, full):
        for side in (4, 5):
            conv(torch.ones(1, 4, side, side))
    assert padded == [(1, 4, 4, 4)]
    deep.padding = "same"
    assert deep(torch.ones(1, 4, 4, 4)).shape == (1, 4, 4, 4)
    assert len(padded) == 1


def test_models_of_timm_have_it() -> None:
    model = Backbone.of("test_convnext").build(3, torch.Generator())
    assert any("_conv_forward" in vars(module) for module in model.modules())
