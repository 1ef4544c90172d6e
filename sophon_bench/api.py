"""The plugin contract: what an attack, a defense and a task are, and what each is shown.

An attack or a defense is a frozen dataclass (its fields are the hyperparameters) with one method,
``run``: a generator that yields after every update. The plugin says how to make progress; the
harness owns the budget, the clock, the scoring, the checkpoints, the seeds and when to stop. What
else a plugin may declare is listed in `Declared`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sophon_bench.plugins.declared import Declared as Declared
from sophon_bench.plugins.registry import attacks as attacks
from sophon_bench.plugins.registry import defenses as defenses
from sophon_bench.plugins.registry import scenarios as scenarios
from sophon_bench.seeding import seeded

Predictor = Callable[[Tensor], Tensor]
"""Maps inputs to outputs. A `Model` is one, a peft-wrapped model is one, so is any function."""


class Incompatible(Exception):
    """Raised by a plugin that cannot apply; the cell is recorded as skipped, with this reason."""


class Batch(NamedTuple):
    """Labelled examples on the device.

    inputs: ``(B, C, H, W)`` images, normalised for the backbone.
    targets: ``(B,)`` class ids.
    """

    inputs: Tensor
    targets: Tensor


class Samples:
    """Labelled examples that live on the device.

    A new order goes to the device once per epoch, without waiting for it.

    Args:
        inputs: ``(N, C, H, W)`` images, normalised for the backbone.
        targets: ``(N,)`` class ids.

    Raises:
        ValueError: If there are no examples, or the lengths differ.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise ValueError(
                f"samples need as many targets as inputs, at least one; "
                f"got {len(inputs)} inputs and {len(targets)} targets"
            )
        self._inputs = inputs
        self._targets = targets

    @property
    def inputs(self) -> Tensor:
        """``(N, C, H, W)`` images."""
        return self._inputs

    @property
    def targets(self) -> Tensor:
        """``(N,)`` class ids."""
        return self._targets

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: slice | Tensor) -> Batch:
        """Some of the examples.

        Args:
            index: A slice, or ``(B,)`` indices on the device.
        """
        return Batch(self._inputs[index], self._targets[index])

    def batches(self, batch_size: int, rng: torch.Generator) -> Iterator[Batch]:
        """Endless batches of ``min(batch_size, N)`` examples, reshuffled every epoch.

        No example is ever dropped: a batch may straddle two epochs. So all batches have one size,
        and few samples never turn into no update at all.

        Args:
            batch_size: Examples per batch, at least 1.
            rng: CPU generator that the order is drawn from.

        Raises:
            ValueError: If ``batch_size`` is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return self._endless(min(batch_size, len(self)), rng)

    def _endless(self, size: int, rng: torch.Generator) -> Iterator[Batch]:
        device = self._targets.device
        order = torch.empty(0, dtype=torch.long, device=device)
        while True:
            while len(order) < size:
                drawn = torch.randperm(len(self), generator=rng)
                drawn = drawn.pin_memory() if device.type == "cuda" else drawn
                order = torch.cat([order, drawn.to(device, non_blocking=True)])
            index, order = order[:size], order[size:]
            yield self[index]


class Model(nn.Module):
    """A backbone with a head: ``forward(x) == head(features(x))`` up to the head's own pooling.

    Attributes:
        head: From features to outputs.
        drawn_head: The head's parameters as `fresh_head` drew them last; empty before.
    """

    head: nn.Module
    drawn_head: tuple[Tensor, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Width of the head's output."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, K)`` of images ``(B, C, H, W)``."""
        raise NotImplementedError

    def features(self, inputs: Tensor) -> Tensor:
        """What the head sees, ``(B, D)``, of images ``(B, C, H, W)``."""
        raise NotImplementedError

    def fresh_head(self, num_outputs: int, rng: torch.Generator) -> None:
        """Replace the head by a newly initialised one, drawn from ``rng``, in place."""
        raise NotImplementedError

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """The body's stages in forward order as ``(name, module)``; the head is not among them."""
        raise NotImplementedError


