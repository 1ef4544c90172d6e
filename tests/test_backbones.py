"""timm models behind the plugin contract: one set of demands, a dozen architectures."""

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sophon_bench.models.architecture import BackboneError
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.backbones import list_backbones as list_names
from sophon_bench.models.timm_models import TimmModel
from sophon_bench.models.weight_hints import resembling

TINY_VIT = {"img_size": 32, "patch_size": 4}
FAST = [
    Backbone.of("test_resnet"),
    Backbone.of("test_vit"),
    Backbone.of("test_convnext"),
    Backbone.of("test_efficientnet"),
    Backbone.of("resnet18"),
    Backbone.of("mobilenetv3_small_050"),
    Backbone.of("vgg11_bn", {"mlp_ratio": 1 / 64}),  # 11 million weights instead of 129
    Backbone.of("vit_tiny_patch16_224", TINY_VIT),
    Backbone.of("deit_tiny_distilled_patch16_224", TINY_VIT),
]
SLOW = [
    Backbone.of("resnet50"),
    Backbone.of("caformer_s18"),
    Backbone.of("dla46_c"),  # its classifier is a convolution
    Backbone.of("crossvit_tiny_240"),  # its two classifiers see features of different widths
]
BACKBONES = [pytest.param(b, id=b.label) for b in FAST] + [
    pytest.param(b, id=b.label, marks=pytest.mark.slow) for b in SLOW
]
# scope: all tests of one backbone run together, so that it is built once and then let go
every_backbone = pytest.mark.parametrize("backbone", BACKBONES, scope="module")
OUTPUTS = 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def original(backbone: Backbone) -> TimmModel:
    """The model of this backbone; shared, so not to be changed."""
    return backbone.build(OUTPUTS, generator())


@pytest.fixture
def model(original: TimmModel) -> TimmModel:
    return copy.deepcopy(original)


@pytest.fixture
def inputs(backbone: Backbone) -> Tensor:
    size = 240 if "crossvit" in backbone.name else 32
    return torch.randn(2, 3, size, size, generator=generator(1))


