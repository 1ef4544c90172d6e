"""Where models start from: timm's weights, random ones, or a file, by its hash and not its path."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TINY
from safetensors.torch import load_file, save
from test_audit import FAST, fresh, own_names, written
from torch import Tensor, nn

import sophon_bench
from sophon_bench.cli import main
from sophon_bench.execution import runs
from sophon_bench.models import weight_files
from sophon_bench.models.architecture import BackboneError
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.weight_files import CheckpointError
from sophon_bench.plugins.failures import BadInput
from sophon_bench.results.store import Store

Weights = dict[str, Tensor]
BARE = Backbone.of("test_resnet")
OUTPUTS = 6
STATE = fresh(1000)
BODY = {name: tensor for name, tensor in own_names(STATE).items() if name.startswith("body.")}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def saved(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def file_of(folder: Path, content: bytes, name: str = "weights.pth") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def trained(state: Weights) -> dict[str, object]:
    """What a training script keeps."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "arch": "resnet",
        "optimizer": optimizer.state_dict(),
        "model": under("module.", state),
        "best": [0.5, 0.75],
    }


COUNTED = {n: t for n, t in STATE.items() if not n.endswith("num_batches_tracked")}
PARAMETERS = {n: nn.Parameter(t) if t.is_floating_point() else t for n, t in STATE.items()}
FILES: dict[str, Callable[[], bytes]] = {
    "safetensors": lambda: save(STATE),
    "own-names": lambda: save(own_names(STATE)),
    "pth": lambda: saved(STATE),
    "pth-old": lambda: saved(STATE, _use_new_zipfile_serialization=False),
    "pth-parameters": lambda: saved(PARAMETERS),
    "pth-wrapped": lambda: saved({"state_dict": under("_orig_mod.", STATE)}),
    "pth-training": lambda: saved(trained(STATE)),
    "without-counters": lambda: saved(COUNTED),
    "two-classes": lambda: saved(fresh(2) | {n: t for n, t in STATE.items() if "fc." not in n}),
    "as-many-classes": lambda: save(
        fresh(OUTPUTS) | {n: t for n, t in STATE.items() if "fc." not in n}
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_model_starts_from_the_body_of_a_file_and_a_head_of_its_own(
    kind: str, tmp_path: Path
) -> None:
    backbone = BARE.starting_from(file_of(tmp_path, FILES[kind]()))
    backbone.check(32, OUTPUTS)
    model = backbone.build(OUTPUTS, torch.Generator().manual_seed(3))
    random = BARE.build(OUTPUTS, torch.Generator().manual_seed(3)).state_dict()
    state = model.state_dict()
    assert BODY.keys() | {"head.weight", "head.bias"} == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in BODY.items())
    assert not torch.equal(state["body.conv1.0.weight"], random["body.conv1.0.weight"])
    assert all(torch.equal(state[f"head.{n}"], random[f"head.{n}"]) for n in ("weight", "bias"))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_other_architectures_start_from_files_too(name: str, tmp_path: Path) -> None:
    state = fresh(3, name=name)
    backbone = Backbone.of(name).starting_from(file_of(tmp_path, saved(state)))
    model = backbone.build(OUTPUTS, torch.Generator())
    body = model.get_submodule("body").state_dict()
    assert all(torch.equal(tensor, state[n]) for n, tensor in body.items())


def test_position_embeddings_of_another_size_are_refused(tmp_path: Path) -> None:
    backbone = Backbone.of("test_vit", {"img_size": 32})
    backbone = backbone.starting_from(file_of(tmp_path, saved(fresh(name="test_vit"))))
    with pytest.raises(CheckpointError, match=r"1 of another shape \(pos_embed is \(1, 101, 64\)"):
        backbone.check(32, OUTPUTS)


def test_a_model_of_random_weights_is_built_without_the_file(tmp_path: Path) -> None:
    file = file_of(tmp_path, saved(STATE))
    backbone = BARE.starting_from(file)
    file.unlink()
    one, other = (
        b.build(OUTPUTS, torch.Generator().manual_seed(0), fresh=True).state_dict()
        for b in (backbone, BARE)
    )
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_what_is_in_a_file_names_it_and_not_where_it_is(tmp_path: Path) -> None:
    file = file_of(tmp_path, saved(STATE))
    digest = weight_files.read(file, pickles=True).sha256
    backbone = Backbone.of("test_resnet", {"drop_rate": 0.1}).starting_from(file)
    assert backbone.label == f"test_resnet[drop_rate=0.1,weights=sha256:{digest[:12]}]"
    assert backbone.identity() == {
        "name": "test_resnet",
        "parameters": {"drop_rate": 0.1},
        "weights": digest,
    }
    moved = backbone.bare.starting_from(file.rename(tmp_path / "other.pt"))
    assert moved == backbone
    assert hash(moved) == hash(backbone)
    replaced = backbone.bare.starting_from(file_of(tmp_path, saved(fresh(seed=1))))
    assert replaced != backbone
    assert replaced.label != backbone.label
    found = runs.find_backbone(backbone.label)
    assert found.label == backbone.label
    assert runs.find_backbone(backbone.label, tmp_path / "other.pt") == backbone


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "weights", "label"),
    [
        ("test_resnet", None, "test_resnet"),
        ("test_resnet", "random", "test_resnet"),
        ("test_resnet[pretrained=false]", "random", "test_resnet[pretrained=false]"),
        ("test_resnet", "timm", "test_resnet[pretrained=true]"),
        ("test_resnet[pretrained=true]", "timm", "test_resnet[pretrained=true]"),
        (
            "test_vit[img_size=32]",
            "timm",
            "test_vit[img_size=32,pretrained=true]",
        ),
        ("unet", "random", "unet"),
    ],
)
def test_weights_in_a_word(selector: str, weights: str | None, label: str) -> None:
    assert runs.find_backbone(selector, weights).label == runs.find_backbone(label).label