@runtime_checkable
class Task(Protocol):
    """What a domain asks of a model.

    Attributes:
        name: Which kind of backbone it is for.
        utility_name: What `utility` is called in tables.
        draws: Whether `predict` and `loss` draw from torch's own generator, as dropout does; the
            harness seeds it.
    """

    @property
    def name(self) -> str: ...

    @property
    def utility_name(self) -> str: ...

    @property
    def draws(self) -> bool: ...

    @property
    def num_outputs(self) -> int:
        """Outputs that a fresh head for this task has."""
        ...

    def predict(self, model: Predictor, inputs: Tensor) -> Tensor:
        """The model's outputs on ``inputs``: logits ``(B, K)``."""
        ...

    def loss(self, model: Predictor, batch: Batch) -> Tensor:
        """The scalar training loss, a mean over the batch."""
        ...

    def utility(self, predictor: Predictor, samples: Samples) -> float:
        """How well ``predictor`` does on ``samples``; higher is better."""
        ...

    def trivial_loss(self, samples: Samples) -> float | None:
        """The loss of a predictor of utility 0, if utility is ``1 - loss / that``; else None."""
        ...


@runtime_checkable
class Generative(Protocol):
    """A task whose models make images."""

    def generate(
        self, predictor: Predictor, count: int, image_size: int, device: torch.device
    ) -> Tensor | None:
        """Images ``(count, 3, H, W)`` uint8 from the same noise at each call; None: it cannot."""
        ...


@dataclass(frozen=True)
class Domain:
    """One task with the samples that a plugin may see."""

    task: Task
    train: Samples
    validation: Samples


@dataclass(frozen=True, kw_only=True)
class View:
    """What attackers and defenders both have.

    Attributes:
        device: Where the tensors live.
        rng: CPU generator for every draw of the plugin.
    """

    device: torch.device
    rng: torch.Generator

    def seeded(self) -> AbstractContextManager[None]:
        """Seed the global generators from ``rng`` inside a ``with``, and put them back after it.

        For what draws from torch's global generator while it is built: new layers, peft's adapters.
        """
        seed = torch.randint(2**63 - 1, (), generator=self.rng)
        return seeded(int(seed), self.device)


@dataclass(frozen=True, kw_only=True)
class AttackView(View):
    """All that an attacker has besides the released model: the fields are the threat model.

    Attributes:
        task: The restricted task.
        train: The attacker's labelled samples.
        validation: The part of the attacker's n samples kept for its own choices.
        auxiliary: Benign data that is neither original nor restricted, if the scenario grants any.
        new_model: Makes a model of the same architecture with random weights and the original head.
    """

    task: Task
    train: Samples
    validation: Samples
    auxiliary: Samples | None
    new_model: Callable[[], Model]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Endless reshuffled training batches, drawn with the view's own ``rng``."""
        return self.train.batches(batch_size, self.rng)


@dataclass(frozen=True, kw_only=True)
class DefenseView(View):
    """All that a defender has besides the pre-trained model."""

    original: Domain
    restricted: Domain


class Attack(Protocol):
    """Adapts the released model to the restricted domain."""

    def run(self, model: Model, view: AttackView) -> Iterator[Predictor]:
        """Yield the current predictor after every update, until the harness stops asking."""
        ...


@runtime_checkable
class AttackMany(Attack, Protocol):
    """An attack that can also run several of its trials at once.

    The harness does so where it measures that it takes less time than one after the other.

    Attributes:
        together: Names of the fields in which such trials may differ.
    """

    together: ClassVar[Sequence[str]]

    def run_many(
        self, trials: Sequence[Any], model: Model, view: AttackView
    ) -> Iterator[list[Any]]:
        """Yield a predictor for each of ``trials`` after every update of all of them.

        Each trial does what its `run` would do alone. ``trials`` are of this class, begin with
        ``self``, and differ in the fields of ``together`` alone.
        """
        ...


class Defense(Protocol):
    """Turns the pre-trained model into the one that is released.

    The last model yielded is released, as a state dict and nothing else. A generator may
    ``return`` a sentence, which the record then carries; tables mark the defense where it begins
    with ``rolled back``.
    """

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        """Yield the model after every update."""
        ...
