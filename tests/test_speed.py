"""The roofline: numbers that fit together, and a command that says and writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sophon_bench import registry
from sophon_bench.cli import main
from sophon_bench.selectors import trials
from sophon_bench.speed import roofline
from sophon_bench.stages import Bench


def test_numbers_of_a_roofline_fit_together(bench: Bench) -> None:
    found = trials(registry.attacks, ["finetune[batch_size=8]", "scratch[batch_size=8]"])
    told: list[float] = []
    measured = roofline(
        bench,
        [(trial.label, trial.plugin) for trial in found],
        batch_size=8,
        samples=20,
        rounds=3,
        tick=told.append,
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert measured.flops == bench.profile.flops_per_unit * 8
    assert measured.bare_mfu == pytest.approx(
        measured.flops / measured.bare_seconds / measured.peak
    )
    assert [loop.attack for loop in measured.loops] == [trial.label for trial in found]
    for loop in measured.loops:
        middle, low, high = loop.speed
        assert 0 < low <= middle <= high
        assert loop.mfu == pytest.approx(measured.flops / loop.seconds / measured.peak)
    assert measured.peak > 0


def test_the_command_says_and_writes_the_roofline(tmp_path: Path) -> None:
    file = tmp_path / "roofline.json"
    common = ["--scenario", "tiny", "--batch-size", "8", "--rounds", "2", "--json", str(file)]
    result = CliRunner().invoke(
        main, ["overhead", "--roofline", *common, "--attack", "finetune[lr=0.03]"]
    )
    assert result.exit_code == 0, result.output
    for words in ("matmul peak", "bare forward + backward", "finetune[lr=0.03]", "MFU", "2 rounds"):
        assert words in result.output
    ((row,),) = [json.loads(file.read_text())]
    assert row["setting"].startswith("test_resnet, 16x16, batch 8, fp32")
    assert row["loops"][0]["attack"] == "finetune[lr=0.03]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --roofline"),
        (["--roofline", "--attack", "finetun"], "finetune"),
        (["--roofline", "--rounds", "1"], "--rounds"),
        (["--roofline", "--json", "/nowhere/x.json"], "cannot be written"),
        (["--roofline", "--compile", "fast"], "'off'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["overhead", *arguments])
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1
