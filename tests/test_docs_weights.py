"""The commands of docs/weights.md are understood, with their backbones and weights."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from test_packaged_weights import needs_package

from sophon_bench.cli import main

PAGE = Path(__file__).parent.parent / "docs/weights.md"
COMMANDS = re.findall(r"^\$ sophon-bench (.+)$", PAGE.read_text(), re.MULTILINE)


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 3


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=needs_package if "lite0" in c else ()) for c in COMMANDS],
)
def test_a_command_is_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("resnet18").state_dict(), "my.pth")
    result = CliRunner().invoke(main, [*shlex.split(command), "--dry-run", "--store", "store"])
    assert result.exit_code == 0, result.output
    assert re.search(r"to do  pretrain \S+ seed=0", result.stdout)
