"""``sophon-bench data``, and the commands of docs/data.md on written files."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_pair import draw
from test_published_sets import write_idx

from sophon_bench.cli import main
from sophon_bench.data import kept
from sophon_bench.data.sets import SETS

DOCS = Path(__file__).parents[1] / "docs/data.md"
COMMANDS = re.findall(r"^\$ sophon-bench (.*)$", DOCS.read_text(), re.MULTILINE)


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def refused(*words: str | Path) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small MNIST, which is as published."""
    counts = {"train": 60, "test": 40}
    monkeypatch.setitem(SETS, "mnist", dataclasses.replace(SETS["mnist"], counts=counts))
    write_idx(tmp_path / "sets/MNIST/raw", "mnist", packed=True)
    return tmp_path / "sets"


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_documentation_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "flowers", "abc", 12)
    draw(tmp_path / "animals", "xy", 30, split="train")
    draw(tmp_path / "animals", "xy", 8, split="test")
    monkeypatch.chdir(tmp_path)
    result = call(*shlex.split(command))
    assert result.exit_code == 0, result.output
    assert result.stdout


def test_the_documentation_has_commands() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"show", "run", "data"}


def test_list_says_what_there_is_and_where_it_belongs(sets: Path) -> None:
    (sets / "svhn").mkdir()
    (sets / "svhn/train_32x32.mat").write_bytes(b"x")
    head, *rows = call("data", "list", "--data", sets).stdout.splitlines()
    assert head.split() == ["name", "size", "licence", "place", "state", "page"]
    lines = {line.split()[0]: line for line in rows}
    assert lines.keys() == SETS.keys()
    for name, line in lines.items():
        assert SETS[name].licence in line
        assert line.endswith(SETS[name].page)
    state = {name: re.split("  +", line)[4] for name, line in lines.items()}
    assert (state.pop("mnist"), state.pop("svhn")) == ("here", "not whole")
    assert {*state.values()} == {"missing"}
    assert f"{sets}/CINIC-10" in lines["cinic10"]
    assert "$SOPHON_BENCH_DATA/CINIC-10" in call("data", "list").stdout


def test_list_knows_the_home_directory(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(sets.parent))
    (sets / "svhn").mkdir()
    (sets / "svhn/train_32x32.mat").write_bytes(b"x")
    listed = call("data", "list", "--data", f"~/{sets.name}").stdout
    assert next(line for line in listed.splitlines() if line.startswith("svhn")).count("not whole")


def test_prepare_converts_once(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "data",
        "prepare",
        "mnist",
        "--data",
        sets,
        "--image-size",
        16,
        "--store",
        tmp_path / "s",
    )
    first = call(*words)
    assert first.stdout == "mnist: 10 classes; train 60, test 40; 16x16 pixels\n"
    monkeypatch.setattr(kept, "_write", lambda *_: pytest.fail("converted again"))
    assert call(*words).stdout == first.stdout
    assert "SOPHON_BENCH_DATA" not in os.environ, "named for the command alone"


def test_prepare_and_check_take_folders(tmp_path: Path) -> None:
    root = draw(tmp_path / "flowers", "abc", 4)
    prepared = call("data", "prepare", f"folder:{root}", "--store", tmp_path / "store")
    assert prepared.stdout == f"folder:{root}: 3 classes; all 12; 64x64 pixels\n"
    checked = call("data", "check", f"folder:{root}")
    assert checked.stdout == f"folder:{root}: 12 images of 3 classes, all read\n"


def test_check_reads_every_picture(tmp_path: Path) -> None:
    root = draw(tmp_path / "flowers", "abc", 4)
    (root / "b/3.jpg").write_bytes((root / "b/3.jpg").read_bytes()[:300])
    assert refused("data", "check", f"folder:{root}").startswith(
        f"'{root}/b/3.jpg' cannot be decoded: Truncated File Read"
    )


def test_check_compares_counts(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("data", "check", "mnist", "--data", sets).stdout == (
        "mnist: 100 images of 10 classes, all read\n"
    )
    counts = {"train": 60_000, "test": 10_000}
    monkeypatch.setitem(SETS, "mnist", dataclasses.replace(SETS["mnist"], counts=counts))
    assert "has 60 train images, 60000 were published" in refused(
        "data", "check", "mnist", "--data", sets
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("check", "mnis"), "unknown domain 'mnis'; did you mean 'mnist'"),
        (("check", "shapes"), "'shapes' is drawn, and needs no files"),
        (("check", "folder:nowhere"), "folder 'nowhere' is not there"),
        (("prepare", "cifar10"), "CIFAR-10 is needed: name the folder with cifar-10-batches-py"),
        (("prepare", "cifar10", "--download"), "name the folder to download CIFAR-10 to by --data"),
        (("prepare", "cifar10", "--data", "nowhere"), "the folder of sets 'nowhere' (--data or"),
        (("prepare",), "Missing argument 'NAME...'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("data", *words).startswith(expected)
