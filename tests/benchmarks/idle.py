"""Stages that do nothing: a plugin file that takes the work out of every worker that loads it.

A worker here neither trains nor scores nor reads weights: it writes a record at once. All that a
run does around a stage stays: plan, schedule, search, transport to a process or to Ray, record,
store and progress.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sophon_bench.api import scenarios
from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.execution.plan import AttackStage, PretrainStage, ProtectStage
from sophon_bench.execution.worker import Upstream, Worker
from sophon_bench.results.records import Cell, Cost, ModelRecord, Point

COST = Cost(seconds=5.0, steps=200, examples=12800, units=12800.0, flops=3e11, peak_bytes=10**8)
CURVE = [
    Point(steps=200 // at, units=12800 / at, seconds=5 / at, fit=0.5, validation=0.5,
          selection=1 / (1 + at), test=1 / (1 + at), second_test=0.5)
    for at in (128, 64, 32, 16, 8, 4, 2, 1)
]  # fmt: skip
"""As many scorings as an attack of 200 updates has."""


@scenarios.register("idle", hidden=True)
@dataclass(frozen=True, kw_only=True)
class Idle:
    """A few images of noise for stages that look at none.

    Args:
        image_size: Of the images, in pixels.
    """

    image_size: int = 16

    def build(self, cache: Path | None = None) -> ScenarioData:
        """Three domains of two classes."""
        tests = {"test": 4, "second_test": 4}
        return ScenarioData(
            image_size=self.image_size,
            original=self._domain("one", {"train": 8, "validation": 4, **tests}),
            restricted=self._domain("two", {"defender": 8, "attacker": 8, "selection": 4, **tests}),
            benign=(self._domain("three", {"train": 8, "selection": 4, "test": 4}),),
            samples=(8,),
            steps=200,
            pretrain_steps=1,
        )

    def _domain(self, name: str, splits: Mapping[str, int]) -> DomainData:
        images = {split: self._images(name, split, count) for split, count in splits.items()}
        return DomainData(name, Classification(2), ("left", "right"), images)

    def _images(self, name: str, split: str, count: int) -> Images:
        rng = np.random.default_rng([*name.encode(), *split.encode()])
        pixels = rng.integers(0, 256, (count, 3, self.image_size, self.image_size), np.uint8)
        sources = np.array([f"{name}-{split}-{number}" for number in range(count)])
        return Images(pixels, np.arange(count) % 2, sources)


def make(self: Worker, stage: PretrainStage | ProtectStage, _upstream: Upstream) -> ModelRecord:
    """The record of a model that nobody made."""
    return ModelRecord(
        **self._place(stage), status="ok", cost=COST, original=0.9, original_validation=0.9,
        restricted=0.1, weights="0" * 64,
    )  # fmt: skip


def attack(self: Worker, stage: AttackStage, _upstream: Upstream) -> Cell:
    """The record of an attack that nobody ran."""
    return self._cell(stage, {"status": "ok", "cost": COST, "curve": CURVE})


Worker._make, Worker._attack = make, attack  # type: ignore[method-assign]
