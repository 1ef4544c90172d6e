"""Stores of as many records as one likes, shaped like those of a leaderboard."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from sophon_bench.results.records import (
    SCHEMA,
    Asked,
    Cell,
    Cost,
    Curve,
    DataId,
    ModelRecord,
    PluginId,
    Point,
    Provenance,
    Records,
    Run,
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
    for name in ("cells", "models", "data", "runs"):
        (root / name).mkdir(parents=True)
    (root / "store.json").write_text(json.dumps({"schema": SCHEMA}))
    records = records_like(count)
    for model in records.models.values():
        (root / "models" / f"{model.key}.json").write_bytes(dump(model))
    for cell in records.cells:
        (root / "cells" / f"{cell.key}.json").write_bytes(dump(cell))
    run = Run(command="sophon-bench run", provenance=PROVENANCE)
    lines = b"\n".join(map(dump, (run, *records.asked.values())))
    (root / "runs" / "run.jsonl").write_bytes(lines)


def records_like(count: int) -> Records:
    """The records alone."""
    rng = np.random.default_rng(0)
    models: dict[str, ModelRecord] = {}
    cells = []
    for backbone, defense, samples, seed, attack in itertools.islice(_order(), count):
        before = _model(models, f"backbone-{backbone}", seed, None, None)
        released = _model(models, f"backbone-{backbone}", seed, defense, before)
        cells.append(_cell(rng, released, samples, attack))
    asked = {cell.key: Asked(key=cell.key, suites=("@standard v1",)) for cell in cells}
    return Records(models, cells, asked)


def _order() -> Iterator[tuple[int, int, int, int, tuple[str, dict[str, object]]]]:
    for backbone in itertools.count():
        for defense, samples, seed, attack in itertools.product(
            range(20), (50, 200, 600), range(5), ATTACKS
        ):
            if defense == 0 or attack[0] != "scratch":
                yield backbone, defense, samples, seed, attack


PROVENANCE = Provenance(
    version="0", commit="c" * 40, dirty=False, python="3.11.7", torch="2.14.1", timm="1.0.31",
    cuda=None, device="CPU", threads=1, finished="2026-01-01T00:00:00",
)  # fmt: skip


def _model(
    models: dict[str, ModelRecord],
    backbone: str,
    seed: int,
    defense: int | None,
    before: ModelRecord | None,
) -> ModelRecord:
    key = content_key({"backbone": backbone, "seed": seed, "defense": defense})
    label = f"defense[strength={defense}]" if defense else "none"
    if key not in models:
        models[key] = ModelRecord(
            key=key, status="ok", backbone=backbone, precision="fp32", seed=seed,
            scenario=DataId(name="s", label="s", parameters={"image_size": 32}, revision="r" * 64),
            pretrained=None if before is None else before.key,
            defense=None if before is None else PluginId(
                name=label.split("[")[0], label=label, parameters={"strength": defense},
                source="s" * 64, distribution="sophon-bench", control=defense == 0,
            ),
            cost=Cost(seconds=60, steps=400, examples=25600, units=25600, flops=6e11),
            original=0.98, original_second=0.97, restricted=0.1, weights="0" * 64,
            provenance=PROVENANCE,
        )  # fmt: skip
    return models[key]


def _cell(
    rng: np.random.Generator,
    model: ModelRecord,
    samples: int,
    attack: tuple[str, dict[str, object]],
) -> Cell:
    name, parameters = attack
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
        key=content_key({"of": [model.key, samples, name, told]}),
        status="ok",
        model=model.key,
        attack=PluginId(
            name=name, label=f"{name}[{told}]", parameters=parameters, source=name * 9,
            distribution="sophon-bench", control=name == "scratch",
        ),
        domain="digits", samples=samples, test_examples=497, budget=BUDGET, curve=Curve.of(curve),
        cost=Cost(seconds=5, steps=200, examples=12800, units=BUDGET, flops=3e11, peak_bytes=10**8),
        provenance=replace(PROVENANCE, finished=f"2026-01-01T00:00:{rng.integers(60):02}"),
    )  # fmt: skip
