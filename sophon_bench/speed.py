"""How fast the loop is: against the bare passes of the same batches, and against a matmul.

Everything is a ratio within one run: bare passes and the loop take turns, so that whatever else the
machine does hits both.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from sophon_bench.api import Attack, AttackView
from sophon_bench.meter import CountedSamples, Meter, WatchedTask
from sophon_bench.stages import Bench

RESIDENT = 8
"""Batches that the bare passes take turns with."""

SAMPLED = 8
"""Updates that are left out: of them the meter samples 1, 2, 3, 5 and 8, outside its own clock."""

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Widths of the square matrices whose product is the peak."""


@dataclass(frozen=True)
class Loop:
    """One attack's loop.

    Attributes:
        attack: Its selector.
        seconds: Per update, the median.
        speed: Speed as a fraction of that of bare forward and backward passes on resident
            batches: the median over rounds, and the quartiles.
        mfu: Share of the matmul peak that forward and backward reach inside the loop.
    """

    attack: str
    seconds: float
    speed: tuple[float, float, float]
    mfu: float


@dataclass(frozen=True)
class Roofline:
    """What one backbone reaches on one device.

    Attributes:
        peak: FLOP/s of the fastest square matmul in the same precision.
        bare_seconds: Of forward and backward on one resident batch, the median.
        bare_mfu: Share of the peak that they reach.
        flops: Of one forward and backward pass on a batch.
    """

    peak: float
    bare_seconds: float
    bare_mfu: float
    flops: float
    rounds: int
    loops: tuple[Loop, ...]


def roofline(
    bench: Bench,
    attacks: Sequence[tuple[str, Attack]],
    *,
    batch_size: int,
    samples: int,
    rounds: int,
    tick: Callable[[float], None],
) -> Roofline:
    """Measure ``attacks``, given with their selectors, on the scenario's restricted domain.

    Args:
        batch_size: Of the bare passes; attacks keep their own, which should be the same.
        samples: The attacker's n.
        rounds: Turns of bare passes and every loop, after two to warm up.
        tick: Told the finished fraction.
    """
    peak = matmul_peak(bench)
    runs = [_bare(bench, samples, batch_size)]
    runs += [_loop(bench, plugin, samples) for _, plugin in attacks]
    per_turn = 1 if bench.device.type == "cpu" else 10  # a GPU is waited for between turns only
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 2):
        for run, found in zip(runs, times, strict=True):
            found.append(_seconds(bench, run, per_turn))
        tick((turn + 1) / (rounds + 2))
    bare, *loops = [found[2:] for found in times]
    flops = bench.profile.flops_per_unit * batch_size
    return Roofline(
        peak=peak,
        bare_seconds=statistics.median(bare),
        bare_mfu=flops / statistics.median(bare) / peak,
        flops=flops,
        rounds=rounds,
        loops=tuple(
            Loop(
                attack=selector,
                seconds=statistics.median(found),
                speed=_spread([one / other for one, other in zip(bare, found, strict=True)]),
                mfu=flops / statistics.median(found) / peak,
            )
            for (selector, _), found in zip(attacks, loops, strict=True)
        ),
    )


def matmul_peak(bench: Bench) -> float:
    """FLOP/s of the fastest square matmul in the bench's precision, the best of five each."""
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    best = 0.0
    for size in SIZES[bench.device.type]:
        one, other = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        calls = (one @ other for _ in itertools.repeat(None))
        _seconds(bench, calls, 2)
        seconds = min(_seconds(bench, calls, 3) for _ in range(5))
        best = max(best, 2 * size**3 / seconds)
    return best


def _bare(bench: Bench, samples: int, batch_size: int) -> Iterator[object]:
    task = bench.data.restricted.task
    train, _ = bench.attacker(bench.data.restricted, samples, 0)
    batches = train.batches(batch_size, torch.Generator())
    resident = list(itertools.islice(batches, RESIDENT))
    model = bench.new_model(torch.Generator().manual_seed(0))
    model.fresh_head(task.num_outputs, torch.Generator())
    for batch in itertools.cycle(resident):
        model.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        yield loss


def _loop(bench: Bench, plugin: Attack, samples: int) -> Iterator[object]:
    train, validation = bench.attacker(bench.data.restricted, samples, 0)
    meter = Meter(bench.profile, bench.device)
    view = AttackView(
        task=WatchedTask(bench.data.restricted.task),
        train=CountedSamples(train),
        validation=validation,
        auxiliary=bench.auxiliary(),
        new_model=lambda: meter.watch(bench.new_model(torch.Generator())),
        device=bench.device,
        rng=torch.Generator(),
    )
    model = meter.watch(bench.new_model(torch.Generator().manual_seed(0)))
    run = meter.drive(plugin.run(model, view))
    for _ in itertools.islice(run, SAMPLED):
        pass
    return run


def _seconds(bench: Bench, run: Iterator[object], steps: int) -> float:
    """Of one step, a mean over ``steps``."""
    begin = time.perf_counter()
    for _ in itertools.islice(run, steps):
        pass
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
    return (time.perf_counter() - begin) / steps


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the two quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high
