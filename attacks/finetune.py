"""Fine-tune the released model: all weights or some of them, with a fresh head or the original.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model, attacks

from ._gradient import TOGETHER, descend


@attacks.register("finetune")
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Minimise the restricted loss over the weights in ``scope``; BatchNorm statistics are updated.

    Args:
        optimizer: ``momentum`` and ``nesterov`` use a momentum of 0.9.
        lr: Step size; with a schedule, its peak.
        schedule: How the step size changes over ``steps``; warm-up takes a tenth of them, or 20
            updates if ``steps`` is None.
        weight_decay: L2 penalty, decoupled for ``adamw``.
        clip: Largest norm of the gradient; None: no clipping.
        batch_size: Examples per update, or all if there are fewer.
        scope: Weights to train: all, head only, or head plus last blocks, norm layers or biases.
        last_blocks: Number of blocks that are trained with ``scope=blocks``.
        head: Train a fresh head, or keep the original one and use its first outputs.
        steps: Updates to make, and the schedule's length; None: until the budget is spent.
    """

    together: ClassVar = TOGETHER
    optimizer: training.OptimizerName = "momentum"
    lr: Annotated[float, Gt(0)] = 1e-2
    schedule: training.ScheduleName = "constant"
    weight_decay: Annotated[float, Ge(0)] = 0.0
    clip: Annotated[float, Gt(0)] | None = None
    batch_size: Annotated[int, Gt(0)] = 64
    scope: training.ScopeName = "all"
    last_blocks: Annotated[int, Gt(0)] = 1
    head: training.HeadName = "fresh"
    steps: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        training.check_schedule(self.schedule, self.steps)

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        for (only,) in descend([self], model, view):
            yield only

    def run_many(
        self, trials: Sequence["FineTune"], model: Model, view: AttackView
    ) -> Iterator[list[Model]]:
        yield from descend(trials, model, view)
