"""Pre-trained weights that a package carries: found, mapped by order, right, or one line."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from test_audit import FAST
from test_published_weights import cache, published, unplugged
from torch import Tensor

from sophon_bench.cli import main
from sophon_bench.models import packaged_weights
from sophon_bench.models.architecture import BackboneError
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.packaged_weights import PACKAGES, Package, packaged

__all__ = ["cache", "unplugged"]  # fixtures: no network

LITE = "tf_efficientnet_lite0"
ASKED = Backbone.of("test_resnet", {"pretrained": True})
STATE = published("test_resnet")
Install = Callable[[dict[str, Tensor]], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with weights of test_resnet; importing it fails the test."""

    def put(state: dict[str, Tensor]) -> Path:
        folder = tmp_path / "site/somebodys_weights"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise AssertionError('imported')")
        buffer = io.BytesIO()
        torch.save(state, buffer)
        (folder / "weights.pth").write_bytes(buffer.getvalue())
        package = Package(
            distribution="somebodys-weights",
            module="somebodys_weights",
            file="weights.pth",
            sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
            tags=("", "r160_in1k"),
        )
        monkeypatch.setattr(packaged_weights, "PACKAGES", {"test_resnet": package})
        monkeypatch.syspath_prepend(str(folder.parent))
        return folder / "weights.pth"

    return put


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in the same order under names of one's own."""
    return {f"_{at}.{name.rpartition('.')[2]}": t for at, (name, t) in enumerate(state.items())}


@pytest.mark.parametrize("name", ["test_resnet", "test_resnet.r160_in1k"])
@pytest.mark.parametrize("outputs", [6, 1000])
def test_an_installed_package_is_all_that_is_needed(
    name: str, outputs: int, install: Install, unplugged: None
) -> None:
    install(renamed(STATE))
    backbone = Backbone.of(name, {"pretrained": True})
    backbone.check(64, outputs)
    model = backbone.build(outputs, torch.Generator())
    body = model.body.state_dict()
    assert all(torch.equal(body[n], STATE[n]) for n in body)
    assert torch.equal(model.head.bias, STATE["fc.bias"]) == (outputs == 1000)
    assert "state_dict" not in model.body.pretrained_cfg
    assert backbone.label == f"{name}[pretrained=true]"


def test_a_run_takes_them_by_a_word(install: Install, unplugged: None, tmp_path: Path) -> None:
    install(renamed(STATE))
    arguments = [*FAST, "--store", tmp_path / "store", "--weights", "timm"]
    result = CliRunner().invoke(main, ["run", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert f"pretrain {ASKED.label} seed=0: original" in result.stderr


def test_another_tag_has_other_weights(install: Install) -> None:
    install(renamed(STATE))
    assert packaged("test_resnet") is not None
    assert packaged("test_resnet.another") is None
    assert packaged("test_vit") is None


def test_another_file_than_the_known_one_is_refused(install: Install) -> None:
    file = install(renamed(STATE))
    torch.save(renamed(published("test_vit")), file)
    with pytest.raises(BackboneError) as refused:
        ASKED.check(64, 6)
    line = str(refused.value)
    assert line.startswith(
        f"backbone {ASKED.label!r}: {str(file)!r} is not the file that was asked"
    )
    assert line.endswith("; reinstall its package, or uninstall it")
    assert "\n" not in line


def test_an_architecture_that_changed_is_refused(install: Install) -> None:
    install(renamed(published("test_vit")))
    words = r"does not fit test_resnet of timm .*: its 80 tensors are of other shapes than"
    with pytest.raises(BackboneError, match=words):
        ASKED.check(64, 6)


def test_what_to_install_is_said_where_there_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_weights, "find_spec", lambda _name: None)
    with pytest.raises(
        BackboneError, match=r"; run pip install '\.\[pretrained\]' in a clone, or "
    ):
        Backbone.of(LITE, {"pretrained": True}).check_weights()
    with pytest.raises(BackboneError) as refused:
        ASKED.check_weights()
    assert "pip install" not in str(refused.value)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_extra_names_every_package(name: str) -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    (line,) = (one for one in project.splitlines() if one.startswith("pretrained = ["))
    assert f'"{PACKAGES[name].distribution}>=' in line
    assert timm.is_model(name)


# --- the real ones --------------------------------------------------------------------------------

needs_package = pytest.mark.skipif(
    find_spec(PACKAGES[LITE].module) is None,
    reason=f"pip install {PACKAGES[LITE].distribution}, which has the weights",
)


@needs_package
def test_efficientnet_lite0_is_packaged(unplugged: None) -> None:
    backbone = Backbone.of(LITE, {"pretrained": True})
    backbone.check(64, 10)
    random = backbone.build(10, torch.Generator(), fresh=True)
    model = backbone.build(10, torch.Generator())
    assert not torch.equal(model.body.conv_stem.weight, random.body.conv_stem.weight)


PUBLISHED = 0.751
"""Top-1 accuracy on ImageNet's validation images that the weights' authors state."""


def photographs() -> list[Path]:
    """Twenty photographs of foolbox, which end in ``_CLASS.jpg``."""
    spec = find_spec("foolbox")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    return sorted(file for folder in folders for file in Path(folder).glob("data/imagenet_*.jpg"))


@needs_package
@pytest.mark.skipif(
    len(photographs()) != 20,
    reason="pip install --no-deps foolbox, which has labelled photographs",
)
def test_efficientnet_lite0_is_as_accurate_as_published() -> None:
    backbone = Backbone.of(LITE, {"pretrained": True})
    model = backbone.build(1000, torch.Generator()).eval()
    hits = 0
    for file in photographs():
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
        inputs = backbone.normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())
        with torch.no_grad():
            hits += int(model(inputs).argmax()) == int(file.stem.rpartition("_")[2])
    deviation = math.sqrt(20 * PUBLISHED * (1 - PUBLISHED))
    assert abs(hits - 20 * PUBLISHED) <= 2 * deviation, hits
