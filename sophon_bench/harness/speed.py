"""How fast the loop is against bare passes and a matmul, and how protecting grows with the model.

Also what is measured before a run: the time of one unit, and whether trials pay at once.
Everything else is a ratio within one run: what is compared takes turns, so that whatever else the
machine does hits both.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from sophon_bench import training
from sophon_bench.api import (
    Attack,
    AttackMany,
    AttackView,
    Declared,
    Defense,
    DefenseView,
    Model,
)
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.containment import Containment
from sophon_bench.harness.loop import driven
from sophon_bench.harness.meter import CountedSamples, Meter, WatchedTask, synchronize
from sophon_bench.plugins.failures import BadInput
from sophon_bench.protocol import PRETRAIN_BATCH, PRETRAIN_LR
from sophon_bench.seeding import seeded

RESIDENT = 8
"""Batches that the bare passes take turns with."""

SAMPLED = 8
"""Updates that are left out: of them the meter samples 1, 2, 3, 5 and 8, outside its own clock."""

WARM_UP = 3
"""Updates of pre-training before it is timed."""

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Widths of the square matrices whose product is the peak."""


def seconds_per_unit(bench: Bench) -> float:
    """How long one unit takes here: an update of 64 examples, after one to warm up."""
    run = _pretraining(bench, 3)
    _seconds(bench, run, 1)
    return _seconds(bench, run, 2) / PRETRAIN_BATCH


def speed_up(bench: Bench, plugins: Sequence[AttackMany], *, samples: int) -> float:
    """How many times as fast ``plugins`` are at once as one after the other, untrained.

    From three updates each, after one to begin with; 0 where they cannot run at once.
    """

    def seconds(start: Callable[[Model, AttackView], Iterator[object]]) -> float:
        view = _attack_view(bench, samples, Meter(bench.profile, bench.device))
        model = bench.new_model(torch.Generator())
        run = driven(stage, lambda: start(model, view), [view.train])
        _seconds(bench, run, 1)
        taken = _seconds(bench, run, 3)
        stage.close()
        return taken

    with Containment(plugins) as stage, seeded(0, bench.device):
        try:
            alone = seconds(plugins[0].run)
            together = seconds(functools.partial(plugins[0].run_many, plugins))
        except Exception:  # no rule of vmap, no memory, fewer updates; what it is shows alone
            return 0.0
    return alone * len(plugins) / together


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

    def __str__(self) -> str:
        lines = [
            f"  matmul peak {self.peak / 1e9:.1f} GFLOP/s",
            f"  {'bare forward + backward':44} {1e3 * self.bare_seconds:8.2f} ms   "
            f"{'':24} MFU {self.bare_mfu:.2f}",
        ]
        for loop in self.loops:
            middle, low, high = loop.speed
            lines.append(
                f"  {loop.attack:44} {1e3 * loop.seconds:8.2f} ms   "
                f"{middle:.3f} of it ({low:.3f}–{high:.3f}) MFU {loop.mfu:.2f}"
            )
        return "\n".join(lines)


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
    meter = Meter(bench.profile, bench.device)
    view = _attack_view(bench, samples, meter)
    model = meter.watch(bench.new_model(torch.Generator().manual_seed(0)))
    run = meter.drive(plugin.run(model, view))
    for _ in itertools.islice(run, SAMPLED):
        pass
    return run


def _attack_view(bench: Bench, samples: int, meter: Meter) -> AttackView:
    train, validation = bench.attacker(bench.data.restricted, samples, 0)
    return AttackView(
        task=WatchedTask(bench.data.restricted.task),
        train=CountedSamples(train),
        validation=validation,
        auxiliary=bench.auxiliary(),
        new_model=lambda: meter.watch(bench.new_model(torch.Generator())),
        device=bench.device,
        rng=torch.Generator(),
    )


class Unmeasurable(BadInput, ValueError):
    """Growth that cannot be measured as asked."""


@dataclass(frozen=True)
class Update:
    """What an update of a defense takes on one backbone, and one of pre-training in turns with it.

    Attributes:
        defense: Its selector.
        parameters: Of the backbone, with the original task's head.
        flops: Of one unit: forward and backward of the backbone on one example.
        units: Of an update of the defense, a mean.
        seconds: Of an update of the defense, a mean.
        pretrain_seconds: Of an update of pre-training, a mean.
        times: The one as a multiple of the other.
    """

    backbone: str
    defense: str
    parameters: int
    flops: float
    units: float
    seconds: float
    pretrain_seconds: float
    times: float


@dataclass(frozen=True)
class Exponents:
    """How seconds per update grow, of a defense and of pre-training: 1 is in proportion."""

    defense: str
    by_parameters: float
    by_flops: float
    pretrain_by_parameters: float
    pretrain_by_flops: float


