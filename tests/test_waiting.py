"""Stages that wait, against a plain list that is gone through again for every stage."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from sophon_bench.execution.plan import AttackStage, PretrainStage, ProtectStage, Stage
from sophon_bench.execution.waiting import Waiting


class Companion(AttackStage):
    """A cell that is told whom it can be at once with."""

    companions: Any = None


def grid(rng: random.Random) -> tuple[list[Stage], list[Stage]]:
    """Models and cells; some cells can be at once."""
    models: list[Stage] = []
    cells: list[Stage] = []
    nothing = cast(Any, None)
    for seed in range(3):
        pretrain = PretrainStage(f"pretrain {seed}", nothing, seed)
        models.append(pretrain)
        for defense in range(2):
            protect = ProtectStage(f"protect {seed} {defense}", pretrain, nothing)
            models.append(protect)
            cells += [cell(protect, number, rng.choice([None, "a", "b"])) for number in range(6)]
    return models, cells


def cell(protect: ProtectStage, number: int, kind: str | None) -> AttackStage:
    made = Companion(f"{protect.key} {number}", protect, cast(Any, None), 8, 1, "domain")
    object.__setattr__(made, "companions", None if kind is None else (protect.key, kind))
    return made


def plain(stages: list[Stage], made: set[str], together: int) -> list[Stage]:
    """The first that is ready, and those after it that can be at once with it."""

    def kind(stage: Stage) -> Any:
        return stage.companions if isinstance(stage, AttackStage) and together > 1 else None

    for stage in stages:
        if isinstance(stage, PretrainStage) or stage.upstream.key in made:
            others = [s for s in stages if kind(s) is not None and kind(s) == kind(stage)]
            return [stage, *(s for s in others if s is not stage)][:together]
    return []


@pytest.mark.parametrize("together", [1, 2, 32])
@pytest.mark.parametrize("seed", range(5))
def test_stages_are_taken_in_order_once_their_model_is_made(seed: int, together: int) -> None:
    rng = random.Random(seed)
    models, cells = grid(rng)
    waiting, expected, made = Waiting(together), [*models, *cells], set[str]()
    waiting.add(models)
    waiting.add(cells)
    under_way: list[Stage] = []
    more = 3
    while waiting or under_way:
        for stage in waiting.arrived():
            if rng.random() < 0.2 and isinstance(stage, AttackStage):
                waiting.done(stage)
                expected.remove(stage)
            else:
                waiting.ready(stage)
        taken = waiting.take()
        assert taken == plain(expected, made, together)
        expected = [stage for stage in expected if stage not in taken]
        under_way += taken
        if not taken or rng.random() < 0.5:
            finished = under_way.pop(rng.randrange(len(under_way)))
            if not isinstance(finished, AttackStage):
                made.add(finished.key)
                waiting.made(finished.key)
            elif more:
                more -= 1
                kind = f"more {more}"
                batch: list[Stage] = [cell(finished.upstream, 9 + n, kind) for n in (0, 1)]
                waiting.add(batch, ahead=True)
                expected[:0] = batch
    assert expected == []
