"""Measure everything that docs/performance.md says, in ratios of one run: `make measure`.

    python tests/benchmarks/measure.py --out DIR [--device cpu] [--only NAME,NAME] [--quick]

Writes one JSON file per measurement, with the machine in it, a picture of how suppression grows,
and prints what it found.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).parent))

import references
from synthetic import records_like, write_records

from sophon_bench.api import AttackView, Domain, Model, attacks, scenarios
from sophon_bench.data.samples import Pixels
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.defenses.sophon.losses import inverse_cross_entropy
from sophon_bench.defenses.sophon.simulate import draw_steps, first_order, reset
from sophon_bench.defenses.sophon.strategies import Strategy
from sophon_bench.defenses.sophon.unroll import second_order
from sophon_bench.execution.engine import LocalEngine
from sophon_bench.execution.plan import Request, Setting, Stage, make_plan
from sophon_bench.harness.meter import CountedSamples, Meter, PeakMemory, WatchedTask, profile
from sophon_bench.harness.speed import exponent
from sophon_bench.leaderboard import vega
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins.suites import Arsenal, Rules, trials
from sophon_bench.results.provenance import device_name
from sophon_bench.results.records import DataId
from sophon_bench.results.store import Store

CLASSES = 10
SIZES = {"test_resnet": 32, "resnet18": 64}


def model_of(backbone: str, device: torch.device) -> Model:
    built = Backbone.of(backbone).build(CLASSES, torch.Generator().manual_seed(0))
    return built.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def domain_of(backbone: str, size: int, device: torch.device, count: int = 300) -> Domain:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=rng, dtype=torch.uint8)
    scale = Backbone.of(backbone).normalize
    held = Pixels(pixels, torch.arange(count) % CLASSES, scale, device=device)
    return Domain(Classification(CLASSES), held, held)


def synchronized(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    begin = synchronized(device)
    call()
    return synchronized(device) - begin


def suppression(
    backbone: str, size: int, inner_steps: int, device: torch.device, *, way: str, batch: int
) -> Callable[[], None]:
    """One outer step of suppression by ``way``, without the outer optimizer."""
    model, domain = model_of(backbone, device), domain_of(backbone, size, device)
    model.train()
    learner = model_of(backbone, device)
    strategy = Strategy.parse("sgd@0.01", batch_size=round(batch * 130 / 150), head="kept")
    rng = torch.Generator().manual_seed(0)

    def steps() -> Iterator[Any]:
        judge = batch - strategy.batch_size
        return draw_steps(
            domain.train, inner_steps, adapt=strategy.batch_size, judge=judge, gamma="mean", rng=rng
        )

    def ours(differentiate: Any) -> None:
        reset(learner, model, "kept", task=domain.task, rng=rng)
        differentiate(learner, strategy, steps(), task=domain.task, objective=inverse_cross_entropy)

    def theirs() -> None:
        model.zero_grad()
        references.learn2learn_style(
            model, steps(), lr=strategy.lr, task=domain.task, objective=inverse_cross_entropy
        )

    if way == "learn2learn-style":
        return theirs
    return functools.partial(ours, {"first": first_order, "second": second_order}[way])


PROMPT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Let glibc give freed memory back at once, so that what is resident is what is in use."""


def peak_of(backbone: str, size: int, inner_steps: int, way: str, batch: int, device: str) -> int:
    """Bytes above what model and data take, in a process of its own, after one step to warm up."""
    setting = (backbone, size, inner_steps, way, batch, device, torch.get_num_threads())
    os.environ |= PROMPT
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: int = pool.apply(_peak, setting)
    return found


