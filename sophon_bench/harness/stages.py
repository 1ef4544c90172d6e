"""Pretrain -> protect -> attack: one function each, from weights to weights or to a curve.

Stages take objects and weights, never names or files; everything random is drawn from seeds that
are derived per axis, so that the same attack sees the same samples against every defense.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sophon_bench import training
from sophon_bench.api import (
    Attack,
    AttackMany,
    AttackView,
    Defense,
    DefenseView,
    Domain,
    Generative,
    Incompatible,
    Model,
    Predictor,
    Samples,
)
from sophon_bench.data.samples import Pixels, Streamed, free_bytes
from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.harness.containment import Containment
from sophon_bench.harness.generation import Critic
from sophon_bench.harness.meter import (
    CountedSamples,
    Meter,
    PeakMemory,
    Profile,
    WatchedTask,
    profile,
)
from sophon_bench.models import inception
from sophon_bench.models.architecture import Architecture, Compile, Precision
from sophon_bench.protocol import (
    FIT_EXAMPLES,
    PRETRAIN_BATCH,
    PRETRAIN_LR,
    REFERENCE_BATCH,
    ROUNDING,
    SCORED_AT,
    STRETCHED_AT,
    VALIDATION_SHARE,
)
from sophon_bench.results.records import Cost, Generated, Point, Status, derive_seed

T = TypeVar("T")
Weights = Mapping[str, Tensor]
Tick = Callable[[float | None, str], None]
"""Told the finished fraction of a stage (None: unknown) and a few words on how it goes."""


class NoUpdate(Exception):
    """An attack that did nothing: an error of the attack, never counted as protection."""


@dataclass(frozen=True)
class Made:
    """A model that a stage has made: the weights and how they came about.

    ``contained`` is what the plugin did to the process, in sentences.
    """

    weights: Weights
    cost: Cost
    note: str | None = None
    contained: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Attacked:
    """How an attack went.

    ``contained`` is what the plugin did to the process, in sentences.
    """

    status: Status
    reason: str | None
    curve: list[Point]
    nonfinite_step: int | None
    cost: Cost
    generated: Generated | None = None
    contained: list[str] = field(default_factory=list)


class Bench:
    """A scenario's data on the device in a backbone's input scale: where stages work.

    fp32 is fp32: TF32 is off from then on in the process.

    Args:
        data: The built scenario.
        backbone: The architecture of every model.
        device: Where to train and score.
        precision: ``fp32``, or ``bf16`` for autocast.
        compiled: How models are compiled; copies that plugins make, and scoring, are not.
        room: Bytes of pixels that one split may take on the device, larger ones are streamed;
            None: half of what the device has free.

    Raises:
        ScenarioError: If there is a file with Inception's weights and it is not the published one.
    """

    def __init__(
        self,
        data: ScenarioData,
        backbone: Architecture,
        *,
        device: torch.device,
        precision: Precision,
        compiled: Compile = "off",
        room: int | None = None,
    ) -> None:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.data = data
        self.backbone = backbone
        self.device = device
        self.precision = precision
        self.compiled = compiled
        self._room = free_bytes(device) // 2 if room is None else room
        self._samples: dict[tuple[str, str], Pixels] = {}
        self._critics: dict[str, Critic] = {}
        generates = isinstance(data.restricted.task, Generative)
        self._inception = inception.weights() if generates else None

    def samples(self, domain: DomainData, split: str) -> Pixels:
        """A whole split on the device."""
        key = (domain.name, split)
        if key not in self._samples:
            self._samples[key] = self._upload(domain.splits[split])
        return self._samples[key]

    def _upload(self, images: Images, index: Tensor | None = None) -> Pixels:
        pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
        if index is not None:
            pixels, labels = pixels[index], labels[index]
        held = Pixels if pixels.nbytes <= self._room else Streamed
        return held(pixels, labels, self.backbone.normalize, device=self.device)

    def defender(self) -> tuple[Domain, Domain]:
        """The original and the restricted domain as a defender sees them."""
        original, restricted = self.data.original, self.data.restricted
        train, validation = _carve(restricted.splits["defender"], len(restricted.classes), 0)
        return (
            Domain(
                original.task,
                self.samples(original, "train").copy(),
                self.samples(original, "validation").copy(),
            ),
            Domain(
                restricted.task,
                self._upload(restricted.splits["defender"], train),
                self._upload(restricted.splits["defender"], validation),
            ),
        )

    def attacker(self, domain: DomainData, count: int, seed: int) -> tuple[Pixels, Pixels]:
        """The attacker's ``count`` samples of this seed, as training and validation.

        Fewer samples are a subset of more: both are the beginning of one balanced order.
        """
        train, validation = _carve(domain.pool, len(domain.classes), seed, count)
        return self._upload(domain.pool, train), self._upload(domain.pool, validation)

    def auxiliary(self) -> Samples | None:
        """Benign data for an attacker to keep: the first benign domain's training samples."""
        benign = self.data.benign
        return self.samples(benign[0], "train").copy() if benign else None

    def new_model(self, rng: torch.Generator, *, pretrained: bool = False) -> Model:
        """A model with fresh weights and the original head; or the published weights, if asked."""
        model: Model = self.backbone.build(
            self.data.original.task.num_outputs,
            rng,
            precision=self.precision,
            fresh=not pretrained,
        )
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compiled != "off":
            model.get_submodule("body").compile(mode=self.compiled)
        return model

    def eager(self) -> contextlib.AbstractContextManager[object]:
        """Nothing is compiled inside: what is called a few times only is not worth it."""
        if self.compiled == "off":
            return contextlib.nullcontext()
        stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance

    def load(self, weights: Weights) -> Model:
        """A fresh model of the backbone with these weights and nothing else.

        Raises:
            ValueError: If they do not fit the backbone.
        """
        model = self.new_model(torch.Generator())
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split()[:40])
            raise ValueError(f"the weights do not fit {self.backbone.label}: {reason}") from error
        return model

    @functools.cached_property
    def profile(self) -> Profile:
        """FLOPs of the undefended backbone."""
        size = self.data.image_size
        inputs = torch.zeros(2, 3, size, size, device=self.device)
        return profile(self.new_model(torch.Generator()), inputs, whole=self.compiled != "off")

    def utility(self, weights: Weights, domain: DomainData, split: str) -> float:
        """Utility of weights as they are on one split."""
        model = self.load(weights).eval()
        with torch.no_grad(), self.eager():
            return domain.task.utility(model, self.samples(domain, split))

    def trivial_loss(self, domain: DomainData) -> float | None:
        """The task's loss at utility 0 on the test split, if utility follows from the loss."""
        return domain.task.trivial_loss(self.samples(domain, "test"))

    def images(self, predictor: Predictor, domain: DomainData) -> Tensor | None:
        """What a predictor in eval mode makes of noise, ``(N, 3, H, W)`` uint8.

        None where the task's models make no images.
        """
        if not isinstance(domain.task, Generative):
            return None
        count, size = self.data.generated, self.data.image_size
        with self.eager():
            return domain.task.generate(predictor, count, size, self.device)

    def judged(self, images: Tensor | None, domain: DomainData) -> Generated | None:
        """How good such images are, next to a domain's; its critic is trained at the first ones."""
        if images is None:
            return None
        if domain.name not in self._critics:
            labelled = domain if len(domain.classes) > 1 else self.data.original
            self._critics[domain.name] = Critic(
                domain, labelled, self.device, count=len(images), inception=self._inception
            )
        return self._critics[domain.name].judge(images)


