"""How a simulated fine-tuner adapts: ``optimizer@lr[..lr][/batch][/fresh|kept]``."""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch

from sophon_bench.plugins.registry import unknown
from sophon_bench.training import OptimizerName

Head = Literal["fresh", "kept"]

FORM = (
    "optimizer@lr[..lr][/batch][/fresh|kept], as in 'adam@1e-3', 'sgd@1e-4..1' or "
    "'momentum@0.03/32/kept'"
)
_FORM = re.compile(r"(\w+)@([^/@\s]+?)(?:\.\.([^/@\s]+))?(?:/(\d+))?(?:/(fresh|kept))?")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One fine-tuning strategy phi.

    Attributes:
        optimizer: Name of the inner optimizer.
        lr: Its step size; the smallest one if it is drawn from a range.
        batch_size: Examples that it adapts to per step.
        head: Whether it trains a fresh head or keeps the released one.
        highest: The largest step size if it is drawn from a range, else None.
    """

    optimizer: OptimizerName
    lr: float
    batch_size: int
    head: Head
    highest: float | None = None

    def drawn(self, rng: torch.Generator) -> "Strategy":
        """The strategy, with a step size drawn log-uniformly if it has a range."""
        if self.highest is None:
            return self
        share = float(torch.rand((), generator=rng))
        lr = self.lr * (self.highest / self.lr) ** share
        return replace(self, lr=lr, highest=None)

    @classmethod
    def parse(cls, text: str, *, batch_size: int, head: Head) -> "Strategy":
        """Read a strategy; ``batch_size`` and ``head`` are used where ``text`` gives none.

        Raises:
            ValueError: With the text, the expected form, and optimizers with similar names.
        """
        found = _FORM.fullmatch(text)
        if not found:
            raise ValueError(f"strategy {text!r} is not of the form {FORM}")
        optimizer, lr, highest, batch, own_head = found.groups()
        if optimizer not in get_args(OptimizerName):
            hint = unknown("optimizer", optimizer, get_args(OptimizerName))
            raise ValueError(f"strategy {text!r}: {hint}")
        if batch is not None and int(batch) < 1:
            raise ValueError(f"strategy {text!r}: the batch must be at least 1, got {batch}")
        least, most = _positive(lr, text), None if highest is None else _positive(highest, text)
        if most is not None and most <= least:
            raise ValueError(
                f"strategy {text!r}: the range of learning rates is empty; the lower one first"
            )
        return cls(
            optimizer=cast(OptimizerName, optimizer),
            lr=least,
            highest=most,
            batch_size=int(batch) if batch is not None else batch_size,
            head=cast(Head, own_head) if own_head is not None else head,
        )


def _positive(lr: str, text: str) -> float:
    try:
        value = float(lr)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"strategy {text!r}: the learning rate must be positive, got {lr!r}")
    return value
