"""The cross product of a run as stages with content keys.

Same key, same work: the pre-trained model is made once per scenario, backbone and seed, the
released one once per defense, and every attack starts from a copy. Controls are always in: the
undefended model under every attack, and every control attack once, against the undefended model.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import msgspec

from sophon_bench import protocol
from sophon_bench.api import AttackMany, Declared
from sophon_bench.data.scenario import ScenarioData
from sophon_bench.models.architecture import Architecture, Precision
from sophon_bench.plugins import registry
from sophon_bench.plugins.failures import BadInput
from sophon_bench.plugins.registry import Registry
from sophon_bench.plugins.selectors import SelectorError, Trial, names_of, vary
from sophon_bench.plugins.suites import Arsenal, Rules, trials
from sophon_bench.protocol import (
    ENDED,
    LEAST_SAMPLES,
    PRETRAIN_BATCH,
    PRETRAIN_LR,
    REFERENCE_BATCH,
    REFINEMENTS,
    ROUNDING,
)
from sophon_bench.results.records import (
    LARGEST_COUNT,
    Cell,
    DataId,
    ModelRecord,
    PluginId,
    attack_key,
    content_key,
    protect_key,
)


class PlanError(BadInput, ValueError):
    """A request that no plan can be made for, seen before any work starts."""


@dataclass(frozen=True)
class Setting:
    """A built scenario under a backbone: what a `Bench` is made from."""

    scenario: Trial
    data: ScenarioData
    data_id: DataId
    backbone: Architecture
    precision: Precision


@dataclass(frozen=True, eq=False)
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
        return float(sum(recipe.steps for recipe in self.setting.data.recipes) * PRETRAIN_BATCH)


@dataclass(frozen=True, eq=False)
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
        plugin = self.defense.plugin
        return Declared.of(plugin).planned_units


@dataclass(frozen=True, eq=False)
class AttackStage:
    """Make one cell: let an attack adapt a model to the domain of that name.

    A derived one is the search's own idea, not a listed trial.
    """

    key: str
    upstream: ProtectStage
    attack: Trial
    samples: int
    budget: int
    domain: str
    stretch: int = 1
    derived: bool = False

    @property
    def restricted(self) -> bool:
        """Whether the domain is the restricted one, not a benign one."""
        return self.domain == setting_of(self).data.restricted.name

    @property
    def label(self) -> str:
        """For progress lines."""
        return (
            f"attack {self.upstream.defense.label} with {self.attack.label} "
            f"n={self.samples} seed={self.upstream.upstream.seed}"
            + (f" budget×{self.stretch}" if self.stretch > 1 else "")
            + ("" if self.restricted else f" on {self.domain}")
        )

    @property
    def units(self) -> float:
        """Planned cost at most."""
        return float(self.budget * self.stretch)

    @property
    def examples(self) -> Mapping[str, int]:
        """On how many images the utilities of its record are measured."""
        data = setting_of(self).data
        splits, original = data.domain(self.domain).splits, data.original.splits["test"]
        sizes = {name: len(splits[name]) for name in ("test", "selection")}
        return {**sizes, "original": len(original)}

    @property
    def companions(self) -> tuple[str, ...] | None:
        """What it has in common with the stages that it may run together with; None: with none."""
        plugin = self.attack.plugin
        if not isinstance(plugin, AttackMany):
            return None
        shared = {k: v for k, v in self.attack.parameters.items() if k not in plugin.together}
        place = (self.samples, self.budget, self.domain, self.stretch)
        return (self.upstream.key, self.attack.name, repr(place), repr(sorted(shared.items())))


Stage = PretrainStage | ProtectStage | AttackStage


def setting_of(stage: Stage) -> Setting:
    """Where a stage runs."""
    while not isinstance(stage, PretrainStage):
        stage = stage.upstream
    return stage.setting


Tried = Mapping[AttackStage, Cell]
"""What a search has done so far."""


@dataclass(frozen=True)
class Search:
    """One attacker against one released model: the listed trials, then what they suggest.

    Whatever is added depends on the results against this model with these samples and this seed,
    and on nothing else, so that two defenses meet the same attacker and seeds stay independent.
    """

    rules: Rules
    upstream: ProtectStage
    trials: tuple[Trial, ...]
    samples: int
    budget: int
    domain: str
    stretch: int = 1

    @functools.cached_property
    def first(self) -> list[AttackStage]:
        """The listed trials."""
        return [self._stage(trial, self.stretch) for trial in self.trials]

    @property
    def forecast(self) -> tuple[float, int]:
        """Units and number of the stages that will go on with a longer budget, at most."""
        count = min(self.rules.continued, len(self.trials))
        return float(count * self.budget * self.rules.times), count

    def run(self) -> Generator[list[AttackStage], Tried, None]:
        """Yield batches of stages and be sent all that is done; the listed trials come first."""
        ranks: dict[AttackStage, _Rank] = {}
        done = yield self.first
        for _ in range(REFINEMENTS):
            if not (batch := self._refined(_ranked(done, ranks))):
                break
            done = yield batch
        if batch := self._continued(done, _ranked(done, ranks)):
            yield batch

    def _stage(self, trial: Trial, stretch: int = 1, *, derived: bool = False) -> AttackStage:
        samples, budget, domain = self.samples, self.budget, self.domain
        key = attack_key(
            self.upstream.key,
            plugin_id(trial),
            samples=samples,
            budget=budget,
            domain=domain,
            stretch=stretch,
        )
        return AttackStage(key, self.upstream, trial, samples, budget, domain, stretch, derived)

    def _refined(self, ranks: _Ranks) -> list[AttackStage]:
        families: dict[str, list[AttackStage]] = {}
        for stage in ranks:
            if stage.attack.family is not None:
                families.setdefault(stage.attack.family, []).append(stage)
        best = [(max(own, key=ranks.__getitem__), own) for own in families.values()]
        batch = []
        by_rank = sorted(best, key=lambda pair: ranks[pair[0]], reverse=True)
        for stage, family in by_rank[: self.rules.refine]:
            tried = [other.attack.parameters["lr"] for other in family]
            for lr in neighbours(stage.attack.parameters["lr"], tried):
                with contextlib.suppress(SelectorError):  # out of the range that the plugin takes
                    batch.append(self._stage(vary(stage.attack, {"lr": lr}), derived=True))
        return batch

    def _continued(self, done: Tried, ranks: _Ranks) -> list[AttackStage]:
        chosen: list[Trial] = []
        for stage in sorted(done, key=ranks.__getitem__, reverse=True):
            if len(chosen) == self.rules.continued:
                break
            steps = stage.attack.parameters.get("steps")
            cost = done[stage].cost
            if steps is not None:
                with contextlib.suppress(SelectorError):  # as above
                    chosen.append(vary(stage.attack, {"steps": steps * self.rules.times}))
            elif cost is not None and cost.units > ENDED * self.budget:
                chosen.append(stage.attack)
        return [self._stage(trial, self.rules.times, derived=True) for trial in chosen]


_Rank = tuple[float, str]
"""Selection utility within the budget, ties broken by key."""

_Ranks = Mapping[AttackStage, _Rank]


def _ranked(done: Tried, known: dict[AttackStage, _Rank]) -> _Ranks:
    """The rank of all that is done, found once for each."""
    known |= {stage: _rank(cell) for stage, cell in done.items() if stage not in known}
    return known


def _rank(cell: Cell) -> _Rank:
    return (level(cell), cell.key)


def level(cell: Cell) -> float:
    """Selection utility within the regular budget: what a search goes by.

    A trial that was never scored is below all others, since a utility has no lower end.
    """
    limit = cell.budget * ROUNDING
    scored = zip(cell.curve.units, cell.curve.selection, strict=True)
    within = (selection for units, selection in scored if units <= limit)
    return max(within, default=-math.inf)


def neighbours(lr: float, tried: Iterable[float]) -> list[float]:
    """The learning rates to add so that ``lr`` has one within half a decade on either side.

    Added ones are 1 or 3 times a power of ten.
    """
    found = []
    half_decades = round(2 * math.log10(lr))
    for direction in (-1, 1):
        new = float(f"{10 ** ((half_decades + direction) / 2):.0e}")
        low, high = sorted((lr, new))
        between = (other for other in tried if other != lr and low * 0.99 <= other <= high * 1.01)
        if not any(between):
            found.append(new)
    return found


@dataclass(frozen=True)
class Request:
    """What to cross; controls are added.

    Attributes:
        samples: The attacker's n; empty: the middle one of the scenario's protocol.
        steps: Longest budget in updates of 64 examples; None: the scenario's.
    """

    defenses: Sequence[Trial]
    attacks: Arsenal
    seeds: Sequence[int]
    samples: Sequence[int] = ()
    steps: int | None = None


@dataclass(frozen=True)
class Plan:
    """Models in an order in which each comes after the one that it needs, and searches."""

    models: list[PretrainStage | ProtectStage] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)

    @property
    def stages(self) -> list[Stage]:
        """All that is known beforehand: the models and the listed trials."""
        return [*self.models, *self.cells]

    @property
    def cells(self) -> list[AttackStage]:
        """The listed trials: stages that make a record."""
        return [stage for search in self.searches for stage in search.first]

    @property
    def names(self) -> dict[str, str]:
        """Names that were given to selectors, by label."""
        defenses = [stage.defense for stage in self.models if isinstance(stage, ProtectStage)]
        return names_of([*defenses, *(stage.attack for stage in self.cells)])


def make_plan(request: Request, settings: Iterable[Setting]) -> Plan:
    """Cross the request over the settings.

    Raises:
        PlanError: If a sample count or the budget is not positive, more samples are asked for
            than the scenario has, or a seed is none that records have.
    """
    for seed in request.seeds:
        if not 0 <= seed <= LARGEST_COUNT:
            raise PlanError(f"seeds must be between 0 and {LARGEST_COUNT}; got {seed}")
    defenses = _with_controls(registry.defenses, request.defenses)
    listed = _with_controls(registry.attacks, request.attacks.trials)
    recipes = request.attacks.trainability
    models: dict[str, PretrainStage | ProtectStage] = {}
    searches: dict[tuple[object, ...], Search] = {}
    for setting in settings:
        data = setting.data
        samples = list(request.samples) or [default_samples(data)]
        budget = _budget(request.steps, setting)
        _check_samples(samples, setting)
        targets = [(data.restricted, n, listed, request.attacks.rules) for n in samples]
        targets += [
            (domain, min(default_samples(data), len(domain.pool)), recipes, Rules())
            for domain in data.benign
        ]
        for seed in request.seeds:
            pretrain = _pretrain(setting, seed)
            models.setdefault(pretrain.key, pretrain)
            for defense in defenses:
                protect = _protect(pretrain, defense)
                models.setdefault(protect.key, protect)
                for (domain, count, trials_, rules), control in product(targets, (True, False)):
                    chosen = tuple(t for t in trials_ if t.entry.control is control)
                    if chosen and (defense.entry.control or not control):
                        search = Search(rules, protect, chosen, count, budget, domain.name)
                        identity = (protect.key, count, domain.name, control)
                        searches.setdefault(identity, search)
    return Plan(list(models.values()), list(searches.values()))


def plan_again(cells: Iterable[tuple[Cell, ModelRecord, Setting, Trial, Trial]]) -> Plan:
    """Exactly these cells once more, each with its model, setting, defense and attack.

    Keys follow from what is installed: a cell of another version gets another key.
    """
    models: dict[str, PretrainStage | ProtectStage] = {}
    searches = []
    for cell, model, setting, defense, attack in cells:
        pretrain = _pretrain(setting, model.seed)
        protect = _protect(pretrain, defense)
        models.setdefault(pretrain.key, pretrain)
        models.setdefault(protect.key, protect)
        place = (cell.samples, cell.budget, cell.domain, cell.stretch)
        searches.append(Search(Rules(), protect, (attack,), *place))
    return Plan(list(models.values()), searches)


def default_samples(data: ScenarioData) -> int:
    """The middle one of the protocol's sample counts."""
    return data.samples[len(data.samples) // 2]


def _with_controls(plugins: Registry, chosen: Sequence[Trial]) -> list[Trial]:
    missing = [name for name in plugins.controls() if name not in {t.name for t in chosen}]
    return [*trials(plugins, missing), *chosen]


def _budget(steps: int | None, setting: Setting) -> int:
    steps = setting.data.steps if steps is None else steps
    if steps < 1:
        raise PlanError(f"the budget must be at least 1 step, got {steps}")
    return steps * REFERENCE_BATCH


def _check_samples(samples: Sequence[int], setting: Setting) -> None:
    restricted = setting.data.restricted
    most = len(restricted.splits["attacker"])
    for count in samples:
        if not LEAST_SAMPLES <= count <= most:
            raise PlanError(
                f"samples must be between {LEAST_SAMPLES} and {most}, the attacker's share of "
                f"{restricted.name} in {setting.scenario.label}; got {count}"
            )


def _pretrain(setting: Setting, seed: int) -> PretrainStage:
    content = {
        "stage": "pretrain",
        "scenario": msgspec.to_builtins(setting.data_id),
        "source": setting.scenario.entry.source,
        "tasks": [repr(domain.task) for domain in setting.data.domains],
        **_recipes(setting.data),
        "backbone": setting.backbone.identity(),
        "precision": setting.precision,
        "seed": seed,
        "protocol": [protocol.VERSION, protocol.digest()],
    }
    return PretrainStage(content_key(content), setting, seed)


def _recipes(data: ScenarioData) -> dict[str, object]:
    """How pre-training is done, for keys; the step size is the protocol's unless it says so."""
    first, *more = data.recipes
    if not more and first.lr == PRETRAIN_LR:
        return {"steps": first.steps}
    return {"recipes": [list(recipe) for recipe in data.recipes]}


def _protect(pretrain: PretrainStage, defense: Trial) -> ProtectStage:
    return ProtectStage(protect_key(pretrain.key, plugin_id(defense)), pretrain, defense)


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
