"""What a user gets from the wheel, away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGED = (".py", ".yaml", ".html", ".css", ".js")


def test_no_module_has_more_than_500_lines() -> None:
    modules = (
        file
        for folder in ("attacks", "defenses", "leaderboard", "sophon_bench")
        for file in (ROOT / folder).rglob("*.py")
    )
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in modules}
    assert len(lines) > 200
    assert [file for file, count in lines.items() if count > 500] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "checkout"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_all_plugins_and_suites_and_no_generic_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names}
    assert {p for p in packages if not p.endswith(".dist-info")} == {"sophon_bench"}
    for folder in ("attacks", "defenses", "leaderboard"):
        for file in (ROOT / folder).rglob("*"):
            kept = file.suffix in PACKAGED or file.is_relative_to(ROOT / "leaderboard" / "zoo")
            if file.is_file() and kept:
                assert f"sophon_bench/{file.relative_to(ROOT)}" in names
    assert "sophon_bench/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_wheel_finds_its_plugins_from_any_directory(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(tmp_path)}
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "attacks").mkdir(parents=True)
    (elsewhere / "attacks" / "__init__.py").touch()

    def call(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment, cwd=elsewhere, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    assert str(site) in call("-c", "import sophon_bench; print(sophon_bench.__file__)")
    assert "finetune" in call("-m", "sophon_bench.cli", "list", "attacks")
    assert "sophon-klu" in call("-m", "sophon_bench.cli", "list", "defenses")
    assert "@smoke" in call("-m", "sophon_bench.cli", "list", "suites")
