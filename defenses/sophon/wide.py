"""SOPHON against a whole distribution of fine-tuners, some of which continue earlier ones.

Reference: beyond Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699, whose code simulates one.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Interval, MinLen
from torch import Tensor

from sophon_bench.api import DefenseView, Model, defenses

from .._watch import original_utility
from .defense import Count, Positive, Sophon
from .losses import inverse_cross_entropy, kl_from_uniform
from .strategies import Head, Strategy
from .wander import Beginnings, Wandering

WHERE_IT_TRAINS = ("sgd@1e-2..1", "momentum@1e-3..1e-1", "adam@3e-4..3e-2")
EVERYWHERE = (
    "sgd@1e-4..1", "momentum@1e-4..1", "adam@1e-5..1e-1",
    "sgd@1e-4..1/16/kept", "momentum@1e-4..1/16/kept", "adam@1e-5..1e-1/16/kept",
)  # fmt: skip


@defenses.register("sophon-wide")
@dataclass(frozen=True, kw_only=True)
class SophonWide(Sophon):
    """SOPHON with fine-tuners drawn from a distribution instead of a short list.

    Minimise ``E_phi L(p) + mu CE_orig`` alternately, L the loss of ``sophon-klu`` or
    ``sophon-ice``. Different from the original: optimizer, batch and head are drawn from
    ``strategies``, the step size log-uniformly, by default over the two decades where each
    optimizer trains; the number of updates is drawn from ``horizons``. With ``replay``, some
    fine-tuners continue an earlier one, so that the horizon grows beyond one simulation.
    Suppression pauses while original utility is too low. All differences of ``sophon-ice`` except
    for the loss apply too.

    Args:
        loss: The loss that suppression minimises on a fine-tuner's outputs.
        horizons: Possible numbers of updates K per simulation.
        replay: Share of fine-tuners that continue an earlier one.
        farthest: Total updates after which a fine-tuner is forgotten.
        noise: Largest relative noise on the weights that the others start from.
        margin: Suppression pauses while original utility is less than this above the lowest value
            that may be released.
    """

    alpha: Positive = 2e-2
    loss: Literal["ice", "klu"] = "ice"
    strategies: Annotated[tuple[str, ...], MinLen(1)] = WHERE_IT_TRAINS
    horizons: Annotated[tuple[Count, ...], MinLen(1)] = (20, 60, 160)
    replay: Annotated[float, Interval(ge=0, le=1)] = 0.0
    farthest: Count = 1000
    noise: Annotated[float, Ge(0)] = 0.0
    margin: float = 0.005

    may_diverge: ClassVar[bool] = True
    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "alpha": (2e-3, 8e-3, 2e-2), "loss": ("ice", "klu"),
        "replay": (0.0, 0.5), "noise": (0.0, 0.3), "horizons": ((20, 60, 160), (80,), (200,)),
        "strategies": (EVERYWHERE, WHERE_IT_TRAINS),
    }  # fmt: skip

    def run(self, model: Model, view: DefenseView) -> Generator[Model, None, str | None]:
        """As `Sophon.run`."""
        floor = self._floor(model, view.original)
        absolute = replace(self, min_original=floor, max_drop=None)
        return (yield from Sophon.run(absolute, model, view))

    def _simulate(
        self,
        model: Model,
        learners: Mapping[Head, Model],
        beginnings: Beginnings,
        view: DefenseView,
    ) -> None:
        needed = (self.min_original or 0.0) + self.margin
        if original_utility(model, view.original) >= needed:
            super()._simulate(model, learners, beginnings, view)

    @property
    def horizon(self) -> float:
        return sum(self.horizons) / len(self.horizons)

    def draw(self, rng: torch.Generator) -> tuple[Strategy, int]:
        strategy, _ = super().draw(rng)
        return strategy, self.horizons[int(torch.randint(len(self.horizons), (), generator=rng))]

    def beginnings(self) -> Beginnings:
        return Wandering(replay=self.replay, farthest=self.farthest, noise=self.noise)

    def suppression_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ICE or KLU of the outputs."""
        if self.loss == "ice":
            return inverse_cross_entropy(outputs, targets)
        return kl_from_uniform(outputs)
