"""The cross product of a run as stages with content keys.

Same key, same work: the pre-trained model is made once per scenario, backbone and seed, the
released one once per defense, and every attack starts from a copy. Controls are always in: the
undefended model under every attack, and every control attack once, against the undefended model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sophon_bench.backbones import Backbone, Precision
from sophon_bench.records import PROTOCOL, DataId, PluginId, content_key
from sophon_bench.registry import Registry
from sophon_bench.scenarios import REFERENCE_BATCH, DomainData, ScenarioData
from sophon_bench.selectors import Trial, trials
from sophon_bench.stages import PRETRAIN_BATCH


class PlanError(ValueError):
    """A request that no plan can be made for, seen before any work starts."""


@dataclass(frozen=True)
class Setting:
    """A built scenario under a backbone: what a `Bench` is made from."""

    scenario: Trial
    data: ScenarioData
    data_id: DataId
    backbone: Backbone
    precision: Precision


@dataclass(frozen=True)
class PretrainStage:
    """Make the undefended model of one seed."""

    key: str
    setting: Setting
    seed: int

    @property
    def label(self) -> str:
        """For progress lines."""
        return f"pretrain {self.setting.backbone.label} seed={self.seed}"

    @property
    def units(self) -> float:
        """Planned cost."""
        return float(self.setting.data.pretrain_steps * PRETRAIN_BATCH)


@dataclass(frozen=True)
class ProtectStage:
    """Make one defense's released model."""

    key: str
    upstream: PretrainStage
    defense: Trial

    @property
    def label(self) -> str:
        """For progress lines."""
        return f"protect {self.defense.label} seed={self.upstream.seed}"

    @property
    def units(self) -> float | None:
        """Planned cost, if the defense tells."""
        planned: float | None = getattr(self.defense.plugin, "planned_units", None)
        return planned


@dataclass(frozen=True)
class AttackStage:
    """Make one cell."""

    key: str
    upstream: ProtectStage
    attack: Trial
    samples: int
    budget: int
    domain: DomainData
    stretch: int = 1

    @property
    def label(self) -> str:
        """For progress lines."""
        restricted = self.domain is setting_of(self).data.restricted
        return (
            f"attack {self.upstream.defense.label} with {self.attack.label} "
            f"n={self.samples} seed={self.upstream.upstream.seed}"
            + ("" if restricted else f" on {self.domain.name}")
        )

    @property
    def units(self) -> float:
        """Planned cost at most."""
        return float(self.budget * self.stretch)


Stage = PretrainStage | ProtectStage | AttackStage


def setting_of(stage: Stage) -> Setting:
    """Where a stage runs."""
    while not isinstance(stage, PretrainStage):
        stage = stage.upstream
    return stage.setting


@dataclass(frozen=True)
class Request:
    """What to cross. Controls are added when `controls` is true.

    Attributes:
        samples: The attacker's n; empty: the middle one of the scenario's protocol.
        steps: Longest budget in updates of 64 examples; None: the scenario's.
    """

    defenses: Sequence[Trial]
    attacks: Sequence[Trial]
    seeds: Sequence[int]
    samples: Sequence[int] = ()
    steps: int | None = None
    controls: bool = True


@dataclass(frozen=True)
class Plan:
    """Stages in an order in which each comes after those that it needs."""

    stages: list[Stage] = field(default_factory=list)

    @property
    def cells(self) -> list[AttackStage]:
        """The stages that make a record."""
        return [stage for stage in self.stages if isinstance(stage, AttackStage)]