def _peak(
    backbone: str, size: int, inner_steps: int, way: str, batch: int, device: str, threads: int
) -> int:
    torch.set_num_threads(threads)
    place = torch.device(device)
    call = suppression(backbone, size, inner_steps, place, way=way, batch=batch)
    suppression(backbone, 32, 1, place, way=way, batch=15)()
    before = _resident() if place.type == "cpu" else torch.cuda.memory_allocated()
    with PeakMemory(place) as peak:
        call()
    return (peak.bytes or 0) - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def paired(
    calls: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each, in turns."""
    for call in calls.values():
        seconds(call, device)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(seconds(call, device))
    return found


def told(found: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Medians, and the median of the paired ratios to ``base``."""
    return {
        name: {
            "seconds": statistics.median(values),
            "speed_up": statistics.median(b / v for b, v in zip(found[base], values, strict=True)),
            "rounds": len(values),
        }
        for name, values in found.items()
    }


def fts(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Suppression against a learn2learn-style loop: resnet18, 64x64, batch 150 = 130 + 20."""
    backbone, size, inner = ("test_resnet", 32, 5) if quick else ("resnet18", 64, 50)
    ways = ("first", "learn2learn-style")
    calls = {way: suppression(backbone, size, inner, device, way=way, batch=150) for way in ways}
    found = told(paired(calls, device, 2 if quick else 3), "learn2learn-style")
    peaks = {
        f"{way}, K={k}": peak_of(backbone, size, k, way, 150, str(device))
        for way, k in (*((way, inner) for way in ways), ("first", 5), ("first", 4 * inner))
    }
    return {"setting": f"{backbone} {size}x{size} K={inner}", "steps": found, "peak_bytes": peaks}


def loader(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """An attack's updates against a plain DataLoader fine-tune of the same model, in blocks."""
    result = {}
    for backbone, size in SIZES.items():
        block = 5 if quick or (backbone == "resnet18" and device.type == "cpu") else 40
        domain = domain_of(backbone, size, device)
        images = domain.train._pixels.cpu().numpy()  # type: ignore[attr-defined]
        data = references.Pictures(images, domain.train.targets.cpu().numpy())

        def plain(workers: int, name: str = backbone, data: Any = data) -> Iterator[object]:
            model = model_of(name, device)
            return references.loader_fine_tune(model, data, device, batch_size=64, workers=workers)

        ways: dict[str, Callable[[], Iterator[object]]] = {
            "sophon-bench": functools.partial(attack_steps, backbone, domain, device),
            "DataLoader, 0 workers": functools.partial(plain, 0),
            "DataLoader, 2 workers": functools.partial(plain, 2),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(2 if quick else 5):
            for name, way in ways.items():
                run = way()
                next(run)
                spent = seconds(lambda run=run, n=block: [*itertools.islice(run, n)], device)
                found[name].append(spent / block)
                run.close()  # type: ignore[attr-defined]
        result[f"{backbone} {size}x{size}"] = told(found, "DataLoader, 0 workers")
    return result


def attack_steps(
    backbone: str, domain: Domain, device: torch.device, selector: str = "finetune"
) -> Iterator[object]:
    size = domain.train[:1].inputs.shape[-1]
    model = model_of(backbone, device)
    meter = Meter(profile(model, torch.zeros(2, 3, size, size, device=device)), device)
    view = AttackView(
        task=WatchedTask(domain.task),
        train=CountedSamples(domain.train),
        validation=domain.validation,
        auxiliary=None,
        new_model=functools.partial(model_of, backbone, device),
        device=device,
        rng=torch.Generator(),
    )
    (trial,) = trials(attacks, [selector])
    run = meter.drive(trial.plugin.run(meter.watch(model), view))
    for _ in range(8):  # the first ones are sampled for their FLOPs: 1, 2, 3, 5, 8, then 13
        next(run)
    return run


def growth(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """How cost grows with K, the batch, the parameters and the records; exponent 1 is linear."""
    rounds = 2 if quick else 5
    found: dict[str, Any] = {}

    def curve(name: str, unit: str, points: list[tuple[float, float]]) -> None:
        found[name] = {"unit": unit, "points": points, "exponent": exponent(points[1:])}

    def typical(call: Callable[[], object]) -> float:
        seconds(call, device)
        return statistics.median(seconds(call, device) for _ in range(rounds))

    inner = (1, 2, 5) if quick else (1, 2, 5, 10, 20, 50)
    for way in ("first", "second", "learn2learn-style"):
        points = [
            (k, typical(suppression("test_resnet", 32, k, device, way=way, batch=40)))
            for k in inner
        ]
        curve(f"K, {way}", "seconds", points)
        memory = [(k, float(peak_of("test_resnet", 32, k, way, 40, str(device)))) for k in inner]
        found[f"K, {way}, memory"] = {"unit": "bytes above model and data", "points": memory}
    sizes = (8, 16, 32) if quick else (8, 16, 32, 64, 128, 256)
    domain = domain_of("test_resnet", 32, device, 600)
    curve(
        "batch",
        "seconds per update",
        [
            (
                b,
                typical(
                    functools.partial(
                        next,
                        attack_steps("test_resnet", domain, device, f"finetune[batch_size={b}]"),
                    )
                ),
            )
            for b in sizes
        ],
    )
    names = (
        ("test_resnet", "resnet10t")
        if quick
        else ("test_resnet", "resnet10t", "resnet18", "resnet34", "resnet50")
    )
    points = []
    for name in names:
        model = model_of(name, device)
        flops = profile(model, torch.zeros(2, 3, 32, 32, device=device)).flops_per_unit
        size = sum(p.numel() for p in model.parameters())
        step = typical(
            functools.partial(next, attack_steps(name, domain_of(name, 32, device), device))
        )
        points.append((name, size, flops, step))
    found["parameters"] = {
        "unit": "seconds per update of 64 images, 32x32",
        "points": points,
        "exponent": exponent([(size, step) for _, size, _, step in points]),
        "exponent_of_flops": exponent([(flops, step) for _, _, flops, step in points]),
    }
    return found


def draw(found: dict[str, Any], file: Path) -> None:
    """Seconds and memory of suppression by K, on logarithmic axes."""
    looks = vega.styles(("first order", "second order", "learn2learn-style"))
    panels = []
    for of, scale, title in (("", 1, "seconds"), (", memory", 1e6, "MB above model and data")):
        points = [
            {"name": way if "-" in way else f"{way} order", "x": k, "y": value / scale}
            for way in ("first", "second", "learn2learn-style")
            for k, value in found[f"K, {way}{of}"]["points"]
        ]
        x = vega.decades((point["x"] for point in points), "simulated updates K")
        y = vega.decades((point["y"] for point in points), title)
        panels.append(vega.lines(points, vega.present(looks, points), x=x, y=y))
    vega.write(vega.titled({"hconcat": panels}, "One suppression step"), file)


def records(_device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Seconds and memory of `sophon-bench table` over a store, start and imports included."""
    points = []
    for count in (300, 1000) if quick else (1000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            write_records(Path(folder), count)
            runs = [_command("table", "--store", folder) for _ in range(2 if quick else 4)]
            spent, peaks = zip(*runs[1:], strict=True)
            points.append((count, statistics.median(spent), max(peaks)))
    runs = [_command("--help") for _ in range(6)]
    help_seconds = statistics.median(spent for spent, _ in runs[1:])
    by_count = [(count, spent) for count, spent, _ in points]
    return {"table": points, "exponent": exponent(by_count[-2:]), "help_seconds": help_seconds}


def _command(*arguments: str) -> tuple[float, int]:
    """Seconds that a command takes from start to end, and the most memory that it had."""
    code = (
        "import atexit, sys; from pathlib import Path; from sophon_bench.cli import main;"
        "told = lambda: sys.stderr.write(Path('/proc/self/status').read_text());"
        "atexit.register(told); main()"
    )
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    spent = time.perf_counter() - begin
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("VmHWM"))
    return spent, int(line.split()[1]) * 1024


def together(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Trials at once against one after the other, per backbone."""
    result = {}
    for backbone, size in SIZES.items():
        domain = domain_of(backbone, size, device)
        for count in (4,) if quick or device.type == "cpu" else (8, 32):
            (one,) = trials(attacks, ["finetune"])
            plugins = [type(one.plugin)(lr=1e-3 * (1 + i)) for i in range(count)]
            view = AttackView(
                task=domain.task, train=domain.train, validation=domain.validation, auxiliary=None,
                new_model=functools.partial(model_of, backbone, device), device=device,
                rng=torch.Generator(),
            )  # fmt: skip
            alone = plugins[0].run(model_of(backbone, device), view)
            many = plugins[0].run_many(plugins, model_of(backbone, device), view)
            calls: dict[str, Callable[[], object]] = {
                "one after the other": lambda run=alone, n=count: [  # type: ignore[misc]
                    next(run) for _ in range(n)
                ],
                "at once": functools.partial(next, many),
            }
            rounds = 3 if backbone == "resnet18" else 10
            result[f"{backbone} {size}x{size}, {count} trials"] = told(
                paired(calls, device, rounds), "one after the other"
            )
    return result


def trial_counts(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """How cost grows with the number of trials: at once, and found finished by an engine."""
    domain = domain_of("test_resnet", 32, device)
    (one,) = trials(attacks, ["finetune"])
    at_once = []
    for count in (2, 4) if quick else (2, 4, 8, 16):
        plugins = [type(one.plugin)(lr=1e-3 * (1 + i)) for i in range(count)]
        view = AttackView(
            task=domain.task, train=domain.train, validation=domain.validation, auxiliary=None,
            new_model=functools.partial(model_of, "test_resnet", device), device=device,
            rng=torch.Generator(),
        )  # fmt: skip
        run = plugins[0].run_many(plugins, model_of("test_resnet", device), view)
        next(run)
        spent = [seconds(functools.partial(next, run), device) for _ in range(5)]
        at_once.append((count, statistics.median(spent)))
    finished = [(count, resumed(count)) for count in ((30, 100) if quick else (100, 1000, 5000))]
    return {
        "at once": {"points": at_once, "exponent": exponent(at_once)},
        "finished": {"points": finished, "exponent": exponent(finished)},
    }


def resumed(count: int) -> float:
    """Seconds in which an engine goes through so many trials that its store has."""
    lrs = ",".join(f"{1e-4 * (1 + i):.4f}" for i in range(count))
    (scenario,) = trials(scenarios, ["glyphs-digits"])
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        data = dataclasses.replace(scenario.plugin.build(store.data), benign=())
        identity = DataId(name="s", label="s", parameters={}, revision="r")
        setting = Setting(scenario, data, identity, Backbone.of("test_resnet"), "fp32")
        arms = Arsenal(trials(attacks, [f"finetune[lr=[{lrs}]]"]), Rules(), ())
        request = Request(defenses=[], attacks=arms, seeds=[0])
        plan = make_plan(request, [setting])
        like = records_like(1)
        for model in plan.models:
            (*_, made) = like.models.values()
            store.put_model(msgspec.structs.replace(made, key=model.key))
        for stage in plan.cells:
            store.put_cell(msgspec.structs.replace(like.cells[0], key=stage.key))
        engine = LocalEngine(store, torch.device("cpu"), Quiet())
        begin = time.perf_counter()
        engine.run(plan)
        return time.perf_counter() - begin


class Quiet:
    """A reporter that says nothing."""

    def expect(self, units: float, stages: int) -> None: ...
    def begin(self, stage: Stage) -> None: ...
    def tick(self, stage: Stage, fraction: float | None, words: str) -> None: ...
    def end(self, stage: Stage, words: str, *, reused: bool) -> None: ...


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "loader": loader,
    "together": together,
    "records": records,
    "trials": trial_counts,
    "growth": growth,
    "fts": fts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default=",".join(MEASUREMENTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    machine = {
        "device": device_name(device), "threads": options.threads, "torch": str(torch.__version__)
    }  # fmt: skip
    for name in options.only.split(","):
        begin = time.perf_counter()
        found = MEASUREMENTS[name](device, quick=options.quick)
        spent = time.perf_counter() - begin
        if name == "growth":
            draw(found, options.out / "growth.png")
        text = json.dumps({"machine": machine, "took_seconds": round(spent, 1), **found}, indent=1)
        (options.out / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {text}", flush=True)


if __name__ == "__main__":
    main()
