"""Shared by defenses that follow the gradient of one objective over both domains."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench.api import DefenseView, Model

from ._watch import Watch, original_utility

Positive = Annotated[float, Gt(0)]
Weight = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]


class Seen(NamedTuple):
    """A model's features ``(B, D)`` and loss on a batch."""

    features: Tensor
    loss: Tensor


class Scene:
    """A model under protection, its batches, and an auxiliary head for the restricted task.

    Args:
        model: In train mode.
        view: Provides the samples and the random generator.
        batch_size: Examples per batch of either domain.
        head_lr: Step size (Adam) of the auxiliary head.

    Attributes:
        head: The auxiliary head, as a fine-tuner would train it. It starts freshly initialised and
            takes one step per batch, on the features of the current body. So its loss cannot be
            raised by merely moving features away from a fixed head.
        learner: A copy of the model on which fine-tuning is simulated.
    """

    def __init__(self, model: Model, view: DefenseView, *, batch_size: int, head_lr: float) -> None:
        self.model, self.view = model, view
        self.learner = copy.deepcopy(model)
        self.learner.fresh_head(view.restricted.task.num_outputs, view.rng)
        self.head = self.learner.head
        self._optimizer = torch.optim.Adam(self.head.parameters(), lr=head_lr)
        domains = (view.original, view.restricted)
        self._batches = [d.train.batches(batch_size, view.rng) for d in domains]
        self._features: Tensor | None = None
        self.original_batch, self.restricted_batch = (next(b) for b in self._batches)

    def advance(self) -> None:
        """Update the auxiliary head on the current batch's features, and draw the next batches."""
        if self._features is not None:
            self._optimizer.zero_grad()
            self._behind(self._features).backward()
            self._optimizer.step()
        self._features = None
        self.original_batch, self.restricted_batch = (next(b) for b in self._batches)

    @property
    def body(self) -> list[Tensor]:
        """All parameters except the original head's: what a fine-tuner starts from."""
        own = {id(p) for p in self.model.head.parameters()}
        return [p for p in self.model.parameters() if id(p) not in own]

    def original(self) -> Seen:
        """The original batch, with the original head."""
        features = self.model.features(self.original_batch.inputs)
        task, head = self.view.original.task, self.model.head
        return Seen(features, task.loss(lambda _inputs: head(features), self.original_batch))

    def restricted(self) -> Seen:
        """The restricted batch, with the auxiliary head; BatchNorm's statistics are not updated."""
        with kept_statistics(self.model):
            features = self.model.features(self.restricted_batch.inputs)
        if self._features is None:
            self._features = features.detach()
        return Seen(features, self._behind(features))

    def _behind(self, features: Tensor) -> Tensor:
        """The restricted loss of the auxiliary head on features of the current batch."""
        return self.view.restricted.task.loss(
            lambda _inputs: self.head(features), self.restricted_batch
        )


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Within this context, BatchNorm uses batch statistics but keeps its running statistics."""
    moved = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    for module in moved:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in moved.items():
            module.momentum = momentum


def add_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """Add ``gradients`` to those that the parameters already have."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


@dataclass(frozen=True, kw_only=True)
class Outer(ABC):
    """Minimise an objective over both domains with Adam; keep original utility within a tolerance.

    Args:
        lr: Step size of Adam.
        iterations: Number of updates.
        recovery: Share of the updates, at the end, that minimise the original loss alone, as
            SOPHON's reinforcement does. An objective that does not restore the utility it cost
            would otherwise end below the tolerance, and its model would not be released.
        batch_size: Examples of either domain per update.
        head_lr: Step size (Adam) of the auxiliary head, which is trained alongside.
        clip: Largest norm of the gradient.
        max_drop: Largest drop in original utility on validation that may be released; None: any.
        watch_every: Updates between two checks of this drop.
        patience: Consecutive failed checks that end the run early.
    """

    lr: Positive = 3e-4
    iterations: Count = 400
    recovery: Annotated[float, Interval(ge=0, lt=1)] = 0.25
    batch_size: Annotated[int, Ge(2)] = 64
    head_lr: Positive = 1e-2
    clip: Positive = 1.0
    max_drop: Annotated[float, Ge(0)] | None = 0.015
    watch_every: Count = 20
    patience: Count = 20

    @property
    def steps(self) -> int:
        """Updates in a whole run, each of which yields; a roll-back yields once more."""
        return self.iterations

    @property
    def pursued(self) -> int:
        """Number of updates that follow the objective."""
        return self.iterations - int(self.recovery * self.iterations)

    @abstractmethod
    def objective(self, scene: Scene) -> Tensor:
        """The scalar to minimise, on the scene's batches."""

    def differentiate(self, scene: Scene) -> None:
        """Compute the objective's gradient for the model's parameters."""
        self.objective(scene).backward()

    def run(self, model: Model, view: DefenseView) -> Generator[Model, None, str | None]:
        """Yield the model after every update."""
        drop = math.inf if self.max_drop is None else self.max_drop
        floor = original_utility(model, view.original) - drop
        watch = Watch(
            model, view.original, floor=floor, patience=self.patience,
            every=self.watch_every, last=self.iterations,
        )  # fmt: skip
        scene = Scene(model.train(), view, batch_size=self.batch_size, head_lr=self.head_lr)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        for iteration in range(1, self.iterations + 1):
            optimizer.zero_grad()
            if iteration <= self.pursued:
                self.differentiate(scene)
            else:
                scene.original().loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            scene.advance()
            yield model
            if ended := watch.look(iteration):
                yield model
                return ended
        return None
