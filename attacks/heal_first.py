"""Fine-tune on unrelated benign data first: a model that is kept trainable there is led away.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699 (benign trainability is promised).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch.nn.functional import cross_entropy

from sophon_bench import training
from sophon_bench.api import AttackView, Incompatible, Model, attacks

from ._tuning import Tuning


@attacks.register("heal-first")
@dataclass(frozen=True, kw_only=True)
class HealFirst(Tuning):
    """Minimise the loss on benign data with large steps, then the restricted one, each with a head.

    Args:
        heal_lr: Step size of momentum on benign data, after a warm-up.
        heal_steps: Updates on benign data; at most four passes, so that few images are not learnt
            by heart.
    """

    heal_lr: Annotated[float, Gt(0)] = 3e-2
    heal_steps: Annotated[int, Gt(0)] = 50

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        benign = view.auxiliary
        if benign is None:
            raise Incompatible("the scenario grants no auxiliary data to heal with")
        model.fresh_head(int(benign.targets.max()) + 1, view.rng)
        most = 4 * math.ceil(len(benign) / self.batch_size)
        for _ in training.descend(
            lambda batch: cross_entropy(model(batch.inputs), batch.targets),
            benign.batches(self.batch_size, view.rng), model.parameters(),
            optimizer="momentum", lr=self.heal_lr, schedule="warm-up",
            steps=min(self.heal_steps, most), clip=1.0,
        ):  # fmt: skip
            yield model
        yield from self.tune(model, view)
