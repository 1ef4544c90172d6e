"""IMMA: immunise some weights against fine-tuning of the others.

Reference: Zheng and Yeh, IMMA: Immunizing text-to-image models against malicious adaptation, ECCV
2024, arXiv 2311.18815; code amberyzheng/IMMA.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor

from sophon_bench.api import DefenseView, Model, defenses
from sophon_bench.data.tasks.denoising import TIMESTEPS

from ._early import early
from ._immunity import adapt, immunised
from ._outer import Count, Outer, Positive, Scene, Weight, add_gradients
from .naive_ascent import naive


@defenses.register("imma")
@dataclass(frozen=True, kw_only=True)
class Imma(Outer):
    """Minimise ``L_orig(s, r) - weight min(L_restr(s', r'), cap)`` over the weights s alone.

    s is attention and the middle block, r the rest. A fine-tuner takes ``(s, r')`` to ``(s', r')``
    by SGD on ``L_restr``; r' is kept from update to update; the gradient at s' is applied to s.
    Different from the original: in its code there is no cap and no original loss, s is attention
    alone, and AdamW takes all steps; its DreamBooth fine-tuner changes s itself, which is released.

    Args:
        weight: Weight of the restricted term.
        cap: Largest restricted loss that counts; predicting no noise has a loss of 1.
        inner_steps: Updates of the fine-tuner per update of s.
        inner_lr: Step size of the fine-tuner.
        timesteps: Number of timesteps, from the first, that make up the restricted task.
    """

    lr: Positive = 1e-3
    weight: Weight = 0.3
    cap: Positive = 2.0
    inner_steps: Count = 1
    inner_lr: Positive = 1e-2
    recovery: Annotated[float, Interval(ge=0, le=0)] = 0.0
    timesteps: Annotated[int, Interval(ge=1, le=TIMESTEPS)] = 200

    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (3e-4, 1e-3, 3e-3), "weight": (0.1, 0.3, 1.0), "inner_steps": (1, 4, 16),
    }  # fmt: skip

    def run(self, model: Model, view: DefenseView) -> Generator[Model, None, str | None]:
        """As `Outer.run`."""
        return super().run(model, early(view, self.timesteps))

    def objective(self, scene: Scene) -> Tensor:
        original = scene.view.original.task.loss(scene.model, scene.original_batch)
        restricted = scene.view.restricted.task.loss(scene.learner, scene.restricted_batch)
        return naive(original, restricted, weight=self.weight, cap=self.cap)

    def differentiate(self, scene: Scene) -> None:
        adapt(scene, steps=self.inner_steps, lr=self.inner_lr, batch_size=self.batch_size)
        released, adapted = immunised(scene.model), immunised(scene.learner)
        gradients = torch.autograd.grad(self.objective(scene), [*released, *adapted])
        add_gradients(released, gradients[: len(released)])
        add_gradients(released, gradients[len(released) :])
