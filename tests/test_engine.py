from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import TINY, attempts
from toy import fine_tune

from sophon_bench.api import AttackView, DefenseView, Incompatible, Model
from sophon_bench.execution.engine import LocalEngine
from sophon_bench.execution.plan import (
    Plan,
    PlanError,
    Request,
    Setting,
    Stage,
    make_plan,
)
from sophon_bench.harness import loop, speed
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry
from sophon_bench.plugins.suites import arsenal, trials
from sophon_bench.results.documents import read_file
from sophon_bench.results.records import DataId, Records
from sophon_bench.results.store import Store

DEFENSE = "sophon-klu[iterations=2,inner_steps=2,batch_size=16,adapt=8,watch_every=1]"
ATTACK = "finetune[lr=[0.01,0.03]]"


class Silent:
    """Counts what is done and what is reused; may raise at the n-th tick."""

    def __init__(self, ticks: int | None = None) -> None:
        self.ticks = ticks
        self.done: list[str] = []
        self.reused: list[str] = []

    def begin(self, stage: Stage) -> None:
        pass

    def expect(self, units: float, stages: int) -> None:
        pass

    def tick(self, _stage: Stage, _fraction: float | None, _words: str) -> None:
        if self.ticks is not None:
            self.ticks -= 1
            if self.ticks < 0:
                raise KeyboardInterrupt

    def end(self, stage: Stage, _words: str, *, reused: bool) -> None:
        (self.reused if reused else self.done).append(stage.label)


@pytest.fixture(scope="module")
def setting() -> Setting:
    (trial,) = trials(registry.scenarios, ["tiny"])
    data = trial.plugin.build()
    identity = DataId(name="tiny", label="tiny", parameters={}, revision=data.revision)
    return Setting(trial, data, identity, Backbone.of("test_resnet"), "fp32")


def plan_of(
    setting: Setting,
    defenses: Sequence[str] = (DEFENSE,),
    attacks: Sequence[str] = (ATTACK,),
    **options: Any,
) -> Plan:
    request = Request(
        defenses=trials(registry.defenses, defenses),
        attacks=arsenal(registry.attacks, attacks),
        **{"seeds": [0], "samples": [20], "steps": 2, **options},
    )
    return make_plan(request, [setting])


def engine(root: Path, reporter: Silent | None = None, **options: Any) -> LocalEngine:
    return LocalEngine(Store(root), torch.device("cpu"), reporter or Silent(), **options)


def metrics(records: Records) -> dict[str, Any]:
    """All that must be equal between two runs of the same cells: not clocks, not memory."""
    found = {}
    for cell in attempts(records):
        content = msgspec.to_builtins(cell)
        for clocked in (content, content["pretrained"], content["released"]):
            del clocked["provenance"]
            if clocked["cost"]:
                del clocked["cost"]["seconds"], clocked["cost"]["peak_bytes"]
        for point in content["curve"]:
            del point["seconds"]
        found[cell.key] = content
    return found


@pytest.fixture(scope="module")
def reference(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return metrics(engine(tmp_path_factory.mktemp("reference")).run(plan_of(setting)))


def test_controls_are_always_in_and_shared_work_is_planned_once(setting: Setting) -> None:
    stages = plan_of(setting, seeds=[0, 1]).stages
    labels = [stage.label for stage in stages]
    assert len(labels) == len(set(labels))
    assert sum(label.startswith("pretrain") for label in labels) == 2
    assert sum(label.startswith("protect") for label in labels) == 4
    # per seed: scratch once, two trials against each of the two defenses
    assert sum(label.startswith("attack") for label in labels) == 2 * (1 + 2 * 2)
    assert sum("with scratch" in label for label in labels) == 2
    again = plan_of(setting, ["none", DEFENSE], ["scratch", ATTACK, ATTACK], seeds=[0, 1])
    assert {stage.key for stage in again.stages} == {stage.key for stage in stages}


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1]},
        {"samples": [8]},
        {"steps": 3},
        {"attacks": ["finetune[lr=0.02]"]},
        {"defenses": [DEFENSE.replace("iterations=2", "iterations=3")]},
    ],
)
def test_every_part_of_the_work_is_part_of_its_key(setting: Setting, change: Any) -> None:
    base = plan_of(setting, attacks=["finetune"])
    other = plan_of(setting, **{"attacks": ["finetune"], **change})
    assert base.cells[-1].key != other.cells[-1].key


def test_data_backbone_and_precision_are_part_of_the_key(setting: Setting) -> None:
    import dataclasses

    keys = set()
    for changes in (
        {},
        {"data_id": msgspec.structs.replace(setting.data_id, revision="other")},
        {"backbone": Backbone.of("test_vit")},
        {"precision": "bf16"},
    ):
        keys.add(plan_of(dataclasses.replace(setting, **changes)).cells[-1].key)
    assert len(keys) == 4


