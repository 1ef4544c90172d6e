"""A released model that is a file: what is refused, what is the same, and what is said."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result
from conftest import TINY, Attempt, gather, read_cells
from safetensors.torch import load_file, save, save_file
from test_engine import Silent, metrics, plan_of, setting
from torch import Tensor

from sophon_bench.analysis.verdict import NO_INTERVAL
from sophon_bench.api import attacks, defenses
from sophon_bench.cli import main, running
from sophon_bench.execution import checkpoints
from sophon_bench.execution.engine import LocalEngine
from sophon_bench.execution.plan import Plan, Request, Setting, make_plan
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.leaderboard import audits
from sophon_bench.library import Verdict, load_model, load_results
from sophon_bench.models import weight_files
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.weight_files import CheckpointError
from sophon_bench.plugins.suites import arsenal
from sophon_bench.results import Results
from sophon_bench.results.records import Records
from sophon_bench.results.store import Store

__all__ = ["setting"]  # a fixture

BACKBONE = Backbone.of("test_resnet")
CLASSES = 6
"""Of the tiny scenario's original domain."""

DEFENSE = "sophon-klu[iterations=2,inner_steps=2,batch_size=16,adapt=8,watch_every=1]"
FAST = ["--scenario", "tiny", "--steps", "2", "--samples", "20", "--attack", "finetune[lr=0.03]"]
Weights = dict[str, Tensor]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def audit(file: Path, store: Path, *arguments: object) -> Result:
    return call("audit", file, *FAST, "--store", store, *arguments)


def fresh(classes: int = CLASSES, name: str = "test_resnet", seed: int = 0) -> Weights:
    """A state dict of timm's own."""
    torch.manual_seed(seed)
    return dict(timm.create_model(name, num_classes=classes).state_dict())


def written(folder: Path, weights: Weights, name: str = "model.safetensors") -> Path:
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Attempt], Path]:
    """A run of a defense: its store, its records, and what it released for seed 0."""
    store = tmp_path_factory.mktemp("ran")
    out = store / "out.json"
    result = call("run", *FAST, "--store", store, "--defense", DEFENSE, "--json", out)
    assert result.exit_code == 0, result.output
    cells = read_cells(out)
    released = next(cell.released for cell in cells if not cell.defense.control)
    return store, cells, store / "models" / f"{released.weights}.safetensors"


def as_timm(weights: Weights) -> Weights:
    """What `ran` released, under timm's names: test_resnet's classifier is called fc."""
    return {
        name.removeprefix("body.").replace("head.", "fc."): tensor
        for name, tensor in weights.items()
    }


def measured(cells: list[Attempt]) -> dict[str, Any]:
    """What attacks on the released model gave, by attack, without clocks and names."""
    own = [cell for cell in cells if not cell.defense.control]
    found = metrics(gather(own))
    for content in found.values():
        del content["key"], content["defense"]
        for name in ("key", "defense", "cost", "note"):
            del content["released"][name]
    return {cell.attack.label: found[cell.key] for cell in own}


def audited(file: Path, store: Path, out: Path, *arguments: object) -> tuple[list[Attempt], Result]:
    result = audit(file, store, "--seeds", "0", "--json", out, *arguments)
    assert result.exit_code == 0, result.output
    return read_cells(out), result


def test_what_a_run_released_gets_the_numbers_of_the_run(
    ran: tuple[Path, list[Attempt], Path], tmp_path: Path
) -> None:
    store, cells, file = ran
    again, result = audited(file, store, tmp_path / "out.json")
    assert measured(again) == measured(cells)
    (defense,) = {cell.defense.source: cell.defense for cell in again if not cell.defense.control}
    assert defense == file.stem, "the store names weights by their SHA-256"
    assert f"SHA-256 {file.stem}, above as checkpoint-{file.stem[:12]}." in result.stdout
    assert "The undefended model is this benchmark's own" in result.stdout
    assert "Every seed attacks the same file" in result.stdout
    assert "Verdict, provisional: cannot be told" in result.stdout
    assert "Who won" in result.stdout