@pytest.mark.parametrize(
    ("selector", "weights", "words"),
    [
        ("test_resnet[pretrained=true]", "random", "--weights random contradicts backbone 'test_"),
        ("test_resnet[pretrained=false]", "timm", "--weights timm contradicts backbone 'test_res"),
        ("test_resnet[pretrained=true]", "FILE", "weights.pth contradicts backbone 'test_resnet["),
        (f"test_resnet[weights=sha256:{'0' * 12}]", "timm", "--weights timm contradicts"),
        (f"test_resnet[weights=sha256:{'0' * 12}]", "random", "; leave one of them out"),
        (
            f"test_resnet[weights=sha256:{'0' * 12}]",
            "FILE",
            f"backbone 'test_resnet[weights=sha256:{'0' * 12}]' starts from another file than ",
        ),
        ("unet", "timm", "--weights timm: backbone 'unet' starts from random weights alone"),
        ("unet", "FILE", "starts from random weights alone; leave --weights out"),
        ("test_resnet", "tim", "there is no file 'tim'; did you mean 'timm'?"),
        ("test_resnet", "imagenet", "--weights takes timm, random or a file; there is no file "),
        ("test_resnet", "DIR/weight.pth", "unknown file 'weight.pth'; did you mean 'weights.pth'?"),
        ("test_resnet", "DIR", "is a directory; expected a file of safetensors or torch.save"),
    ],
)
def test_weights_that_cannot_be_meant(
    selector: str, weights: str, words: str, tmp_path: Path
) -> None:
    file = file_of(tmp_path, saved(STATE))
    given = weights.replace("FILE", str(file)).replace("DIR", str(tmp_path))
    with pytest.raises(BadInput) as refused:
        runs.find_backbone(selector, given)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        (
            f"test_resnet[weights=sha256:{'0' * 12}]",
            "starts from a file; name it with --weights FILE",
        ),
        ("test_resnet[weights=mine.pth]", "takes no parameter 'weights': --weights FILE names"),
        (
            f"test_resnet[pretrained=true,weights=sha256:{'0' * 12}]",
            "pretrained=true contradicts its weights",
        ),
    ],
)
def test_selectors_that_name_no_file(selector: str, words: str) -> None:
    backbone = runs.find_backbone(selector)
    with pytest.raises(BackboneError, match=words):
        backbone.check(32, OUTPUTS)


