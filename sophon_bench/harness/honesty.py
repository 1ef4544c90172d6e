"""Whether an attack did anything: one that did not is an error, never counted as protection."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sophon_bench.api import Model, Predictor


class NoUpdate(Exception):
    """An attack that did nothing: an error of the attack, never counted as protection."""


class Uncounted(Exception):
    """An attack whose predictor trains when it is called, beyond what is counted."""


class Changes:
    """Whether a predictor's weights moved; a plain function has none to compare.

    Args:
        released: The weights that the attack began with.
    """

    def __init__(self, released: Mapping[str, Tensor]) -> None:
        self._released = released
        self._first: Mapping[str, Tensor] = {}

    def note(self, predictor: Predictor, step: int) -> None:
        """Remember the first yield."""
        if step == 1 and isinstance(predictor, nn.Module):
            self._first = {n: t.detach().clone() for n, t in predictor.state_dict().items()}

    def check(self, predictor: nn.Module, *, went_backward: bool) -> None:
        """Compare the last yield with the first one, with what was released, and with the draw.

        A head that is as `fresh_head` drew it never counts as a change. Statistics alone, and a
        head that is merely another than the released one, do only if no gradient was ever taken:
        where one was, they moved by themselves. Behind a head as drawn, statistics do not either.

        Raises:
            NoUpdate: If all weights are what they were.
        """
        idle = _drawn(predictor)
        weights = dict(predictor.named_parameters())
        now = weights if went_backward or idle else predictor.state_dict()
        for name, tensor in now.items():
            first, released = self._first.get(name), self._released.get(name)
            if first is None or not _same(first, tensor):
                return
            if name in idle:
                continue
            comparable = released is not None and released.shape == tensor.shape
            if (comparable and not _same(released, tensor)) or not (comparable or went_backward):
                return
        raise NoUpdate(
            "the attack never changed a weight of the predictor that it yields"
            + (", whose head is the random one that fresh_head drew" if idle else "")
        )


def _drawn(predictor: nn.Module) -> set[str]:
    """Names of the head's parameters if all are as `fresh_head` drew them."""
    if not isinstance(predictor, Model):
        return set()
    parameters = dict(predictor.head.named_parameters(prefix="head"))
    if len(predictor.drawn_head) != len(parameters):
        return set()
    pairs = zip(predictor.drawn_head, parameters.values(), strict=True)
    return set(parameters) if all(_same(drawn, now) for drawn, now in pairs) else set()


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one.to(other), other)
