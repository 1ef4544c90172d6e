"""Undo rescalings of weights that a defense may have made, then fine-tune.

Reference: Dinh et al., Sharp Minima Can Generalize For Deep Nets, ICML 2017, arXiv 1703.04933.

The same function has parametrisations of any curvature, so a defense can release one that is
hard to optimise.
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
    """Minimise the loss in coordinates that do not depend on scales hidden in the weights.

    Entries that are not finite, or are outliers of their tensor, are re-initialised. BatchNorm's
    statistics are recomputed on the attacker's images without changing the function; channels that
    its eps drowns out are scaled up, and dead gains are set to 1. Then every weight matrix is
    trained as diag(r) U diag(c), with r and c from the norms of its rows and columns, with a fresh
    head on standardised features.

    Args:
        probe: Number of images on which statistics are measured.
        look: Number of these whose features tell whether a repair is harmless.
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
