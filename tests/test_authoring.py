"""What ``sophon-bench new`` writes works as it is, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sophon_bench.cli import main
from sophon_bench.plugins import authoring

ROOT = Path(__file__).parents[1]
KINDS = ("attack", "defense", "scenario")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def tool(
    folder: Path, *arguments: object, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=folder, env=environment, input=stdin, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_check_and_can_be_run(
    kind: str, tmp_path: Path, forget: None
) -> None:
    result = call("new", kind, f"my-{kind}", "--dir", tmp_path)
    assert result.exit_code == 0, result.output
    file = tmp_path / f"my_{kind}.py"
    assert sorted(tmp_path.iterdir()) == [file, tmp_path / f"test_my_{kind}.py"]
    assert len(file.read_text().splitlines()) < 60
    assert f"sophon-bench check {file}" in result.stdout
    assert f"sophon-bench run --plugin {file} --{kind} my-{kind}" in result.stdout
    checked = call("check", file)
    assert checked.exit_code == 0, checked.output
    assert "FAILED" not in checked.stdout
    assert checked.stdout.count("warning") == 2, "the citation is to be filled in, and counted"
    assert f"still has {authoring.PLACEHOLDER!r}" in checked.stdout
    scenario = () if kind == "scenario" else ("--scenario", "tiny")
    ran = call(
        "run", "--plugin", file, f"--{kind}", f"my-{kind}", *scenario, "--steps", 2,
        "--samples", 20, "--store", tmp_path / "store", "--dry-run",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert f"my-{kind}" in ran.stdout or kind == "scenario", "plans name no scenario"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_its_own_test(kind: str, tmp_path: Path) -> None:
    call("new", kind, "my-own", "--dir", tmp_path)
    done = tool(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "test_my_own.py")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_written_is_formatted_and_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    pytest.importorskip("ruff")
    for kind in KINDS:
        call("new", kind, f"my-{kind}", "--dir", tmp_path)
    for file in tmp_path.iterdir():
        place = "tests" if file.name.startswith("test_") else "attacks"
        for command in (["check"], ["format", "--check"]):
            done = tool(
                ROOT, "ruff", *command, "--stdin-filename", f"{place}/{file.name}", "-",
                stdin=file.read_text(),
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
    typed = tool(
        tmp_path, "mypy", "--strict", "--untyped-calls-exclude", "torch",
        "--cache-dir", ROOT / ".mypy_cache", "my_attack.py", "my_defense.py", "my_scenario.py",
        "test_my_attack.py",
    )  # fmt: skip
    assert typed.returncode == 0, typed.stdout + typed.stderr


BAD = [
    (["attack", "My_Attack"], "'My_Attack' should be lower-case letters and digits joined by"),
    (["attack", "two--dashes"], "at most 60 characters; try 'two-dashes'"),
    (["attack", "a" * 61], "at most 60 characters"),
    (["attack", "3d"], "'3d' should begin with a letter"),
    (["attack", ""], "should be lower-case letters and digits joined by hyphens"),
    (["attack", "finetune"], "attack 'finetune' exists"),
    (["defense", "sophon-ice"], "defense 'sophon-ice' exists"),
    (["scenario", "pair"], "scenario 'pair' exists"),
    (["attack", "lambda"], "a Python keyword"),
    (["attack", "random"], "would hide the installed Python module 'random'"),
    (["attack", "torch"], "would hide the installed Python module 'torch'"),
    (["attack", "test-it"], "pytest would collect test_it.py as a test"),
    (["atack", "mine"], "'atack' is not one of 'attack', 'defense', 'scenario'"),
    (["attack"], "Missing argument"),
    (["attack", "mine", "--dir", "nowhere"], "'nowhere' is not a directory that exists"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_a_name_that_will_not_do_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("new", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["mine.py", "test_mine.py"])
def test_nothing_is_overwritten(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("precious")
    result = call("new", "attack", "mine", "--dir", tmp_path)
    assert result.exit_code == 2
    assert f"{there}' exists and is not overwritten" in result.stderr
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["model", "none", "attack-view", "literal"])
def test_a_class_name_never_hides_another(name: str, tmp_path: Path) -> None:
    (file, _test) = authoring.write_plugin("attack", name, tmp_path)
    compile(file.read_text(), file, "exec")
    camel = "".join(word.capitalize() for word in name.split("-"))
    expected = camel if name == "literal" else f"{camel}Attack"
    assert f"class {expected}:" in file.read_text()


def test_among_installed_plugins_no_test_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authoring, "_is_plugin_package", lambda folder: True)
    result = call("new", "attack", "mine", "--dir", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]
    assert "commit mine.py and open a pull request" in result.stdout
    monkeypatch.undo()
    assert authoring._is_plugin_package(ROOT / "attacks")
    assert authoring._is_plugin_package(ROOT / "sophon_bench" / "defenses" / "sophon")
    assert not authoring._is_plugin_package(tmp_path)


def test_new_and_help_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, contextlib\n"
        "from sophon_bench.cli import main\n"
        "for a in (['new', 'attack', 'mine'], ['check', '--help'], ['new', '--help']):\n"
        "    with contextlib.suppress(SystemExit): main(a)\n"
        "print([m for m in ('torch', 'timm', 'pandas') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Examples:" in done.stdout