def test_timms_own_names_get_the_same_numbers(
    ran: tuple[Path, list[Attempt], Path], tmp_path: Path
) -> None:
    store, cells, file = ran
    plain = written(tmp_path, as_timm(load_file(file)))
    again, _ = audited(plain, store, tmp_path / "out.json")
    assert measured(again) == measured(cells)
    assert {c.released.weights for c in again if not c.defense.control} == {file.stem}


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.module."])
def test_wrapped_names_get_the_same_numbers_and_a_warning(
    ran: tuple[Path, list[Attempt], Path], tmp_path: Path, prefix: str
) -> None:
    store, cells, file = ran
    wrapped = {prefix + name: tensor for name, tensor in as_timm(load_file(file)).items()}
    plain = written(tmp_path, wrapped)
    again, result = audited(plain, store, tmp_path / "out.json")
    assert measured(again) == measured(cells)
    told = f"{plain}: names are read without their prefix '{prefix}'"
    assert f"warning: {told}\n" in result.stderr
    assert told in result.stdout


def test_two_models_of_one_file_are_told_apart_by_their_prefix(
    ran: tuple[Path, list[Attempt], Path], tmp_path: Path
) -> None:
    store, cells, file = ran
    released = as_timm(load_file(file))
    both = {f"state_dict.{name}": tensor for name, tensor in fresh().items()}
    both |= {f"state_dict_ema.module.{name}": tensor for name, tensor in released.items()}
    training = written(tmp_path, both)
    refused = audit(training, store)
    assert refused.exit_code == 2
    assert "--prefix 'state_dict.' or --prefix 'state_dict_ema.module.'" in refused.stderr
    again, result = audited(training, store, tmp_path / "out.json", "--prefix", "state_dict_ema")
    assert measured(again) == measured(cells)
    assert f"Audit of {training}, prefix 'state_dict_ema.', SHA-256 " in result.stdout
    assert "names are read without their prefix 'state_dict_ema.module.'" in result.stderr
    other, result = audited(training, store, tmp_path / "out.json", "--prefix", "state_dict.")
    assert result.stderr.count("without their prefix") == 0
    assert {c.released.key for c in again}.isdisjoint(
        c.released.key for c in other if not c.defense.control
    )
    assert measured(other) != measured(cells)


