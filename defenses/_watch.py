"""Keeps the last state of the model that may be released."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sophon_bench.api import Domain, Model


class Watch:
    """Checks whether the model still performs its original task, and rolls it back if not.

    A check below the floor does not end the run at once, since reinforcement may restore what a
    suppression step cost; such a state is not kept. The run ends after ``patience`` failed
    checks in a row, after a failed check at the last iteration, or at a state that is not finite,
    which no training repairs. (A loss or gradient that is not finite shows there: Adam carries it
    into the weights, where it stays.)

    Args:
        model: The model under protection; its present state is the first good one.
        original: The original domain, whose validation samples are scored.
        floor: Lowest original utility of a good state.
        patience: Checks below the floor, in a row, that end the run.
        every: Iterations between two checks.
        last: The last iteration, which is always checked.
    """

    def __init__(
        self,
        model: Model,
        original: Domain,
        *,
        floor: float,
        patience: int,
        every: int,
        last: int,
    ) -> None:
        self._model, self._original = model, original
        self._floor, self._patience = floor, patience
        self._every, self._last = every, last
        self._keep(0)

    def look(self, iteration: int) -> str | None:
        """If a check is due, keep a good state; if the run has to end, roll back and say why.

        Args:
            iteration: The iteration that has just ended.
        """
        final = iteration == self._last
        if not final and iteration % self._every:
            return None
        utility = original_utility(self._model, self._original) if self._finite() else math.nan
        if utility >= self._floor:
            self._keep(iteration)
            return None
        self._failures += 1
        if math.isfinite(utility) and self._failures < self._patience and not final:
            return None
        self._model.load_state_dict(self._good)
        reason = (
            f"original utility {_below(utility, self._floor)}"
            if math.isfinite(utility)
            else "the state was not finite"
        )
        return f"rolled back to iteration {self._good_iteration}: {reason} at iteration {iteration}"

    def _keep(self, iteration: int) -> None:
        self._good = {name: t.clone() for name, t in self._model.state_dict().items()}
        self._good_iteration = iteration
        self._failures = 0

    def _finite(self) -> bool:
        return all(bool(t.isfinite().all()) for t in self._model.state_dict().values())


def _below(value: float, floor: float) -> str:
    """Both numbers, with as many digits as it takes to tell them apart, at least three."""
    digits = next(d for d in range(3, 18) if f"{value:.{d}f}" != f"{floor:.{d}f}")
    return f"{value:.{digits}f} was below {floor:.{digits}f}"


def original_utility(model: Model, original: Domain) -> float:
    """Utility on the validation samples, in eval mode."""
    with torch.no_grad(), _evaluating(model):
        return original.task.utility(model, original.validation)


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
