"""What the record of a pre-trained model says of how it was trained."""

from __future__ import annotations

from typing import Annotated

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]
StepSize = Annotated[float, msgspec.Meta(gt=0)]


class TriedRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A candidate for pre-training.

    Attributes:
        steps: Updates.
        lr: Largest step size of the schedule.
        validation: Utility on the original domain's validation split; null: not finite.
    """

    steps: Positive
    lr: StepSize
    validation: float | None


class ChosenRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a model was pre-trained, where there was a choice.

    Attributes:
        steps: Updates.
        lr: Largest step size of the schedule.
        tried: All candidates, in the scenario's order; the first of the best was chosen.
    """

    steps: Positive
    lr: StepSize
    tried: list[TriedRecipe]
