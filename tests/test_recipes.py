"""Pre-training's step size and length: chosen on validation from what the scenario states."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import msgspec
import pytest
import torch
from test_engine import Silent, setting
from test_stages import quiet

from sophon_bench import protocol
from sophon_bench.api import attacks
from sophon_bench.data.scenario import Recipe, ScenarioData
from sophon_bench.execution.engine import LocalEngine
from sophon_bench.execution.plan import Plan, PretrainStage, Request, Setting, make_plan
from sophon_bench.harness import loop, recipes
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made, Tick
from sophon_bench.plugins.suites import arsenal
from sophon_bench.protocol import PRETRAIN_BATCH, PRETRAIN_LR
from sophon_bench.results import Results
from sophon_bench.results.recipes import ChosenRecipe, TriedRecipe
from sophon_bench.results.records import Cost, ModelRecord, content_key, dump
from sophon_bench.results.store import Store

__all__ = ["setting"]  # a fixture

LRS, STEPS = (1e-6, 2e-3, 1e-2), (4, 12)


def choosing(data: ScenarioData) -> ScenarioData:
    return dataclasses.replace(data, pretrain_steps=STEPS, pretrain_lrs=LRS)


def on(bench: Bench, data: ScenarioData) -> Bench:
    return Bench(data, bench.backbone, device=bench.device, precision=bench.precision)


def plan_of(setting: Setting) -> Plan:
    attacker = arsenal(attacks, ["finetune[lr=0.03]"])
    request = Request(defenses=(), attacks=attacker, seeds=(0,), samples=(20,), steps=2)
    return make_plan(request, [setting])


def pretrain_stage(setting: Setting) -> PretrainStage:
    stage = plan_of(setting).models[0]
    assert isinstance(stage, PretrainStage)
    return stage


# --- what a scenario states -----------------------------------------------------------------------


def test_each_length_is_crossed_with_each_step_size(bench: Bench) -> None:
    assert bench.data.recipes == (Recipe(8, PRETRAIN_LR),)
    assert choosing(bench.data).recipes == tuple(Recipe(n, lr) for n in STEPS for lr in LRS)
    listed = dataclasses.replace(bench.data, pretrain_steps=[4, 12], pretrain_lrs=[*LRS])
    assert listed.recipes == choosing(bench.data).recipes


def test_keys_of_scenarios_without_a_choice_are_what_they_were(setting: Setting) -> None:
    content = {
        "stage": "pretrain",
        "scenario": msgspec.to_builtins(setting.data_id),
        "source": setting.scenario.entry.source,
        "tasks": [repr(domain.task) for domain in setting.data.domains],
        "steps": 8,
        "backbone": {"name": "test_resnet", "parameters": {}},
        "precision": "fp32",
        "seed": 0,
        "protocol": [protocol.VERSION, protocol.digest()],
    }
    assert pretrain_stage(setting).key == content_key(content)
    stated = dataclasses.replace(setting.data, pretrain_steps=(8,), pretrain_lrs=(PRETRAIN_LR,))
    assert pretrain_stage(dataclasses.replace(setting, data=stated)).key == content_key(content)


def test_every_candidate_is_part_of_the_key_and_of_the_planned_cost(setting: Setting) -> None:
    keys = set()
    for lrs, steps in (
        ((PRETRAIN_LR,), 8),
        ((1e-3,), 8),
        ((1e-3, PRETRAIN_LR), 8),
        ((PRETRAIN_LR, 1e-3), 8),  # the first of equals is chosen
        ((1e-3, PRETRAIN_LR), (8, 9)),
    ):
        data = dataclasses.replace(setting.data, pretrain_lrs=lrs, pretrain_steps=steps)
        stage = pretrain_stage(dataclasses.replace(setting, data=data))
        keys.add(stage.key)
    assert len(keys) == 5
    assert stage.units == 2 * (8 + 9) * PRETRAIN_BATCH


# --- the choice -----------------------------------------------------------------------------------


def test_the_model_is_the_one_that_the_chosen_recipe_alone_gives(bench: Bench) -> None:
    told: list[float] = []
    data = choosing(bench.data)
    made = loop.pretrain(on(bench, data), 0, lambda fraction, _: told.append(fraction or 0.0))
    assert made.recipe is not None
    tried = made.recipe.tried
    assert [(one.steps, one.lr) for one in tried] == [(n, lr) for n in STEPS for lr in LRS]
    alone = {
        (n, lr): loop.pretrain(
            on(bench, dataclasses.replace(data, pretrain_steps=n, pretrain_lrs=(lr,))), 0, quiet
        )
        for n in STEPS
        for lr in LRS
    }
    utilities = [bench.utility(one.weights, data.original, "validation") for one in alone.values()]
    assert [one.validation for one in tried] == utilities
    assert len(set(utilities)) > 2
    best = tried[utilities.index(max(utilities))]
    assert (made.recipe.steps, made.recipe.lr) == (best.steps, best.lr)
    expected = alone[best.steps, best.lr]
    assert expected.recipe is None
    assert all(torch.equal(t, expected.weights[name]) for name, t in made.weights.items())
    assert made.cost.steps == sum(one.cost.steps for one in alone.values()) == 3 * (4 + 12)
    assert made.cost.units == pytest.approx(sum(one.cost.units for one in alone.values()))
    assert made.cost.examples == 3 * (4 + 12) * PRETRAIN_BATCH
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


COST = Cost(seconds=1.0, steps=2, examples=4, units=8.0, flops=16.0, peak_bytes=None)


@pytest.mark.parametrize(
    ("utilities", "chosen"),
    [
        ((0.1, 0.3, 0.2), 1),
        ((0.3, 0.3, 0.2), 0),
        ((math.nan, -0.5, -0.25), 2),
        ((math.inf, 0.1, 0.2), 2),
        ((math.nan, math.nan, math.nan), 0),
    ],
)
def test_the_first_of_the_best_is_chosen(utilities: tuple[float, ...], chosen: int) -> None:
    candidates = [Recipe(10 * (at + 1), 0.1) for at in range(3)]
    peaks = iter((None, 7, 5))

    def train(recipe: Recipe, tick: Tick) -> Made:
        tick(0.5, "half")
        cost = msgspec.structs.replace(COST, peak_bytes=next(peaks))
        return Made({"steps": torch.tensor(recipe.steps)}, cost)

    told: list[tuple[float | None, str]] = []
    found = recipes.best(
        candidates,
        train,
        lambda weights: utilities[int(weights["steps"]) // 10 - 1],
        lambda *words: told.append(words),
    )
    assert int(found.weights["steps"]) == candidates[chosen].steps
    assert found.recipe == ChosenRecipe(
        steps=candidates[chosen].steps,
        lr=0.1,
        tried=[
            TriedRecipe(steps=one.steps, lr=one.lr, validation=u if math.isfinite(u) else None)
            for one, u in zip(candidates, utilities, strict=True)
        ],
    )
    assert found.cost == Cost(
        seconds=3.0, steps=6, examples=12, units=24.0, flops=48.0, peak_bytes=7
    )
    assert [fraction for fraction, _ in told] == pytest.approx([5 / 60, 20 / 60, 45 / 60])
    assert told[1][1] == "lr 0.1 for 20: half"


# --- records --------------------------------------------------------------------------------------


def test_the_choice_is_in_the_record_and_in_its_cost(setting: Setting, tmp_path: Path) -> None:
    plan = plan_of(dataclasses.replace(setting, data=choosing(setting.data)))
    store = Store(tmp_path)
    LocalEngine(store, torch.device("cpu"), Silent()).run(plan)
    pretrained, released = (store.model(stage.key) for stage in plan.models)
    assert released.recipe is None
    assert pretrained.recipe is not None
    best = max(one.validation or 0.0 for one in pretrained.recipe.tried)
    assert pretrained.original_validation == best
    assert pretrained.cost is not None
    assert pretrained.cost.steps == 3 * (4 + 12)
    assert msgspec.json.decode(dump(pretrained), type=ModelRecord) == pretrained
    models = Results.of(store.records()).models.set_index("kind")
    assert models["recipe"].to_dict() == {"pretrained": pretrained.recipe, "released": None}
    older = json.loads(dump(released))
    del older["recipe"]
    assert msgspec.json.decode(json.dumps(older), type=ModelRecord) == released
