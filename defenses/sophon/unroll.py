"""Second order: differentiate through the inner updates instead of treating them as constants.

The update rules repeat torch's own SGD, SGD with momentum 0.9 and Adam, as functions that
autograd can differentiate. Of the K updates, only one is held as a graph at a time: weights and
moments are kept every sqrt(K) updates, and those between are recomputed in the backward pass.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from sophon_bench.api import Model, Predictor, Task

from .simulate import Objective, Step, shared_parameters
from .strategies import Strategy

MOMENTUM = 0.9
BETAS = (0.9, 0.999)
EPS = 1e-8


class Moments(NamedTuple):
    """An optimizer's state for one parameter: running sums or means of g and of g squared."""

    first: Tensor
    second: Tensor


def sgd(gradient: Tensor, moments: Moments, step: int) -> tuple[Tensor, Moments]:  # noqa: ARG001
    """The gradient itself."""
    return gradient, moments


def momentum(gradient: Tensor, moments: Moments, step: int) -> tuple[Tensor, Moments]:  # noqa: ARG001
    """The velocity v = 0.9 v + g."""
    velocity = MOMENTUM * moments.first + gradient
    return velocity, moments._replace(first=velocity)


def adam(gradient: Tensor, moments: Moments, step: int) -> tuple[Tensor, Moments]:
    """Running mean / running scale, m / (sqrt(v) + eps), both corrected for starting at 0."""
    first = BETAS[0] * moments.first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * moments.second + (1 - BETAS[1]) * gradient**2
    # sqrt has an infinite slope at 0, the value for a dead unit; its update there is m / eps.
    alive = second > 0
    root = torch.where(alive, second, 1.0).sqrt() * alive
    size = root / (1 - BETAS[1] ** step) ** 0.5 + EPS
    return first / (1 - BETAS[0] ** step) / size, Moments(first, second)


RULES = {"sgd": sgd, "momentum": momentum, "adam": adam}


class State(NamedTuple):
    """A fine-tuner before an update: weights, moments, and the global random state."""

    weights: Sequence[Tensor]
    moments: Sequence[Moments]
    random: Sequence[Tensor]


def second_order(
    learner: Model, strategy: Strategy, steps: Iterable[Step], *, task: Task, objective: Objective
) -> list[Tensor]:
    """G over the shared parameters, exact: it includes d theta_k / d theta.

    Memory grows with sqrt(K) copies of the weights, plus the examples of all steps.
    """
    tuner = _Tuner(learner, strategy, task, objective)
    drawn = list(steps)
    stride = math.isqrt(len(drawn))
    starts = range(0, len(drawn), stride)
    state = tuner.start()
    kept = [state]
    for number in range(1, starts[-1] + 1):
        state = tuner.step(state, drawn[number - 1], number)
        if number % stride == 0:
            kept.append(state)
    slopes = tuner.no_slopes()
    end: list[Tensor] = []
    for first in reversed(starts):
        states = [kept.pop()]
        segment = drawn[first : first + stride]
        for number, step in enumerate(segment[:-1], start=first + 1):
            states.append(tuner.step(states[-1], step, number))
        for number, step in reversed(list(enumerate(segment, start=first + 1))):
            slopes = tuner.back(states.pop(), step, number, slopes)
            end = end or _random(slopes[0].device)
    _set_random(end, slopes[0].device)
    shared = {id(p) for p in shared_parameters(learner, strategy.head)}
    pairs = zip(learner.parameters(), slopes, strict=False)
    return [slope for parameter, slope in pairs if id(parameter) in shared]


@dataclass(frozen=True)
class _Tuner:
    """One fine-tuner: its updates as functions of a state, forward and backward."""

    learner: Model
    strategy: Strategy
    task: Task
    objective: Objective

    def start(self) -> State:
        weights = [p.detach() for p in self.learner.parameters()]
        return State(
            weights,
            [Moments(torch.zeros_like(w), torch.zeros_like(w)) for w in weights],
            _random(weights[0].device),
        )

    def no_slopes(self) -> list[Tensor]:
        """A zero gradient for every weight and moment."""
        return [torch.zeros_like(t) for t in _flat(*self.start()[:2])]

    def step(self, state: State, step: Step, number: int) -> State:
        """The state after update ``number``."""
        weights, moments = self._moved(state, step, number, create_graph=False)
        weights = [w.detach() for w in weights]
        moments = [Moments(*(t.detach() for t in m)) for m in moments]
        return State(weights, moments, _random(weights[0].device))

    def back(self, state: State, step: Step, number: int, slopes: Sequence[Tensor]) -> list[Tensor]:
        """Backpropagate slopes of the state after update ``number`` to the state before it."""
        leaves = [t.detach().requires_grad_() for t in _flat(*state[:2])]
        count = len(state.weights)
        pairs = leaves[count:]
        moments = [Moments(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
        before = State(leaves[:count], moments, state.random)
        weights, after = self._moved(before, step, number, create_graph=True)
        outputs = _flat(weights, after)
        needed = [(o, s) for o, s in zip(outputs, slopes, strict=True) if o.requires_grad]
        ends, given = [o for o, _ in needed], [s for _, s in needed]
        if step.weight:
            logits = self.task.predict(self._predictor(weights), step.judge.inputs)
            ends.append(step.weight * self.objective(logits, step.judge.targets))
            given.append(torch.ones_like(ends[-1]))
        found = torch.autograd.grad(ends, leaves, given, materialize_grads=True)
        return list(found)

    def _moved(
        self, state: State, step: Step, number: int, *, create_graph: bool
    ) -> tuple[list[Tensor], list[Moments]]:
        _set_random(state.random, state.weights[0].device)
        weights = [w if w.requires_grad else w.requires_grad_() for w in state.weights]
        gradients = torch.autograd.grad(
            self.task.loss(self._predictor(weights), step.adapt),
            weights,
            create_graph=create_graph,
            materialize_grads=True,
        )
        rule = RULES[self.strategy.optimizer]
        with torch.set_grad_enabled(create_graph):
            moved = [rule(g, m, number) for g, m in zip(gradients, state.moments, strict=True)]
            updated = [
                w - self.strategy.lr * update for w, (update, _) in zip(weights, moved, strict=True)
            ]
        return updated, [memory for _, memory in moved]

    def _predictor(self, weights: Sequence[Tensor]) -> Predictor:
        names = [name for name, _ in self.learner.named_parameters()]
        named = dict(zip(names, weights, strict=True))

        def predict(inputs: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self.learner, named, inputs)
            return outputs

        return predict


def _flat(weights: Sequence[Tensor], moments: Sequence[Moments]) -> list[Tensor]:
    return [*weights, *itertools.chain.from_iterable(moments)]


def _gpus(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _random(device: torch.device) -> list[Tensor]:
    """The global random state that a forward pass draws from, so that dropout can be repeated."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in _gpus(device))]


def _set_random(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for gpu, state in zip(_gpus(device), states[1:], strict=True):
        torch.cuda.set_rng_state(state, gpu)
