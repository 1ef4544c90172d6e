"""Do one stage: from its inputs in the store to its record in the store."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sophon_bench.api import Batch, Incompatible
from sophon_bench.execution.plan import (
    AttackStage,
    PretrainStage,
    ProtectStage,
    Setting,
    Stage,
    plugin_id,
    setting_of,
)
from sophon_bench.harness import loop, speed
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.harness.honesty import NoUpdate
from sophon_bench.models import layers
from sophon_bench.models.architecture import Compile
from sophon_bench.plugins.declared import Declared
from sophon_bench.plugins.failures import first_line, sentence
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results.provenance import capture
from sophon_bench.results.records import Cell, Curve, ModelRecord, Point, Ratios, Status
from sophon_bench.results.store import Store, StoreError
from sophon_bench.results.untrusted import printable

WORTH_IT = 1.1
"""How many times as fast companions have to be at once."""

OURS = Path(__file__).parent.parent
CORE = (OURS, *(OURS / name for name in ("data", "execution", "harness", "models")))

Tick = Callable[[Stage, float | None, str], None]
Upstream = Mapping[str, ModelRecord]
"""Records of the models that a stage needs, by key."""


@dataclass
class Worker:
    """Does stages on one device, one after the other.

    Args:
        store: Where weights come from, and records and weights go.
        device: Where to train.
        tick: Told how a stage goes.
        compiled: How models are compiled.
    """

    store: Store
    device: torch.device
    tick: Tick
    compiled: Compile = "off"
    _bench: tuple[Setting, Bench] | None = field(default=None, init=False)
    _gains: dict[tuple[object, ...], float] = field(default_factory=dict, init=False)

    def bench(self, setting: Setting) -> Bench:
        """The data of a setting on the device."""
        if self._bench is None or self._bench[0] is not setting:
            bench = Bench(
                setting.data,
                setting.backbone,
                device=self.device,
                precision=setting.precision,
                compiled=self.compiled,
            )
            self._bench = (setting, bench)
        return self._bench[1]

    def do(self, stages: Sequence[Stage], upstream: Upstream) -> list[ModelRecord | Cell]:
        """Do one stage, or companions, and write the records; a plugin's error is a record too.

        Companions run at once if that is measured to take less time, else one after the other.

        Raises:
            StoreError: If the store cannot be used.
        """
        attacks = [stage for stage in stages if isinstance(stage, AttackStage)]
        if len(attacks) > 1 and self._pays(attacks):
            try:
                return self._attack_many(attacks, upstream)
            except StoreError:
                raise
            except Exception:  # whose it is shows when each runs alone
                logging.getLogger(__name__).debug("not at once", exc_info=True)
        return [self._one(stage, upstream) for stage in stages]

    def give_up(self, stages: Sequence[Stage], reason: str) -> list[ModelRecord | Cell]:
        """Write that stages failed which ended the process that did them, or took too much."""
        return [self._given_up(stage, reason) for stage in stages]

    def _given_up(self, stage: Stage, reason: str) -> ModelRecord | Cell:
        if isinstance(stage, AttackStage):
            outcome = {"status": "failed", "reason": reason, "curve": [], "contained": []}
            return self.store.put_cell(self._cell(stage, outcome))
        record = ModelRecord(**self._place(stage), status="failed", reason=reason)
        return self.store.put_model(record)

    def _one(self, stage: Stage, upstream: Upstream) -> ModelRecord | Cell:
        if isinstance(stage, AttackStage):
            return self.store.put_cell(self._attack(stage, upstream))
        return self.store.put_model(self._make(stage, upstream))

    def _pays(self, attacks: Sequence[AttackStage]) -> bool:
        """Whether companions take less time at once; measured once for so many of a kind."""
        if self.compiled != "off":
            return False
        first = attacks[0]
        setting = setting_of(first)
        kind = (id(setting), len(attacks), *(first.companions or ())[1:])
        if kind not in self._gains:
            plugins = [stage.attack.plugin for stage in attacks]
            bench = self.bench(setting)
            self._gains[kind] = speed.speed_up(bench, plugins, samples=first.samples)
        return self._gains[kind] > WORTH_IT

    def _attack_many(
        self, attacks: Sequence[AttackStage], upstream: Upstream
    ) -> list[ModelRecord | Cell]:
        first = attacks[0]
        setting = setting_of(first)
        contained: list[str] = []
        done = loop.attack_many(
            self.bench(setting),
            self._weights(first.upstream, upstream),
            [stage.attack.plugin for stage in attacks],
            samples=first.samples,
            seed=first.upstream.upstream.seed,
            budget=first.budget,
            stretch=first.stretch,
            domain=setting.data.domain(first.domain),
            ticks=[functools.partial(self.tick, stage) for stage in attacks],
            contained=contained,
        )
        found: list[ModelRecord | Cell] = []
        for stage, outcome in zip(attacks, done, strict=True):
            told = (
                vars(outcome)
                if not isinstance(outcome, Exception)
                else _failure(outcome, [], contained)
            )
            found.append(self.store.put_cell(self._cell(stage, told)))
        return found

    def _make(self, stage: PretrainStage | ProtectStage, upstream: Upstream) -> ModelRecord:
        bench = self.bench(setting_of(stage))

        def tick(fraction: float | None, words: str) -> None:
            self.tick(stage, fraction, words)

        contained: list[str] = []
        try:
            if isinstance(stage, PretrainStage):
                made = loop.pretrain(bench, stage.seed, tick)
            else:
                weights = self._weights(stage.upstream, upstream)
                seed = stage.upstream.seed
                made = loop.protect(
                    bench, weights, stage.defense.plugin, seed, tick, contained=contained
                )
        except StoreError:
            raise
        except Exception as error:
            return ModelRecord(
                **self._place(stage),
                status=_status(error),
                reason=_reason(error),
                contained=contained,
            )
        data = bench.data
        original = self._original(stage, bench, made.weights)
        sigma, gradient = self._ratios(stage, made.weights, upstream)
        return ModelRecord(
            **self._place(stage),
            status="ok",
            note=made.note,
            cost=made.cost,
            original=original("test"),
            original_second=original("second_test"),
            original_validation=original("validation"),
            restricted=bench.utility(made.weights, data.restricted, "test"),
            trivial_loss=bench.trivial_loss(data.original),
            generated=bench.judged(
                bench.images(bench.load(made.weights).eval(), data.original), data.original
            ),
            sigma_ratios=sigma,
            gradient_ratios=gradient,
            weights=self.store.put_weights(made.weights),
            contained=made.contained,
            recipe=made.recipe,
        )

    def _original(
        self, stage: PretrainStage | ProtectStage, bench: Bench, weights: Weights
    ) -> Callable[[str], float | None]:
        """Utility on a split of the original domain, where the model's head is for its classes."""
        if isinstance(stage, ProtectStage):
            declared = Declared.of(stage.defense.plugin)
            if not declared.answers_original:
                return lambda _split: None
        return functools.partial(bench.utility, weights, bench.data.original)

    def _place(self, stage: PretrainStage | ProtectStage) -> dict[str, Any]:
        """What a model is, and where and with what it was made."""
        found: dict[str, Any] = {"key": stage.key}
        if isinstance(stage, ProtectStage):
            found |= {"defense": plugin_id(stage.defense), "pretrained": stage.upstream.key}
            stage = stage.upstream
        return {
            **found,
            "scenario": stage.setting.data_id,
            "backbone": stage.setting.backbone.label,
            "precision": stage.setting.precision,
            "seed": stage.seed,
            "provenance": capture(self.device, self.compiled),
        }

    def _ratios(
        self, stage: PretrainStage | ProtectStage, released: Weights, upstream: Upstream
    ) -> tuple[Ratios | None, Ratios | None]:
        """How far the released model's layers are from the undefended ones."""
        if isinstance(stage, PretrainStage):
            return None, None
        bench = self.bench(setting_of(stage))
        domain = bench.data.restricted
        pool, _ = bench.attacker(domain, REFERENCE_BATCH, stage.upstream.seed)
        models = (bench.load(released), bench.load(self._weights(stage.upstream, upstream)))
        batch = Batch(pool.inputs, pool.targets)
        return layers.ratios(*models, domain.task, batch, stage.upstream.seed)

    def _attack(self, stage: AttackStage, upstream: Upstream) -> Cell:
        protect = stage.upstream
        setting, seed = protect.upstream.setting, protect.upstream.seed
        scored: list[Point] = []
        contained: list[str] = []
        try:
            done = loop.attack(
                self.bench(setting),
                self._weights(protect, upstream),
                stage.attack.plugin,
                samples=stage.samples,
                seed=seed,
                budget=stage.budget,
                stretch=stage.stretch,
                domain=setting.data.domain(stage.domain),
                scored=scored,
                contained=contained,
                tick=lambda fraction, words: self.tick(stage, fraction, words),
            )
        except StoreError:
            raise
        except Exception as error:
            return self._cell(stage, _failure(error, scored, contained))
        return self._cell(stage, vars(done))

    def _cell(self, stage: AttackStage, outcome: Mapping[str, Any]) -> Cell:
        setting = setting_of(stage)
        domain = setting.data.domain(stage.domain)
        return Cell(
            key=stage.key,
            model=stage.upstream.key,
            attack=plugin_id(stage.attack),
            domain=stage.domain,
            role="restricted" if stage.restricted else "benign",
            samples=stage.samples,
            test_examples=len(domain.splits["test"]),
            utility=domain.task.utility_name,
            trivial_loss=self.bench(setting).trivial_loss(domain),
            budget=stage.budget,
            stretch=stage.stretch,
            provenance=capture(self.device, self.compiled),
            **{**outcome, "curve": Curve.of(outcome["curve"])},
        )

    def _weights(self, stage: PretrainStage | ProtectStage, upstream: Upstream) -> Weights:
        record = upstream[stage.key]
        if record.weights is None:
            raise _Unmade(stage, record)
        return self.store.weights(record)


class _Unmade(Exception):
    """A model that a stage needs could not be made."""

    def __init__(self, stage: Stage, record: ModelRecord) -> None:
        super().__init__(f"{stage.label}: {record.reason}")
        self.status: Status = record.status


def _failure(error: Exception, scored: list[Point], contained: list[str]) -> dict[str, Any]:
    return {
        "status": _status(error),
        "reason": _reason(error),
        "curve": scored,
        "contained": contained,
    }


def _status(error: Exception) -> Status:
    if isinstance(error, _Unmade):
        return error.status
    return "skipped" if isinstance(error, Incompatible) else "failed"


def _reason(error: Exception) -> str:
    """One line: what went wrong, and where in the plugin's own code."""
    if isinstance(error, Incompatible | NoUpdate | _Unmade):
        words = first_line(error)
    else:
        words = sentence(error, _is_plugin)
    advice = f"; {LESS}" if isinstance(error, torch.OutOfMemoryError) else ""
    return f"{printable(words)}{advice}"


LESS = "try a smaller batch_size, or fewer --together or --workers"
"""What helps where a GPU's memory is full."""


def _is_plugin(file: Path) -> bool:
    installed = "site-packages" in file.parts or file.suffix != ".py"
    return not installed and file.parent not in CORE
