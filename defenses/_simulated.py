"""Shared by defenses that add a simulated fine-tuning to the original loss."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ._outer import Count, Outer, Positive, Scene, Weight, add_gradients
from .sophon.simulate import draw_steps, first_order, reset, shared_parameters
from .sophon.strategies import Strategy


@dataclass(frozen=True, kw_only=True)
class Simulated(Outer):
    """Minimise ``CE_orig + weight mean_k L(theta_k)`` over K steps of a fine-tuner.

    The fine-tuner starts from the current weights. Gradients at theta_k, on examples that the step
    did not use, are applied to these weights unchanged (first order).

    Args:
        weight: Weight of the simulated term.
        inner_steps: Updates K of the fine-tuner.
        judge: How many of ``batch_size`` restricted examples evaluate the fine-tuner after every
            update; it adapts to the rest.
    """

    lr: Positive = 1e-3
    weight: Weight = 1.0
    inner_steps: Count = 16
    judge: Count = 20
    iterations: Count = 200

    @property
    def planned_units(self) -> float:
        """Forward and backward passes in a whole run, counted per example."""
        looked = 1 / 3 if self.followed else 0.0
        simulated = self.pursued * (self.inner_steps + looked)
        return self.batch_size * (self.iterations + simulated)

    def __post_init__(self) -> None:
        if self.judge >= self.batch_size:
            raise ValueError(
                f"judge={self.judge} leaves none of batch_size={self.batch_size} examples to "
                f"adapt to; judge must be smaller"
            )

    @property
    @abstractmethod
    def followed(self) -> bool:
        """Whether fine-tuners start from the auxiliary head instead of a fresh one."""

    @abstractmethod
    def strategy(self, rng: torch.Generator) -> Strategy:
        """How the next fine-tuner adapts, with a head of its own (``head="fresh"``)."""

    @abstractmethod
    def judged(self, logits: Tensor, targets: Tensor) -> Tensor:
        """L of the fine-tuner's outputs ``(B, C)``, averaged over the batch."""

    def objective(self, scene: Scene) -> Tensor:
        return scene.original().loss

    def differentiate(self, scene: Scene) -> None:
        super().differentiate(scene)
        restricted, rng = scene.view.restricted, scene.view.rng
        strategy = self.strategy(rng)
        reset(scene.learner, scene.model, "fresh", task=restricted.task, rng=rng)
        if self.followed:
            with torch.no_grad():
                scene.restricted()
            scene.learner.head.load_state_dict(scene.head.state_dict())
        steps = draw_steps(
            restricted.train,
            self.inner_steps,
            adapt=strategy.batch_size,
            judge=self.judge,
            gamma="mean",
            rng=rng,
        )
        found = first_order(
            scene.learner, strategy, steps, task=restricted.task, objective=self.judged
        )
        shared = shared_parameters(scene.model, "fresh")
        add_gradients(shared, [self.weight * gradient for gradient in found])
