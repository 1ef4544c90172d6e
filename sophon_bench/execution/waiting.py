"""Stages that wait: for the model that they need, then for a place where they are done."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence

from sophon_bench.execution.plan import AttackStage, PretrainStage, Stage


class Waiting:
    """Stages in the order in which they are to be done, each once its model is made.

    No call goes through all that wait: a grid of 100 000 cells costs each as much as one of 100.

    Args:
        together: Stages at most that are taken at once.
    """

    def __init__(self, together: int) -> None:
        self._together = together
        self._numbers: dict[Stage, int] = {}
        self._made: set[str] = set()
        self._blocked: defaultdict[str, list[Stage]] = defaultdict(list)
        self._arrived: list[Stage] = []
        self._ready: list[tuple[int, Stage]] = []
        self._alike: defaultdict[tuple[str, ...], dict[Stage, None]] = defaultdict(dict)
        self._least = self._most = 0

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def add(self, stages: Sequence[Stage], *, ahead: bool = False) -> None:
        """Let stages wait, in their order, behind all others or ahead of them."""
        first = self._least - len(stages) if ahead else self._most
        self._least, self._most = min(self._least, first), max(self._most, first + len(stages))
        for number, stage in enumerate(stages, first):
            self._numbers[stage] = number
            if isinstance(stage, PretrainStage) or stage.upstream.key in self._made:
                self._arrived.append(stage)
            else:
                self._blocked[stage.upstream.key].append(stage)

    def made(self, key: str) -> None:
        """A model is there: nothing else holds up the stages that need it."""
        self._made.add(key)
        self._arrived += self._blocked.pop(key, ())

    def arrived(self) -> list[Stage]:
        """Each stage once, when nothing holds it up; say of each if it is `ready` or `done`."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def done(self, stage: Stage) -> None:
        """A stage that arrived waits no longer: the store has it."""
        del self._numbers[stage]

    def ready(self, stage: Stage) -> None:
        """A stage that arrived is to be done."""
        heapq.heappush(self._ready, (self._numbers[stage], stage))
        if (kind := self._kind(stage)) is not None:
            self._alike[kind][stage] = None

    def take(self) -> list[Stage]:
        """The first stage that is ready, and those that can be at once with it; none if none is."""
        while self._ready:
            _, stage = heapq.heappop(self._ready)
            if stage not in self._numbers:  # it was taken with another
                continue
            kind = self._kind(stage)
            alike = {} if kind is None else self._alike[kind]
            others = (other for other in alike if other is not stage)
            taken = [stage, *itertools.islice(others, self._together - 1)]
            for each in taken:
                del self._numbers[each]
                alike.pop(each, None)
            return taken
        return []

    def _kind(self, stage: Stage) -> tuple[str, ...] | None:
        """What stages that can be at once have in common; None: with none."""
        if self._together == 1 or not isinstance(stage, AttackStage):
            return None
        return stage.companions