@pytest.fixture
def global_state(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[object, ...]]:
    """All that a stray draw would move: every global generator, and what seeds accelerators."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)

    def state() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            tuple(seeded),
        )

    return state


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


# --- every architecture ------------------------------------------------------------------------


@every_backbone
def test_built_for_training(original: TimmModel):
    assert all(module.training for module in original.modules())
    assert all(p.requires_grad for p in original.parameters())
    assert original.num_outputs == OUTPUTS


@every_backbone
def test_same_as_timm(backbone: Backbone, model: TimmModel, inputs: Tensor):
    seed = int(torch.randint(2**63 - 1, (), generator=generator()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reference = timm.create_model(
            backbone.name, num_classes=OUTPUTS, **dict(backbone.parameters)
        ).eval()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), reference(inputs), rtol=1e-4, atol=1e-4)


@every_backbone
def test_forward_is_head_of_features(model: TimmModel, inputs: Tensor):
    model.eval()
    features = model.features(inputs)
    assert features.ndim == 2
    assert len(features) == 2
    assert model(inputs).shape == (2, OUTPUTS)
    torch.testing.assert_close(model(inputs), model.head(features))


@every_backbone
def test_gradient_reaches_head_and_body(model: TimmModel, inputs: Tensor):
    model(inputs).square().mean().backward()
    assert all(p.grad is not None for p in model.head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.body.parameters())


@every_backbone
def test_head_and_body_partition_the_parameters(original: TimmModel):
    parts = [*original.head.parameters(), *original.body.parameters()]
    assert sorted(map(id, parts)) == sorted(map(id, original.parameters()))
    assert [*original.head.parameters()]


@every_backbone
def test_blocks_run_in_order_and_partition_the_body(model: TimmModel, inputs: Tensor):
    blocks = model.blocks()
    assert len(blocks) >= 3
    assert all(model.get_submodule(name) is block for name, block in blocks)
    within = [p for _, block in blocks for p in block.parameters()]
    assert len({id(p) for p in within}) == len(within)
    assert {id(p) for p in within} <= {id(p) for p in model.body.parameters()}
    covered = sum(p.numel() for p in within)
    assert covered > 0.97 * sum(p.numel() for p in model.body.parameters())

    ran: list[str] = []
    for name, block in blocks:
        block.register_forward_pre_hook(lambda _module, _inputs, name=name: ran.append(name))
    model.eval()(inputs)
    assert list(dict.fromkeys(ran)) == [name for name, _ in blocks]


@every_backbone
def test_fresh_head(model: TimmModel, inputs: Tensor, global_state):
    body, old, before = copy.deepcopy(model.body), model.head, global_state()
    model.eval().fresh_head(3, generator(5))
    assert global_state() == before
    assert type(model.head) is type(old)
    assert model.num_outputs == 3
    assert all(module.training for module in model.head.modules())
    assert all(p.requires_grad for p in model.head.parameters())
    assert same(model.body, body)
    assert model.eval()(inputs).shape == (2, 3)

    first = model.head
    model.fresh_head(3, generator(5))
    assert same(model.head, first)
    model.fresh_head(3, generator(6))
    assert not same(model.head, first)


@every_backbone
def test_copy_is_independent(original: TimmModel, model: TimmModel):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert not any(
        torch.equal(mine, theirs)
        for mine, theirs in zip(model.parameters(), original.parameters(), strict=True)
    )


@every_backbone
def test_weights_round_trip(backbone: Backbone, original: TimmModel, inputs: Tensor):
    other = backbone.build(OUTPUTS, generator(1))
    assert not same(other, original)
    other.load_state_dict(load(save(original.state_dict())), strict=True)
    assert same(other, original)
    expected = copy.deepcopy(original).eval()(inputs)
    assert torch.equal(other.eval()(inputs), expected)


@every_backbone
def test_build_draws_from_rng_alone(backbone: Backbone, original: TimmModel, global_state):
    before = global_state()
    again = backbone.build(OUTPUTS, generator())
    assert global_state() == before
    assert same(again, original)


@every_backbone
def test_bf16_is_close_and_returns_float32(model: TimmModel, inputs: Tensor):
    model.eval()
    with torch.no_grad():
        exact, exact_features = model(inputs), model.features(inputs)
        model.precision = "bf16"
        rough, rough_features = model(inputs), model.features(inputs)
    assert rough.dtype == rough_features.dtype == torch.float32
    for a, b in ((rough, exact), (rough_features, exact_features)):
        assert not torch.equal(a, b)
        assert (a - b).norm() < 0.1 * b.norm()


# --- precision, statistics, pixels ----------------------------------------------------------------


def test_bf16_trains_float32_weights():
    model = Backbone.of("test_resnet").build(3, generator(), precision="bf16")
    inputs = torch.randn(4, 3, 32, 32, generator=generator())
    model(inputs).sum().backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_fp32_leaves_double_alone():
    model = Backbone.of("test_resnet").build(3, generator()).double()
    model.fresh_head(2, generator())
    assert model(torch.randn(2, 3, 32, 32).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("test_resnet", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalize(name: str, mean: tuple[float, ...], std: tuple[float, ...]):
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    scaled = Backbone.of(name).normalize(pixels)
    assert scaled.dtype == torch.float32
    assert scaled.shape == (2, 3, 4, 4)
    expected = [(v - m) / s for v, m, s in zip((0, 0.2, 1), mean, std, strict=True)]
    assert scaled[1, :, 2, 3].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)]
)
def test_normalize_refuses(pixels: Tensor):
    with pytest.raises(BackboneError, match=r"expected uint8 pixels of shape \(N, 3, H, W\), got"):
        Backbone.of("test_resnet").normalize(pixels)


# --- identity -------------------------------------------------------------------------------------


def test_label_and_identity():
    backbone = Backbone.of("caformer_s18", {"layer_scale_init_values": [1, 2.5], "a": True})
    assert backbone.label == "caformer_s18[a=true,layer_scale_init_values=[1,2.5]]"
    assert backbone.identity() == {
        "name": "caformer_s18",
        "parameters": {"a": True, "layer_scale_init_values": [1, 2.5]},
    }
    assert Backbone.of("test_resnet").label == "test_resnet"
    assert Backbone.of("test_resnet").identity() == {"name": "test_resnet", "parameters": {}}


def test_equal_whatever_the_order():
    one = Backbone.of("vit_tiny_patch16_224", {"patch_size": 4, "img_size": 32})
    other = Backbone.of("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4})
    assert one == other
    assert hash(one) == hash(other)
    assert one.label == "vit_tiny_patch16_224[img_size=32,patch_size=4]"
    assert one != Backbone.of("vit_tiny_patch16_224")


def test_list_backbones():
    assert {"test_resnet", "resnet18", "caformer_s18"} <= set(list_names())


# --- errors ---------------------------------------------------------------------------------------

REFUSED = [
    ("resnet81", {}, 32, "unknown backbone 'resnet81'; did you mean 'resnet18' or "),
    ("resnet18.nope", {}, 32, "unknown backbone 'resnet18.nope'; did you mean 'resnet18' or "),
    ("qqqqzz", {}, 32, "unknown backbone 'qqqqzz'; 'sophon-bench list backbones' shows all"),
    ("caformer_s18", {"img_size": 32}, 32, "'caformer_s18' takes no parameter 'img_size'; "),
    ("resnet18", {"drop_rat": 0.1}, 32, "no parameter 'drop_rat'; did you mean 'drop_rate' or"),
    ("resnet18", {"zzz": 1}, 32, "'resnet18' takes no parameter 'zzz'; it takes: block, layers, "),
    ("resnet18", {"block": "x"}, 32, "backbone 'resnet18[block=x]' cannot be built: 'str' object"),
    ("resnet18", {"num_classes": 3}, 32, "has 3 outputs, and the original domain 7 classes; it"),
    ("resnet18", {"num_classes": "x"}, 32, "num_classes of backbone 'resnet18[num_classes=x]' is"),
    ("resnet18", {"features_only": True}, 32, "no parameter 'features_only': a backbone needs its"),
    (
        "vit_tiny_patch16_224",
        {},
        32,
        "backbone 'vit_tiny_patch16_224' takes 224x224 images, not 32x32 (Input height (32) "
        "doesn't match model (224)); "
        "try --image-size 224 or 'vit_tiny_patch16_224[img_size=32,patch_size=4]'",
    ),
    (
        "vit_tiny_patch16_224",
        TINY_VIT,
        64,
        " takes 32x32 images, not 64x64 (... "
        "try --image-size 32 or 'vit_tiny_patch16_224[img_size=64,patch_size=8]'",
    ),
    ("resnet18", {"in_chans": 1}, 32, "takes no parameter 'in_chans': images have 3 channels"),
    ("inception_v3", {}, 32, "cannot be trained on 32x32 images (Calc...); try --image-size 299"),
    ("test_resnet", {}, 0, "images need at least 1 pixel a side, got 0"),
]


@pytest.mark.parametrize(
    ("name", "parameters", "image_size", "message"),
    [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(REFUSED)],
)
def test_check_says_what_to_do(
    name: str, parameters: dict[str, object], image_size: int, message: str
):
    with pytest.raises(BackboneError) as caught:
        Backbone.of(name, parameters).check(image_size, OUTPUTS)
    assert all(part in str(caught.value) for part in message.split("..."))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_check_passes_and_moves_nothing(name: str, global_state):
    before = global_state()
    Backbone.of(name, {"drop_rate": 0.1}).check(32, OUTPUTS)
    assert global_state() == before


def test_no_classifier(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: nn.Conv2d(3, 8, 3))
    with pytest.raises(BackboneError, match="'resnet18' is no classifier: timm's Conv2d has no"):
        Backbone.of("resnet18").build(3, generator())


def test_wrong_output_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TimmModel, "forward", lambda self, _: self.head.weight.sum().view(1, 1))
    with pytest.raises(BackboneError, match=r"\(1, 1\) where \(2, 7\) is expected\); choose anoth"):
        Backbone.of("test_convnext").check(160, OUTPUTS)


@every_backbone
def test_timms_own_state_becomes_a_model_that_computes_the_same(backbone: Backbone, inputs: Tensor):
    torch.manual_seed(3)
    plain = timm.create_model(
        backbone.name, num_classes=OUTPUTS, **dict(backbone.parameters)
    ).eval()
    shapes = {name: t.shape for name, t in plain.state_dict().items()}
    assert {name: t.shape for name, t in backbone.timm_state(OUTPUTS).items()} == shapes
    model = backbone.build(OUTPUTS, generator(4)).eval()
    model.load_state_dict(backbone.adopt(plain.state_dict(), OUTPUTS))
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), plain(inputs), rtol=1e-4, atol=1e-5)


def test_weights_resemble_what_they_are_of_but_for_the_classifier():
    shapes = {n: t.shape for n, t in Backbone.of("resnet34").timm_state(OUTPUTS).items()}
    assert resembling(shapes, "resnet18") == ["resnet34"]
    assert resembling({n: s for n, s in shapes.items() if "fc." not in n}, "vgg16") == ["resnet34"]
    assert resembling({"a": (3, 4)}, "resnet18") == []


def test_the_scale_is_what_images_are_normalised_with():
    backbone = Backbone.of("resnet18")
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in backbone.scale)
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(backbone.normalize(pixels), (pixels / 255 - mean) / deviation)


def test_a_head_may_be_wider_than_the_task():
    backbone = Backbone.of("test_resnet", {"num_classes": 10})
    backbone.check(32, OUTPUTS)
    model = backbone.build(OUTPUTS, generator())
    assert model.num_outputs == 10
    assert same(model, Backbone.of("test_resnet").build(10, generator()))
    assert backbone.with_head(None) == Backbone.of("test_resnet")
    assert backbone.with_head(12).label == "test_resnet[num_classes=12]"


def test_bad_arguments():
    backbone = Backbone.of("test_resnet")
    with pytest.raises(BackboneError, match="at least 1 output, got 0"):
        backbone.build(0, generator())
    with pytest.raises(BackboneError, match="unknown precision 'fp8'; expected fp32 or bf16"):
        backbone.build(3, generator(), precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="a head needs at least 1 output, got 0"):
        backbone.build(3, generator()).fresh_head(0, generator())