def make_plan(request: Request, settings: Iterable[Setting], registries: Registries) -> Plan:
    """Cross the request over the settings.

    Raises:
        PlanError: If a sample count or the budget is not positive, or more samples are asked
            for than the scenario has.
    """
    defenses, attacks = list(request.defenses), list(request.attacks)
    if request.controls:
        defenses = _with_controls(registries.defenses, defenses)
        attacks = _with_controls(registries.attacks, attacks)
    stages: dict[str, Stage] = {}
    for setting in settings:
        samples = list(request.samples) or [default_samples(setting.data)]
        budget = _budget(request.steps, setting)
        _check_samples(samples, setting)
        for seed in request.seeds:
            for stage in _stages(setting, seed, defenses, attacks, samples, budget):
                stages.setdefault(stage.key, stage)
    return Plan(list(stages.values()))


@dataclass(frozen=True)
class Registries:
    """Where controls are looked up."""

    attacks: Registry
    defenses: Registry


def default_samples(data: ScenarioData) -> int:
    """The middle one of the protocol's sample counts."""
    return data.samples[len(data.samples) // 2]


def _with_controls(registry: Registry, chosen: list[Trial]) -> list[Trial]:
    missing = [name for name in registry.controls() if name not in {t.name for t in chosen}]
    return trials(registry, missing) + chosen


def _budget(steps: int | None, setting: Setting) -> int:
    steps = setting.data.steps if steps is None else steps
    if steps < 1:
        raise PlanError(f"the budget must be at least 1 step, got {steps}")
    return steps * REFERENCE_BATCH


def _check_samples(samples: Sequence[int], setting: Setting) -> None:
    restricted = setting.data.restricted
    most = len(restricted.splits["attacker"])
    least = 2
    for count in samples:
        if not least <= count <= most:
            raise PlanError(
                f"samples must be between {least} and {most}, the attacker's share of "
                f"{restricted.name} in {setting.scenario.label}; got {count}"
            )


def _stages(
    setting: Setting,
    seed: int,
    defenses: Sequence[Trial],
    attacks: Sequence[Trial],
    samples: Sequence[int],
    budget: int,
) -> Iterator[Stage]:
    common = {"protocol": PROTOCOL, "precision": setting.precision, "seed": seed}
    pretrain = PretrainStage(
        content_key(
            {
                "stage": "pretrain",
                "scenario": setting.data_id.model_dump(),
                "source": setting.scenario.entry.source,
                "tasks": [repr(domain.task) for domain in setting.data.domains],
                "steps": setting.data.pretrain_steps,
                "backbone": setting.backbone.identity(),
                **common,
            }
        ),
        setting,
        seed,
    )
    yield pretrain
    for defense in defenses:
        protect = ProtectStage(
            content_key(
                {
                    "stage": "protect",
                    "upstream": pretrain.key,
                    "plugin": _identity(defense),
                    **common,
                }
            ),
            pretrain,
            defense,
        )
        yield protect
        for attack in attacks:
            if attack.entry.control and not defense.entry.control:
                continue
            for count in samples:
                yield attack_stage(protect, attack, count, budget, setting.data.restricted)


def attack_stage(
    protect: ProtectStage,
    attack: Trial,
    samples: int,
    budget: int,
    domain: DomainData,
    stretch: int = 1,
) -> AttackStage:
    """The stage of one cell; its key follows from the rest."""
    key = content_key(
        {
            "stage": "attack",
            "upstream": protect.key,
            "plugin": _identity(attack),
            "samples": samples,
            "budget": budget,
            "domain": domain.name,
            "stretch": stretch,
            "protocol": PROTOCOL,
        }
    )
    return AttackStage(key, protect, attack, samples, budget, domain, stretch)


def _identity(trial: Trial) -> dict[str, object]:
    """What makes a plugin's work what it is; its label follows from the rest."""
    return plugin_id(trial).model_dump(exclude={"label"})


def plugin_id(trial: Trial) -> PluginId:
    """How records name a trial."""
    return PluginId(
        name=trial.name,
        label=trial.label,
        parameters=trial.parameters,
        source=trial.entry.source,
        distribution=trial.entry.distribution,
        control=trial.entry.control,
        mechanism=trial.entry.mechanism,
    )
