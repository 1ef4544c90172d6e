"""What an attacker does after the listed trials, and several processes that do it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import torch
from annotated_types import Le
from conftest import TINY, MakeCell, attempts

from sophon_bench.api import AttackView, Model
from sophon_bench.execution.engine import LocalEngine
from sophon_bench.execution.executors.processes import THREAD_COUNTS
from sophon_bench.execution.plan import (
    AttackStage,
    Plan,
    Request,
    Search,
    Setting,
    Stage,
    make_plan,
    neighbours,
    plugin_id,
)
from sophon_bench.leaderboard.searched import unfinished
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry
from sophon_bench.plugins.suites import Arsenal, Rules, arsenal, trials
from sophon_bench.results.records import Cell, DataId, Records
from sophon_bench.results.store import Store

SUITE = """
version: 3
description: For tests.
trials: ["finetune[lr=[0.01,0.03]]", "finetune[optimizer=adam,lr=0.001]", "scratch[lr=[0.03,0.1]]"]
search: {refine: 1, continue: 2, times: 4}
trainability: ["finetune[lr=0.01]", scratch]
"""


@pytest.fixture(scope="module")
def setting() -> Setting:
    (trial,) = trials(registry.scenarios, ["tiny"])
    data = trial.plugin.build()
    identity = DataId(name="tiny", label="tiny", parameters={}, revision=data.revision)
    return Setting(trial, data, identity, Backbone.of("test_resnet"), "fp32")


def plan_of(setting: Setting, chosen: Arsenal, **options: Any) -> Plan:
    request = Request(
        defenses=[], attacks=chosen, **{"seeds": [0], "samples": [20], "steps": 2, **options}
    )
    return make_plan(request, [setting])


def search_of(setting: Setting, selectors: list[str], **rules: int) -> Search:
    chosen = Arsenal(trials(registry.attacks, selectors), Rules.model_validate(rules))
    found = plan_of(setting, chosen).searches
    return next(s for s in found if not s.trials[0].entry.control)


Outcome = Callable[[AttackStage], dict[str, Any]]


def play(search: Search, make_cell: MakeCell, outcome: Outcome) -> list[list[AttackStage]]:
    """The batches that a search asks for where trials end as ``outcome`` says.

    In the end `submit` has to find it finished, going by its records alone.
    """
    done: dict[AttackStage, Cell] = {}
    steps = search.run()
    batches = [next(steps)]
    while True:
        for stage in batches[-1]:
            made = make_cell(**{"budget": search.budget, **outcome(stage)}, key=stage.key)
            done[stage] = msgspec.structs.replace(
                made.cell, attack=plugin_id(stage.attack), stretch=stage.stretch
            )
        try:
            batches.append(steps.send(done))
        except StopIteration:
            assert unfinished(search.rules, search.trials, done.values()) == []
            return batches


def peaked(best: float) -> Outcome:
    """Utility falls with the distance to the best learning rate, in decades."""
    import math

    def outcome(stage: AttackStage) -> dict[str, Any]:
        utility = 0.9 - 0.1 * abs(math.log10(stage.attack.parameters["lr"] / best))
        return {"curve": [(float(stage.budget), utility, utility)]}

    return outcome


def rates(batch: list[AttackStage]) -> list[float]:
    return [stage.attack.parameters["lr"] for stage in batch]


@pytest.mark.parametrize(
    ("lr", "tried", "added"),
    [
        (0.01, [0.01], [0.003, 0.03]),
        (0.03, [0.03], [0.01, 0.1]),
        (0.01, [0.001, 0.01, 0.1], [0.003, 0.03]),
        (0.01, [0.003, 0.01, 0.03], []),
        (0.01, [0.005, 0.01], [0.03]),
        (0.002, [0.002], [0.001, 0.01]),
        (1.0, [1.0, 0.3], [3.0]),
    ],
)
def test_the_best_lr_gets_neighbours_within_half_a_decade(
    lr: float, tried: list[float], added: list[float]
) -> None:
    assert neighbours(lr, tried) == added


def test_the_grid_grows_until_the_best_lr_is_inside(setting: Setting, make_cell: MakeCell) -> None:
    search = search_of(setting, ["finetune[lr=[0.001,0.01]]"], refine=1)
    batches = play(search, make_cell, peaked(0.12))
    assert [rates(batch) for batch in batches] == [[0.001, 0.01], [0.003, 0.03], [0.1], [0.3]]
    assert all(stage.derived for batch in batches[1:] for stage in batch)
    assert not any(stage.derived for stage in batches[0])


def test_only_the_best_families_are_refined(setting: Setting, make_cell: MakeCell) -> None:
    listed = ["finetune[optimizer=[sgd,adam],lr=0.01]"]

    def outcome(stage: AttackStage) -> dict[str, Any]:
        utility = 0.8 if stage.attack.parameters["optimizer"] == "adam" else 0.4
        return {"curve": [(1.0, utility, utility)]}

    (_, second, *_rest) = play(search_of(setting, listed, refine=1), make_cell, outcome)
    assert {stage.attack.parameters["optimizer"] for stage in second} == {"adam"}
    assert len(play(search_of(setting, listed), make_cell, outcome)) == 1


def test_the_best_trials_go_on_and_schedules_with_them(
    setting: Setting, make_cell: MakeCell
) -> None:
    listed = ["finetune[lr=[0.1,0.03,0.01]]", "finetune[schedule=cosine,steps=2,lr=0.02]"]
    search = search_of(setting, listed, **{"continue": 2, "times": 10})
    _, longer = play(search, make_cell, peaked(0.02))
    assert [stage.attack.label for stage in longer] == [
        "finetune[lr=0.02,schedule=cosine,steps=20]",
        "finetune[lr=0.03]",
    ]
    assert {stage.stretch for stage in longer} == {10}
    assert search.forecast == (2 * 10 * search.budget, 2)


@pytest.mark.usefixtures("forget")
def test_a_schedule_that_cannot_be_longer_does_not_go_on(
    setting: Setting, make_cell: MakeCell
) -> None:
    @registry.attacks.register("short")
    @dataclass(frozen=True, kw_only=True)
    class Short:
        lr: float = 0.1
        steps: Annotated[int, Le(5)] = 2

        def run(self, model: Model, view: AttackView) -> Iterator[Model]:
            yield model

    search = search_of(setting, ["short", "finetune[lr=0.02]"], **{"continue": 1, "times": 10})
    _, longer = play(search, make_cell, peaked(0.1))
    assert [stage.attack.label for stage in longer] == ["finetune[lr=0.02]"]


def test_what_came_to_its_own_end_or_failed_does_not_go_on(
    setting: Setting, make_cell: MakeCell
) -> None:
    search = search_of(setting, ["finetune[lr=[0.1,0.03,0.01]]"], **{"continue": 3})

    def outcome(stage: AttackStage) -> dict[str, Any]:
        lr = stage.attack.parameters["lr"]
        spent = msgspec.structs.replace(
            make_cell().cost, units=float(stage.budget) * (0.5 if lr == 0.1 else 1.0)
        )
        if lr == 0.03:
            return {"status": "failed", "curve": [], "cost": None}
        return {"curve": [(1.0, lr, lr)], "cost": spent}

    _, longer = play(search, make_cell, outcome)
    assert rates(longer) == [0.01]


def test_a_failed_trial_is_below_any_utility(setting: Setting, make_cell: MakeCell) -> None:
    """Denoising skill has no lower end; the grid grows around what was scored."""
    search = search_of(setting, ["finetune[lr=[0.1,0.01]]"], refine=1)

    def outcome(stage: AttackStage) -> dict[str, Any]:
        if stage.attack.parameters["lr"] == 0.1:
            return {"status": "failed", "curve": [], "cost": None}
        return {"curve": [(1.0, utility := -5.0 - stage.attack.parameters["lr"], utility)]}

    _, grown, *_ = play(search, make_cell, outcome)
    assert rates(grown) == [0.003, 0.03]


def test_no_round_of_a_search_can_be_left_out(setting: Setting, make_cell: MakeCell) -> None:
    """Neither the last one, however many step sizes the rounds before have added."""
    search = search_of(setting, ["finetune[lr=0.01]"], refine=1)
    batches = play(search, make_cell, peaked(10.0))
    assert [rates(batch) for batch in batches[1:]] == [[0.003, 0.03], [0.1], [0.3], [1.0]]
    outcome = peaked(10.0)
    cells = {
        stage.attack.label: msgspec.structs.replace(
            make_cell(**outcome(stage)).cell, attack=plugin_id(stage.attack)
        )
        for batch in batches
        for stage in batch
    }
    for stage in (stage for batch in batches[1:] for stage in batch):
        less = [cell for label, cell in cells.items() if label != stage.attack.label]
        assert unfinished(search.rules, search.trials, less) == [stage.attack.label]


class Silent:
    def __init__(self) -> None:
        self.done: list[str] = []
        self.expected = [0.0, 0]

    def expect(self, units: float, stages: int) -> None:
        self.expected[0] += units
        self.expected[1] += stages

    def begin(self, stage: Stage) -> None:
        pass

    def tick(self, stage: Stage, fraction: float | None, words: str) -> None:
        pass

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        if not reused:
            self.done.append(stage.label)


def engine(root: Path, reporter: Silent, **options: Any) -> LocalEngine:
    return LocalEngine(Store(root), torch.device("cpu"), reporter, **options)


def scored(records: Records) -> dict[str, Any]:
    return {
        c.key: (c.suite, c.derived, c.role, c.domain, [(p.units, p.test) for p in c.curve])
        for c in attempts(records)
    }


@pytest.mark.slow
def test_two_processes_find_what_one_finds(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(SUITE)
    plan = plan_of(setting, arsenal(registry.attacks, [f"@{file}"]))
    one, two, again = Silent(), Silent(), Silent()
    expected = engine(tmp_path / "one", one).run(plan)
    found = engine(tmp_path / "two", two, workers=2, plugins=[TINY]).run(plan)
    assert scored(found) == scored(expected)
    assert sorted(two.done) == sorted(one.done)
    assert len(plan.stages) + one.expected[1] == len(one.done)
    assert scored(engine(tmp_path / "two", again).run(plan)) == scored(expected)
    assert again.done == []

    roles = {(cell.role, cell.attack.control) for cell in expected.cells}
    assert roles == {
        ("restricted", False),
        ("restricted", True),
        ("benign", False),
        ("benign", True),
    }
    assert {asked.suites for asked in expected.asked.values()} == {("@own v3",)}
    longest = [cell for cell in attempts(expected) if cell.stretch == 4]
    assert len(longest) == 2 + 2
    for cell in longest:
        assert [p.units / cell.budget for p in cell.curve][-2:] == pytest.approx([2, 4], rel=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("forget")
def test_numerical_libraries_in_a_worker_keep_to_its_threads(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in THREAD_COUNTS:
        monkeypatch.setenv(variable, "2")
    plugin = tmp_path / "counting.py"
    plugin.write_text(COUNTING)
    registry.load_file(plugin)
    plan = plan_of(setting, Arsenal(trials(registry.attacks, ["counting"])))
    made = engine(tmp_path / "store", Silent(), workers=2, plugins=[TINY, plugin]).run(plan)
    (found,) = {cell.reason for cell in made.cells if cell.attack.name == "counting"}
    assert found == "threads 1"
    assert {os.environ[variable] for variable in THREAD_COUNTS} == {"2"}


COUNTING = """
from dataclasses import dataclass
import scipy.linalg
from threadpoolctl import threadpool_info
from sophon_bench.api import Incompatible
from sophon_bench.api import attacks

@attacks.register("counting")
@dataclass(frozen=True, kw_only=True)
class Counting:
    def run(self, model, view):
        raise Incompatible(f"threads {max(pool['num_threads'] for pool in threadpool_info())}")
        yield model
"""
