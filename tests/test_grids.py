"""Which configurations a search tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
from annotated_types import Gt

from sophon_bench.plugins.grids import search
from sophon_bench.plugins.registry import Registry, attacks, defenses
from sophon_bench.plugins.selectors import SelectorError
from sophon_bench.plugins.suites import suite_files, trials

GRID = {"lr": (0.01, 0.1, 0.5), "several": (("x",), ("y", "z")), "on": (False, True)}


def things(grid: dict[str, Any]) -> Registry:
    registry = Registry("thing")

    @registry.register("thing")
    @dataclass(frozen=True, kw_only=True)
    class Thing:
        """A thing."""

        lr: Annotated[float, Gt(0)] = 0.1
        several: tuple[str, ...] = ("x",)
        on: bool = False
        tuning: ClassVar[dict[str, tuple[Any, ...]]] = grid

        def __post_init__(self) -> None:
            if self.on and self.several == ("y", "z"):
                raise ValueError("on goes with x alone")

    return registry


def labels(grid: dict[str, Any], count: int, selector: str = "thing") -> list[str]:
    return [trial.label for trial in search(things(grid), selector, count).trials]


def test_the_defaults_come_first_and_the_rest_are_distinct_members_of_the_grid() -> None:
    grid = {"lr": (0.01, 0.1, 0.5), "several": (["x"], ("y", "z"))}
    found = labels(grid, 100)
    assert found[0] == "thing"
    assert sorted(found) == [
        "thing",
        "thing[lr=0.01,several=[y,z]]",
        "thing[lr=0.01]",
        "thing[lr=0.5,several=[y,z]]",
        "thing[lr=0.5]",
        "thing[several=[y,z]]",
    ]


def test_defaults_that_are_not_in_the_grid_are_tried_all_the_same() -> None:
    assert sorted(labels({"lr": (1.0, 2, 2.0)}, 9)) == ["thing", "thing[lr=1.0]", "thing[lr=2.0]"]


def test_a_larger_count_adds_to_a_smaller_one_and_draws_repeat() -> None:
    grid = {"lr": tuple(range(1, 30))}
    assert labels(grid, 1) == ["thing"]
    assert labels(grid, 12) == labels(grid, 20)[:12] == labels(grid, 12)
    assert labels(grid, 12) != ["thing", *(f"thing[lr={i}.0]" for i in range(1, 12))], "in order"


def test_what_a_selector_gives_a_value_is_held() -> None:
    grid = {"lr": (0.01, 0.1), "several": (("x",), ("y",))}
    assert sorted(labels(grid, 9, "thing[on=true]")) == [
        "thing[lr=0.01,on=true]",
        "thing[lr=0.01,several=[y],on=true]",
        "thing[on=true]",
        "thing[several=[y],on=true]",
    ]
    held = labels(grid, 9, "thing[lr=0.5]")
    assert held == ["thing[lr=0.5]", "thing[lr=0.5,several=[y]]"]
    assert labels({"lr": (0.01, 0.1)}, 9, "thing[lr=0.5]") == ["thing[lr=0.5]"]


@pytest.mark.parametrize("declared", [{}, {"on": (False, True)}])
def test_lists_of_a_selector_take_the_place_of_the_declared_grid(declared: dict[str, Any]) -> None:
    found = search(things(declared), "thing[lr=[1,2],several=[[x],[y,z]]]", 9)
    assert found.grid == {"lr": [1.0, 2.0], "several": [("x",), ("y", "z")]}
    assert found.trials[0].label == "thing[lr=1.0]"
    assert len({trial.label for trial in found.trials}) == 4
    assert not any(trial.parameters["on"] for trial in found.trials)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "declares no grid to search; add one to the body of its class"),
        ({"lrr": (1.0,)}, "thing 'thing' has no parameter 'lrr'; did you mean 'lr'?"),
        ({"lr": (1.0, -1.0)}, "thing[lr=-1.0]: lr should be greater than 0"),
        ({"lr": ()}, "lr should have a tuple of values, got ()"),
        ({"several": "xy"}, "several should have a tuple of values, got 'xy'"),
        (GRID, "on goes with x alone"),
    ],
)
def test_a_grid_that_the_plugin_does_not_take_is_refused(
    grid: dict[str, Any], message: str
) -> None:
    with pytest.raises(SelectorError) as error:
        search(things(grid), "thing", 100)
    assert message in str(error.value)
    assert "thing 'thing'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [n for n in defenses.names() if defenses.get(n).declared.tuning])
def test_every_declared_grid_is_taken_whole(name: str) -> None:
    found = search(defenses, name, 10**6).trials
    assert len(found) >= 12
    assert len({trial.label for trial in found}) == len(found)


def listed(suite: str) -> dict[str, dict[str, Any]]:
    """Parameters of a suite's trials on released models, by label."""
    found = trials(attacks, [suite])
    return {trial.label: trial.parameters for trial in found if not trial.entry.control}


@pytest.mark.parametrize("suite", sorted({*suite_files()} - {"tuning"}))
def test_what_tuning_goes_by_is_in_no_suite_that_judges(suite: str) -> None:
    assert len(listed("@tuning")) >= 4
    assert not listed("@tuning").keys() & listed(f"@{suite}").keys()


def test_searches_add_no_step_size_that_tuning_goes_by() -> None:
    # they add 1 or 3 times a power of ten (`plan.neighbours`)
    assert not {f"{p['lr']:e}"[0] for p in listed("@tuning").values()} & {"1", "3"}
