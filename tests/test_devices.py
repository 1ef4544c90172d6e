"""Precision and device: bf16 on the CPU, and everything once on a GPU if there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sophon_bench.cli import main
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Attacked, Made
from sophon_bench.harness.meter import PeakMemory
from sophon_bench.models.architecture import Precision
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry
from sophon_bench.plugins.suites import trials

BF16 = 0.1
"""What bf16 may change in a score: chance is 0.25 on the tiny scenario, whose splits are small."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def quiet(_fraction: float | None, _words: str) -> None:
    pass


def other(bench: Bench, device: str, precision: Precision) -> Bench:
    return Bench(
        bench.data, Backbone.of("test_resnet"), device=torch.device(device), precision=precision
    )


def losses(bench: Bench, made: Made) -> list[float]:
    """Training loss of the released weights on the attacker's samples, and after three updates."""
    model = bench.load(made.weights)
    train, _ = bench.attacker(bench.data.restricted, 40, 0)
    task = bench.data.restricted.task
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for _ in range(4):
        batch = next(train.batches(32, torch.Generator().manual_seed(0)))
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def attacked(bench: Bench, made: Made) -> Attacked:
    (trial,) = trials(registry.attacks, ["finetune"])
    return loop.attack(
        bench, made.weights, trial.plugin, samples=40, seed=0, budget=512, tick=quiet
    )


def test_bf16_trains_like_fp32(
    bench: Bench, pretrained: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's own kernels: oneDNN picks its bf16 kernels by processor, and has given NaN on one
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    half = other(bench, "cpu", "bf16")
    assert losses(half, pretrained) == pytest.approx(losses(bench, pretrained), rel=0.05)
    found, exact = attacked(half, pretrained), attacked(bench, pretrained)
    assert (found.status, found.reason) == ("ok", None)
    assert found.cost.units == pytest.approx(512, rel=0.02)
    for rough, point in zip(found.curve, exact.curve, strict=True):
        assert rough.selection == pytest.approx(point.selection, abs=BF16)
        assert rough.test == pytest.approx(point.test, abs=BF16)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_like_the_cpu(bench: Bench, pretrained: Made, precision: Precision) -> None:
    there = other(bench, "cuda", precision)
    tolerance = 1e-2 if precision == "fp32" else 0.05
    assert losses(there, pretrained) == pytest.approx(losses(bench, pretrained), rel=tolerance)


@needs_gpu
def test_every_stage_runs_on_a_gpu_and_counts_the_same(bench: Bench) -> None:
    there = other(bench, "cuda", "fp32")
    here, made = (loop.pretrain(b, 0, quiet) for b in (bench, there))
    assert made.cost.units == pytest.approx(here.cost.units, rel=0.01)
    for name in registry.defenses.names():
        names = set(registry.defenses.get(name).cls.__dataclass_fields__)
        small = {"iterations": 2, "inner_steps": 2}
        plugin = registry.defenses.get(name).cls(**{k: v for k, v in small.items() if k in names})
        released = loop.protect(there, made.weights, plugin, 0, quiet)
        assert all(t.device.type == "cpu" for t in released.weights.values())
    found = attacked(there, made)
    assert found.status == "ok"
    assert found.cost.peak_bytes


@needs_gpu
def test_peak_memory_of_a_gpu_is_what_was_allocated() -> None:
    with PeakMemory(torch.device("cuda")) as peak:
        held = torch.ones(2**26, dtype=torch.uint8, device="cuda")
        del held
    assert peak.bytes is not None
    assert peak.bytes >= 2**26


@needs_gpu
def test_the_command_line_finds_the_gpu(tmp_path: Path) -> None:
    fast = ["--scenario", "tiny", "--steps", "2", "--samples", "20", "--store", str(tmp_path)]
    result = CliRunner().invoke(main, ["run", *fast, "--device", "cuda:0"])
    assert result.exit_code == 0, result.output
    assert torch.cuda.get_device_name(0) in next((tmp_path / "cells").iterdir()).read_text()


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `torch.compile` hands its graphs to; the first makes no machine code and is quick."""
    original = torch.nn.Module.compile

    def patched(module: torch.nn.Module, **named: object) -> None:
        mode = {"mode": named["mode"]} if request.param == "inductor" else {}
        original(module, backend=request.param, **mode)

    monkeypatch.setattr(torch.nn.Module, "compile", patched)
    return str(request.param)


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own
def test_compiled_models_train_and_cost_as_others(bench: Bench, pretrained: Made) -> None:
    there = Bench(
        bench.data, bench.backbone, device=bench.device, precision="fp32", compiled="default"
    )
    assert there.profile.flops_per_unit == bench.profile.flops_per_unit
    assert set(there.profile.charges) == {"passed", "head"}
    found, plain = (attacked(b, pretrained) for b in (there, bench))
    assert (found.status, found.reason) == ("ok", None)
    assert found.cost.units == pytest.approx(plain.cost.units, rel=1e-3)
    for one, other in zip(found.curve, plain.curve, strict=True):
        assert one.steps == other.steps
        assert one.selection == pytest.approx(other.selection, abs=0.05)
    seen = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert seen > 0
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2])
def test_compiled_models_are_protected_as_others(
    order: int, bench: Bench, pretrained: Made, compiler: str
) -> None:
    if compiler == "inductor":
        pytest.skip("compiled to machine code once, in the attack")
    there = Bench(
        bench.data, bench.backbone, device=bench.device, precision="fp32", compiled="default"
    )
    plugin = registry.defenses.get("sophon-klu").cls(
        iterations=2, inner_steps=2, order=order, batch_size=16, adapt=8, max_drop=None
    )
    made, plain = (
        loop.protect(b, pretrained.weights, plugin, 0, quiet).weights for b in (there, bench)
    )
    for name, weight in plain.items():
        torch.testing.assert_close(made[name], weight, atol=1e-2, rtol=1e-2, msg=name)


def test_records_say_whether_models_were_compiled(tmp_path: Path) -> None:
    fast = ["--scenario", "tiny", "--steps", "2", "--samples", "20", "--store", str(tmp_path)]
    result = CliRunner().invoke(main, ["run", *fast, "--attack", "scratch", "--compile", "eager"])
    assert (result.exit_code, "'eager' is not one of 'off'" in result.output) == (2, True)
    result = CliRunner().invoke(main, ["run", *fast, "--attack", "scratch"])
    assert result.exit_code == 0, result.output
    assert '"compiled":"off"' in next((tmp_path / "cells").iterdir()).read_text()
