"""The roofline and growth: numbers that fit together, and commands that say and write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sophon_bench.api import DefenseView, Model
from sophon_bench.cli import main
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.speed import (
    Size,
    Unmeasurable,
    Update,
    check,
    exponent,
    exponents,
    growth,
    roofline,
    size,
)
from sophon_bench.leaderboard import figures
from sophon_bench.leaderboard.columns import frame
from sophon_bench.leaderboard.vega import Figure
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry
from sophon_bench.plugins.suites import trials
from sophon_bench.protocol import PRETRAIN_BATCH


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


@pytest.fixture(scope="module")
def larger(bench: Bench) -> Bench:
    other = Backbone.of("test_byobnet")
    return Bench(bench.data, other, device=bench.device, precision="fp32")


@dataclass(frozen=True)
class Cycle:
    """Looks at 60 examples first; then turns of an update of 32 examples and one of 2 of those."""

    length: int

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        batches = view.original.train.batches(32, view.rng)
        for _ in range(5):
            view.original.task.loss(model, next(batches)).backward()
        for number in range(self.length):
            for _ in range(1 + number % 2):
                view.original.task.loss(model, next(batches)).backward()
            yield model


def test_growth_counts_whole_cycles_after_the_start(bench: Bench) -> None:
    told: list[float] = []
    (update,) = growth(bench, [("cycle", Cycle(9))], updates=4, tick=told.append)
    assert update.units == pytest.approx(32 * (1 + 2) / 2)
    assert (update.backbone, update.defense) == ("test_resnet", "cycle")
    assert (update.parameters, update.flops) == size(bench)
    assert update.times == pytest.approx(update.seconds / update.pretrain_seconds)
    assert min(update.seconds, update.pretrain_seconds) > 0
    assert len(told) == 2 * 4
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_size_is_of_the_backbone_with_the_original_head(bench: Bench) -> None:
    model = Backbone.of("test_resnet").build(
        bench.data.original.task.num_outputs, torch.Generator()
    )
    assert size(bench) == Size(
        sum(p.numel() for p in model.parameters()), bench.profile.flops_per_unit
    )


def test_a_defense_that_ends_too_early_is_told(bench: Bench, larger: Bench) -> None:
    with pytest.raises(Unmeasurable, match=r"'cycle' ends after 8 updates.* measure 3"):
        growth(bench, [("cycle", Cycle(8))], updates=4, tick=lambda _: None)
    (none,) = trials(registry.defenses, ["none"])
    with pytest.raises(Unmeasurable, match=r"'none' ends after 1 updates.* another defense"):
        check([bench, larger], [("none", none.plugin)], updates=4)


def test_growth_needs_backbones_of_two_sizes(bench: Bench, larger: Bench) -> None:
    check([bench, larger], [("cycle", Cycle(1))], updates=4)
    with pytest.raises(Unmeasurable, match="different sizes; got test_resnet, test_resnet"):
        check([bench, bench], [], updates=4)


def test_an_exponent_is_the_slope_of_logarithms() -> None:
    assert exponent([(1, 3), (10, 300), (100, 30_000)]) == pytest.approx(2)
    # slopes 0 and 1 over like steps: least squares takes their mean
    assert exponent([(1, 1), (10, 1), (100, 10)]) == pytest.approx(0.5)


def updates() -> list[Update]:
    """Parameters n, FLOPs n^2, the defense n^3 seconds and pre-training n; another one n^2."""
    return [
        Update(
            backbone=f"b{n}", defense=defense, parameters=n, flops=float(n**2), units=64.0,
            seconds=float(n**power), pretrain_seconds=float(n), times=float(n ** (power - 1)),
        )
        for n in (2, 4, 8)
        for defense, power in (("one", 3), ("other", 2))
    ]  # fmt: skip


def test_exponents_are_fitted_for_each_defense() -> None:
    one, other = exponents(updates())
    assert (one.defense, other.defense) == ("one", "other")
    assert (one.by_parameters, one.by_flops) == (pytest.approx(3), pytest.approx(1.5))
    assert (other.by_parameters, other.by_flops) == (pytest.approx(2), pytest.approx(1))
    assert one.pretrain_by_parameters == pytest.approx(1)
    assert one.pretrain_by_flops == pytest.approx(0.5)


def test_the_picture_of_growth_has_points_and_fitted_lines() -> None:
    rows, fits = ([asdict(found) for found in group] for group in (updates(), exponents(updates())))
    figure = figures.growth(frame(rows), frame(fits), "here")
    by_parameters, by_flops = figure["hconcat"]

    def points(panel: Figure, name: str) -> list[tuple[float, float]]:
        return [(p["x"], p["y"]) for p in panel["data"]["values"] if p["name"] == name]

    assert points(by_parameters, "one") == [(2, 8), (4, 64), (8, 512)]
    assert points(by_parameters, "pre-training") == [(2, 2), (4, 4), (8, 8)]
    line, text, marker = (layer["mark"]["type"] for layer in by_flops["layer"])
    assert (line, text, marker) == ("line", "text", "point")
    fitted = by_flops["layer"][0]["data"]["values"]
    assert [end["y"] for end in fitted] == pytest.approx([2, 8, 8, 512, 4, 64])
    slopes = [end["slope"] for end in by_parameters["layer"][1]["data"]["values"]]
    assert [slope for slope in slopes if slope] == ["1.00", "3.00", "2.00"]


def test_the_command_says_writes_and_draws_growth(tmp_path: Path) -> None:
    file, picture = tmp_path / "growth.json", tmp_path / "growth.svg"
    result = CliRunner().invoke(
        main,
        [
            "overhead", "--growth", "--scenario", "tiny", "--updates", "2",
            "--backbone", "test_resnet", "--backbone", "test_byobnet",
            "--defense", "sophon-ice[ntr_steps=1,inner_steps=1]",
            "--json", str(file), "--plot", str(picture),
        ],
        env={"COLUMNS": "200"},  # a processor's name may fill a line
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("2 updates", "parameters", "test_byobnet", "exponent by FLOP", "pre-training"):
        assert words in result.output
    content = json.loads(file.read_text())
    assert [row["backbone"] for row in content["measured"]] == ["test_resnet", "test_byobnet"]
    for row in content["measured"]:  # 40 of a simulation, behind a head of another width
        assert row["units"] == pytest.approx((PRETRAIN_BATCH + 40) / 2, rel=0.01)
    assert content["exponents"][0]["defense"] == "sophon-ice[ntr_steps=1,inner_steps=1]"
    assert picture.read_bytes()[:5] == b"<svg "


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name it with --defense, of: "),
        (["--defense", "none", "--backbone", "test_resnet"],
         "at least two backbones of different sizes"),
        (["--defense", "sophon-icy"], "sophon-ice"),
        (["--updates", "0"], "--updates"),
        (["--defense", "none", "--backbone", "test_resnet", "--backbone", "test_byobnet"],
         "'none' ends after 1 updates"),
        (["--defense", "sophon-ice[min_original=1.0]", "--updates", "1",
          "--backbone", "test_resnet", "--backbone", "test_byobnet"],
         "below min_original=1.0"),
        (["--defense", "none", "--plot", "x"], "'x'"),
    ],
)  # fmt: skip
def test_growth_that_cannot_be_measured_is_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["overhead", "--growth", "--scenario", "tiny", *arguments])
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.stderr.strip().splitlines()) == 1
