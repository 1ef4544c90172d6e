"""Families of timm's backbones, each at a small size: the model's parts, and what is done to it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sophon_bench.api import Incompatible, attacks, defenses
from sophon_bench.execution.runs import find_backbone
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.plugins.selectors import construct
from sophon_bench.testing import small_bench
from sophon_bench.testing.toy import quiet

SMALL_SWIN = "img_size=32,patch_size=2,window_size=4,embed_dim=24,depths=[1,1,1],num_heads=[1,2,4]"
SMALL_VIT = "img_size=32,patch_size=8,depth=2,embed_dim=48,num_heads=3"

FAMILIES = {
    "ResNet": "test_resnet",
    "VGG": "vgg11_bn[mlp_ratio=0.0156]",
    "ViT": "test_vit",
    "DeiT": f"deit_tiny_distilled_patch16_224[{SMALL_VIT}]",
    "BEiT": f"beit_base_patch16_224[{SMALL_VIT}]",
    "EVA-02": f"eva02_tiny_patch14_224[{SMALL_VIT}]",
    "Swin": f"swin_tiny_patch4_window7_224[{SMALL_SWIN}]",
    "Swin V2": f"swinv2_tiny_window8_256[{SMALL_SWIN}]",
    "PVT v2": "pvt_v2_b0",
    "ConvNeXt": "test_convnext",
    "ConvNeXt V2": "convnextv2_atto[depths=[1,1,1,1],dims=[16,32,48,64]]",
    "EfficientNet": "test_efficientnet",
    "MobileNetV2": "mobilenetv2_035",
    "MobileNetV3": "mobilenetv3_small_050",
    "RegNet": "regnetx_002",
    "DenseNet": "densenet121[growth_rate=8,block_config=[2,2,2,2]]",
    "NFNet": "test_nfnet",
    "MambaOut": "test_mambaout",
    "CAFormer": "caformer_s18",
    "MLP-Mixer": "mixer_s16_224[img_size=32]",
}
SLOW = {
    "VGG", "CAFormer", "MLP-Mixer", "RegNet", "PVT v2", "BEiT", "Swin V2", "MobileNetV2", "NFNet",
    "MambaOut",
}  # fmt: skip
"""Families that timm has no smaller member of, and cousins of others."""

KLU = {
    "iterations": 1, "ntr_steps": 1, "inner_steps": 2, "batch_size": 8, "adapt": 4,
    "ntr_batch_size": 8, "max_drop": None,
}  # fmt: skip
THINGS = {
    "FTS of first order": ("sophon-klu", {**KLU, "order": 1}),
    "FTS of second order": ("sophon-klu", {**KLU, "order": 2}),
    "LoRA": ("lora", {"batch_size": 16}),
    "adapter": ("adapter", {"batch_size": 16}),
    "linear probe": ("probe-ridge", {}),
    "canonicalize": ("canonicalize", {"batch_size": 16}),
}
"""A plugin and its hyperparameters for each thing that is done to a model."""

ATTENTION = "derivative for aten::_scaled_dot_product_.*attention.* is not implemented"
HARD = "derivative for aten::hardsigmoid_backward is not implemented"
SKIPPED = {
    ("ViT", "FTS of second order"): ATTENTION,
    ("DeiT", "FTS of second order"): ATTENTION,
    ("EVA-02", "FTS of second order"): ATTENTION,
    ("PVT v2", "FTS of second order"): ATTENTION,
    ("CAFormer", "FTS of second order"): ATTENTION,
    ("MobileNetV3", "FTS of second order"): HARD,
}
"""What cannot be done, and what torch says: its fused attention and its hard sigmoid have no second
derivative."""

BUDGET = 64
SAMPLES = 20
PAGE = (Path(__file__).parents[1] / "docs/weights.md").read_text(encoding="utf-8")


def marked(family: str) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.slow,) if family in SLOW else ()


each_family = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=marked(f)) for f in FAMILIES], scope="module"
)


@pytest.fixture(scope="module")
def made(family: str) -> Iterator[tuple[Bench, Weights]]:
    """A bench and pre-trained weights of a family; large ones are let go again."""
    yield small_bench(find_backbone(FAMILIES[family]))
    small_bench.cache_clear()


@each_family
def test_a_model_has_a_head_features_and_blocks(family: str, made: tuple[Bench, Weights]) -> None:
    bench, weights = made
    model = bench.load(weights).eval()
    inputs = bench.samples(bench.data.restricted, "test").inputs[:3]
    blocks = model.blocks()
    ran: list[str] = []
    for name, block in blocks:
        block.register_forward_pre_hook(lambda _module, _inputs, name=name: ran.append(name))
    with torch.no_grad():
        features, outputs = model.features(inputs), model(inputs)
        assert features.shape == (3, features.shape[1])
        assert outputs.shape == (3, 6)
        torch.testing.assert_close(outputs, model.head(features), rtol=1e-4, atol=1e-5)
    assert list(dict.fromkeys(ran)) == [name for name, _ in blocks], "in the order of running"
    within = [p for _, block in blocks for p in block.parameters()]
    body = {id(p): p.numel() for p in model.get_submodule("body").parameters()}
    assert len({id(p) for p in within}) == len(within), "no weight is in two blocks"
    assert len(blocks) >= 3
    assert sum(body[id(p)] for p in within) > 0.97 * sum(body.values()), "they cover the body"


@each_family
def test_a_fresh_head_is_drawn_and_the_body_stays(family: str, made: tuple[Bench, Weights]) -> None:
    bench, weights = made
    model = bench.load(weights).eval()
    inputs = bench.samples(bench.data.restricted, "test").inputs[:3]
    body = copy.deepcopy(model.get_submodule("body").state_dict())
    with torch.no_grad():
        features = model.features(inputs)
        heads = []
        for seed in (5, 5, 6):
            model.fresh_head(4, torch.Generator().manual_seed(seed))
            heads.append(model.eval()(inputs))
        assert heads[0].shape == (3, 4)
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
        assert torch.equal(model.features(inputs), features)
    after = model.get_submodule("body").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in body.items())


@pytest.mark.parametrize("thing", THINGS)
@each_family
def test_what_is_done_to_a_model_works(
    family: str, thing: str, made: tuple[Bench, Weights]
) -> None:
    bench, weights = made
    if reason := SKIPPED.get((family, thing)):
        with pytest.raises((Incompatible, RuntimeError), match=reason):
            do(thing, bench, weights)
    else:
        do(thing, bench, weights)


def do(thing: str, bench: Bench, weights: Weights) -> None:
    """Protect or attack a model for a few updates, and see that it was moved and scored."""
    name, parameters = THINGS[thing]
    if name in defenses.names():
        plugin = construct(defenses.get(name), parameters)
        released = loop.protect(bench, weights, plugin, 0, quiet).weights
        assert all(tensor.isfinite().all() for tensor in released.values())
        assert any(not torch.equal(t, weights[n]) for n, t in released.items() if "body" in n)
        return
    plugin = construct(attacks.get(name), parameters)
    found = loop.attack(bench, weights, plugin, samples=SAMPLES, seed=0, budget=BUDGET, tick=quiet)
    assert found.status == "ok"
    assert found.cost.steps >= 2
    assert 0 <= found.curve[-1].test <= 1


def test_what_is_skipped_is_of_a_family_and_a_thing() -> None:
    assert {family for family, _ in SKIPPED} <= set(FAMILIES)
    assert {thing for _, thing in SKIPPED} <= set(THINGS)
    assert set(FAMILIES) >= SLOW


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_names_the_family(family: str) -> None:
    assert re.search(rf"\b{family}(,| and|\.)", PAGE)
