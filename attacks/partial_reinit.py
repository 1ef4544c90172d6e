"""Re-initialise the last blocks before fine-tuning, in case the obstacle is near the output.

Reference: Li et al., RIFLE: Backpropagation in Depth for Deep Transfer Learning through
Re-Initializing the Fully-connected LayEr, ICML 2020, arXiv 2007.03349 (the head; here blocks too).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench import training
from sophon_bench.api import AttackView, Model, attacks

from ._tuning import Tuning


@attacks.register("partial-reinit")
@dataclass(frozen=True, kw_only=True)
class PartialReinit(Tuning):
    """Minimise the restricted task's loss from re-initialised last blocks and a fresh head.

    Args:
        last_blocks: Number of blocks to re-initialise; no more than the model has.
    """

    last_blocks: Annotated[int, Gt(0)] = 1

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        fresh = dict(view.new_model().blocks())
        for name, block in training.last_blocks(model, self.last_blocks):
            block.load_state_dict(fresh[name].state_dict())
        yield from self.tune(model, view)
