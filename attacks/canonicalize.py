"""Undo what a defense may have done to the scales of weights, then fine-tune.

Reference: Dinh et al., Sharp Minima Can Generalize For Deep Nets, ICML 2017, arXiv 1703.04933: the
same function has parametrisations of any curvature, so a released one may be picked to be stiff.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sophon_bench.api import AttackView, Model, attacks

from ._canonical import lift, replace_broken, rescale, restate, revive, standardise_head
from ._tuning import Tuning


@attacks.register("canonicalize", mechanism="repair")
@dataclass(frozen=True, kw_only=True)
class Canonicalize(Tuning):
    """Minimise the loss in coordinates that scales hidden in the weights do not change.

    Entries that are not finite, or are outliers of their tensor, are drawn anew. BatchNorm gets
    statistics of the attacker's images and computes what it did; channels too small for it to
    notice are scaled up, dead gains revived. Then every weight matrix is trained as
    diag(r) U diag(c), with r and c from the sizes of its rows and columns, behind a fresh head on
    standardised features.

    Args:
        probe: Images that statistics are taken of.
        look: Of these, images whose features tell whether a repair is harmless.
    """

    probe: Annotated[int, Gt(1)] = 128
    look: Annotated[int, Gt(1)] = 16

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        fresh = view.new_model()
        inputs = view.train.inputs[: self.probe]
        few = inputs[: self.look]
        for repair in (replace_broken(model, fresh, few), restate(model, inputs),
                       lift(model, few), revive(model, few)):  # fmt: skip
            for _ in repair:
                yield model
        model.fresh_head(view.task.num_outputs, view.rng)
        rescale(model, fresh, standardise_head(model, inputs), inputs)
        yield from self.tune(model, view, head="kept")
