"""Stores of as many records as one likes, shaped like those of a leaderboard."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sophon_bench.results.records import (
    SCHEMA,
    Cell,
    Cost,
    DataId,
    PluginId,
    Point,
    Provenance,
    StageRecord,
    content_key,
    dump,
)

BUDGET = 12800
ATTACKS = [
    (name, {"optimizer": optimizer, "lr": lr, "weight_decay": 0.0, "steps": None, "scope": "all"})
    for name in ("scratch", "finetune", "lora", "partial-reinit", "canonicalize")
    for optimizer in ("momentum", "adam")
    for lr in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
]


def write_records(root: Path, count: int) -> None:
    """A store with ``count`` records: five seeds, three n, fifty trials, then more defenses.

    After twenty defenses comes the next backbone.
    """
    (root / "cells").mkdir(parents=True)
    for name in ("stages", "data"):
        (root / name).mkdir()
    (root / "store.json").write_text(json.dumps({"schema": SCHEMA}))
    for cell in records_like(count):
        (root / "cells" / f"{cell.key}.json").write_bytes(dump(cell))


def records_like(count: int) -> Iterator[Cell]:
    """The records alone."""
    rng = np.random.default_rng(0)
    for backbone, *rest in itertools.islice(_order(), count):
        yield _cell(rng, f"backbone-{backbone}", *rest)


def _order() -> Iterator[tuple[int, int, int, int, tuple[str, dict[str, object]]]]:
    for backbone in itertools.count():
        for defense, samples, seed, attack in itertools.product(
            range(20), (50, 200, 600), range(5), ATTACKS
        ):
            if defense == 0 or attack[0] != "scratch":
                yield backbone, defense, samples, seed, attack


def _cell(
    rng: np.random.Generator,
    backbone: str,
    defense: int,
    samples: int,
    seed: int,
    attack: tuple[str, dict[str, object]],
) -> Cell:
    name, parameters = attack
    provenance = Provenance(
        version="0", commit="c" * 40, dirty=False, python="3.11.7", torch="2.14.1", timm="1.0.31",
        cuda=None, device="CPU", threads=1, finished=f"2026-01-01T00:00:{rng.integers(60):02}",
    )  # fmt: skip
    label = "none" if defense == 0 else f"defense[strength={defense}]"
    models = [
        StageRecord(
            key=content_key({"backbone": backbone, "seed": seed, "defense": made}), status="ok",
            cost=Cost(seconds=60, steps=400, examples=25600, units=25600, flops=6e11),
            original=0.98, original_second=0.97, restricted=0.1, weights="w" * 64,
            provenance=provenance,
        )
        for made in ("none", label)
    ]  # fmt: skip
    level = float(rng.uniform(0.2, 0.9))
    curve = [
        Point(
            steps=round(200 * at), units=BUDGET * at, seconds=5 * at, fit=level, validation=level,
            selection=level * (0.5 + at / 2), test=level * (0.5 + at / 2), second_test=level,
        )
        for at in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    ]  # fmt: skip
    told = ",".join(f"{key}={value}" for key, value in list(parameters.items())[:2])
    return Cell(
        key=content_key({"of": [backbone, defense, samples, seed, name, told]}),
        status="ok",
        scenario=DataId(name="s", label="s", parameters={"image_size": 32}, revision="r" * 64),
        backbone=backbone,
        defense=PluginId(
            name=label.split("[")[0], label=label, parameters={"strength": defense},
            source="s" * 64, distribution="sophon-bench", control=defense == 0,
        ),
        attack=PluginId(
            name=name, label=f"{name}[{told}]", parameters=parameters, source=name * 9,
            distribution="sophon-bench", control=name == "scratch",
        ),
        domain="digits", suite="@standard v1", samples=samples, test_examples=497, seed=seed,
        precision="fp32", budget=BUDGET, curve=curve,
        cost=Cost(seconds=5, steps=200, examples=12800, units=BUDGET, flops=3e11, peak_bytes=10**8),
        pretrained=models[0], released=models[1], provenance=provenance,
    )  # fmt: skip
