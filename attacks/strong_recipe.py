"""Fine-tune for the best accuracy: augmentation, label smoothing, averaged weights.

Reference: Szegedy et al., CVPR 2016, arXiv 1512.00567 (label smoothing); DeVries and Taylor,
arXiv 1708.04552 (cutout); Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101 (AdamW).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt
from torch.nn.functional import cross_entropy

from sophon_bench import training
from sophon_bench.api import AttackView, Model, attacks

from ._augment import Augmentation
from ._averaged import follow
from ._tuning import Tuning


@attacks.register("strong-recipe")
@dataclass(frozen=True, kw_only=True)
class StrongRecipe(Tuning):
    """Minimise the smoothed cross-entropy of augmented images; the result has averaged weights.

    Args:
        weight_decay: L2 penalty, decoupled for ``adamw``.
        smoothing: Share of each target that is spread over all classes.
        average: Decay of the moving average; at update t no more than (1 + t) / (10 + t).
        distortion: Largest shift and relative zoom of an image, and rotation in radians.
        erase: Side of the square that is erased in half of the images, as a fraction of the image.
    """

    optimizer: training.OptimizerName = "adamw"
    weight_decay: Annotated[float, Ge(0)] = 1e-2
    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    average: Annotated[float, Ge(0), Lt(1)] = 0.99
    distortion: Annotated[float, Ge(0), Lt(1)] = 0.1
    erase: Annotated[float, Ge(0), Lt(1)] = 0.25

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        model.fresh_head(view.task.num_outputs, view.rng)
        augment = Augmentation(distortion=self.distortion, erase=self.erase)
        mean = copy.deepcopy(model).requires_grad_(False)
        updates = training.descend(
            lambda batch: cross_entropy(
                view.task.predict(model, augment(batch.inputs, view.rng)),
                batch.targets, label_smoothing=self.smoothing,
            ),
            view.batches(self.batch_size), model.parameters(), optimizer=self.optimizer,
            lr=self.lr, decay=self.weight_decay, schedule=self.schedule, steps=self.steps, clip=1.0,
        )  # fmt: skip
        for made, _ in enumerate(updates):
            follow(mean, model, decay=min(self.average, (1 + made) / (10 + made)))
            yield mean
