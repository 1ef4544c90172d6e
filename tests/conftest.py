from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec import convert
from msgspec.structs import replace
from pandas import DataFrame

from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.leaderboard.render import Table
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry
from sophon_bench.plugins.selectors import parse, scalar
from sophon_bench.results.records import (
    Cell,
    Cost,
    DataId,
    PluginId,
    Point,
    Provenance,
    StageRecord,
    attack_key,
    content_key,
    protect_key,
)

TINY = Path(__file__).with_name("tiny_scenario.py")


def drawn(table: Table) -> SimpleNamespace:
    """A table's texts, as the console has them."""
    groups = {name: table.lines(name, "console") for name in ("quiet", "body", "loud")}
    return SimpleNamespace(
        title=table.title, columns=table.headers("console"), notes=[*table.notes], **groups
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def tiny_scenario() -> None:
    registry.load_file(TINY)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SOPHON_BENCH_STORE", raising=False)
    monkeypatch.delenv("SOPHON_BENCH_DATA", raising=False)


@pytest.fixture(scope="session")
def bench() -> Bench:
    data = registry.scenarios.get("tiny").cls().build()
    return Bench(data, Backbone.of("test_resnet"), device=torch.device("cpu"), precision="fp32")


@pytest.fixture(scope="session")
def pretrained(bench: Bench) -> Made:
    return loop.pretrain(bench, 0, lambda fraction, words: None)


@pytest.fixture
def forget() -> Iterator[None]:
    """Drop what a test registers."""
    kept = {r.kind: dict(r._entries) for r in ALL}
    yield
    for r in ALL:
        r._entries = kept[r.kind]


ALL = (registry.attacks, registry.defenses, registry.scenarios)

MakeCell = Callable[..., Cell]


@pytest.fixture
def make_cell() -> MakeCell:
    """A record by what a test cares about; curve points are (units, selection, test).

    ``attack`` is a selector: its parameters are those of the record. ``released`` are changes of
    the defended model's stage. Keys follow from the rest, as those of real records do.
    """

    def make(
        *,
        defense: str = "none",
        attack: str = "finetune",
        seed: int = 0,
        curve: list[tuple[float, float, float]] | None = None,
        original: tuple[float, float] = (0.98, 0.98),
        mechanism: str = "gradient",
        fit: float = 1.0,
        released: dict[str, object] | None = None,
        **changes: object,
    ) -> Cell:
        points = curve if curve is not None else [(100.0, 0.5, 0.5)]
        cost = Cost(seconds=2.0, steps=10, examples=640, units=640.0, flops=1e9, peak_bytes=10**8)
        provenance = Provenance(
            version="0", commit=None, dirty=None, python="3", torch="2", timm="1", cuda=None,
            device="cpu", threads=1, finished="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        before, after = original
        stage = StageRecord(
            key="k", status="ok", cost=cost, original=before, restricted=0.1, provenance=provenance
        )
        protect = replace(cost, units=1280.0)
        fields: dict[str, object] = {
            "key": "",
            "status": "ok",
            "scenario": DataId(name="s", label="s", parameters={}, revision="r"),
            "backbone": "b",
            "defense": _plugin(defense, control=defense == "none"),
            "attack": _plugin(attack, control=attack.startswith("scratch"), mechanism=mechanism),
            "domain": "digits",
            "samples": 200,
            "test_examples": 500,
            "seed": seed,
            "precision": "fp32",
            "budget": 12800,
            "curve": [
                Point(
                    steps=i + 1, units=u, seconds=1.0, fit=fit, validation=s, selection=s, test=t,
                    second_test=t,
                )
                for i, (u, s, t) in enumerate(points)
            ],
            "cost": cost,
            "pretrained": stage,
            "released": replace(
                stage, **{"original": after, "cost": protect, **(released or {})}
            ),
            "provenance": provenance,
        }  # fmt: skip
        cell = named(convert({**fields, **changes}, Cell))
        if "key" in (released or {}):
            cell = replace(cell, released=replace(cell.released, key=released["key"]))
        return replace(cell, key=changes["key"]) if "key" in changes else cell

    return make


def records(frame: DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, with None for what is missing."""
    found: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return found


def named(cell: Cell) -> Cell:
    """The same with keys that follow from the rest."""
    place = (cell.scenario.label, cell.scenario.revision, cell.backbone, cell.precision)
    before = content_key({"place": place, "protocol": cell.protocol, "seed": cell.seed})
    after = protect_key(before, cell.defense)
    asked = {name: getattr(cell, name) for name in ("samples", "budget", "domain", "stretch")}
    return replace(
        cell,
        key=attack_key(after, cell.attack, **asked),
        pretrained=replace(cell.pretrained, key=before),
        released=replace(cell.released, key=after),
    )


def _plugin(label: str, *, control: bool, mechanism: str = "gradient") -> PluginId:
    found = parse(label)
    return PluginId(
        name=found.name,
        label=label,
        parameters={key: scalar(value) for key, value in found.parameters.items()},
        source="s",
        distribution="d",
        control=control,
        mechanism=mechanism,
    )
