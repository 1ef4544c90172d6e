"""Train from random initialisation: the baseline without the released weights.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699 (train-from-scratch baseline).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model, attacks

from ._gradient import TOGETHER
from .finetune import FineTune


@attacks.register("scratch", control=True)
@dataclass(frozen=True, kw_only=True)
class Scratch:
    """Train the same architecture from random initialisation, without the released weights.

    Args:
        optimizer: ``momentum`` and ``nesterov`` use a momentum of 0.9.
        lr: Step size; with a schedule, its peak.
        schedule: How the step size changes over ``steps``.
        weight_decay: L2 penalty, decoupled for ``adamw``.
        clip: Largest norm of the gradient; None: no clipping.
        batch_size: Examples per update, or all if there are fewer.
        steps: Updates to make, and the schedule's length; None: until the budget is spent.
    """

    together: ClassVar = TOGETHER

    optimizer: training.OptimizerName = "momentum"
    lr: Annotated[float, Gt(0)] = 1e-1
    schedule: training.ScheduleName = "constant"
    weight_decay: Annotated[float, Ge(0)] = 0.0
    clip: Annotated[float, Gt(0)] | None = None
    batch_size: Annotated[int, Gt(0)] = 64
    steps: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        training.check_schedule(self.schedule, self.steps)

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        yield from self._tuned().run(view.new_model(), view)

    def run_many(
        self, trials: Sequence["Scratch"], model: Model, view: AttackView
    ) -> Iterator[list[Model]]:
        tuned = [trial._tuned() for trial in trials]
        yield from tuned[0].run_many(tuned, view.new_model(), view)

    def _tuned(self) -> FineTune:
        return FineTune(**{field.name: getattr(self, field.name) for field in fields(self)})