def _carve(
    images: Images, classes: int, seed: int, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Indices for training and validation: class-balanced, in an order drawn from the seed."""
    rng = np.random.default_rng(derive_seed("data", seed))
    shuffled = rng.permutation(len(images))
    rank = np.empty(len(images), dtype=np.int64)
    for label in range(classes):
        members = shuffled[images.labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    order = shuffled[np.argsort(rank[shuffled], kind="stable")][:count]
    held_out = max(1, round(VALIDATION_SHARE * len(order)))
    return torch.from_numpy(order[:-held_out]), torch.from_numpy(order[-held_out:])


@contextlib.contextmanager
def _global_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and its like draw from the global state: seed it inside, restore it after."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        numpy_state, python_state = np.random.get_state(), random.getstate()
        np.random.set_state(np.random.RandomState(seed % 2**32).get_state())
        random.setstate(random.Random(seed).getstate())
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _generator(*parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


TOO_FEW = re.compile(r"Expected more than 1 (value per channel|spatial element) when training")
"""How torch begins to say that a normalisation layer has nothing to average over."""


@contextlib.contextmanager
def _in_our_words(trained_on: Sequence[Samples]) -> Iterator[None]:
    """Say what a plugin cannot do, or should not, where torch's or Python's words would not help.

    Args:
        trained_on: The training samples that the plugin is given.

    Raises:
        Incompatible: In place of torch's error that a normalisation layer sees a single value.
        RuntimeError: In place of `SystemExit`.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError("the plugin called sys.exit; raise an exception instead") from error
    except ValueError as error:
        found = TOO_FEW.match(str(error))
        if found is None:
            raise
        if found[1] == "spatial element":
            raise Incompatible(
                "instance normalisation cannot train where the map is 1x1; use larger images"
            ) from error
        fewest = min(len(samples) for samples in trained_on)
        advice = (
            "the training set has one example; take more samples"
            if fewest == 1
            else "use a larger batch_size"
        )
        raise Incompatible(
            f"a batch of one example cannot train normalisation layers where the map is 1x1; "
            f"{advice}"
        ) from error


def _told(
    run: Generator[T, None, object], trained_on: Sequence[Samples]
) -> Generator[T, None, object]:
    """As ``run``, with errors in our words."""
    with _in_our_words(trained_on):
        return (yield from run)


def _started(run: Iterator[T]) -> Iterator[T]:
    """What a plugin's ``run`` returned, if it is a generator."""
    if not isinstance(run, Iterator):
        raise TypeError(
            f"run returned {type(run).__name__}; make it a generator that yields after every update"
        )
    return run


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pretrain(bench: Bench, seed: int, tick: Tick) -> Made:
    """Train the backbone on the original domain."""
    original, _ = bench.defender()
    counted = CountedSamples(original.train)
    domain = Domain(original.task, counted, original.validation)
    model = bench.new_model(_generator("pretrain-weights", seed), pretrained=True)
    steps = bench.data.pretrain_steps
    run = training.train(
        model,
        domain,
        steps=steps,
        batch_size=PRETRAIN_BATCH,
        lr=PRETRAIN_LR,
        rng=_generator("pretrain", seed),
    )
    with Containment([]) as contained:
        return _make(
            bench,
            model,
            contained,
            lambda: run,
            steps,
            derive_seed("pretrain-global", seed),
            tick,
            [counted],
        )


def seconds_per_unit(bench: Bench) -> float:
    """How long one unit takes here: an update of 64 examples, after one to warm up."""
    steps = 3
    run = pretraining(bench, steps)
    next(run)
    begin = time.perf_counter()
    for _ in run:
        pass
    _synchronize(bench.device)
    return (time.perf_counter() - begin) / ((steps - 1) * PRETRAIN_BATCH)


def pretraining(bench: Bench, steps: int) -> Iterator[Model]:
    """So many updates of pre-training on fresh weights, to time them."""
    domain, _ = bench.defender()
    return training.train(
        bench.new_model(torch.Generator()),
        domain,
        steps=steps,
        batch_size=PRETRAIN_BATCH,
        lr=PRETRAIN_LR,
        rng=torch.Generator(),
    )


def protect(
    bench: Bench,
    weights: Weights,
    defense: Defense,
    seed: int,
    tick: Tick,
    *,
    contained: list[str] | None = None,
) -> Made:
    """Run a defense on the pre-trained weights; the last model it yields is released.

    Args:
        contained: An empty list that becomes `Made.contained`, there also for whom an error stops.

    Raises:
        Incompatible: If the defense says that it cannot apply.
        ValueError: If it yields nothing, or weights that do not fit the backbone.
    """
    original, restricted = bench.defender()
    counted = [CountedSamples(original.train), CountedSamples(restricted.train)]
    view = DefenseView(
        original=Domain(original.task, counted[0], original.validation),
        restricted=Domain(restricted.task, counted[1], restricted.validation),
        device=bench.device,
        rng=_generator("defense", seed),
    )
    model = bench.load(weights)
    steps: int | None = getattr(defense, "steps", None)
    with Containment([defense], contained) as stage:
        return _make(
            bench,
            model,
            stage,
            lambda: _started(defense.run(model, view)),
            steps,
            derive_seed("defense-global", seed),
            tick,
            counted,
        )


def _make(
    bench: Bench,
    model: Model,
    stage: Containment,
    start: Callable[[], Iterator[Model]],
    steps: int | None,
    seed: int,
    tick: Tick,
    counted: Sequence[CountedSamples],
) -> Made:
    meter = Meter(bench.profile, bench.device)
    meter.watch(model)
    released: Model | None = None
    with PeakMemory(bench.device) as peak, _global_rng(seed, bench.device):
        for model in meter.drive(_told(stage.drive(start), counted)):
            if not isinstance(model, nn.Module):
                raise TypeError(
                    f"update {meter.steps} yielded {_described(model)}; yield the model after "
                    f"every update"
                )
            released = model
            tick(min(1.0, meter.steps / steps) if steps else None, f"update {meter.steps}")
        meter.settle()
    if released is None:
        raise ValueError("the defense yielded no model; yield the model after every update")
    with stage.visit():
        weights = {name: t.detach().cpu().clone() for name, t in released.state_dict().items()}
    bench.load(weights)
    drawn = sum(samples.drawn for samples in counted)
    cost = meter.cost(examples=drawn, peak_bytes=peak.bytes)
    return Made(weights, cost, meter.note, stage.found)


def attack(
    bench: Bench,
    weights: Weights,
    plugin: Attack,
    *,
    samples: int,
    seed: int,
    budget: int,
    tick: Tick,
    score_at: Sequence[float] = SCORED_AT,
    stretch: int = 1,
    domain: DomainData | None = None,
    scored: list[Point] | None = None,
    contained: list[str] | None = None,
) -> Attacked:
    """Let an attack adapt the released weights, and score it at log-spaced costs.

    Args:
        samples: The attacker's n.
        budget: Units that the attack may spend.
        score_at: Fractions of the budget to score at; looking never changes the run.
        stretch: Go on to this many budgets, scored at 2, 5 and 10 of them besides.
        domain: What to adapt the weights to; None: the restricted domain.
        scored: An empty list that becomes the curve, there also for whom an error stops.
        contained: The same for `Attacked.contained`.

    Raises:
        Incompatible: If the attack says that it cannot apply.
        NoUpdate: If it yields nothing, draws no sample, or never changes a weight, or yields the
            released model's function as it is.
    """
    place = (bench, weights, samples, seed, domain or bench.data.restricted)
    goals = _goals(budget, score_at, stretch)
    curves = [[] if scored is None else scored]
    with Containment([plugin], contained) as stage:
        (outcome,) = _attack(place, stage, plugin.run, goals, [tick], curves)
    if isinstance(outcome, NoUpdate):
        raise outcome
    return outcome


def attack_many(
    bench: Bench,
    weights: Weights,
    plugins: Sequence[AttackMany],
    *,
    samples: int,
    seed: int,
    budget: int,
    ticks: Sequence[Tick],
    score_at: Sequence[float] = SCORED_AT,
    stretch: int = 1,
    domain: DomainData | None = None,
    contained: list[str] | None = None,
) -> list[Attacked | NoUpdate]:
    """As `attack`, for trials of one attack that it can run at once; a result for each.

    Raises:
        ValueError: If the attack yields another number of predictors.
    """
    place = (bench, weights, samples, seed, domain or bench.data.restricted)
    goals = _goals(budget, score_at, stretch)
    run = functools.partial(plugins[0].run_many, plugins)
    with Containment(plugins, contained) as stage:
        return _attack(place, stage, run, goals, ticks, [[] for _ in plugins], many=True)


def speed_up(bench: Bench, plugins: Sequence[AttackMany], *, samples: int) -> float:
    """How many times as fast ``plugins`` are at once as one after the other, on fresh weights.

    From three updates each, after one to begin with; 0 where they cannot run at once.
    """
    train, validation = bench.attacker(bench.data.restricted, samples, 0)

    def seconds(start: Callable[[Model, AttackView], Iterator[object]]) -> float:
        view = AttackView(
            task=bench.data.restricted.task,
            train=train,
            validation=validation,
            auxiliary=bench.auxiliary(),
            new_model=lambda: bench.new_model(torch.Generator()),
            device=bench.device,
            rng=torch.Generator(),
        )
        model = view.new_model()
        run = _told(stage.drive(lambda: _started(start(model, view))), [train])
        next(run)
        _synchronize(bench.device)
        begin = time.perf_counter()
        for _ in range(3):
            next(run)
        _synchronize(bench.device)
        taken = time.perf_counter() - begin
        stage.close()
        return taken

    with Containment(plugins) as stage, _global_rng(0, bench.device):
        try:
            alone = seconds(plugins[0].run)
            together = seconds(functools.partial(plugins[0].run_many, plugins))
        except Exception:  # no rule of vmap, no memory, fewer updates; what it is shows alone
            return 0.0
    return alone * len(plugins) / together


def _goals(budget: int, score_at: Sequence[float], stretch: int) -> list[float]:
    """Costs to score at, in units."""
    longer = [times for times in STRETCHED_AT if times < stretch]
    return sorted({budget * at for at in (*score_at, *longer, stretch) if at <= stretch})


def _attack(
    place: tuple[Bench, Weights, int, int, DomainData],
    stage: Containment,
    run: Callable[[Model, AttackView], Iterator[Any]],
    goals: Sequence[float],
    ticks: Sequence[Tick],
    curves: Sequence[list[Point]],
    *,
    many: bool = False,
) -> list[Attacked | NoUpdate]:
    """Run one trial, or ``many`` at once, and score each."""
    bench, weights, samples, seed, domain = place
    meter = Meter(bench.profile, bench.device, together=len(ticks))
    train, validation = bench.attacker(domain, samples, seed)
    counted = CountedSamples(train)
    task = WatchedTask(domain.task)
    fresh = _generator("fresh", seed)
    view = AttackView(
        task=task,
        train=counted,
        validation=validation,
        auxiliary=bench.auxiliary() if domain is bench.data.restricted else None,
        new_model=lambda: meter.watch(bench.new_model(fresh)),
        device=bench.device,
        rng=_generator("attack", seed),
    )
    judge = _Judge(bench, domain, task, train, validation, meter, view.rng, stage)
    trials = [
        _Trial(judge, weights, goals, tick, curve)
        for tick, curve in zip(ticks, curves, strict=True)
    ]
    with (
        PeakMemory(bench.device) as peak,
        _global_rng(derive_seed("attack-global", seed), bench.device),
    ):
        model = meter.watch(bench.load(weights))
        steps = stage.drive(lambda: _started(run(model, view)))
        for yielded in meter.drive(_told(steps, [train])):
            predictors = yielded if many else [yielded]
            if len(predictors) != len(trials):
                raise ValueError(
                    f"update {meter.steps} yielded {len(predictors)} predictors for "
                    f"{len(trials)} trials"
                )
            for trial, predictor in zip(trials, predictors, strict=True):
                if not trial.done:
                    trial.take(predictor)
            if all(trial.done for trial in trials):
                break
        for trial in trials:
            trial.end()
        meter.settle()
    cost = meter.cost(examples=counted.drawn, peak_bytes=peak.bytes)
    return [trial.outcome(cost, touched=counted.touched) for trial in trials]


class _Trial:
    """One trial under way: what it reached so far, and whether it is over."""

    def __init__(
        self,
        judge: _Judge,
        weights: Weights,
        goals: Sequence[float],
        tick: Tick,
        curve: list[Point],
    ) -> None:
        self.judge = judge
        self.weights = weights
        self.goals = list(goals)
        self.last = goals[-1]
        self.tick = tick
        self.curve = curve
        self.changes = _Changes(weights)
        self.predictor: Predictor | None = None
        self.nonfinite: int | None = None
        self.done = False

    def take(self, predictor: Predictor) -> None:
        """Look at what an update made, and score it if that is due."""
        meter = self.judge.meter
        if not callable(predictor):
            raise TypeError(
                f"update {meter.steps} yielded {_described(predictor)}; yield a model, or a "
                f"function from images to outputs, after every update"
            )
        self.predictor = predictor
        self.changes.note(predictor, meter.steps)
        if meter.steps == 1 and not (self.judge.task.finite() and _finite(predictor)):
            self.nonfinite, self.done = 1, True
            return
        if meter.units + meter.next > self.goals[0] * ROUNDING:
            self._score(predictor)
            while self.goals and meter.units + meter.next > self.goals[0] * ROUNDING:
                self.goals.pop(0)
            self.done = self.done or not self.goals
        self.tick(meter.units / self.last, self.judge.words(self.curve))

    def end(self) -> None:
        """Score what is left where the attack came to its own end."""
        scored = self.curve and self.curve[-1].steps == self.judge.meter.steps
        if self.predictor is not None and not self.done and not scored:
            self._score(self.predictor)

    def _score(self, predictor: Predictor) -> None:
        point = self.judge.score(predictor)
        if point is None:
            self.nonfinite, self.done = self.judge.meter.steps, True
        else:
            self.curve.append(point)

    def outcome(self, cost: Cost, *, touched: bool) -> Attacked | NoUpdate:
        """How it went; an attack that did nothing has its error."""
        try:
            self._check(touched)
        except NoUpdate as error:
            return error
        finite = self.nonfinite is None
        return Attacked(
            status="ok" if finite else "diverged",
            reason=None if finite else f"non-finite values at or before update {self.nonfinite}",
            curve=self.curve,
            nonfinite_step=self.nonfinite,
            cost=cost,
            generated=self.judge.generated(self.predictor) if finite else None,
            contained=self.judge.stage.found,
        )

    def _check(self, touched: bool) -> None:
        if self.predictor is None:
            raise NoUpdate("the attack yielded nothing; yield the predictor after every update")
        if not touched:
            raise NoUpdate("the attack drew no sample of view.train")
        if self.nonfinite is not None:
            return
        if isinstance(self.predictor, nn.Module):
            meter = self.judge.meter
            self.changes.check(self.predictor, went_backward=meter.went_backward)
        elif self.judge.same(self.predictor, self.judge.bench.load(self.weights)):
            raise NoUpdate("the attack yields what the released model computes, unchanged")


class _Judge:
    """Scores a predictor on everything that the harness holds, without a trace in the run."""

    def __init__(
        self,
        bench: Bench,
        domain: DomainData,
        task: WatchedTask,
        train: Pixels,
        validation: Pixels,
        meter: Meter,
        rng: torch.Generator,
        stage: Containment,
    ) -> None:
        self.bench = bench
        self.domain = domain
        self.rng = rng
        self.stage = stage
        self.task = task
        self.meter = meter
        self.splits = {
            "fit": Samples(*train[:FIT_EXAMPLES]),
            "validation": validation.copy(),
            **{
                split: bench.samples(domain, split)
                for split in ("selection", "test", "second_test")
                if split in domain.splits
            },
        }

    def score(self, predictor: Predictor) -> Point | None:
        """The scores now; None if the last loss, or an output on the selection split, is NaN."""
        self.meter.settle()
        if not self.task.finite():
            return None
        state = self.rng.get_state()
        with self.stage.visit(), self.bench.eager(), self.meter.looking():
            watched = _Watched(predictor)
            selection = self.task.utility(watched, self.splits["selection"])
            if watched.nan:
                return None
            utilities = {
                name: selection if name == "selection" else self.task.utility(predictor, samples)
                for name, samples in self.splits.items()
            }
        self.rng.set_state(state)
        return Point(
            steps=self.meter.steps,
            units=self.meter.units,
            seconds=self.meter.seconds,
            **utilities,
        )

    def generated(self, predictor: Predictor | None) -> Generated | None:
        """What it makes of noise, where that is the restricted domain's question."""
        if predictor is None or self.domain is not self.bench.data.restricted:
            return None
        with self.stage.visit(), self.meter.looking():
            images = self.bench.images(predictor, self.domain)
        return self.bench.judged(images, self.domain)

    def same(self, one: Predictor, other: Predictor) -> bool:
        """Whether two predictors agree to the last bit on examples of the selection split."""
        inputs, _ = self.splits["selection"][:REFERENCE_BATCH]
        with self.stage.visit(), self.bench.eager(), self.meter.looking():
            return torch.equal(*(self._predicted(p, inputs) for p in (one, other)))

    def _predicted(self, predictor: Predictor, inputs: Tensor) -> Tensor:
        with _global_rng(0, self.bench.device):  # a task may draw noise
            return self.task.predict(predictor, inputs)

    def words(self, curve: Sequence[Point]) -> str:
        return f"{self.task.utility_name} {100 * curve[-1].test:.1f} %" if curve else "…"


class _Watched:
    """A predictor that remembers whether any of its outputs was NaN."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        # what `inspect.signature` goes by
        self.__wrapped__ = predictor.forward if isinstance(predictor, nn.Module) else predictor
        self._found: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        outputs = self._predictor(*inputs)
        if isinstance(outputs, Tensor):
            found = outputs.isnan().any()
            self._found = found if self._found is None else self._found | found
        return outputs

    @property
    def nan(self) -> bool:
        """Whether one was; waits for the device."""
        return self._found is not None and bool(self._found)


class _Changes:
    """Whether a predictor's weights moved; a plain function has none to compare."""

    def __init__(self, released: Weights) -> None:
        self.released = released
        self.first: Weights = {}

    def note(self, predictor: Predictor, step: int) -> None:
        """Remember the first yield."""
        if step == 1 and isinstance(predictor, nn.Module):
            self.first = {n: t.detach().clone() for n, t in predictor.state_dict().items()}

    def check(self, predictor: nn.Module, *, went_backward: bool) -> None:
        """Compare the last yield with the first one, with what was released, and with the draw.

        A head that is as `fresh_head` drew it never counts as a change. Statistics alone, and a
        head that is merely another than the released one, do only if no gradient was ever taken:
        where one was, they moved by themselves. Behind a head as drawn, statistics do not either.

        Raises:
            NoUpdate: If all weights are what they were.
        """
        idle = _drawn(predictor)
        weights = dict(predictor.named_parameters())
        now = weights if went_backward or idle else predictor.state_dict()
        for name, tensor in now.items():
            first, released = self.first.get(name), self.released.get(name)
            if first is None or not _same(first, tensor):
                return
            if name in idle:
                continue
            comparable = released is not None and released.shape == tensor.shape
            if comparable and not _same(released, tensor):
                return
            if not comparable and not went_backward:
                return
        raise NoUpdate(
            "the attack never changed a weight of the predictor that it yields"
            + (", whose head is the random one that fresh_head drew" if idle else "")
        )


def _drawn(predictor: nn.Module) -> set[str]:
    """Names of the head's parameters if all are as `fresh_head` drew them."""
    if not isinstance(predictor, Model):
        return set()
    parameters = dict(predictor.head.named_parameters(prefix="head"))
    if len(predictor.drawn_head) != len(parameters):
        return set()
    pairs = zip(predictor.drawn_head, parameters.values(), strict=True)
    return set(parameters) if all(_same(drawn, now) for drawn, now in pairs) else set()


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one.to(other), other)


def _described(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"


def _finite(predictor: Predictor) -> bool:
    if not isinstance(predictor, nn.Module):
        return True
    return all(bool(p.isfinite().all()) for p in predictor.parameters())
