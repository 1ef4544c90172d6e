"""Shared by attacks that end in plain fine-tuning: its hyperparameters and its loop."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model

from .finetune import FineTune


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Minimise the restricted task's loss over all weights.

    Args:
        optimizer: ``momentum`` and ``nesterov`` use a momentum of 0.9.
        lr: Step size; with a schedule, its peak.
        schedule: How the step size changes over ``steps``.
        batch_size: Examples per update, or all if there are fewer.
        steps: Updates of all weights on restricted data after any earlier phase, and the length
            of the schedule; None: until the budget is spent.
    """

    optimizer: training.OptimizerName = "adam"
    lr: Annotated[float, Gt(0)] = 3e-3
    schedule: training.ScheduleName = "constant"
    batch_size: Annotated[int, Gt(0)] = 64
    steps: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        training.check_schedule(self.schedule, self.steps)

    def tune(
        self, model: Model, view: AttackView, *, head: training.HeadName = "fresh"
    ) -> Iterator[Model]:
        """Fine-tune all weights in train mode; yields after every update."""
        tuned = FineTune(
            optimizer=self.optimizer, lr=self.lr, schedule=self.schedule,
            batch_size=self.batch_size, steps=self.steps, head=head,
        )  # fmt: skip
        yield from tuned.run(model.train(), view)
