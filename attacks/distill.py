"""Distil the released features into a randomly initialised network, which no defense has touched.

Reference: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch.nn.functional import batch_norm

from sophon_bench import training
from sophon_bench.api import AttackView, Batch, Model, attacks

from ._augment import Augmentation
from ._tuning import Tuning


@attacks.register("distill", mechanism="function")
@dataclass(frozen=True, kw_only=True)
class Distill(Tuning):
    """Minimise the restricted loss plus the distance to the released features, over a new network.

    Images are slightly distorted; features are standardised over the batch.

    Args:
        weight: Weight of the mean squared distance of features, relative to the task's loss.
        benign: Unlabelled benign images per restricted image, if the scenario grants any.
    """

    lr: Annotated[float, Gt(0)] = 5e-3
    batch_size: Annotated[int, Gt(0)] = 32
    weight: Annotated[float, Gt(0)] = 10.0
    benign: Annotated[float, Ge(0)] = 0.5

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        augment = Augmentation(distortion=0.1, erase=0.0)
        student = view.new_model()
        student.fresh_head(view.task.num_outputs, view.rng)
        extra = round(self.benign * min(self.batch_size, len(view.train)))
        others = view.auxiliary.batches(extra, view.rng) if view.auxiliary and extra else None

        def loss(batch: Batch) -> torch.Tensor:
            more = [next(others).inputs] if others else []
            inputs = augment(torch.cat([batch.inputs, *more]), view.rng)
            with torch.no_grad():
                target = batch_norm(model.eval().features(inputs), None, None, training=True)
            features = student.features(inputs)
            distance = batch_norm(features, None, None, training=True) - target
            known = batch._replace(inputs=features[: len(batch.targets)])
            return view.task.loss(student.head, known) + self.weight * distance.square().mean()

        for _ in training.descend(
            loss, view.batches(self.batch_size), student.parameters(),
            optimizer=self.optimizer, lr=self.lr, schedule=self.schedule, steps=self.steps,
        ):  # fmt: skip
            yield student
