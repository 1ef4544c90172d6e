"""Undo what a defense may have done to the scales of weights, then fine-tune.

Reference: Dinh et al., Sharp Minima Can Generalize For Deep Nets, ICML 2017, arXiv 1703.04933: the
same function has parametrisations of any curvature, so a released one may be picked to be stiff.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks

from ._canonical import rebalance, recalibrate, replace_broken, revive
from ._tuning import Tuning


@attacks.register("canonicalize", mechanism="repair")
@dataclass(frozen=True, kw_only=True)
class Canonicalize(Tuning):
    """Bring weights to a fresh model's scale with the function kept, then minimise the loss.

    Entries that are not finite, or are outliers of their tensor, are drawn anew. Neighbouring
    layers are balanced, and layers that feed a normalisation rescaled, where the features of a few
    images do not change. Gains that are dead or exploded become 1. BatchNorm's statistics are
    taken anew on the attacker's images.

    Args:
        probe: Images whose features are looked at for every change of scale.
        calibrate: Batches that BatchNorm's statistics are the mean of.
    """

    probe: Annotated[int, Gt(1)] = 16
    calibrate: Annotated[int, Gt(0)] = 5

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        fresh = view.new_model()
        replace_broken(model, fresh)
        inputs = view.train.inputs[: self.probe]
        for _ in rebalance(model, fresh, inputs):
            yield model
        revive(model)
        batches = itertools.islice(view.batches(self.batch_size), self.calibrate)
        for _ in recalibrate(model, batches):
            yield model
        yield from self.tune(model, view)