# --- files that are refused -----------------------------------------------------------------------


class Reached:
    """A pickle that makes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


HEADLESS = {name: tensor for name, tensor in STATE.items() if not name.startswith("fc.")}
INFINITE = {**STATE, "conv1.0.weight": torch.full_like(STATE["conv1.0.weight"], torch.inf)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: saved(fresh(name="resnet18")), "it looks like --backbone resnet18"),
        (lambda: save(fresh(name="resnet18")), "' is no test_resnet: "),
        (lambda: saved(HEADLESS), "it has no head: expected the model with its head of any number"),
        (
            lambda: saved({"ema": STATE, "model": fresh(1000, seed=1)}),
            "holds 2 models that can be a test_resnet: save one of them alone, 'ema.' or 'model.'",
        ),
        (
            lambda: saved({"ema": STATE, "model": fresh(5)}),
            "holds heads of 5 and 1000 classes: save one model alone",
        ),
        (
            lambda: saved({"model": STATE, "mean": torch.ones(3)}),
            "holds more than a test_resnet: 1 unexpected (mean); save the model alone",
        ),
        (
            lambda: saved({**STATE, "conv1.0.weight": torch.ones(2, 2)}),
            "1 of another shape (conv1.0.weight is (2, 2) where ",
        ),
        (lambda: saved(INFINITE), "has values that are not finite, in body.conv1.0.weight"),
        (lambda: saved({}), "is no test_resnet: "),
        (lambda: saved(torch.ones(2)), "holds a Tensor; expected tensors by name, as in torch."),
        (lambda: saved([STATE]), "holds a list; expected tensors by name"),
        (lambda: saved(nn.Linear(2, 2)), "it is damaged, or holds more than tensors), and no"),
        (lambda: saved(STATE)[:-100], "cannot be read as tensors alone ("),
        (lambda: pickle.dumps(STATE), "and no other pickle is ever opened; save the model's"),
        (lambda: b"", "is empty; expected a file of safetensors or torch.save"),
        (lambda: b"<html>log in</html>", "is no file of weights but an HTML page"),
        (lambda: save(STATE)[:-8], "is no whole safetensors file: it is cut off"),
    ],
)
def test_a_file_without_the_backbone_is_one_line(
    content: Callable[[], bytes], words: str, tmp_path: Path
) -> None:
    file = file_of(tmp_path, content())
    with pytest.raises(CheckpointError) as refused:
        BARE.starting_from(file).check(32, OUTPUTS)
    line = str(refused.value)
    assert words in line
    assert line.startswith(repr(str(file)))
    assert line.isprintable()


def test_names_in_a_pickle_without_end_are_not_followed_without_end(tmp_path: Path) -> None:
    endless: dict[str, object] = {"a": torch.ones(1)}
    endless["b"] = endless
    found = weight_files.read(file_of(tmp_path, saved(endless)), pickles=True).tensors
    assert {"a", "b.a"} <= found.keys()
    assert len(found) == weight_files.DEEPEST + 1


def test_no_pickle_runs_code(tmp_path: Path) -> None:
    file = file_of(tmp_path, saved({**STATE, "more": Reached(tmp_path / "ran")}))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        BARE.starting_from(file)
    assert not (tmp_path / "ran").exists()


def test_released_models_are_safetensors_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a pickle: opening that could run anything"):
        weight_files.read(file_of(tmp_path, saved(STATE)))


# --- runs -----------------------------------------------------------------------------------------


def made(store: Path) -> set[str]:
    return {file.name for file in store.glob("models/*.json")}


def test_a_moved_file_is_the_same_run_and_a_replaced_one_another(tmp_path: Path) -> None:
    store, file = tmp_path / "store", file_of(tmp_path, saved(STATE))
    options = {
        "scenario": "tiny",
        "steps": 2,
        "samples": [20],
        "attack": "finetune[lr=0.03]",
        "store": store,
    }
    results = sophon_bench.run(weights=file, **options)
    label = BARE.starting_from(file).label
    assert set(results.models["backbone"]) == {label}
    first = made(store)
    moved = file.rename(tmp_path / "moved.pt")
    again = sophon_bench.run(weights=moved, **options)
    assert made(store) == first
    assert set(again.cells["key"]) == set(results.cells["key"])
    moved.write_bytes(saved(fresh(1000, seed=1)))
    sophon_bench.run(weights=moved, **options)
    assert len(made(store)) == 2 * len(first)
    sophon_bench.run(weights="random", **options)
    assert len(made(store)) == 3 * len(first)
    moved.unlink()
    model = sophon_bench.load_model(results, "none")
    (key,) = set(results.models["weights"][results.models["defense"] == "none"])
    expected = load_file(store / "models" / f"{key}.safetensors")
    assert all(torch.equal(tensor, expected[n]) for n, tensor in model.state_dict().items())
    assert model.num_outputs == OUTPUTS


def test_a_file_that_is_replaced_under_way_ends_the_run(tmp_path: Path) -> None:
    file = file_of(tmp_path, saved(STATE))
    job = sophon_bench.library.planned(
        [],
        ["finetune[lr=0.03]"],
        scenario=["tiny"],
        seeds=[0],
        steps=2,
        samples=[20],
        weights=file,
        store=tmp_path / "store",
    )
    file.write_bytes(saved(fresh(1000, seed=1)))
    with pytest.raises(CheckpointError, match="is not the file that was asked for: its SHA-256"):
        job.run()
    assert not made(tmp_path / "store")


def test_cells_are_made_again_from_the_file(tmp_path: Path) -> None:
    file = file_of(tmp_path, saved(STATE))
    arguments = [*FAST, "--weights", file, "--store", tmp_path / "store"]
    result = call("run", *arguments, "--workers", 2, "--plugin", TINY)
    assert result.exit_code == 0, result.output
    records = Store(tmp_path / "store", reading=True).records()
    options = runs.Options(store=tmp_path / "other", weights=file)
    assert {stage.key for stage in runs.again(records, options).plan.cells} == {
        cell.key for cell in records.cells
    }
    with pytest.raises(BackboneError, match="starts from a file; name it with --weights FILE"):
        runs.again(records, runs.Options(store=tmp_path / "other"))


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["study", "balance", "--seeds", "0", "--out", "OUT"],
        ["tune", "naive-mse", "--configurations", "2", "--out", "OUT"],
        ["audit", "FILE"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_that_makes_records_takes_weights(command: list[str], tmp_path: Path) -> None:
    attacked = written(tmp_path, fresh(OUTPUTS))
    file = file_of(tmp_path, saved(STATE))
    places = {"FILE": str(attacked), "OUT": str(tmp_path / "out")}
    fast = FAST if command[0] != "tune" else [*FAST[:-2]]
    arguments = [places.get(word, word) for word in command]
    arguments += [*fast, "--dry-run", "--store", tmp_path / "store", "--weights"]
    result = call(*arguments, file)
    assert result.exit_code == 0, result.output
    assert f"pretrain {BARE.starting_from(file).label} seed=" in result.output
    shutil.move(file, tmp_path / "gone.pth")
    result = call(*arguments, file)
    assert result.exit_code == 2, result.output
    assert "unknown file 'weights.pth'; did you mean" in result.stderr
    assert result.stderr.count("\n") == 1
