"""SOPHON: non-fine-tunable learning to restrain task transferability for pre-trained models.

Deng et al., IEEE S&P 2024, https://arxiv.org/abs/2404.12699. Minimises over the weights theta::

    E_phi L_alpha(phi(f_theta); T) + mu * E L_original(f_theta)

alternately: suppression steps (FTS) on the first term, reinforcement steps (NTR) on the second.
"""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Interval, MinLen
from torch import Tensor

from sophon_bench.api import DefenseView, Domain, Incompatible, Model

from .._watch import Watch, original_utility
from .simulate import Gamma, draw_steps, first_order, reset, shared_parameters
from .strategies import Head, Strategy
from .unroll import RULES, second_order
from .wander import Beginnings

Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class Sophon(ABC):
    """Suppress what simulated fine-tuners reach, reinforce the original task.

    Args:
        alpha: Step size of suppression (Adam).
        beta: Step size of reinforcement (Adam).
        mu: Weight of the original loss; it hardly matters, since reinforcement has its own Adam.
        iterations: Rounds of suppression and reinforcement.
        fts_steps: Suppression steps per iteration, each with one simulated fine-tuning.
        ntr_steps: Reinforcement steps per iteration.
        inner_steps: Updates K of a simulated fine-tuning.
        strategies: What the fine-tuner may do, drawn uniformly for each simulation, in the form
            ``optimizer@lr[/batch][/fresh|kept]``; from a range ``1e-4..1`` for ``lr``, the step
            size is drawn log-uniformly.
        head: The fine-tuner's head if its strategy names none. With a fresh head, only the body's
            gradient returns to the model.
        batch_size: Restricted examples drawn per inner step.
        adapt: How many of those the fine-tuner adapts to; the rest evaluate it. A strategy may name
            another number to adapt to.
        ntr_batch_size: Original examples per reinforcement step.
        gamma: Evaluate the fine-tuner after every inner step, or after the last.
        order: 1 treats the inner updates as constants, 2 differentiates through them.
        clip: Largest norm of the suppression gradient.
        min_original: Lowest original utility on validation that may be released; None: any.
        max_drop: Largest drop of it from its value before protection; None: any.
        watch_every: Iterations between two checks of these limits.
        patience: Consecutive failed checks that end the run early.
    """

    alpha: Positive = 8e-3
    beta: Positive = 1e-3
    mu: Positive = 1.0
    iterations: Count = 90
    fts_steps: Count = 1
    ntr_steps: Count = 14
    inner_steps: Count = 80
    strategies: Annotated[tuple[str, ...], MinLen(1)] = ("sgd@0.01", "sgd@0.03", "momentum@0.01")
    head: Head = "fresh"
    batch_size: Annotated[int, Ge(2)] = 40
    adapt: Count = 28
    ntr_batch_size: Count = 64
    gamma: Gamma = "mean"
    order: Annotated[int, Interval(ge=1, le=2)] = 1
    clip: Positive = 0.5
    min_original: float | None = None
    max_drop: Annotated[float, Ge(0)] | None = 0.015
    watch_every: Count = 10
    patience: Count = 20

    may_diverge: ClassVar[bool] = False
    """Whether a fine-tuner that is not finite is left out, and does not end the run."""

    @abstractmethod
    def suppression_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L_alpha of the fine-tuned model's outputs, averaged over the batch."""

    def __post_init__(self) -> None:
        if self.adapt >= self.batch_size:
            raise ValueError(
                f"adapt={self.adapt} leaves none of batch_size={self.batch_size} examples to "
                f"judge by; adapt must be smaller"
            )
        if not self.strategies:
            raise ValueError("strategies is empty; name at least one, as in 'sgd@0.01'")
        for strategy, text in zip(self._parsed, self.strategies, strict=True):
            if self.order == 2 and strategy.optimizer not in RULES:
                raise ValueError(
                    f"strategy {text!r}: order=2 differentiates through {', '.join(RULES)} only; "
                    f"use one of these or order=1"
                )

    @property
    def steps(self) -> int:
        """Updates in a whole run, each of which yields; a roll-back yields once more."""
        return self.iterations * (self.fts_steps + self.ntr_steps)

    @property
    def planned_units(self) -> float:
        """Forward and backward passes in a whole run, counted per example."""
        judged = self.horizon if self.gamma == "mean" else 1
        adapted = sum(s.batch_size for s in self._parsed) / len(self._parsed)
        suppression = self.horizon * adapted + judged * (self.batch_size - self.adapt)
        reinforcement = self.ntr_steps * self.ntr_batch_size
        return self.iterations * (self.fts_steps * suppression + reinforcement)

    def run(self, model: Model, view: DefenseView) -> Generator[Model, None, str | None]:
        """Yield the model after every suppression and every reinforcement step.

        Raises:
            Incompatible: If there are too few samples for simulation, the model has too few outputs
                for a kept head, or it is below ``min_original`` from the start.
        """
        self._check(model, view.restricted)
        watch = Watch(
            model, view.original, floor=self._floor(model, view.original), patience=self.patience,
            every=self.watch_every, last=self.iterations,
        )  # fmt: skip
        model.train()
        learners = {head: copy.deepcopy(model) for head in self.heads}
        beginnings = self.beginnings()
        batches = view.original.train.batches(self.ntr_batch_size, view.rng)
        suppression = torch.optim.Adam(model.parameters(), lr=self.alpha)
        reinforcement = torch.optim.Adam(model.parameters(), lr=self.beta)
        for iteration in range(1, self.iterations + 1):
            for _ in range(self.fts_steps):
                suppression.zero_grad()
                self._simulate(model, learners, beginnings, view)
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                suppression.step()
                yield model
            for _ in range(self.ntr_steps):
                reinforcement.zero_grad()
                loss = view.original.task.loss(model, next(batches))
                (self.mu * loss).backward()
                reinforcement.step()
                yield model
            if ended := watch.look(iteration):
                yield model
                return ended
        return None

    def _simulate(
        self,
        model: Model,
        learners: Mapping[Head, Model],
        beginnings: Beginnings,
        view: DefenseView,
    ) -> None:
        """Set the model's gradients to those of one simulated fine-tuning."""
        domain, rng = view.restricted, view.rng
        strategy, horizon = self.draw(rng)
        learner = learners[strategy.head]
        reset(learner, model, strategy.head, task=domain.task, rng=rng)
        beginnings.begin(learner, strategy, horizon, rng)
        steps = draw_steps(
            domain.train,
            horizon,
            adapt=strategy.batch_size,
            judge=self.batch_size - self.adapt,
            gamma=self.gamma,
            rng=rng,
        )
        differentiate = first_order if self.order == 1 else second_order
        gradients = differentiate(
            learner, strategy, steps, task=domain.task, objective=self.suppression_loss
        )
        beginnings.end(learner, model)
        if not self.may_diverge or all(bool(g.isfinite().all()) for g in gradients):
            shared = shared_parameters(model, strategy.head)
            for parameter, gradient in zip(shared, gradients, strict=True):
                parameter.grad = gradient

    @property
    def horizon(self) -> float:
        """Mean number of updates in a simulated fine-tuning."""
        return self.inner_steps

    def beginnings(self) -> Beginnings:
        """Where fine-tuners start from, in one run."""
        return Beginnings()

    @property
    def heads(self) -> set[Head]:
        """The heads that fine-tuners may choose."""
        return {strategy.head for strategy in self._parsed}

    def draw(self, rng: torch.Generator) -> tuple[Strategy, int]:
        """How the next fine-tuner adapts, and its number of updates K."""
        drawn = int(torch.randint(len(self.strategies), (), generator=rng))
        return self._parsed[drawn].drawn(rng), self.inner_steps

    @functools.cached_property
    def _parsed(self) -> list[Strategy]:
        return [Strategy.parse(t, batch_size=self.adapt, head=self.head) for t in self.strategies]

    def _check(self, model: Model, restricted: Domain) -> None:
        needed = restricted.task.num_outputs
        if "kept" in self.heads and model.num_outputs < needed:
            raise Incompatible(
                f"a kept head needs at least {needed} outputs, the model has {model.num_outputs}"
            )
        if len(restricted.train) < 2:
            raise Incompatible("simulation needs at least 2 restricted samples, got 1")

    def _floor(self, model: Model, original: Domain) -> float:
        """The lowest original utility that may be released."""
        start = original_utility(model, original)
        if self.min_original is not None and start < self.min_original:
            raise Incompatible(
                f"original utility is {start:.3f} before protection, below "
                f"min_original={self.min_original}"
            )
        lowest = -math.inf if self.max_drop is None else start - self.max_drop
        return lowest if self.min_original is None else max(lowest, self.min_original)