@pytest.mark.slow
def test_two_workers_find_the_file_and_get_the_same_numbers(
    ran: tuple[Path, list[Attempt], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ran[2], tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    again, _ = audited(
        Path("model.safetensors"), tmp_path / "store", tmp_path / "out.json",
        "--workers", "2", "--threads", "1", "--plugin", TINY, "--prefix", "",
    )  # fmt: skip
    assert measured(again) == measured(ran[1])


def test_a_file_that_was_moved_is_the_same_and_one_that_was_replaced_is_another(
    ran: tuple[Path, list[Attempt], Path], tmp_path: Path
) -> None:
    store, _, file = ran
    audited(file, store, tmp_path / "out.json")
    records = {f: f.stat().st_mtime_ns for f in store.glob("*/*.json")}
    moved = tmp_path / "elsewhere.safetensors"
    shutil.copy(file, moved)
    audited(moved, store, tmp_path / "out.json")
    assert {f: f.stat().st_mtime_ns for f in store.glob("*/*.json")} == records
    assert "unknown file 'elsewere.safetensors'; did you mean 'elsewhere.safetensors'?" in (
        audit(tmp_path / "elsewere.safetensors", store).stderr
    )
    written(tmp_path, fresh(), moved.name)
    plan = audit(moved, store, "--seeds", "0", "--dry-run").stdout
    assert "2 to do" in plan, "the file is released, and attacked"
    pinned = audit(moved, store, "--sha256", file.stem)
    assert pinned.exit_code == 2
    assert f"and should be {file.stem}" in pinned.stderr


def plan_for(file: Path, setting: Setting) -> Plan:
    request = Request(
        defenses=[checkpoints.trial(weight_files.read(file), BACKBONE, CLASSES)],
        attacks=arsenal(attacks, ["finetune"]),
        seeds=[0],
        samples=[20],
        steps=2,
    )
    return make_plan(request, [setting])


@pytest.mark.parametrize("change", ["replaced", "gone"])
def test_a_file_that_changes_during_a_run_ends_it_and_leaves_no_record(
    tmp_path: Path, setting: Setting, change: str
) -> None:
    file = written(tmp_path, fresh())
    plan = plan_for(file, setting)
    kept = file.read_bytes()
    if change == "gone":
        file.unlink()
    else:
        written(tmp_path, fresh(seed=1))
    store = Store(tmp_path / "store")
    engine = LocalEngine(store, torch.device("cpu"), Silent())
    message = "is not the file that was asked for" if change == "replaced" else "unknown file"
    with pytest.raises(CheckpointError, match=message):
        engine.run(plan)
    pretrain, none, released = plan.models
    assert (store.has_model(pretrain.key), store.has_model(released.key)) == (True, False)
    file.write_bytes(kept)
    found = LocalEngine(store, torch.device("cpu"), Silent()).run(plan)
    assert {cell.status for cell in found.cells} == {"ok"}
    assert none.key != released.key


def test_the_file_stands_in_keys_and_where_it_is_does_not(tmp_path: Path, setting: Setting) -> None:
    (tmp_path / "a").mkdir()
    one, other = written(tmp_path, fresh()), written(tmp_path / "a", fresh(), "b.safetensors")
    third = written(tmp_path, fresh(seed=1), "c.safetensors")
    keys = [{stage.key for stage in plan_for(f, setting).stages} for f in (one, other, third)]
    assert keys[0] == keys[1] != keys[2]
    content = weight_files.read(one)
    parts = [
        checkpoints.trial(content, BACKBONE, CLASSES, prefix=prefix)
        for prefix in (None, "", "ema", "ema.", "ema.module")
    ]
    assert {part.entry.source for part in parts} == {content.sha256}
    found = [part.parameters for part in parts]
    assert found[0] == {}, "stores that were made without prefixes keep their keys"
    assert found[1:] == [
        {"prefix": p, "outputs": None} for p in ("", "ema.", "ema.", "ema.module.")
    ]
    name = f"checkpoint-{content.sha256[:12]}"
    assert [parts[0].label, parts[3].label] == [name, f"{name}[prefix=ema.]"]
    assert {stage.key for stage in plan_of(setting, ["none"]).models} < keys[0]


def pickled(folder: Path) -> Path:
    """A file that makes another one if it is unpickled."""

    class Malicious:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return os.mkdir, (str(folder / "unpickled"),)

    file = folder / "model.pt"
    file.write_bytes(pickle.dumps(Malicious()))
    return file


def saved_by_torch(folder: Path) -> Path:
    torch.save(fresh(), folder / "model.pt")
    return folder / "model.pt"


def directory(folder: Path) -> Path:
    (folder / "model.safetensors").mkdir()
    return folder / "model.safetensors"


def content(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = folder / "model.safetensors"
        file.write_bytes(change(save(fresh())))
        return file

    return make


def tensors(change: Callable[[Weights], Weights]) -> Callable[[Path], Path]:
    return lambda folder: written(folder, change(fresh()))


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    """Of a file whose header is changed, its tensors left as they are."""

    def changed(whole: bytes) -> bytes:
        end = 8 + int.from_bytes(whole[:8], "little")
        told = json.loads(whole[8:end])
        change(told)
        text = json.dumps(told).encode()
        return len(text).to_bytes(8, "little") + text + whole[end:]

    return content(changed)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (
        lambda folder: folder / "x.safetensors", "unknown file 'x.safetensors'; there are none"
    ),
    "directory": (directory, "is a directory; expected a safetensors file"),
    "pickle": (pickled, "a pickle: opening that could run anything, so it is never done here"),
    "torch.save": (saved_by_torch, "save_file(torch.load('model.pt', weights_only=True), "),
    "a path under a file": (
        lambda folder: written(folder, fresh()) / "x.safetensors", "cannot be read: Not a directory"
    ),
    "a name that no file can have": (
        lambda folder: folder / ("x" * 300), "cannot be read: File name too long"
    ),
    "empty": (content(lambda whole: b""), "is empty; expected a safetensors file"),
    "other bytes": (content(lambda whole: b"\x01\x02" * 9), "it does not begin with the length"),
    "text": (
        content(lambda whole: b"# a model card, say"),
        "is no safetensors file but plain text that begins '# a model card, say'",
    ),
    "cut in the header": (content(lambda whole: whole[:500]), "cut off in its header, which takes"),
    "cut in the tensors": (content(lambda whole: whole[:-7]), "it is cut off: its header tells of"),
    "longer": (content(lambda whole: whole + b"0" * 7), "is no whole safetensors file: "),
    "header that tells of more": (
        header(lambda told: told["fc.bias"].update(data_offsets=[0, 10**9])),
        "it is cut off: its header tells of",
    ),
    "unknown numbers": (
        header(lambda told: told["fc.bias"].update(dtype="Q7")), "is no whole safetensors file: "
    ),
    "another architecture": (
        lambda folder: written(folder, fresh(CLASSES, "test_vit")),
        "is no test_resnet of 6 classes: ",
    ),
    "another one that is known": (
        lambda folder: written(folder, fresh(10, "resnet18")), "it looks like --backbone resnet18"
    ),
    "its head": (
        lambda folder: written(folder, fresh(5)),
        "has a head for 5 classes, fewer than the 6 of wide, which the undefended model is trained "
        "on behind the same head; choose an original domain of at most 5",
    ),
    "its width": (
        tensors(lambda weights: {**weights, "conv1.0.weight": weights["conv1.0.weight"][:, :1]}),
        "1 of another shape (conv1.0.weight is (",
    ),
    "no head": (
        tensors(lambda weights: {n: t for n, t in weights.items() if not n.startswith("fc.")}),
        "2 names of 92 missing (fc.weight, fc.bias); it has no head: expected the model",
    ),
    "more": (
        tensors(lambda weights: {**weights, **{f"ema.{i}": torch.zeros(1) for i in range(5)}}),
        "5 unexpected (ema.0, ema.1, ema.2, …); --prefix '' takes the model alone",
    ),
    "integers": (
        tensors(lambda weights: {**weights, "fc.bias": weights["fc.bias"].to(torch.int8)}),
        "1 of another kind (fc.bias holds int8 where float32 is expected)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_released_model_is_refused_in_one_line_before_any_work(
    tmp_path: Path, case: str
) -> None:
    make, message = REFUSED[case]
    store = tmp_path / "store"
    result = audit(make(tmp_path), store)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not list(store.glob("models/*"))
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sha256", "abc"], "a SHA-256 has 64 hexadecimal digits"),
        (["--sha256", "0" * 64], f"and should be {'0' * 64}"),
        (["--backbone", "resnet_18"], "did you mean 'resnet18'"),
        (["--scenario", "tinny"], "did you mean 'tiny'"),
        (["--scenario", "tiny[image_size=[16,32]]"], "stands for 2"),
        (["--attack", "scratch"], "--attack scratch is a control"),
        (["--require", "2"], "2.0 is not in the range 0<=x<=1"),
        (["--json", "nowhere/out.json"], "cannot be written"),
        (["--prefix", "modul"], "no name begins with 'modul.'; there is --prefix ''"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    given_attack = [] if "--attack" in options else ["--attack", "finetune"]
    result = call(
        "audit", written(tmp_path, fresh()), "--scenario", "tiny", *given_attack,
        "--store", tmp_path / "store", *options,
    )  # fmt: skip
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_class_releases_the_file_and_nothing_else(
    tmp_path: Path, bench: Bench, pretrained: Made
) -> None:
    file = weight_files.read(written(tmp_path, fresh()))
    plugin = checkpoints.trial(file, BACKBONE, CLASSES).plugin
    made = loop.protect(bench, pretrained.weights, plugin, 0, lambda fraction, words: None)
    assert all(torch.equal(made.weights[n], t) for n, t in own_names(fresh()).items())
    assert made.cost.steps == 1


def own_names(weights: Weights) -> Weights:
    return {
        name.replace("fc.", "head.") if name.startswith("fc.") else f"body.{name}": tensor
        for name, tensor in weights.items()
    }


def test_a_model_that_guesses_is_told_what_the_scenario_expects(
    tmp_path: Path, bench: Bench, setting: Setting
) -> None:
    longer = Bench(
        data_with(bench, pretrain_steps=60), BACKBONE, device=bench.device, precision="fp32"
    )
    weights = dict(loop.pretrain(longer, 0, lambda fraction, words: None).weights)

    def told_of(weights: Weights, outputs: tuple[int, ...] | None = None) -> list[str]:
        content = weight_files.read(written(tmp_path, weights))
        plugin = checkpoints.trial(content, BACKBONE, CLASSES, outputs=outputs).plugin
        return checkpoints.inspect(content, plugin, setting, bench.device)

    assert told_of(weights) == []
    rolled = {n: t.roll(1, 0) if n.startswith("head.") else t for n, t in weights.items()}
    assert told_of(rolled, (1, 2, 3, 4, 5, 0)) == [], "the order of its classes is said"
    (told,) = told_of(rolled)
    assert "no better than guessing: its classes are probably in another order" in told
    assert "wide has 6 classes in the order 0, 1, 2, 3, 4, 5, and images are RGB, 16x16" in told
    assert "in [0, 1], less (0.5, 0.5, 0.5), over (0.5, 0.5, 0.5), as timm's config" in told


def data_with(bench: Bench, **changes: Any) -> Any:
    return dataclasses.replace(bench.data, **changes)


def test_guessing_is_chance_and_two_deviations() -> None:
    # 1/4 + 1.96 * sqrt(1/4 * 3/4 / 48) = 0.25 + 1.96 * 0.0625
    assert checkpoints.guessing(4, 48) == pytest.approx(0.3725)


def test_values_that_are_not_finite_are_told_and_are_no_protection(tmp_path: Path) -> None:
    weights = fresh()
    weights["conv1.0.weight"] = torch.full_like(weights["conv1.0.weight"], torch.nan)
    count = weights["conv1.0.weight"].numel()
    out = tmp_path / "out.json"
    result = audit(written(tmp_path, weights), tmp_path / "store", "--seeds", "0", "--json", out)
    assert result.exit_code == 0, result.output
    told = f"{count} of its values are not finite (in body.conv1.0.weight)"
    assert told in result.stderr
    assert told in result.stdout
    (row,) = (
        found
        for found in json.loads(out.read_text())["summary"]
        if "attack" not in found and not found["control"]
    )
    assert row["restricted_after"] == row["undefended_after"]


def test_a_dry_run_checks_the_file_and_does_nothing(tmp_path: Path) -> None:
    file, store = written(tmp_path, fresh()), tmp_path / "store"
    result = audit(file, store, "--seeds", "0-1", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("to do  protect checkpoint-") == 2
    assert not list(store.glob("models/*"))
    assert audit(written(tmp_path, fresh(5)), store, "--dry-run").exit_code == 2


def test_a_requirement_that_is_not_met_is_exit_code_one(
    ran: tuple[Path, list[Attempt], Path],
) -> None:
    store, _, file = ran
    assert audit(file, store, "--seeds", "0", "--require", "0").exit_code in (0, 1)
    result = audit(file, store, "--seeds", "0", "--require", "1")
    assert result.exit_code == 1
    assert "failed: resistance is not shown to be at least 1" in result.stderr


# A head of other classes -------------------------------------------------------------------------

NAMES = ["e", "5", "4", "3", "2", "1", "0", "a", "b", "c"]
"""What a head of ten outputs stands for; the tiny scenario's classes are 0 to 5."""


@pytest.fixture
def wider(ran: tuple[Path, list[Attempt], Path], tmp_path: Path) -> Path:
    """What `ran` released behind ten outputs, of which four are never the largest."""
    weights = as_timm(load_file(ran[2]))
    order = [NAMES.index(str(label)) for label in range(CLASSES)]
    for name, low in (("fc.weight", 0.0), ("fc.bias", -1e4)):
        rows = weights[name]
        weights[name] = torch.full((len(NAMES), *rows.shape[1:]), low)
        weights[name][order] = rows
    return written(tmp_path, weights)


def listed(folder: Path, names: list[str]) -> Path:
    file = folder / "classes.txt"
    file.write_text("\n".join(names) + "\n")
    return file


def test_the_original_domain_is_found_among_the_classes_of_a_head(
    ran: tuple[Path, list[Attempt], Path], wider: Path, tmp_path: Path
) -> None:
    classes = listed(tmp_path, NAMES)
    kept = ("--attack", "finetune[lr=0.03,head=kept]")
    again, result = audited(
        wider, tmp_path / "store", tmp_path / "out.json", "--classes", classes, *kept
    )
    (was,) = {cell.released.original for cell in ran[1] if not cell.defense.control}
    own = [cell for cell in again if not cell.defense.control]
    assert {cell.released.original for cell in own} == {was}
    assert {cell.backbone for cell in again} == {"test_resnet[num_classes=10]"}
    assert {cell.attack.label: cell.status for cell in own} == {
        "finetune[lr=0.03]": "ok", "finetune[lr=0.03,head=kept]": "ok",
    }  # fmt: skip
    assert {tuple(cell.defense.parameters["outputs"]) for cell in own} == {(6, 5, 4, 3, 2, 1)}
    assert "not scored" not in result.output
    model = load_model(load_results(tmp_path / "store"), own[0].defense.label)
    assert model.num_outputs == len(NAMES)


def test_a_head_of_unknown_classes_is_audited_without_original_accuracy(
    wider: Path, tmp_path: Path
) -> None:
    again, result = audited(wider, tmp_path / "store", tmp_path / "out.json")
    own = [cell for cell in again if not cell.defense.control]
    assert {cell.released.original for cell in own} == {None}
    assert all(cell.pretrained.original is not None for cell in own)
    assert {cell.status for cell in again} == {"ok"}
    words = "its head is for 10 classes, and which of them are the 6 of wide is not said (--classes"
    assert f"warning: {wider}: {words}" in result.stderr
    assert "Verdict, provisional: cannot be told" in result.stdout
    assert "Original accuracy is not known" in result.stdout


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[1:], "--classes names 9 classes, and the head of the file is for 10"),
        ([*NAMES[:-1], "4"], "--classes has class '4' 2 times; each class of the original domain"),
        (["e", "fivee", *NAMES[2:]], "--classes has unknown class '5'; there are: 0, 1, 2, 3, 4, "),
    ],
)
def test_classes_that_do_not_fit_are_one_line(
    names: list[str], message: str, wider: Path, tmp_path: Path
) -> None:
    result = audit(wider, tmp_path / "store", "--classes", listed(tmp_path, names))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_of_classes_may_begin_with_a_mark(tmp_path: Path) -> None:
    listed(tmp_path, NAMES).write_text("\n".join(NAMES), encoding="utf-8-sig")
    assert running._lines(tmp_path / "classes.txt") == NAMES


def test_classes_in_the_original_order_change_nothing(
    ran: tuple[Path, list[Attempt], Path], tmp_path: Path
) -> None:
    store, cells, file = ran
    classes = listed(tmp_path, [str(label) for label in range(CLASSES)])
    again, _ = audited(file, store, tmp_path / "out.json", "--classes", classes)
    assert {c.defense.label for c in again if not c.defense.control} == {
        f"checkpoint-{file.stem[:12]}"
    }
    assert measured(again) == measured(cells)


def row(
    resistance: float | None,
    half: float | None = 0.05,
    intactness: float = 1.0,
    trainability: float | None = 0.8,
) -> dict[str, Any]:
    return {
        "resistance": resistance,
        "resistance_half_width": half,
        "intactness": intactness,
        "trainability": trainability,
        "provisional": False,
        "unscored": "no seed on which attacks ran",
        "restricted_after": 0.5,
        "undefended_after": 0.9,
        "scratch_after": 0.4,
        "utility": "accuracy",
        "original_after": 0.97,
        "original_before": 0.99,
    }


UNKNOWN = {"original_after": None, "intactness": None}
"""Of a file whose head is for other classes."""


@pytest.mark.parametrize(
    ("told", "kept", "words"),
    [
        (row(0.96), True, ": non-fine-tunable. Of the advantage"),
        (row(0.97), True, "leaves 3 % at the budget where it leaves most (95 % interval"),
        (row(0.2), False, ": fine-tunable. Of the advantage"),
        (row(0.84), False, "(95 % interval 11 to 21); at the whole budget the attacker reaches"),
        (row(0.2, trainability=None), False, ": fine-tunable"),
        (row(0.94), None, "(the interval of resistance, 0.89 to 0.99, has 0.9 in it). Of"),
        (row(0.86), None, "cannot be told (the interval of resistance, 0.81 to 0.91"),
        (row(1.0, None), None, f"cannot be told ({NO_INTERVAL}). Of the advantage"),
        (row(1.0, intactness=0.3), None, "cannot be told (intactness is 0.30: what an attacker"),
        (row(1.0, trainability=None), None, "cannot be told (trainability is not known: "),
        (row(0.2) | UNKNOWN, False, "Original accuracy is not known: the head of the file is for"),
        (row(1.0) | UNKNOWN, None, "cannot be told (intactness is not known: "),
        (row(None, None), None, "cannot be told. There is no resistance: no seed on which"),
    ],
)  # fmt: skip
def test_the_verdict_goes_by_the_interval(
    told: dict[str, Any], kept: bool | None, words: str
) -> None:
    assert audits.kept(told) is kept
    assert words in audits.verdict(told)
    assert audits.verdict(told).startswith("Verdict: ")
    assert audits.verdict({**told, "provisional": True}).startswith("Verdict, provisional: ")


@pytest.mark.parametrize(
    ("told", "required", "met"),
    [
        (row(0.9), 0.85, True),
        (row(0.9), 0.86, False),
        (row(0.9, None), 0.9, True),
        (row(0.9, None), 0.91, False),
        (row(None, None), 0.0, False),
    ],
)
def test_a_requirement_goes_by_the_lower_end(
    told: dict[str, Any], required: float, met: bool
) -> None:
    verdict = Verdict(
        kept=audits.kept(told), words="", resistance=told["resistance"],
        interval=audits.bounds(told), results=Results.of(Records()),
    )  # fmt: skip
    assert verdict.meets(required) is met


def test_a_plugin_that_is_made_of_a_file_is_in_no_list() -> None:
    assert not [name for name in defenses.names(hidden=True) if name.startswith("checkpoint")]
