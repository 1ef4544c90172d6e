"""What this machine takes: the speed of attacks' loops, and how defenses grow with the backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from rich.progress import Progress

from sophon_bench.api import Incompatible
from sophon_bench.execution.plan import default_samples
from sophon_bench.execution.runs import Options, find_device, find_settings
from sophon_bench.harness import speed
from sophon_bench.harness.bench import Bench
from sophon_bench.plugins.selectors import Trial, construct
from sophon_bench.results.provenance import device_name
from sophon_bench.results.store import Store, default_root


class Place(NamedTuple):
    """Where something is measured: a bench per backbone, and scenario, passes, machine in words."""

    benches: list[Bench]
    scenario: str
    passes: str
    machine: str


def place(options: Options) -> Place:
    """What ``options`` ask for; sets the threads of torch."""
    device = find_device(options.device)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    precision, compiled = options.precision, options.compiled
    settings = find_settings(
        options.scenario,
        options.backbone,
        image_size=options.image_size,
        precision=precision,
        cache=Store(options.store or default_root()).data,
    )
    return Place(
        benches=[
            Bench(s.data, s.backbone, device=device, precision=precision, compiled=compiled)
            for s in settings
        ],
        scenario=settings[0].scenario.label,
        passes=precision if compiled == "off" else f"{precision}, compiled ({compiled})",
        machine=f"{device_name(device)}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
    )


def rooflines(
    where: Place, trials: Sequence[Trial], *, batch_size: int, rounds: int
) -> Iterator[tuple[str, speed.Roofline]]:
    """Attacks' loops beside bare passes, per backbone, with a title.

    Args:
        where: What to measure on.
        trials: Attacks; those that take a batch size are given ``batch_size``.
        batch_size: Examples per pass.
        rounds: Turns of passes and loops.
    """
    chosen = []
    for trial in trials:
        batch = {"batch_size": batch_size} if "batch_size" in trial.parameters else {}
        chosen.append((trial.label, construct(trial.entry, {**trial.parameters, **batch})))
    for bench in where.benches:
        samples = max(default_samples(bench.data), round(batch_size / 0.8) + 1)
        samples = min(samples, len(bench.data.restricted.pool))
        size = bench.data.image_size
        title = f"{bench.backbone.label}, {size}x{size}, batch {batch_size}, {where.passes}"
        with _bar(title) as tick:
            found = speed.roofline(
                bench, chosen, batch_size=batch_size, samples=samples, rounds=rounds, tick=tick
            )
        yield title, found


def growth(
    where: Place, trials: Sequence[Trial], *, updates: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `speed.Update` and of `speed.Exponents`.

    Raises:
        Unmeasurable: If it cannot be measured so.
    """
    chosen = [(trial.label, trial.plugin) for trial in trials]
    speed.check(where.benches, chosen, updates=updates)
    found: list[speed.Update] = []
    try:
        for bench in where.benches:
            with _bar(bench.backbone.label) as tick:
                found += speed.growth(bench, chosen, updates=updates, tick=tick)
    except Incompatible as error:
        raise speed.Unmeasurable(str(error)) from error
    fits = speed.exponents(found)
    return [dataclasses.asdict(one) for one in found], [dataclasses.asdict(fit) for fit in fits]


@contextmanager
def _bar(title: str) -> Iterator[Callable[[float], None]]:
    """A progress bar, moved by calls with the fraction that is done."""
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda fraction: progress.update(task, completed=fraction)
