"""Fine-tune on benign data first, which a defense must permit, to leave the protected region.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699 (promises benign trainability).
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
    """Minimise the benign loss with large steps, then the restricted loss, each with a fresh head.

    Args:
        heal_lr: Step size on benign data, with momentum 0.9 and after a warm-up.
        heal_steps: Updates on benign data; at most four epochs, so that a small set is not
            memorised.
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
