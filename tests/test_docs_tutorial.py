"""The commands of docs/tutorial-own-data.md, one after the other, on written files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from sophon_bench.cli import main

PAGE = (Path(__file__).parents[1] / "docs/tutorial-own-data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ sophon-bench (.+)$", PAGE, re.MULTILINE)
CLASSES = ["daisy", "grass", "moss", "rose"]
"""Of the model that is audited."""


def pictures(folder: Path, count: int, hue: int) -> None:
    """Noise around one colour, as JPEG files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(hue)
    for number in range(count):
        noise = rng.integers(0, 60, (40, 40, 3))
        Image.fromarray((noise + np.array([hue, 90, 190 - hue])).astype(np.uint8)).save(
            folder / f"{number}.jpg"
        )


def weights(file: Path, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    save_file(timm.create_model("test_resnet", num_classes=classes).state_dict(), file)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, (domain, name) in enumerate(
        [("flowers", "daisy"), ("flowers", "rose"), ("animals", "cat"), ("animals", "dog")]
    ):
        pictures(tmp_path / domain / name, 60, 50 * number)
    weights(tmp_path / "my.safetensors", 3, 0)
    weights(tmp_path / "released.safetensors", len(CLASSES), 1)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("forget")
def test_the_tutorial_runs_from_top_to_bottom(here: Path) -> None:
    outputs = []
    for command in COMMANDS:
        result = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"
        outputs.append(result.stdout)
    assert (here / "sheet.png").stat().st_size > 1000
    assert "to do  protect naive-ascent" in outputs[2]
    assert (here / "out.json").exists()
    assert "naive-ascent" in outputs[3]
    assert "Verdict, provisional: " in outputs[4]
    assert "Original accuracy is" in outputs[4]
    assert "Original accuracy is not known" not in outputs[4]
    assert "FAILED" not in outputs[-1]


def test_the_tutorial_is_a_page_of_seven_commands() -> None:
    assert len(COMMANDS) == 7
    assert len(PAGE.splitlines()) <= 60
