"""Every registered attack and defense, on a tiny scenario: nothing here names a plugin."""

from __future__ import annotations

import dataclasses
import functools
import random
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sophon_bench import testing
from sophon_bench.api import AttackView, Incompatible, Model
from sophon_bench.data import checking
from sophon_bench.data.scenario import ScenarioError
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.harness.loop import Made
from sophon_bench.plugins.registry import Entry, attacks, defenses, load_file, scenarios
from sophon_bench.plugins.selectors import Trial, construct

BUDGET = 4 * 64
SMALL = {"iterations": 2, "inner_steps": 2, "horizons": (2,), "watch_every": 1}
"""Shortens the defenses that have such hyperparameters."""

GUIDE = Path(__file__).parents[1] / "docs" / "submit-attack.md"
SHOWN = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)

BUILT_IN = [
    registry.get(name)
    for registry in (attacks, defenses)
    for name in registry.names()
    if registry.get(name).distribution.startswith("sophon-bench")
]


def ids(entry: Entry) -> str:
    return entry.name


def small(entry: Entry) -> Any:
    names = {field.name for field in dataclasses.fields(entry.cls)}
    return construct(entry, {k: v for k, v in SMALL.items() if k in names})


@pytest.mark.parametrize("name", attacks.names())
def test_an_attack_keeps_the_contract(name: str, bench: Bench, pretrained: Made) -> None:
    plugin = small(attacks.get(name))
    try:
        found = testing.check_attack(plugin, bench, pretrained.weights, samples=40, budget=BUDGET)
    except Incompatible as reason:
        pytest.skip(f"does not apply to this backbone: {reason}")
    assert not found


@pytest.mark.parametrize("name", defenses.names())
def test_a_defense_keeps_the_contract(name: str, bench: Bench, pretrained: Made) -> None:
    assert not testing.check_defense(small(defenses.get(name)), bench, pretrained.weights)


@pytest.mark.parametrize("name", defenses.names())
def test_a_planned_cost_is_what_is_spent(name: str, bench: Bench, pretrained: Made) -> None:
    plugin = small(defenses.get(name))
    planned = getattr(plugin, "planned_units", None)
    if planned is None:
        pytest.skip("the defense does not plan its cost")
    made = loop.protect(bench, pretrained.weights, plugin, 0, lambda fraction, words: None)
    original, restricted = bench.defender()
    available = len(restricted.train)
    if hasattr(plugin, "watch_every"):  # what it looks at is no part of the plan
        planned += (1 + plugin.iterations) * len(original.validation) / 3
    if getattr(plugin, "batch_size", 0) > available:
        planned -= plugin.iterations * plugin.inner_steps * (plugin.batch_size - available)
    assert made.cost.units == pytest.approx(planned, rel=0.05)


def quiet(_fraction: float | None, _words: str) -> None:
    pass


@pytest.fixture(scope="module")
def released(bench: Bench, pretrained: Made) -> Callable[[str], Weights]:
    """What a defense releases, made once for all attacks."""

    @functools.cache
    def made(defense: str) -> Weights:
        plugin = small(defenses.get(defense))
        return loop.protect(bench, pretrained.weights, plugin, 0, quiet).weights

    return made


@pytest.mark.parametrize("defense", defenses.names())
@pytest.mark.parametrize("attack", attacks.names())
def test_every_attack_runs_against_every_defense(
    attack: str, defense: str, bench: Bench, released: Callable[[str], Weights]
) -> None:
    try:
        found = loop.attack(
            bench,
            released(defense),
            small(attacks.get(attack)),
            samples=20,
            seed=0,
            budget=BUDGET,
            tick=quiet,
        )
    except Incompatible as reason:
        pytest.skip(str(reason))
    assert found.status == "ok"
    assert found.cost.units <= BUDGET * (1 + 1e-6)
    assert 0 <= found.curve[-1].test <= 1


@pytest.mark.parametrize("entry", BUILT_IN, ids=ids)
def test_a_plugin_says_what_it_is_and_where_it_is_from(entry: Entry) -> None:
    assert entry.summary.endswith("."), "the class docstring begins with a sentence"
    assert dataclasses.fields(entry.cls) is not None
    assert entry.cls.__dataclass_params__.frozen
    assert len(entry.source) == 64
    for field in dataclasses.fields(entry.cls):
        assert field.default is not dataclasses.MISSING, f"{field.name} has a default"
        docs = "".join(c.__doc__ or "" for c in entry.cls.__mro__ if dataclasses.is_dataclass(c))
        assert f"{field.name}:" in docs, f"{field.name} is documented under Args"


@pytest.mark.parametrize("entry", BUILT_IN, ids=ids)
def test_defaults_and_presets_survive_the_trip_through_a_record(entry: Entry) -> None:
    for parameters in ({}, *entry.declared.presets.values()):
        trial = Trial(entry, construct(entry, parameters))
        assert construct(entry, trial.parameters) == trial.plugin


@pytest.mark.parametrize("name", scenarios.names())
def test_a_scenario_has_what_the_harness_needs(name: str, tmp_path: Path) -> None:
    try:
        data = scenarios.get(name).cls().build(tmp_path)
    except ScenarioError as error:
        pytest.skip(str(error))
    assert list(checking.problems(data)) == []
    assert {"train", "validation", "test", "second_test"} <= set(data.original.splits)
    needed = {"defender", "attacker", "selection", "test", "second_test"}
    assert needed <= set(data.restricted.splits)
    assert max(data.samples) <= len(data.restricted.splits["attacker"])
    for domain in data.domains:
        if domain.task.name == Classification.name:
            assert domain.task.num_outputs == len(domain.classes)
        sources = [
            set(images.sources.tolist())
            for s, images in domain.splits.items()
            if s != "second_test"
        ]
        assert sum(map(len, sources)) == len(set().union(*sources)), "no source is in two splits"
        for images in domain.splits.values():
            assert images.pixels.shape[1:] == (3, data.image_size, data.image_size)
            assert set(images.labels.tolist()) == set(range(len(domain.classes)))
    assert scenarios.get(name).cls().build(tmp_path).revision == data.revision


@dataclass(frozen=True)
class Bad:
    """An attack with one fault."""

    fault: str

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if self.fault == "seeds":
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
        if self.fault == "class":
            model.__class__ = type("Other", (type(model),), {})
        for batch in view.batches(16):
            for _ in range(20 if self.fault == "greedy" else 1):
                optimizer.zero_grad()
                view.task.loss(model, batch).backward()
                optimizer.step()
            if self.fault == "random":
                weight = next(model.parameters())
                rng = torch.Generator().manual_seed(secrets.randbits(60))
                weight.data.add_(torch.randn(weight.shape, generator=rng))
            yield model


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("seeds", "numpy.random.seed, random.seed, torch.manual_seed was called"),
        ("class", "class or the forward"),
        ("random", "two runs with one seed differ"),
        ("greedy", "yield after every update"),
    ],
)
def test_the_checks_find_each_fault(
    fault: str, message: str, bench: Bench, pretrained: Made
) -> None:
    budget = 32 if fault == "greedy" else BUDGET
    found = testing.check_attack(Bad(fault), bench, pretrained.weights, samples=40, budget=budget)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.usefixtures("forget")
def test_the_attack_in_contributing_keeps_the_contract(
    tmp_path: Path, bench: Bench, pretrained: Made
) -> None:
    assert SHOWN is not None
    file = tmp_path / "norm_only.py"
    file.write_text(SHOWN[1])
    load_file(file)
    plugin = attacks.get("norm-only").cls()
    assert not testing.check_attack(plugin, bench, pretrained.weights, samples=40, budget=BUDGET)
