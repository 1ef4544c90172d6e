"""Pretrain -> protect -> attack: one function each, from weights to weights or to a curve.

Stages take objects and weights, never names or files; everything random is drawn from seeds that
are derived per axis, so that the same attack sees the same samples against every defense.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from sophon_bench import training
from sophon_bench.api import (
    Attack,
    AttackMany,
    AttackView,
    Declared,
    Defense,
    DefenseView,
    Domain,
    Incompatible,
    Model,
    Predictor,
    Samples,
)
from sophon_bench.data.scenario import DomainData, Recipe
from sophon_bench.harness import recipes
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.harness.containment import Containment
from sophon_bench.harness.honesty import Changes, NoUpdate
from sophon_bench.harness.judge import Judge
from sophon_bench.harness.meter import CountedSamples, Meter, PeakMemory, WatchedTask
from sophon_bench.protocol import PRETRAIN_BATCH, ROUNDING, SCORED_AT, STRETCHED_AT
from sophon_bench.results.recipes import ChosenRecipe
from sophon_bench.results.records import Cost, Generated, Point, Status
from sophon_bench.seeding import derive_seed, generator, seeded

T = TypeVar("T")
Tick = Callable[[float | None, str], None]
"""Told the finished fraction of a stage (None: unknown) and a few words on how it goes."""


@dataclass(frozen=True)
class Made:
    """A model that a stage has made: the weights and how they came about.

    ``contained`` is what the plugin did to the process, in sentences; ``recipe`` how it was
    pre-trained, where there was a choice.
    """

    weights: Weights
    cost: Cost
    note: str | None = None
    contained: list[str] = field(default_factory=list)
    recipe: ChosenRecipe | None = None


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


def pretrain(bench: Bench, seed: int, tick: Tick) -> Made:
    """Train the backbone on the original domain, by the recipe that does best on validation.

    Where the scenario states several, each is run whole, from the same weights and with the same
    draws: the step size rises and falls once over a run, so that a short run says little of the
    best size for a long one, and what is kept is the very model that its recipe alone gives.
    Utility on the original domain's validation split chooses. The cost is that of all.
    """
    train = functools.partial(_pretrain, bench, seed)
    original = bench.data.original

    def validate(weights: Weights) -> float:
        return bench.utility(weights, original, "validation")

    return recipes.best(bench.data.recipes, train, validate, tick)


def _pretrain(bench: Bench, seed: int, recipe: Recipe, tick: Tick) -> Made:
    original, _ = bench.defender()
    counted = CountedSamples(original.train)
    model = bench.new_model(generator("pretrain-weights", seed), pretrained=True)
    run = training.train(
        model,
        Domain(original.task, counted, original.validation),
        steps=recipe.steps,
        batch_size=PRETRAIN_BATCH,
        lr=recipe.lr,
        rng=generator("pretrain", seed),
    )
    global_seed = derive_seed("pretrain-global", seed)
    with Containment([]) as stage:
        return _make(bench, model, stage, lambda: run, recipe.steps, global_seed, tick, [counted])


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
        rng=generator("defense", seed),
    )
    model = bench.load(weights)
    steps = Declared.of(defense).steps
    global_seed = derive_seed("defense-global", seed)
    with Containment([defense], contained) as stage:
        run = functools.partial(defense.run, model, view)
        return _make(bench, model, stage, run, steps, global_seed, tick, counted)


def _make(
    bench: Bench,
    model: Model,
    stage: Containment,
    run: Callable[[], Iterator[Model]],
    steps: int | None,
    seed: int,
    tick: Tick,
    counted: Sequence[CountedSamples],
) -> Made:
    meter = Meter(bench.profile, bench.device)
    meter.watch(model)
    released: Model | None = None
    with PeakMemory(bench.device) as peak, seeded(seed, bench.device):
        for model in meter.drive(driven(stage, run, counted)):
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
    domain = domain or bench.data.restricted
    goals = _goals(budget, score_at, stretch)
    curves = [[] if scored is None else scored]
    with Containment([plugin], contained) as stage:
        (outcome,) = _attack(
            bench, weights, domain, stage, plugin.run, goals, [tick], curves,
            samples=samples, seed=seed,
        )  # fmt: skip
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
    domain = domain or bench.data.restricted
    goals = _goals(budget, score_at, stretch)
    curves: list[list[Point]] = [[] for _ in plugins]
    run = functools.partial(plugins[0].run_many, plugins)
    with Containment(plugins, contained) as stage:
        return _attack(
            bench, weights, domain, stage, run, goals, ticks, curves,
            samples=samples, seed=seed, many=True,
        )  # fmt: skip


def _goals(budget: int, score_at: Sequence[float], stretch: int) -> list[float]:
    """Costs to score at, in units."""
    longer = [times for times in STRETCHED_AT if times < stretch]
    return sorted({budget * at for at in (*score_at, *longer, stretch) if at <= stretch})


def _attack(
    bench: Bench,
    weights: Weights,
    domain: DomainData,
    stage: Containment,
    run: Callable[[Model, AttackView], Iterator[Any]],
    goals: Sequence[float],
    ticks: Sequence[Tick],
    curves: Sequence[list[Point]],
    *,
    samples: int,
    seed: int,
    many: bool = False,
) -> list[Attacked | NoUpdate]:
    """Run one trial, or ``many`` at once, and score each."""
    meter = Meter(bench.profile, bench.device, together=len(ticks))
    train, validation = bench.attacker(domain, samples, seed)
    counted, task = CountedSamples(train), WatchedTask(domain.task)
    fresh = generator("fresh", seed)
    view = AttackView(
        task=task,
        train=counted,
        validation=validation,
        auxiliary=bench.auxiliary() if domain is bench.data.restricted else None,
        new_model=lambda: meter.watch(bench.new_model(fresh)),
        device=bench.device,
        rng=generator("attack", seed),
    )
    judge = Judge(bench, domain, task, train, validation, meter, view.rng, stage)
    trials = [
        _Trial(judge, weights, goals, tick, curve)
        for tick, curve in zip(ticks, curves, strict=True)
    ]
    global_seed = derive_seed("attack-global", seed)
    with PeakMemory(bench.device) as peak, seeded(global_seed, bench.device):
        model = meter.watch(bench.load(weights))
        steps = driven(stage, lambda: run(model, view), [train])
        for yielded in meter.drive(steps):
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
        judge: Judge,
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
        self.changes = Changes(weights)
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
        """How it went; of an attack that did nothing, its error."""
        finite = self.nonfinite is None
        try:
            predictor = self._checked(touched)
        except NoUpdate as error:
            return error
        return Attacked(
            status="ok" if finite else "diverged",
            reason=None if finite else f"non-finite values at or before update {self.nonfinite}",
            curve=self.curve,
            nonfinite_step=self.nonfinite,
            cost=cost,
            generated=self.judge.generated(predictor) if finite else None,
            contained=self.judge.stage.found,
        )

    def _checked(self, touched: bool) -> Predictor:
        """The last predictor, of an attack that did something."""
        judge, predictor = self.judge, self.predictor
        if predictor is None:
            raise NoUpdate("the attack yielded nothing; yield the predictor after every update")
        if not touched:
            raise NoUpdate("the attack drew no sample of view.train")
        if self.nonfinite is None and isinstance(predictor, nn.Module):
            self.changes.check(predictor, went_backward=judge.meter.went_backward)
        elif self.nonfinite is None and judge.same(predictor, judge.bench.load(self.weights)):
            raise NoUpdate("the attack yields what the released model computes, unchanged")
        return predictor


def driven(
    stage: Containment, run: Callable[[], Iterator[T]], trained_on: Sequence[Samples]
) -> Generator[T, None, object]:
    """What a plugin's ``run`` yields within its stage, with errors `in_our_words`.

    Raises:
        TypeError: If it is no generator.
    """

    def start() -> Iterator[T]:
        steps = run()
        if not isinstance(steps, Iterator):
            raise TypeError(
                f"run returned {type(steps).__name__}; make it a generator that yields after every "
                f"update"
            )
        return steps

    with in_our_words(trained_on):
        return (yield from stage.drive(start))


TOO_FEW = re.compile(r"Expected more than 1 (value per channel|spatial element) when training")
"""How torch begins to say that a normalisation layer has nothing to average over."""


@contextlib.contextmanager
def in_our_words(trained_on: Sequence[Samples]) -> Iterator[None]:
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


def _described(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"


def _finite(predictor: Predictor) -> bool:
    if not isinstance(predictor, nn.Module):
        return True
    return all(bool(p.isfinite().all()) for p in predictor.parameters())
