"""Run a plan in this process, one stage after the other; whatever the store has is not redone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from traceback import extract_tb
from typing import Protocol

import torch

from sophon_bench import stages
from sophon_bench.api import Incompatible
from sophon_bench.plan import (
    AttackStage,
    Plan,
    PretrainStage,
    ProtectStage,
    Setting,
    Stage,
    plugin_id,
    setting_of,
)
from sophon_bench.provenance import capture
from sophon_bench.records import Cell, StageRecord, Status
from sophon_bench.store import Store, StoreError

OURS = Path(__file__).parent.parent


class Reporter(Protocol):
    """Told how a run goes."""

    def begin(self, stage: Stage) -> None:
        """A stage starts."""
        ...

    def tick(self, fraction: float | None, words: str) -> None:
        """How far the stage is (None: unknown), and a few words on it."""
        ...

    def end(self, stage: Stage, words: str, *, reused: bool) -> None:
        """A stage is finished; ``reused`` if the store had it."""
        ...


@dataclass
class LocalEngine:
    """Runs stages on one device.

    Args:
        store: Where finished work is and goes.
        device: Where to train.
        reporter: Told how it goes.
        retry_failed: Whether to do failed cells and models again.
    """

    store: Store
    device: torch.device
    reporter: Reporter
    retry_failed: bool = False
    _bench: tuple[Setting, stages.Bench] | None = None
    _records: dict[str, StageRecord] = field(default_factory=dict)

    def run(self, plan: Plan) -> list[Cell]:
        """Do what is missing and return the plan's cells, in its order.

        A model that cannot be made fails the cells that need it, and no others.
        """
        cells = []
        for stage in plan.stages:
            if isinstance(stage, AttackStage):
                cells.append(self._cell(stage))
            else:
                self._model(stage)
        return cells

    def pending(self, plan: Plan) -> list[Stage]:
        """The stages that `run` would do."""
        return [
            stage
            for stage in plan.stages
            if (
                self._finished_cell(stage.key)
                if isinstance(stage, AttackStage)
                else self._finished_stage(stage.key)
            )
            is None
        ]

    def estimate(self, pending: Sequence[Stage]) -> tuple[float, float]:
        """FLOPs and seconds of the stages whose cost is planned, from one timed update each."""
        flops = seconds = 0.0
        by_setting: dict[int, list[Stage]] = {}
        for stage in pending:
            by_setting.setdefault(id(setting_of(stage)), []).append(stage)
        for group in by_setting.values():
            bench = self._at(setting_of(group[0]))
            units = sum(stage.units or 0.0 for stage in group)
            flops += units * bench.profile.flops_per_unit
            seconds += units * stages.seconds_per_unit(bench)
        return flops, seconds

    def _finished_cell(self, key: str) -> Cell | None:
        if not self.store.has_cell(key):
            return None
        cell = self.store.cell(key)
        return None if self.retry_failed and cell.status == "failed" else cell

    def _finished_stage(self, key: str) -> StageRecord | None:
        if not self.store.has_stage(key):
            return None
        record = self.store.stage(key)
        return None if self.retry_failed and record.status == "failed" else record

    def _model(self, stage: PretrainStage | ProtectStage) -> None:
        record = self._finished_stage(stage.key)
        reused = record is not None
        self.reporter.begin(stage)
        if record is None:
            record = self.store.put_stage(self._make(stage))
        self._records[stage.key] = record
        if record.original is None:
            words = f"{record.status}: {record.reason}"
        else:
            words = f"original {100 * record.original:.1f} %"
            words += f" ({record.note})" if record.note else ""
        self.reporter.end(stage, words, reused=reused)

    def _make(self, stage: PretrainStage | ProtectStage) -> StageRecord:
        status: Status = "ok"
        try:
            if isinstance(stage, PretrainStage):
                bench = self._at(stage.setting)
                made = stages.pretrain(bench, stage.seed, self.reporter.tick)
            else:
                bench = self._at(stage.upstream.setting)
                weights = self._weights(stage.upstream)
                defense, seed = stage.defense.plugin, stage.upstream.seed
                made = stages.protect(bench, weights, defense, seed, self.reporter.tick)
        except StoreError:
            raise
        except Exception as error:
            status = "skipped" if isinstance(error, Incompatible) else "failed"
            return StageRecord(
                key=stage.key,
                status=status,
                reason=_reason(error),
                provenance=capture(self.device),
            )
        data = bench.data
        return StageRecord(
            key=stage.key,
            status=status,
            note=made.note,
            cost=made.cost,
            original=bench.utility(made.weights, data.original, "test"),
            original_second=bench.utility(made.weights, data.original, "second_test"),
            restricted=bench.utility(made.weights, data.restricted, "test"),
            weights=self.store.put_weights(made.weights),
            provenance=capture(self.device),
        )

    def _cell(self, stage: AttackStage) -> Cell:
        cell = self._finished_cell(stage.key)
        reused = cell is not None
        self.reporter.begin(stage)
        if cell is None:
            cell = self._attack(stage)
            self.store.put_cell(cell)
        self.reporter.end(stage, _outcome(cell), reused=reused)
        return cell

    def _attack(self, stage: AttackStage) -> Cell:
        protect = stage.upstream
        setting, seed = protect.upstream.setting, protect.upstream.seed
        outcome: dict[str, object]
        try:
            bench = self._at(setting)
            done = stages.attack(
                bench,
                self._weights(protect),
                stage.attack.plugin,
                samples=stage.samples,
                seed=seed,
                budget=stage.budget,
                tick=self.reporter.tick,
                stretch=stage.stretch,
                domain=stage.domain,
            )
            outcome = {
                "status": done.status,
                "reason": done.reason,
                "curve": done.curve,
                "nonfinite_step": done.nonfinite_step,
                "cost": done.cost,
            }
        except _Unmade as error:
            outcome = {"status": error.status, "reason": str(error)}
        except StoreError:
            raise
        except Exception as error:
            status = "skipped" if isinstance(error, Incompatible) else "failed"
            outcome = {"status": status, "reason": _reason(error)}
        return Cell.model_validate(
            {
                "key": stage.key,
                "scenario": setting.data_id,
                "backbone": setting.backbone.label,
                "defense": plugin_id(protect.defense),
                "attack": plugin_id(stage.attack),
                "domain": stage.domain.name,
                "role": "restricted" if stage.domain is setting.data.restricted else "benign",
                "samples": stage.samples,
                "test_examples": len(stage.domain.splits["test"]),
                "seed": seed,
                "precision": setting.precision,
                "budget": stage.budget,
                "stretch": stage.stretch,
                "pretrained": self._records[protect.upstream.key],
                "released": self._records[protect.key],
                "provenance": capture(self.device),
                **outcome,
            }
        )

    def _at(self, setting: Setting) -> stages.Bench:
        if self._bench is None or self._bench[0] is not setting:
            bench = stages.Bench(
                setting.data, setting.backbone, device=self.device, precision=setting.precision
            )
            self._bench = (setting, bench)
        return self._bench[1]

    def _weights(self, stage: PretrainStage | ProtectStage) -> stages.Weights:
        record = self._records[stage.key]
        if record.weights is None:
            raise _Unmade(stage, record)
        return self.store.weights(record)


class _Unmade(Exception):
    """A model that a stage needs could not be made."""

    def __init__(self, stage: Stage, record: StageRecord) -> None:
        super().__init__(f"{stage.label}: {record.reason}")
        self.status: Status = record.status


def _reason(error: Exception) -> str:
    """One line: what went wrong, and where in the plugin's own code."""
    words = (str(error).strip() or type(error).__name__).split("\n")[0]
    if isinstance(error, Incompatible | stages.NoUpdate | _Unmade):
        return words
    frames = [f for f in extract_tb(error.__traceback__) if Path(f.filename).suffix == ".py"]
    plugin = [f for f in frames if _is_plugin(Path(f.filename))]
    where = f" ({Path(plugin[-1].filename).name}:{plugin[-1].lineno})" if plugin else ""
    return f"{type(error).__name__}: {words}{where}"


def _is_plugin(file: Path) -> bool:
    installed = "site-packages" in file.parts
    return not installed and file.parent not in (OURS, OURS / "engines")


def _outcome(cell: Cell) -> str:
    if cell.status in ("failed", "skipped") or not cell.curve:
        return f"{cell.status}: {cell.reason}"
    best = max(cell.curve, key=lambda point: point.selection)
    return f"restricted {100 * best.test:.1f} %"


def unfinished(cells: Iterable[Cell]) -> list[Cell]:
    """The cells that failed."""
    return [cell for cell in cells if cell.status == "failed"]
