"""Fine-tune the released model: direct-all, a fresh head, or the head alone.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks


@attacks.register("finetune")
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Minimise the restricted task's loss over the weights in ``scope``; BatchNorm adapts.

    Args:
        optimizer: Momentum and Nesterov use 0.9.
        lr: Step size, at the peak of the schedule.
        schedule: How the step size changes over ``steps``.
        weight_decay: L2 penalty, decoupled for ``adamw``.
        batch_size: Examples per update; at most all of them.
        scope: Which weights move.
        head: Start from a fresh head, or keep the original one and its first outputs.
        steps: Updates to make, and the schedule's length; None: until the budget is spent.
    """

    optimizer: training.OptimizerName = "momentum"
    lr: Annotated[float, Gt(0)] = 1e-2
    schedule: training.ScheduleName = "constant"
    weight_decay: Annotated[float, Ge(0)] = 0.0
    batch_size: Annotated[int, Gt(0)] = 64
    scope: Literal["all", "head"] = "all"
    head: training.HeadName = "fresh"
    steps: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if self.schedule != "constant" and self.steps is None:
            raise ValueError(f"schedule={self.schedule} needs steps=N, the length of the schedule")

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        training.choose_head(model, self.head, outputs=view.task.num_outputs, rng=view.rng)
        model.requires_grad_(False)
        moving = (model if self.scope == "all" else model.head).requires_grad_(True)
        optimizer = training.make_optimizer(
            self.optimizer, moving.parameters(), lr=self.lr, decay=self.weight_decay
        )
        schedule = training.make_schedule(self.schedule, optimizer, steps=self.steps)
        for batch in itertools.islice(view.batches(self.batch_size), self.steps):
            optimizer.zero_grad()
            view.task.loss(model, batch).backward()
            optimizer.step()
            schedule.step()
            yield model
