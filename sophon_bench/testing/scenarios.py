"""Checks of scenarios: each is built twice, looked at, and trained on."""

from __future__ import annotations

import dataclasses

import torch

from sophon_bench.data import checking
from sophon_bench.data.scenario import Scenario, ScenarioData
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench
from sophon_bench.models.architecture import Architecture, BackboneError
from sophon_bench.models.unets import UNet
from sophon_bench.testing.runs import Problems
from sophon_bench.testing.toy import quiet

SCENARIO = ("splits", "images", "sources", "samples", "repeatable", "training")
"""Checks of scenarios by name; each is made where those before it passed."""


def scenario_problems(scenario: Scenario, backbone: Architecture) -> Problems:
    """What is wrong with a scenario; it is trained on for two updates."""
    data = scenario.build()
    found: dict[str, list[str]] = {}
    for check, words in checking.problems(data):
        found.setdefault(check, []).append(words)
    if "splits" in found:
        return {"splits": "; ".join(found["splits"])}
    problems: Problems = {name: "; ".join(found.get(name, ())) or None for name in SCENARIO[:4]}
    if found:
        return problems
    problems["repeatable"] = None
    if scenario.build().revision != data.revision:
        problems["repeatable"] = (
            "two builds differ; draw from generators with fixed seeds, and order nothing by a set"
        )
        return problems
    fits = backbone.task == data.original.task.name
    return {**problems, "training": _training_problem(data, backbone if fits else UNet())}


def _training_problem(data: ScenarioData, backbone: Architecture) -> str | None:
    try:
        backbone.check(data.image_size, data.original.task.num_outputs)
    except BackboneError as error:
        return str(error)
    short = dataclasses.replace(data, pretrain_steps=2)
    bench = Bench(short, backbone, device=torch.device("cpu"), precision="fp32")
    made = loop.pretrain(bench, 0, quiet)
    finite = all(bool(t.isfinite().all()) for t in made.weights.values())
    return None if finite else "two updates of pre-training give weights that are not finite"