@pytest.mark.parametrize("samples", [0, 1, 41, 1000])
def test_more_samples_than_there_are_or_too_few_are_refused(setting: Setting, samples: int) -> None:
    with pytest.raises(PlanError, match=f"between 2 and 40.*got {samples}"):
        plan_of(setting, samples=[samples])
    with pytest.raises(PlanError, match="at least 1 step, got 0"):
        plan_of(setting, steps=0)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_record_has_is_refused(setting: Setting, seed: int) -> None:
    with pytest.raises(PlanError, match=f"between 0 and 9223372036854775807; got {seed}"):
        plan_of(setting, seeds=[seed])


def test_the_second_run_does_nothing_and_says_the_same(
    setting: Setting, tmp_path: Path, reference: dict[str, Any]
) -> None:
    plan = plan_of(setting)
    first, second = Silent(), Silent()
    assert metrics(engine(tmp_path, first).run(plan)) == reference
    written = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.json")}
    assert metrics(engine(tmp_path, second).run(plan)) == reference
    assert first.reused == []
    assert second.done == []
    assert written == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.json")}


def test_the_order_of_the_cells_does_not_matter(
    setting: Setting, tmp_path: Path, reference: dict[str, Any]
) -> None:
    plan = plan_of(setting, [DEFENSE, "none"], ["finetune[lr=[0.03,0.01]]", "scratch"])
    assert [s.key for s in plan.cells] != list(reference)
    assert metrics(engine(tmp_path).run(plan)) == reference


def test_an_interrupted_run_is_finished_by_the_same_command(
    setting: Setting, tmp_path: Path, reference: dict[str, Any]
) -> None:
    plan = plan_of(setting)
    for ticks in (3, 7, 13, 4, 3):
        with pytest.raises(KeyboardInterrupt):
            engine(tmp_path, Silent(ticks)).run(plan)
    last = Silent()
    assert metrics(engine(tmp_path, last).run(plan)) == reference
    assert last.reused
    assert last.done


def test_what_another_run_on_the_store_finished_meanwhile_is_not_done_again(
    setting: Setting, tmp_path: Path, reference: dict[str, Any]
) -> None:
    plan, other = plan_of(setting), Silent()

    class Overtaken(Silent):
        """Another run does everything while the first attack is under way."""

        def tick(self, stage: Stage, _fraction: float | None, _words: str) -> None:
            if stage.label.startswith("attack") and not other.done:
                assert metrics(engine(tmp_path, other).run(plan)) == reference

    first = Overtaken()
    assert metrics(engine(tmp_path, first).run(plan)) == reference
    assert len([label for label in first.done if label.startswith("attack")]) == 1
    assert set(first.reused) >= {label for label in other.done if label not in first.done}
    assert metrics(Store(tmp_path).records()) == reference


def sgd(model: Model, view: AttackView) -> Iterator[Model]:
    """Four updates of 16 examples: a budget of two of 64 is half spent."""
    return itertools.islice(fine_tune(model, view, lr=0.01), 4)


@pytest.mark.usefixtures("forget")
def test_what_breaks_is_recorded_and_the_rest_goes_on(setting: Setting, tmp_path: Path) -> None:
    @registry.attacks.register("raises")
    @dataclass(frozen=True, kw_only=True)
    class Raises:
        def run(self, model: Model, view: AttackView) -> Iterator[Model]:
            for _ in sgd(model, view):
                yield model
            raise RuntimeError("boom \udcff\nand more")

    @registry.attacks.register("refuses")
    @dataclass(frozen=True, kw_only=True)
    class Refuses:
        def run(self, model: Model, view: AttackView) -> Iterator[Model]:
            raise Incompatible("wants attention")
            yield model

    @registry.defenses.register("breaks")
    @dataclass(frozen=True, kw_only=True)
    class Breaks:
        def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
            raise RuntimeError("no defense")
            yield model

    plan = plan_of(setting, ["breaks"], ["raises", "refuses", "finetune"])
    found = {(c.defense.name, c.attack.name): c for c in attempts(engine(tmp_path).run(plan))}
    assert found["none", "raises"].status == "failed"
    assert r"RuntimeError: boom \udcff (test_engine.py:" in str(found["none", "raises"].reason)
    assert [p.steps for p in found["none", "raises"].curve] == [1, 2, 4], "what was scored is kept"
    assert found["none", "refuses"].status == "skipped"
    assert found["none", "refuses"].reason == "wants attention"
    assert found["none", "finetune"].status == "ok"
    for attack in ("raises", "refuses", "finetune"):
        assert found["breaks", attack].status == "failed"
        assert "no defense" in str(found["breaks", attack].reason)
    again, retried = Silent(), Silent()
    engine(tmp_path, again).run(plan)
    assert again.done == []
    engine(tmp_path, retried, retry_failed=True).run(plan)
    assert len(retried.done) == 1 + 1 + 3


