"""Where simulated fine-tuners start: at the weights, near them, or where an earlier one stopped."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from sophon_bench.api import Model

from .simulate import shared_parameters
from .strategies import Strategy

POOL = 8
"""Fine-tuners that are remembered, the latest ones."""


class Beginnings:
    """Every fine-tuner starts at the weights themselves."""

    def begin(self, learner: Model, strategy: Strategy, horizon: int, rng: torch.Generator) -> None:
        """Move ``learner``, which has the model's weights, to where the fine-tuner starts."""

    def end(self, learner: Model, model: Model) -> None:
        """Record where the fine-tuner has stopped."""


@dataclass(frozen=True)
class _Trace:
    """A fine-tuner's displacement from the weights, its head, its strategy and its updates."""

    moved: list[Tensor]
    head: dict[str, Tensor]
    strategy: Strategy
    updates: int


class Wandering(Beginnings):
    """Some continue an earlier fine-tuner with the same kind of head; the others start nearby.

    What is remembered is the displacement from the model's weights, which themselves change.

    Args:
        replay: Share of fine-tuners that continue an earlier one.
        farthest: Total updates after which a fine-tuner is forgotten.
        noise: Largest noise on the weights that the others start from, relative to each tensor's
            root mean square.
    """

    def __init__(self, *, replay: float, farthest: int, noise: float) -> None:
        self._replay, self._farthest, self._noise = replay, farthest, noise
        self._pool: deque[_Trace] = deque(maxlen=POOL)
        self._now: tuple[Strategy, int] | None = None

    @torch.no_grad()
    def begin(self, learner: Model, strategy: Strategy, horizon: int, rng: torch.Generator) -> None:
        """As `Beginnings.begin`."""
        shared = shared_parameters(learner, strategy.head)
        known = [trace for trace in self._pool if trace.strategy.head == strategy.head]
        done = 0
        if float(torch.rand((), generator=rng)) < self._replay and known:
            trace = known[int(torch.randint(len(known), (), generator=rng))]
            for parameter, moved in zip(shared, trace.moved, strict=True):
                parameter.add_(moved)
            if strategy.head == "fresh":
                learner.head.load_state_dict(trace.head)
            done = trace.updates
        elif self._noise:
            size = self._noise * float(torch.rand((), generator=rng))
            for parameter in shared:
                drawn = torch.randn(parameter.shape, generator=rng).to(parameter)
                parameter.add_(drawn * (size * parameter.square().mean().sqrt()))
        self._now = (strategy, done + horizon)

    @torch.no_grad()
    def end(self, learner: Model, model: Model) -> None:
        """As `Beginnings.end`."""
        assert self._now is not None
        strategy, updates = self._now
        pairs = zip(
            shared_parameters(learner, strategy.head),
            shared_parameters(model, strategy.head),
            strict=True,
        )
        moved = [there - here for there, here in pairs]
        if updates < self._farthest and all(bool(m.isfinite().all()) for m in moved):
            head = {name: t.clone() for name, t in learner.head.state_dict().items()}
            self._pool.append(_Trace(moved, head, strategy, updates))
