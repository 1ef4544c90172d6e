"""What backbones take: memory from shapes, what was measured, and the study that shows both."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sophon_bench.cli import main
from sophon_bench.execution import sizing
from sophon_bench.execution.sizing import VARIANTS, Alive, Size, computed, peak, sizes, updates
from sophon_bench.harness.meter import profile
from sophon_bench.leaderboard.sizes import GIB, largest
from sophon_bench.models.architecture import BackboneError
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.skeleton import skeleton

SMALL = Backbone.of("test_resnet")


@pytest.fixture(scope="module")
def size() -> Size:
    return computed(SMALL, 32)


def test_storages_are_followed_until_they_are_freed() -> None:
    with Alive() as alive:
        one = torch.zeros(1000)
        two = one + 1
        del one
        three = two * 2
        view = three[:10]
        view += 1
    assert alive.peak == 2 * 4000
    assert (two.shape, three.shape) == ((1000,), (1000,))


def test_a_skeleton_is_the_model_without_numbers(size: Size) -> None:
    built = SMALL.build(10, torch.Generator())
    found = skeleton(SMALL, 10)
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    assert {name: tensor.shape for name, tensor in found.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in found.state_dict().values())
    assert size.parameters == sum(p.numel() for p in built.parameters())
    with pytest.raises(BackboneError, match="'test_resnet\\[width=3\\]' cannot be built"):
        skeleton(Backbone.of("test_resnet", {"width": 3}), 10)


def test_flops_are_those_that_costs_are_counted_in(size: Size) -> None:
    model = SMALL.build(10, torch.Generator())
    found = profile(model, torch.zeros(2, 3, 32, 32)).flops_per_unit
    assert size.flops == pytest.approx(found)


def test_memory_grows_as_it_should(size: Size) -> None:
    weights = 4 * size.parameters
    attack, protect = (size.computed[update] for update in ("attack", "protect"))
    for how in VARIANTS:
        assert 4 * weights < attack[how] < protect[how]
        assert protect[how] - attack[how] < 12 * weights, "five more copies of the weights or so"
    assert attack["bf16"] < attack["fp32"]
    larger = peak(SMALL, 64, updates(1)["attack"], "fp32", False)
    assert larger is not None
    assert 2 * attack["fp32"] < larger < 4 * attack["fp32"]


def test_memory_does_not_grow_with_the_simulated_steps() -> None:
    few, many = (peak(SMALL, 32, updates(n)["protect"], "fp32", False) for n in (1, 4))
    assert few == many


def test_checkpointing_saves_memory_where_there_is_some() -> None:
    vit = Backbone.of("test_vit", {"img_size": 32, "patch_size": 4})
    plain, saving = (peak(vit, 32, updates(1)["attack"], "fp32", on) for on in (False, True))
    assert plain is not None
    assert saving is not None
    assert saving < plain


@pytest.fixture
def quick(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are known, and passes of few images."""
    known = {"test_resnet": size, "resnet10t": replace(size, backbone="resnet10t", flops=1e9)}
    monkeypatch.setattr(sizing, "computed", lambda backbone, _: known[backbone.label])
    monkeypatch.setattr(sizing, "BATCH", 4)


@pytest.mark.usefixtures("quick")
def test_what_fits_is_measured_and_the_rest_is_expected(
    size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "PATIENCE", 1e-6)
    needed = size.computed["protect"]["fp32"]
    assert needed is not None
    told: list[str] = []
    cpu, backbones = torch.device("cpu"), [Backbone.of("resnet10t"), SMALL]
    small, large = sizes(backbones, 32, cpu, free=2 * needed, tick=told.append)
    assert told == ["computing resnet10t", "computing test_resnet", "measuring test_resnet"]
    assert (small.backbone, small.measured) == ("test_resnet", True)
    assert (large.backbone, large.measured) == ("resnet10t", False)
    assert large.resident == {}
    for name in small.seconds:
        assert large.seconds[name] > 0 < small.seconds[name]
    ratio = large.seconds["protect"] / large.seconds["attack"]
    assert ratio == pytest.approx(2 * sizing.INNER + 1)
    nothing = sizes([SMALL], 32, cpu, free=2 * needed - 1, tick=told.append)
    assert [(each.measured, each.seconds) for each in nothing] == [(False, {})]


def test_the_largest_that_fits(size: Size) -> None:
    def of(name: str, parameters: int, gib: float | None) -> Any:
        peaks = {"attack": {"fp32": None if gib is None else int(gib * GIB)}}
        return asdict(replace(size, backbone=name, parameters=parameters, computed=peaks))

    rows = [of("a", 1, 7.9), of("b", 3, 8.0), of("c", 2, 1.0), of("d", 9, 8.1), of("e", 8, None)]
    assert largest(rows, 8, "attack", "fp32") == "b"
    assert largest(rows, 1, "attack", "fp32") == "c"
    assert largest(rows, 0.5, "attack", "fp32") is None


@pytest.mark.usefixtures("quick")
def test_the_study_of_sizes_says_what_was_measured(tmp_path: Path) -> None:
    words = ["study", "model-size", "--out", str(tmp_path)]
    refused = CliRunner().invoke(main, [*words, "--seeds", "0"])
    assert refused.exit_code == 2
    assert "study model-size measures backbones and takes no --seeds" in refused.stderr
    refused = CliRunner().invoke(main, [*words, "--backbone", "unet"])
    assert refused.exit_code == 2
    assert "is of timm's models, and unet is none" in refused.stderr
    small = ["--backbone", "test_resnet", "--backbone", "resnet10t", "--image-size", "32"]
    plan = CliRunner().invoke(main, [*words, *small, "--dry-run"])
    assert plan.stdout == "to do  test_resnet, 32x32\nto do  resnet10t, 32x32\n"
    result = CliRunner().invoke(main, [*words, *small, "--threads", "1"])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "model-size.md").read_text()
    assert "in part: --backbone, --image-size in place of what the study declares" in text
    assert "1 threads, torch" in text
    document = json.loads((tmp_path / "model-size.json").read_text())
    assert [row["backbone"] for row in document["rows"]] == ["test_resnet", "resnet10t"]
    assert document["rows"][0]["measured"]
    assert (tmp_path / "model-size.png").read_bytes().startswith(b"\x89PNG")
