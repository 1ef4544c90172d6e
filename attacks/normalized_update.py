"""Fine-tune with updates that do not depend on the size of the gradient.

Reference: LARS, You et al., arXiv 1708.03888; signSGD, Bernstein et al., ICML 2018,
arXiv 1802.04434; Muon, Jordan et al., 2024, kellerjordan.github.io/posts/muon.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model, attacks

from ._normalized import LR, Normalized, RuleName


@attacks.register("normalized-update")
@dataclass(frozen=True, kw_only=True)
class NormalizedUpdate:
    """Minimise the restricted task's loss over all weights, by normalised updates.

    A defense that makes gradients vanish or explode in some layers does not change the step sizes.

    Args:
        rule: ``lars`` moves each tensor by a fraction of its norm, ``sign`` each entry by ``lr``,
            ``muon`` each matrix equally along all singular directions; momentum is 0.9.
        lr: Step size; with a schedule, its peak. None: 1e-3 for ``lars``, 3e-4 for ``sign``, 3e-3
            for ``muon``.
        schedule: How the step size changes over ``steps``.
        batch_size: Examples per update, or all if there are fewer.
        head: Train a fresh head, or keep the original one and use its first outputs.
        steps: Updates to make, and the schedule's length; None: until the budget is spent.
    """

    rule: RuleName = "muon"
    lr: Annotated[float, Gt(0)] | None = None
    schedule: training.ScheduleName = "constant"
    batch_size: Annotated[int, Gt(0)] = 64
    head: training.HeadName = "fresh"
    steps: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        training.check_schedule(self.schedule, self.steps)

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        training.choose_head(model, self.head, outputs=view.task.num_outputs, rng=view.rng)
        lr = self.lr or LR[self.rule]
        optimizer = Normalized(model.parameters(), self.rule, lr=lr)
        schedule = training.make_schedule(self.schedule, optimizer, steps=self.steps)
        for batch in itertools.islice(view.batches(self.batch_size), self.steps):
            optimizer.zero_grad()
            view.task.loss(model, batch).backward()
            optimizer.step()
            schedule.step()
            yield model