class Size(NamedTuple):
    """Parameters of a backbone with the original task's head, and the FLOPs of one unit."""

    parameters: int
    flops: float


def size(bench: Bench) -> Size:
    """How large the backbone is."""
    model = bench.new_model(torch.Generator())
    return Size(sum(p.numel() for p in model.parameters()), bench.profile.flops_per_unit)


def check(
    benches: Sequence[Bench], defenses: Sequence[tuple[str, Defense]], *, updates: int
) -> None:
    """See before anything is trained that `growth` and `exponents` can be had.

    Raises:
        Unmeasurable: If the backbones are of one size, or a defense says that it is too short.
    """
    if any(len(set(sizes)) < 2 for sizes in zip(*map(size, benches), strict=True)):
        names = ", ".join(bench.backbone.label for bench in benches)
        raise Unmeasurable(f"growth needs at least two backbones of different sizes; got {names}")
    for selector, plugin in defenses:
        steps = Declared.of(plugin).steps
        if steps is not None:
            _check_length(selector, steps, updates)


def _check_length(selector: str, steps: int, updates: int) -> None:
    if steps <= 2 * updates:
        advice = f"measure {(steps - 1) // 2}" if steps > 2 else "choose another defense"
        raise Unmeasurable(
            f"defense {selector!r} ends after {steps} updates, which are too few to measure "
            f"{updates} after as many and one to warm up; {advice}"
        )


def growth(
    bench: Bench,
    defenses: Sequence[tuple[str, Defense]],
    *,
    updates: int,
    tick: Callable[[float], None],
) -> list[Update]:
    """Measure ``defenses``, given with their selectors, on random weights of one backbone.

    Args:
        updates: How many are timed, after the first one and as many whose passes are counted; a
            multiple of the defense's cycle, if its updates are of several kinds.
        tick: Told the finished fraction.

    Raises:
        Unmeasurable: If a defense ends before that.
        Incompatible: If one cannot apply.
    """
    found = []
    for number, (selector, plugin) in enumerate(defenses):
        meter = Meter(bench.profile, bench.device)
        run = _protection(bench, selector, plugin, meter, updates)
        driven = meter.drive(run)
        next(driven)  # a defense does things once before its first yield
        begun = meter.units
        for done, _ in enumerate(itertools.islice(driven, updates), 1):
            tick((number + done / (2 * updates)) / len(defenses))
        base = _pretraining(bench, WARM_UP + updates)
        _seconds(bench, base, WARM_UP)
        spent, pretrained = 0.0, 0.0
        for done in range(updates + 1, 2 * updates + 1):
            pretrained += _seconds(bench, base, 1)
            spent += _seconds(bench, run, 1)
            tick((number + done / (2 * updates)) / len(defenses))
        found.append(
            Update(
                backbone=bench.backbone.label,
                defense=selector,
                **size(bench)._asdict(),
                units=(meter.units - begun) / updates,
                seconds=spent / updates,
                pretrain_seconds=pretrained / updates,
                times=spent / pretrained,
            )
        )
    return found


def exponents(found: Sequence[Update]) -> list[Exponents]:
    """Per defense, over at least two backbones that differ in parameters and in FLOPs."""
    fitted = []
    for defense in dict.fromkeys(update.defense for update in found):
        own = [update for update in found if update.defense == defense]
        slopes = {
            f"{prefix}by_{size}": exponent([(getattr(u, size), getattr(u, time)) for u in own])
            for prefix, time in (("", "seconds"), ("pretrain_", "pretrain_seconds"))
            for size in Size._fields
        }
        fitted.append(Exponents(defense=defense, **slopes))
    return fitted


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through the logarithms."""
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    return statistics.linear_regression(xs, ys).slope


def _protection(
    bench: Bench, selector: str, plugin: Defense, meter: Meter, updates: int
) -> Iterator[object]:
    original, restricted = bench.defender()
    view = DefenseView(
        original=original, restricted=restricted, device=bench.device, rng=torch.Generator()
    )
    model = meter.watch(bench.new_model(torch.Generator().manual_seed(0)))
    steps = 0
    for made in plugin.run(model, view):
        yield made
        steps += 1
    _check_length(selector, steps, updates)


def _pretraining(bench: Bench, steps: int) -> Iterator[Model]:
    """So many updates of pre-training from random initialisation, to time them."""
    domain, _ = bench.defender()
    return training.train(
        bench.new_model(torch.Generator()),
        domain,
        steps=steps,
        batch_size=PRETRAIN_BATCH,
        lr=PRETRAIN_LR,
        rng=torch.Generator(),
    )


def _seconds(bench: Bench, run: Iterator[object], steps: int) -> float:
    """Of one step, a mean over ``steps``."""
    begin = time.perf_counter()
    for _ in range(steps):
        next(run)
    synchronize(bench.device)
    return (time.perf_counter() - begin) / steps


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the two quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high
