"""What looks after a store: verify, gc, push and pull, over every back end."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import MakeCell, gather
from msgspec.structs import replace

from sophon_bench.cli import main
from sophon_bench.plugins.failures import BadInput
from sophon_bench.results import upkeep
from sophon_bench.results.files import TEMPORARY, Folder, LocalFolder, folder
from sophon_bench.results.records import Asked, Cell, ModelRecord, Run, dump
from sophon_bench.results.store import Store, StoreError
from sophon_bench.results.upkeep import HOUR, copy, delete, verify, waste

Fill = Callable[[str], Store]


@pytest.fixture
def fill(make_cell: MakeCell) -> Fill:
    """Two seeds, two trials: four models with weights of their own, four cells, one run."""

    def filled(root: str) -> Store:
        store = Store(root)
        records = gather([make_cell(seed=seed, attack=f"finetune[lr={lr}]")
                          for seed in (0, 1) for lr in (0.1, 0.2)])  # fmt: skip
        for number, model in enumerate(records.models.values()):
            digest = store.put_weights({"w": torch.full((9,), float(number))})
            store.put_model(replace(model, weights=digest))
        for cell in records.cells:
            store.put_cell(cell)
        run = Run(command="c", provenance=make_cell().provenance)
        store.begin(run, [Asked(key=cell.key) for cell in records.cells])
        return store

    return filled


def call(*words: object) -> Result:
    return CliRunner().invoke(main, ["store", *map(str, words)])


def names(root: str, kind: str, suffix: str) -> list[str]:
    return [f"{kind}/{name}" for name in folder(root).names(kind, suffix)]


def test_a_store_that_is_whole_is_sound(root: str, fill: Fill) -> None:
    found = verify(fill(root))
    assert (found.models, found.cells, found.weights, found.runs) == (4, 4, 4, 1)
    assert found.sound
    assert not found.findings


def cell_and_model(files: Folder) -> tuple[Cell, str, ModelRecord, str]:
    """The first cell and its model, with their names."""
    store = Store(files.root, reading=True)
    cell = next(store.cells())
    return cell, f"cells/{cell.key}.json", store.model(cell.model), f"models/{cell.model}.json"


def cut(files: Folder) -> str:
    name = cell_and_model(files)[1]
    files.write(name, files.read(name)[:-20])
    return f"damaged: {name}"


def edit(files: Folder) -> str:
    cell, name, _, _ = cell_and_model(files)
    files.write(name, dump(replace(cell, budget=cell.budget * 2)))
    return f"damaged: {name}: its key does not follow"


def swap(files: Folder) -> str:
    first, second = names(files.root, "cells", ".json")[:2]
    files.write(first, files.read(second))
    return f"damaged: {first}: record"


def flip(files: Folder) -> str:
    name = names(files.root, "models", ".safetensors")[0]
    files.write(name, files.read(name)[:-1] + b"x")
    return f"damaged: {name}: SHA-256 differs"


def lose_weights(files: Folder) -> str:
    name = f"models/{cell_and_model(files)[2].weights}.safetensors"
    files.remove(name)
    return f"missing: {name}"


def lose_model(files: Folder) -> str:
    _, _, _, name = cell_and_model(files)
    files.remove(name)
    return f"missing: {name}: of 2 cells"


def lose_pretrained(files: Folder) -> str:
    _, _, model, name = cell_and_model(files)
    files.remove(f"models/{model.pretrained}.json")
    return f"missing: models/{model.pretrained}.json: of {name}"


def damage_manifest(files: Folder) -> str:
    (name,) = names(files.root, "runs", ".jsonl")
    files.write(name, files.read(name).replace(b'{"key"', b'{"k', 1))
    return f"damaged: {name}"


def behead_manifest(files: Folder) -> str:
    (name,) = names(files.root, "runs", ".jsonl")
    files.write(name, files.read(name).partition(b"\n")[2])
    return f"damaged: {name}"


DAMAGES = [
    cut, edit, swap, flip, lose_weights, lose_model, lose_pretrained, damage_manifest,
    behead_manifest,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_missing_is_told(
    root: str, fill: Fill, damage: Callable[[Folder], str]
) -> None:
    store = fill(root)
    words = damage(folder(root))
    found = verify(store)
    assert not found.sound
    assert next(str(each) for each in found.findings if each.bad).startswith(words)


@pytest.mark.parametrize("look", ["verify", "copy"])
def test_what_a_run_makes_meanwhile_is_not_missing(
    tmp_path: Path, fill: Fill, make_cell: MakeCell, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    store = fill(str(tmp_path / "a"))
    listed = store.tried_models

    def then_another() -> Any:
        found = list(listed())
        new = gather([make_cell(seed=7)])
        for model in new.models.values():
            store.put_model(model)
        store.put_cell(new.cells[0])
        return iter(found)

    monkeypatch.setattr(store, "tried_models", then_another)
    if look == "verify":
        assert verify(store).sound
    else:
        assert copy(store, Store(tmp_path / "b")).left_out == []
    assert len(store.finished()) == 4 + 4 + 3


def test_what_was_written_meanwhile_is_no_waste(
    root: str, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(root)
    monkeypatch.setattr(upkeep, "_temporary", lambda _files: [f"cells/{TEMPORARY}1"])
    assert waste(store, time.time() + 2 * HOUR) == []


@pytest.mark.parametrize(("kind", "suffix"), [("models", ".safetensors"), ("runs", ".jsonl")])
def test_what_cannot_be_read_is_told_and_the_rest_is_looked_at(
    tmp_path: Path, fill: Fill, kind: str, suffix: str
) -> None:
    store = fill(str(tmp_path))
    name = names(str(tmp_path), kind, suffix)[0]
    tmp_path.joinpath(name).unlink()
    tmp_path.joinpath(name).mkdir()
    found = verify(store)
    assert [str(each) for each in found.findings if each.bad] == [
        f"damaged: {name}: it cannot be read: Is a directory"
    ]
    assert (found.models, found.cells) == (4, 4)


def test_the_command_says_it_and_scripts_see_it(tmp_path: Path, fill: Fill) -> None:
    store = fill(str(tmp_path))
    done = call("verify", "--store", tmp_path)
    assert done.exit_code == 0, done.output
    assert "4 cells, 4 models, 4 files of weights" in done.stdout
    assert done.stdout.rstrip().endswith("1 runs: sound")
    words = flip(folder(store.root))
    done = call("verify", "--store", tmp_path)
    assert done.exit_code == 1
    assert words in done.stdout.splitlines()
    assert call("verify", "--store", tmp_path / "nowhere").exit_code == 2


def test_what_is_not_used_or_not_finished_is_told_and_no_damage(root: str, fill: Fill) -> None:
    store, files = fill(root), folder(root)
    cell, name, _, _ = cell_and_model(files)
    files.remove(name)
    stray = f"models/{store.put_weights({'w': torch.ones(1)})}.safetensors"
    files.write(f"cells/{TEMPORARY}1", b"x")
    (run,) = names(root, "runs", ".jsonl")
    files.append(run, b"\n" + dump(Asked(key="a"))[:-3])  # by a crash
    files.append(run, b"\n" + dump(Asked(key=cell.key, derived=True)))
    found = verify(store)
    assert found.sound
    assert [str(each) for each in found.findings] == [
        f"unused: {stray}", f"unused: cells/{TEMPORARY}1",
        f"open: {run}: 1 of 4 cells are not made",
    ]  # fmt: skip


def everything(root: str) -> dict[str, bytes]:
    kinds = ("models", "cells", "runs")
    return {name: folder(root).read(name) for kind in kinds for name in names(root, kind, "")}


def test_what_nothing_refers_to_is_deleted_after_an_hour_and_no_more(root: str, fill: Fill) -> None:
    store, files = fill(root), folder(root)
    before = everything(root)
    stray = f"models/{store.put_weights({'w': torch.ones(1)})}.safetensors"
    temporary = f"cells/{TEMPORARY}1"
    files.write(temporary, b"xyz")
    assert waste(store) == [], "a run may be about to use it"
    assert waste(store, time.time() - 24 * HOUR) == [], "the clock jumped back"
    later = time.time() + HOUR + 60
    found = waste(store, later)
    assert [each.name for each in found] == [stray, temporary]
    freed = len(files.read(stray)) + 3
    assert delete(store, [dataclasses.replace(each, written=0.0) for each in found]) == 0, (
        "written again"
    )
    assert delete(store, found) == freed
    assert delete(store, []) == 0
    assert everything(root) == before
    assert verify(store).sound


def test_gc_says_what_it_would_free(tmp_path: Path, fill: Fill) -> None:
    store = fill(str(tmp_path))
    stray = tmp_path / f"models/{store.put_weights({'w': torch.ones(1)})}.safetensors"
    reading = tmp_path / "data" / f"{TEMPORARY}set"
    reading.mkdir()
    (reading / "pixels.npy").write_bytes(bytes(1000))
    for path in (stray, reading, reading / "pixels.npy"):
        os.utime(path, (0, 0))
    dry = call("gc", "--store", tmp_path, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "2 files, " in dry.stdout
    assert "would be freed" in dry.stdout
    assert stray.exists()
    done = call("gc", "--store", tmp_path)
    assert done.exit_code == 0, done.output
    assert f"models/{stray.name} (" in done.stdout
    assert not stray.exists()
    assert not reading.exists()
    cut_model = tmp_path / names(str(tmp_path), "models", ".json")[0]
    cut_model.write_bytes(b"{")
    refused = call("gc", "--store", tmp_path)
    assert refused.exit_code == 2
    assert "not known which weights are its own" in refused.stderr


@pytest.mark.parametrize("there", [True, False])
def test_a_copy_holds_the_same_and_is_made_once(
    root: str, tmp_path: Path, fill: Fill, there: bool
) -> None:
    other = str(tmp_path / "other")
    start, end = (root, other) if there else (other, root)
    source = fill(start)
    done = copy(source, Store(end))
    assert (done.models, done.weights, done.cells, done.runs) == (4, 4, 4, 1)
    assert not done.left_out
    assert everything(end) == everything(start)
    done = copy(source, Store(end))
    assert (done.models, done.weights, done.cells, done.runs) == (0, 0, 0, 0)
    lost = lose_weights(folder(end)).removeprefix("missing: ")
    assert copy(source, Store(end)).weights == 1
    assert folder(end).read(lost) == folder(start).read(lost)


def test_what_is_ok_stands_and_what_failed_is_replaced(
    root: str, tmp_path: Path, fill: Fill
) -> None:
    source, target = fill(str(tmp_path)), Store(root)
    cell, other = list(source.cells())[:2]
    folder(root).write(f"cells/{cell.key}.json", dump(replace(cell, status="failed")))
    mine = replace(other, test_examples=7)
    folder(root).write(f"cells/{other.key}.json", dump(mine))
    copy(source, target)
    assert target.cell(cell.key) == cell
    assert target.cell(other.key) == mine


def test_cells_of_a_model_that_was_made_differently_are_left_out(
    tmp_path: Path, fill: Fill
) -> None:
    source, target = fill(str(tmp_path / "a")), Store(tmp_path / "b")
    *_, model, name = cell_and_model(folder(source.root))
    digest = target.put_weights({"w": torch.ones(1)})
    target.put_model(replace(model, weights=digest))
    done = call("push", tmp_path / "b", "--store", tmp_path / "a")
    assert done.exit_code == 1
    assert f"left out: {name}: the other store made it with other weights" in done.stderr
    assert done.stderr.count("its model is not copied") == 2
    assert target.model(model.key).weights == digest
    assert verify(target).cells == 2


@pytest.mark.parametrize("damage", [cut, edit, swap, flip, lose_weights, behead_manifest])
def test_what_is_damaged_is_not_copied(
    tmp_path: Path, fill: Fill, damage: Callable[[Folder], str]
) -> None:
    source, target = fill(str(tmp_path / "a")), Store(tmp_path / "b")
    name = damage(folder(source.root)).split(": ")[1]
    done = call("pull", tmp_path / "a", "--store", tmp_path / "b")
    assert done.exit_code == 1
    assert name in done.stderr
    assert done.stderr.count("left out: ") == len(done.stderr.splitlines())
    found = verify(target)
    assert found.sound, found.findings


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", range(14))
def test_a_copy_that_is_killed_leaves_a_store_that_is_valid_and_goes_on(
    tmp_path: Path, fill: Fill, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    source, other = fill(str(tmp_path / "a")), tmp_path / "b"
    left = after

    def mortal(whole: Callable[..., object]) -> Callable[..., object]:
        def write(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return whole(*arguments)

        return write

    with monkeypatch.context() as broken:
        for name in ("write", "create"):
            broken.setattr(LocalFolder, name, mortal(getattr(LocalFolder, name)))
        try:
            copy(source, Store(other))
        except Killed:
            assert after < 14, "a marker, four models of two files, four cells, a manifest"
    if other.joinpath("store.json").exists():
        assert verify(Store(other, reading=True)).sound
    copy(source, Store(other))
    assert everything(str(other)) == everything(str(source.root))


KILLED = """
import os, signal
from sophon_bench.results import files
left = {after}
replace = files._move
def move(*arguments, **named):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(*arguments, **named)
files._move = move
from sophon_bench.cli import main
main()
"""


@pytest.mark.parametrize("after", [4, 11])
def test_kill_9(tmp_path: Path, fill: Fill, after: int) -> None:
    source, other = fill(str(tmp_path / "a")), tmp_path / "b"
    words = ["store", "push", str(other), "--store", str(source.root)]
    dead = subprocess.run([sys.executable, "-c", KILLED.format(after=after), *words], check=False)
    assert dead.returncode == -signal.SIGKILL
    found = verify(Store(other, reading=True))
    assert found.sound, found.findings
    assert {each.state for each in found.findings} == {"unused"}, "what was being written"
    assert call(*words[1:]).exit_code == 0
    assert everything(str(source.root)).items() <= everything(str(other)).items()


def test_one_store_is_no_two(root: str, fill: Fill) -> None:
    with pytest.raises(BadInput, match="are one store"):
        copy(fill(root), Store(f"{root}/"))


def test_a_damaged_model_hides_no_weights(root: str, fill: Fill) -> None:
    store = fill(root)
    folder(root).write(names(root, "models", ".json")[0], b"")
    with pytest.raises(StoreError, match="not known which weights are its own"):
        waste(store)
