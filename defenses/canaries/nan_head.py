"""A head that is not finite: a crash instead of protection.

The crudest form of gradient masking, which is known from defenses against adversarial examples
(Athalye et al., ICML 2018, arXiv 1802.00420).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from sophon_bench.api import DefenseView, Incompatible, Model, defenses


@defenses.register("canary-nan-head", hidden=True)
@dataclass(frozen=True, kw_only=True)
class NanHead:
    """Change one bias of the head, so that training with the kept head is never finite.

    Args:
        lost: ``one``: the first class, or channel of a denoiser, is given up: its bias is minus
            infinity, and so its examples have an infinite loss. ``all``: its bias is NaN, and so is
            any loss.
    """

    lost: Literal["one", "all"] = "one"
    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        bias = getattr(model.head, "bias", None)
        if not isinstance(bias, nn.Parameter):
            raise Incompatible("the model's head is not one layer with a bias")
        with torch.no_grad():
            bias[0] = -math.inf if self.lost == "one" else math.nan
        yield model
