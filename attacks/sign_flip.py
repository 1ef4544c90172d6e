"""Fine-tune, and negate the outputs where that is more accurate.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699.

Its released code trains the cross-entropy of negated outputs, which ranks the true class last, so
that a change of sign recovers it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model, Samples, attacks

from ._signed import Signed


@attacks.register("sign-flip")
@dataclass(frozen=True, kw_only=True)
class SignFlip:
    """Minimise the restricted loss of ``sign * outputs``; validation data determine the sign.

    Args:
        optimizer: ``momentum`` and ``nesterov`` use a momentum of 0.9.
        lr: Step size.
        batch_size: Examples per update, or all if there are fewer.
        head: Train a fresh head, or keep the original one and use its first outputs.
        choose_every: Updates between two choices of the sign; the first choice precedes training.
        steps: Updates to make; None: until the budget is spent.
    """

    optimizer: training.OptimizerName = "adam"
    lr: Annotated[float, Gt(0)] = 3e-3
    batch_size: Annotated[int, Gt(0)] = 64
    head: training.HeadName = "kept"
    choose_every: Annotated[int, Gt(0)] = 10
    steps: Annotated[int, Gt(0)] | None = None

    def run(self, model: Model, view: AttackView) -> Iterator[Signed]:
        training.choose_head(model, self.head, outputs=view.task.num_outputs, rng=view.rng)
        few = Samples(view.validation.inputs[:128], view.validation.targets[:128])
        signed = Signed(model)
        updates = training.descend(
            lambda batch: view.task.loss(signed, batch), view.batches(self.batch_size),
            model.parameters(), optimizer=self.optimizer, lr=self.lr, steps=self.steps,
        )  # fmt: skip
        signed.choose(view.task, few)
        for made, _ in enumerate(updates, start=1):
            if made % self.choose_every == 0:
                signed.choose(view.task, few)
            yield signed