def command(store: Path, out: Path, workers: int = 1) -> list[str]:
    return [
        sys.executable, "-m", "sophon_bench.cli", "run", "--plugin", str(TINY),
        "--scenario", "tiny",
        "--defense", DEFENSE, "--attack", "finetune[lr=[0.01,0.02,0.03]]", "--seeds", "0-1",
        "--samples", "20", "--steps", "40", "--threads", "1", "--workers", str(workers),
        "--store", str(store), "--json", str(out),
    ]  # fmt: skip


def finished(store: Path) -> dict[Path, int]:
    return {
        f: f.stat().st_mtime_ns
        for kind in ("cells", "models")
        for f in (store / kind).glob("*.json")
    }


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an undisturbed run."""
    root = tmp_path_factory.mktemp("calm")
    subprocess.run(command(root, root / "calm.json"), check=True, capture_output=True)
    return root / "calm.json"


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "moments"), [(1, (0, 1, 2, 2, 3)), (2, (1, 2))])
def test_kill_dash_nine_several_times_then_the_same_command(
    calm: Path, tmp_path: Path, workers: int, moments: tuple[int, ...]
) -> None:
    """Killed at moments that differ, the run ends with the records of an undisturbed one."""
    store = tmp_path / "killed"
    kept: dict[Path, int] = {}
    for more in moments:
        process = subprocess.Popen(
            command(store, tmp_path / "no.json", workers),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while len(finished(store)) < len(kept) + more and process.poll() is None:
            time.sleep(0.01)
        if more == 0:
            while not (store / "cells").is_dir() and process.poll() is None:
                time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = finished(store)
        assert all(now[file] == at for file, at in kept.items())
        kept = now
    last = command(store, tmp_path / "killed.json", workers)
    subprocess.run(last, check=True, capture_output=True)
    now = finished(store)
    assert all(now[file] == at for file, at in kept.items())
    assert len(now) > len(kept)
    one, two = (metrics(read_file(f)[1]) for f in (calm, tmp_path / "killed.json"))
    assert one == two


@pytest.mark.parametrize("gain", [10.0, 0.5])
def test_trials_run_at_once_where_that_pays(
    gain: float,
    setting: Setting,
    tmp_path: Path,
    reference: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def speed_up(_bench: Any, plugins: Any, **_named: Any) -> float:
        asked.append(len(plugins))
        return gain

    monkeypatch.setattr(speed, "speed_up", speed_up)
    reporter = Silent()
    made = engine(tmp_path, reporter, together=32).run(plan_of(setting))
    assert asked == [2]  # of a kind, once
    assert [cell.status for cell in made.cells] == ["ok"] * 5
    counts = [cell.cost.together for cell in made.cells if cell.cost]
    assert sorted(counts) == [1, 2, 2, 2, 2] if gain > 1 else counts == [1] * 5
    found = metrics(made)
    assert found.keys() == reference.keys()
    for key, content in found.items():
        for one, other in zip(content["curve"], reference[key]["curve"], strict=True):
            assert one["test"] == pytest.approx(other["test"], abs=0.05)
    again = Silent()
    engine(tmp_path, again, together=32).run(plan_of(setting))
    assert again.done == []
    assert sorted(again.reused) == sorted(reporter.done)


def test_what_fails_at_once_is_done_one_by_one(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_named: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(speed, "speed_up", lambda *_a, **_n: 10.0)
    monkeypatch.setattr(loop, "attack_many", broken)
    made = engine(tmp_path, together=32).run(plan_of(setting))
    assert [cell.status for cell in made.cells] == ["ok"] * 5


def test_companions_differ_in_what_may_differ_alone(setting: Setting) -> None:
    attacks = ["finetune[lr=[0.01,0.03],weight_decay=[0,0.1]]", "finetune[optimizer=adam]", "lora"]
    cells = plan_of(setting, attacks=attacks, samples=[10, 20]).cells
    groups: dict[Any, list[str]] = {}
    for cell in cells:
        groups.setdefault(cell.companions, []).append(cell.label)
    counts = sorted(len(group) for key, group in groups.items() if key is not None)
    # by n: scratch once, and against each of two models four trials and one of another optimizer
    assert counts == sorted([1, 4, 4, 1, 1] * 2)
    assert len(groups[None]) == 4
