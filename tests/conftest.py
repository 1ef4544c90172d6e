from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import settings
from msgspec import convert
from msgspec.structs import replace
from object_store import Server
from pandas import DataFrame

from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.leaderboard.render import Table
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry
from sophon_bench.plugins.selectors import parse, scalar
from sophon_bench.protocol import VERSION, digest
from sophon_bench.results.documents import read_file
from sophon_bench.results.records import (
    OR,
    Asked,
    Cell,
    Cost,
    Curve,
    DataId,
    Generated,
    ModelRecord,
    PluginId,
    Point,
    Provenance,
    Records,
    attack_key,
    content_key,
    protect_key,
)
from sophon_bench.results.store import Store

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")

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
def object_store() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def s3(object_store: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket that is empty."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return object_store.bucket()


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a store may be, without copies: a further back end is one more of these."""
    monkeypatch.setenv("SOPHON_BENCH_COPIES_GB", "0")
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/some/prefix"
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path}"


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


class Attempt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cell, its models, and who asked for it, in one: what tests make and look at."""

    key: str
    status: str
    scenario: DataId
    backbone: str
    precision: str
    seed: int
    defense: PluginId
    attack: PluginId
    domain: str
    samples: int
    budget: int
    test_examples: int
    provenance: Provenance
    pretrained: ModelRecord
    released: ModelRecord
    role: str = "restricted"
    suite: str | None = None
    derived: bool = False
    stretch: int = 1
    reason: str | None = None
    utility: str = "accuracy"
    trivial_loss: float | None = None
    nonfinite_step: int | None = None
    generated: Generated | None = None
    curve: list[Point] = []
    cost: Cost | None = None
    contained: list[str] = []
    protocol: str = VERSION
    protocol_digest: str = msgspec.field(default_factory=digest)

    @property
    def cell(self) -> Cell:
        """Its own record."""
        own = {name: getattr(self, name) for name in Cell.__struct_fields__ if name != "model"}
        return Cell(**{**own, "model": self.released.key, "curve": Curve.of(self.curve)})


def gather(attempts: Iterable[Attempt]) -> Records:
    """The records that attempts are of; of models that differ under one key the first is taken."""
    models: dict[str, ModelRecord] = {}
    cells: dict[str, Cell] = {}
    asked: dict[str, Asked] = {}

    def put(model: ModelRecord) -> str:
        known = models.setdefault(model.key, model)
        where = ("scenario", "backbone", "precision", "seed", "defense", "pretrained", "protocol")
        if all(getattr(model, name) == getattr(known, name) for name in where):
            return model.key
        return put(replace(model, key=content_key({"other": model.key})))

    for each in sorted(attempts, key=lambda attempt: (attempt.seed, attempt.key)):
        place = {name: getattr(each, name)
                 for name in ("scenario", "backbone", "precision", "seed", "protocol")}  # fmt: skip
        before = put(replace(each.pretrained, **place, defense=None, pretrained=None))
        after = replace(each.released, **place, defense=each.defense, pretrained=before)
        cells[each.key] = replace(each.cell, model=put(after))
        suites = tuple(each.suite.split(OR)) if each.suite else ()
        asked[each.key] = Asked(key=each.key, suites=suites, derived=each.derived)
    return Records(models, list(cells.values()), asked)


def attempts(records: Records) -> list[Attempt]:
    """The cells of records with all that records say of them."""
    return [
        Attempt(
            **{name: getattr(cell, name) for name in Cell.__struct_fields__
               if name not in ("model", "curve")},
            **{name: getattr(records.model(cell), name)
               for name in ("scenario", "backbone", "precision", "seed")},
            defense=records.defense(cell),
            curve=points(cell.curve),
            suite=OR.join(records.who(cell).suites) or None,
            derived=records.who(cell).derived,
            pretrained=records.pretrained(cell),
            released=records.model(cell),
        )
        for cell in records.cells
    ]  # fmt: skip


def points(curve: Curve) -> list[Point]:
    """The scorings of a curve."""
    columns = [getattr(curve, name) or [None] * len(curve) for name in Point.__struct_fields__]
    return [Point(**dict(zip(Point.__struct_fields__, row, strict=True)))
            for row in zip(*columns, strict=True)]  # fmt: skip


def read_cells(file: Path) -> list[Attempt]:
    """What a file of records holds."""
    return attempts(read_file(file)[1])


def put(store: Store, attempt: Attempt) -> None:
    """Put a cell and its models into a store."""
    records = gather([attempt])
    for model in records.models.values():
        store.put_model(model)
    for cell in records.cells:
        store.put_cell(cell)


MakeCell = Callable[..., Attempt]


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
    ) -> Attempt:
        points = curve if curve is not None else [(100.0, 0.5, 0.5)]
        cost = Cost(seconds=2.0, steps=10, examples=640, units=640.0, flops=1e9, peak_bytes=10**8)
        provenance = Provenance(
            version="0", commit=None, dirty=None, python="3", torch="2", timm="1", cuda=None,
            device="cpu", threads=1, finished="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        before, after = original
        place: dict[str, Any] = {
            "scenario": DataId(name="s", label="s", parameters={}, revision="r"),
            "backbone": "b",
            "precision": "fp32",
            "seed": seed,
        }
        stage = ModelRecord(
            key="k", status="ok", cost=cost, original=before, restricted=0.1, provenance=provenance,
            **place,
        )  # fmt: skip
        protect = replace(cost, units=1280.0)
        fields: dict[str, object] = {
            "key": "",
            "status": "ok",
            **place,
            "defense": _plugin(defense, control=defense == "none"),
            "attack": _plugin(attack, control=attack.startswith("scratch"), mechanism=mechanism),
            "domain": "digits",
            "samples": 200,
            "test_examples": 500,
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
        cell = named(convert({**fields, **changes}, Attempt))
        if "key" in (released or {}):
            cell = replace(cell, released=replace(cell.released, key=released["key"]))
        return replace(cell, key=changes["key"]) if "key" in changes else cell

    return make


def records(frame: DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, with None for what is missing."""
    found: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return found


def named(cell: Attempt) -> Attempt:
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
