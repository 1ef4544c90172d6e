"""How a simulated fine-tuner adapts: ``optimizer@lr[/batch][/fresh|kept]``."""

import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from sophon_bench.registry import unknown
from sophon_bench.training import OptimizerName

Head = Literal["fresh", "kept"]

FORM = "optimizer@lr[/batch][/fresh|kept], as in 'adam@1e-3' or 'momentum@0.03/32/kept'"
_FORM = re.compile(r"(\w+)@([^/@\s]+)(?:/(\d+))?(?:/(fresh|kept))?")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One fine-tuning strategy phi.

    Attributes:
        optimizer: Name of the inner optimizer.
        lr: Its step size.
        batch_size: Examples that it adapts to per step.
        head: Whether it puts a new head on the body or goes on with the released one.
    """

    optimizer: OptimizerName
    lr: float
    batch_size: int
    head: Head

    @classmethod
    def parse(cls, text: str, *, batch_size: int, head: Head) -> "Strategy":
        """Read a strategy; ``batch_size`` and ``head`` are what holds where it names none.

        Raises:
            ValueError: Naming the text, the form expected, and close optimizers.
        """
        found = _FORM.fullmatch(text)
        if not found:
            raise ValueError(f"strategy {text!r} is not of the form {FORM}")
        optimizer, lr, batch, own_head = found.groups()
        if optimizer not in get_args(OptimizerName):
            hint = unknown("optimizer", optimizer, get_args(OptimizerName))
            raise ValueError(f"strategy {text!r}: {hint}")
        if batch is not None and int(batch) < 1:
            raise ValueError(f"strategy {text!r}: the batch must be at least 1, got {batch}")
        return cls(
            optimizer=cast(OptimizerName, optimizer),
            lr=_positive(lr, text),
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
