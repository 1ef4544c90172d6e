"""Conformance checks for anyone's plugin: does it keep the contract of `sophon_bench.api`?

`check_attack`, `check_defense` and `check_scenario` return sentences that say what is wrong and how
to mend it; an empty list is a pass. `check_file` runs them on every plugin of a file, on a small
bench of its own, and says how each check went: ``sophon-bench check FILE.py`` prints that.

What is looked for is found on the CPU, on a backbone without dropout; a pass proves no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from sophon_bench.api import (
    Attack,
    AttackMany,
    Defense,
    Incompatible,
    Model,
    Predictor,
    Samples,
)
from sophon_bench.data import checking
from sophon_bench.data.scenario import DomainData, Images, Scenario, ScenarioData
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.data.tasks.denoising import Denoising
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.harness.honesty import NoUpdate
from sophon_bench.harness.loop import Attacked
from sophon_bench.harness.meter import CountedSamples, Meter
from sophon_bench.models.backbones import Architecture, Backbone, BackboneError
from sophon_bench.models.unets import UNet
from sophon_bench.plugins import registry, side_effects
from sophon_bench.plugins.authoring import PLACEHOLDER
from sophon_bench.plugins.failures import sentence
from sophon_bench.plugins.registry import BrokenPlugin, Entry, UnknownName
from sophon_bench.plugins.selectors import SelectorError, Trial, construct

SEEDING = ((torch, "manual_seed"), (torch, "seed"), (random, "seed"), (np.random, "seed"))

BACKBONE = Backbone.of("test_resnet")
"""What plugins are checked on if nothing else is asked for; it has no dropout."""

SAMPLES = 40
BUDGET = 4 * 64

HIDDEN_EPOCHS = 4.0
"""Passes over the training samples that one update may take, on average after the first one."""

DEFENSE_UPDATES = 24
DEFENSE_SECONDS = 15.0
"""A defense of a file is followed this far only: its defaults may take hours."""

CITATION = re.compile(r"reference:|doi\b|10\.\d{4,}/|arxiv", re.IGNORECASE)

Problems = dict[str, str | None]
"""What each check found, by the check's name; None is a pass."""

CHECKS = {
    "attack": (
        "updates",
        "finite",
        "budget",
        "repeatable",
        "random state",
        "side effects",
        "model",
        "data",
    ),
    "defense": (
        "updates",
        "finite",
        "repeatable",
        "random state",
        "side effects",
        "model",
        "data",
    ),
    "scenario": ("splits", "images", "sources", "samples", "repeatable", "training"),
}
"""The names of all checks of a kind, in order."""


@dataclass(frozen=True)
class Finding:
    """How one check of one plugin went.

    Attributes:
        plugin: Kind and name, ``attack finetune``.
        check: What was looked at.
        outcome: A warning is no failure; skipped is what could not be looked at.
        words: What is wrong and how to mend it; empty if the check passed.
    """

    plugin: str
    check: str
    outcome: Literal["passed", "FAILED", "warning", "skipped"]
    words: str = ""

    def __str__(self) -> str:
        return f"{self.plugin}: {self.check}: {self.outcome}" + f": {self.words}" * bool(self.words)


def check_attack(
    attack: Attack, bench: Bench, weights: Weights, *, samples: int, budget: int
) -> list[str]:
    """Run an attack twice on a small bench.

    Raises:
        Incompatible: If it cannot apply to the bench's backbone.
    """
    return _said(_attack_problems(attack, bench, weights, samples=samples, budget=budget))


def check_defense(defense: Defense, bench: Bench, weights: Weights) -> list[str]:
    """Run a defense twice on a small bench.

    Raises:
        Incompatible: If it cannot apply to the bench's backbone.
    """
    return _said(_defense_problems(_Watched(defense), bench, weights))


def check_scenario(scenario: Scenario, backbone: Architecture = BACKBONE) -> list[str]:
    """Build a scenario twice, look at its splits, and train on it for two updates."""
    return _said(_scenario_problems(scenario, backbone))


def check_file(
    path: Path, *, name: str | None = None, backbone: Architecture = BACKBONE
) -> Iterator[Finding]:
    """Check every plugin that a file registers, with its default hyperparameters.

    Args:
        name: Only the plugin of this name.
        backbone: What to check attacks, defenses and the training on a scenario with.

    Raises:
        BrokenPlugin: If the file cannot be loaded or registers nothing.
        DuplicateName: If it claims a name that exists.
        UnknownName: If it registers no plugin called ``name``.
        BackboneError: If the backbone does not exist, cannot be trained on 32x32 images, or its
            pre-trained weights cannot be had.
    """
    entries = _entries_of(path)
    if name is not None:
        known = {entry.name for entry in entries}
        entries = [entry for entry in entries if entry.name == name]
        if not entries:
            raise UnknownName(registry.unknown(f"plugin of {path.name}", name, known))
    if isinstance(backbone, Backbone):
        backbone.check_weights()
    for entry in entries:
        yield from _findings(entry, path, backbone)


@functools.cache
def small_bench(backbone: Architecture = BACKBONE) -> tuple[Bench, Weights]:
    """Striped images, and weights that a few updates have pre-trained; made in a second or two.

    Images are 32×32, or 16×16 where they are denoised.

    Raises:
        BackboneError: If the backbone does not exist or cannot be trained on these images.
    """
    size = 16 if backbone.task == Denoising.name else 32
    stripes = functools.partial(_stripes, backbone.task, size)
    data = ScenarioData(
        image_size=size,
        original=stripes(
            "wide", 6, 6.0, {"train": 240, "validation": 60, "test": 60, "second_test": 60}
        ),
        restricted=stripes(
            "narrow",
            4,
            3.0,
            {"defender": 60, "attacker": 40, "selection": 40, "test": 40, "second_test": 40},
        ),
        benign=(stripes("broad", 3, 10.0, {"train": 30, "selection": 15, "test": 15}),),
        samples=(SAMPLES,),
        steps=BUDGET // 64,
        pretrain_steps=8,
        generated=16,
    )
    backbone.check(data.image_size, data.original.task.num_outputs)
    bench = Bench(data, backbone, device=torch.device("cpu"), precision="fp32")
    return bench, loop.pretrain(bench, 0, _quiet).weights


def _stripes(
    kind: str, size: int, name: str, classes: int, wavelength: float, splits: dict[str, int]
) -> DomainData:
    """Noisy stripes whose direction is the class; domains differ in wavelength."""
    images = {}
    for split, count in splits.items():
        rng = np.random.default_rng([ord(c) for c in name + split])
        labels = np.arange(count, dtype=np.int64) % classes
        y, x = np.mgrid[:size, :size]
        angle = np.pi * labels[:, None, None] / classes
        phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
        pixels = 128 + 80 * wave[:, None] + rng.normal(0, 20, (count, 3, size, size))
        sources = np.array([f"{name}-{split}-{i}" for i in range(count)])
        images[split] = Images(pixels.clip(0, 255).astype(np.uint8), labels, sources)
    task = Denoising() if kind == Denoising.name else Classification(classes)
    return DomainData(name, task, tuple(map(str, range(classes))), images)


def _findings(entry: Entry, path: Path, backbone: Architecture) -> Iterator[Finding]:
    def finding(check: str, problem: str | None) -> Finding:
        return Finding(label, check, "FAILED" if problem else "passed", problem or "")

    label = f"{entry.kind} {entry.name}"
    problem = _declaration_problem(entry)
    yield finding("declaration", problem)
    problems: Problems = {}
    reason = "the declaration is wrong"
    if problem is None:
        bench, weights = small_bench(backbone)
        plugin = construct(entry, {})
        try:
            problems = _problems(entry, plugin, bench, weights)
            reason = "the run ended before"
        except Incompatible as error:
            reason = f"cannot apply to {backbone.label}: {error}; try another --backbone"
            yield Finding(label, "run", "skipped", reason)
            yield from (Finding(label, "documentation", "warning", w) for w in _undocumented(entry))
            return
        # sys.exit in a plugin is no reason to leave without a word
        except (Exception, SystemExit) as error:
            yield finding("run", _sentence(error, path))
            reason = "the run ended before"
    for check in dict.fromkeys([*CHECKS[entry.kind], *problems]):
        if check in problems:
            yield finding(check, problems[check])
        else:
            yield Finding(label, check, "skipped", reason)
    words = list(_undocumented(entry))
    yield from (Finding(label, "documentation", "warning", w) for w in words)
    if not words:
        yield finding("documentation", None)


def _problems(entry: Entry, plugin: Any, bench: Bench, weights: Weights) -> Problems:
    if entry.kind == "attack":
        return _attack_problems(plugin, bench, weights, samples=SAMPLES, budget=BUDGET)
    if entry.kind == "scenario":
        return _scenario_problems(plugin, bench.backbone)
    short = _Watched(plugin, updates=DEFENSE_UPDATES, seconds=DEFENSE_SECONDS)
    return _defense_problems(short, bench, weights)


def _attack_problems(
    attack: Attack, bench: Bench, weights: Weights, *, samples: int, budget: int
) -> Problems:
    def once() -> tuple[Attacked, Tensor | None]:
        found = loop.attack(
            bench,
            weights,
            watched,
            samples=samples,
            seed=0,
            budget=budget,
            tick=_quiet,
            contained=contained,
        )
        return found, watched.outputs(bench) if found.status == "ok" else None

    watched = _Watched(attack)
    contained: list[str] = []
    with _seedings() as seeded:
        try:
            (first, before), (second, after) = once(), once()
        except NoUpdate as error:
            return {"updates": _mended(str(error))}
    problems: Problems = dict.fromkeys(CHECKS["attack"])
    if first.status != "ok":
        problems["finite"] = (
            f"{first.reason}; lower the default step size, clip gradients, or yield only what "
            f"has finite outputs"
        )
    elif before is not None and _is_released(watched, before, bench, weights):
        problems["updates"] = (
            "the last predictor is the released model as it was; yield what the attack has made "
            "of it"
        )
    if _scores(first) != _scores(second) or not _same(before, after):
        problems["repeatable"] = f"two runs with one seed differ; {CHANCE}"
    epochs = watched.later_draws / samples
    if first.cost.units > 2 * budget:
        problems["budget"] = (
            f"one update cost so much that {first.cost.units:.0f} units were spent of {budget}; "
            f"yield after every update"
        )
    elif epochs > HIDDEN_EPOCHS:
        problems["budget"] = (
            f"between two yields it draws every sample {epochs:.0f} times; yield after every update"
        )
    if hasattr(attack, "run_many") and not any(problems.values()):
        problems[AT_ONCE] = _at_once_problem(
            cast("AttackMany", attack), bench, weights, contained, samples=samples, budget=budget
        )
    return problems | _common(watched, seeded, contained)


AT_ONCE = "trials at once"
"""The check of attacks that offer ``run_many``."""

SCORES = 0.05
"""Largest difference of a score between a trial alone and among others: rounding differs."""


def _at_once_problem(
    attack: AttackMany,
    bench: Bench,
    weights: Weights,
    contained: list[str],
    *,
    samples: int,
    budget: int,
) -> str | None:
    """Whether `run_many` does for each trial what `run` does, at the same cost."""
    fields = {field.name for field in dataclasses.fields(cast("Any", attack))}
    if unknown := sorted({*attack.together} - fields):
        return (
            f"together names {', '.join(unknown)}, which the attack has not; it lists "
            f"hyperparameters, of {', '.join(sorted(fields))}"
        )
    trials = [attack, _varied(attack)]
    many = loop.attack_many(
        bench,
        weights,
        trials,
        samples=samples,
        seed=0,
        budget=budget,
        ticks=[_quiet] * 2,
        contained=contained,
    )
    for trial, found in zip(trials, many, strict=True):
        alone = loop.attack(
            bench, weights, trial, samples=samples, seed=0, budget=budget, tick=_quiet
        )
        if isinstance(found, NoUpdate):
            return f"run_many of {trial}: {found}"
        pairs = [*zip(_scores(alone), _scores(found), strict=False)]
        same = len(alone.curve) == len(found.curve) and all(
            one[0] == other[0]
            and math.isclose(one[1], other[1], rel_tol=0.01)
            and all(abs(a - b) <= SCORES for a, b in zip(one[2:], other[2:], strict=True))
            for one, other in pairs
        )
        if not same:
            return (
                f"run_many makes of {trial} another than run does (steps, units, scores: "
                f"{_scores(found)[-1:]} at the end, alone {_scores(alone)[-1:]}); each trial has "
                f"to see the same batches and draws as alone"
            )
    return None


def _varied(attack: AttackMany) -> AttackMany:
    """The attack with half of the first hyperparameter in ``together`` that is a number, if any."""
    for name in attack.together:
        value = getattr(attack, name)
        if isinstance(value, float) and value:
            return cast("AttackMany", dataclasses.replace(cast("Any", attack), **{name: value / 2}))
    return attack


def _defense_problems(watched: _Watched, bench: Bench, weights: Weights) -> Problems:
    contained: list[str] = []
    with _seedings() as seeded:
        try:
            first, second = (
                loop.protect(bench, weights, watched, 0, _quiet, contained=contained).weights
                for _ in range(2)
            )
        except ValueError as error:
            if watched.yields and "fit" not in str(error):
                raise
            return {"updates": str(error)}
    problems: Problems = dict.fromkeys(CHECKS["defense"])
    broken = [name for name, t in first.items() if not t.isfinite().all()]
    if broken:
        problems["finite"] = (
            f"it releases weights that are not finite ({broken[0]}); lower the default step "
            f"size or clip gradients"
        )
    if any(not _same(t, second[name]) for name, t in first.items()):
        problems["repeatable"] = f"two runs with one seed release different weights; {CHANCE}"
    return problems | _common(watched, seeded, contained)


def _scenario_problems(scenario: Scenario, backbone: Architecture) -> Problems:
    data = scenario.build()
    found: dict[str, list[str]] = {}
    for check, words in checking.problems(data):
        found.setdefault(check, []).append(words)
    if "splits" in found:
        return {"splits": "; ".join(found["splits"])}
    problems: Problems = {
        check: "; ".join(found.get(check, ())) or None
        for check in ("splits", "images", "sources", "samples")
    }
    if found:
        return problems
    problems["repeatable"] = None
    if scenario.build().revision != data.revision:
        problems["repeatable"] = (
            "two builds differ; draw from generators with fixed seeds, and order nothing by a set"
        )
    if not any(problems.values()):
        fits = backbone.task == data.original.task.name
        problems["training"] = _training_problem(data, backbone if fits else UNet())
    return problems


def _training_problem(data: ScenarioData, backbone: Architecture) -> str | None:
    try:
        backbone.check(data.image_size, data.original.task.num_outputs)
    except BackboneError as error:
        return str(error)
    short = dataclasses.replace(data, pretrain_steps=2)
    bench = Bench(short, backbone, device=torch.device("cpu"), precision="fp32")
    made = loop.pretrain(bench, 0, _quiet)
    finite = all(bool(t.isfinite().all()) for t in made.weights.values())
    return None if finite else "two updates of pre-training give weights that are not finite"


class _Watched:
    """A plugin that remembers what it did.

    Args:
        updates: Stop after so many yields.
        seconds: Stop the first run after so long, and later ones after as many yields.
    """

    def __init__(
        self, plugin: Any, *, updates: int | None = None, seconds: float | None = None
    ) -> None:
        self.plugin = self.__wrapped__ = plugin
        self.steps = getattr(plugin, "steps", None)
        self.view: Any = None
        self.last: Any = None
        self.yields = 0
        self.later_draws = 0.0
        self.spoiled = False
        self.overwritten: set[str] = set()
        self.moved: set[str] = set()
        self._updates = updates
        self._seconds = seconds

    def run(self, model: Model, view: Any) -> Generator[Any, None, Any]:
        self.view, self.yields = view, 0
        # of the last run alone: a library that the first one imports may draw while it is imported
        self.moved = set()
        kind, given = type(model), _copies(view)
        begin, drawn_at_first = time.perf_counter(), 0
        steps = self.plugin.run(model, view)
        if not isinstance(steps, Iterable):
            raise TypeError(
                f"run returned {type(steps).__name__}, not a generator: yield after every update"
            )
        steps = iter(steps)
        while True:
            with _draws(self.moved, excused=_draws_noise(view)):
                try:
                    made = next(steps)
                except StopIteration as stop:
                    self._seconds = None
                    return stop.value
                finally:
                    self.spoiled |= type(model) is not kind or "forward" in vars(model)
                    self.overwritten |= _changed(view, given)
            self.last = made
            self.yields += 1
            drawn = getattr(getattr(view, "train", None), "drawn", 0)
            if self.yields == 1:
                drawn_at_first = drawn
            else:
                self.later_draws = (drawn - drawn_at_first) / (self.yields - 1)
            yield made
            late = self._seconds is not None and time.perf_counter() - begin > self._seconds
            if late or self.yields == self._updates:
                self._updates, self._seconds = self.yields, None
                return None

    def outputs(self, bench: Bench) -> Tensor:
        """What the last predictor makes of the view's validation images."""
        return self.predicted(self.last, bench)

    def predicted(self, predictor: Predictor, bench: Bench) -> Tensor:
        """``predictor`` on the view's validation images, scored as the harness does."""
        with Meter(bench.profile, bench.device).looking():
            torch.default_generator.manual_seed(0)
            outputs: Tensor = self.view.task.predict(predictor, self.view.validation.inputs)
            return outputs.detach().clone()


def _samples(view: Any) -> Iterator[tuple[str, Samples]]:
    for name in ("train", "validation", "auxiliary"):
        if isinstance(found := getattr(view, name, None), Samples):
            yield f"view.{name}", _uncounted(found)
    for name in ("original", "restricted"):
        if (domain := getattr(view, name, None)) is not None:
            yield f"view.{name}.train", _uncounted(domain.train)
            yield f"view.{name}.validation", _uncounted(domain.validation)


def _uncounted(samples: Samples) -> Samples:
    """The harness's own look must not be taken for the plugin's."""
    return samples.counted if isinstance(samples, CountedSamples) else samples


def _copies(view: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Copies of what a view holds."""
    return {name: (s.inputs.clone(), s.targets.clone()) for name, s in _samples(view)}


def _changed(view: Any, given: dict[str, tuple[Tensor, Tensor]]) -> set[str]:
    return {
        name
        for name, s in _samples(view)
        if not (torch.equal(s.inputs, given[name][0]) and torch.equal(s.targets, given[name][1]))
    }


def _is_released(watched: _Watched, outputs: Tensor, bench: Bench, weights: Weights) -> bool:
    """Whether these are the outputs of the released model, or the first ones of them."""
    released = watched.predicted(bench.load(weights), bench)
    return released.ndim == outputs.ndim and _same(released[:, : outputs.shape[1]], outputs)


CHANCE = "draw every random number from view.rng, and order nothing by a set or by time"
"""Advice where two runs differ: no state outlives the first one."""


def _common(watched: _Watched, seeded: list[str], contained: list[str]) -> Problems:
    problems: Problems = {}
    if contained:
        problems["side effects"] = side_effects.advised(contained)
    if watched.spoiled:
        problems["model"] = (
            "the class or the forward of the given model was replaced; wrap the model instead"
        )
    if watched.overwritten:
        names = ", ".join(sorted(watched.overwritten))
        problems["data"] = f"{names} was modified in place; clone what you change"
    if seeded:
        problems["random state"] = (
            f"{', '.join(sorted(set(seeded)))} was called; draw from view.rng and leave the "
            f"global random state alone"
        )
    elif watched.moved:
        problems["random state"] = (
            f"numbers were drawn from the global generator of {', '.join(sorted(watched.moved))}; "
            f"pass generator=view.rng, or a generator seeded from it (new layers draw their "
            f"weights too: initialise them again from view.rng, inside torch.random.fork_rng)"
        )
    return problems


@contextlib.contextmanager
def _seedings() -> Iterator[list[str]]:
    """Names of the global seeding functions that are called inside."""
    called: list[str] = []

    def spy(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def seed(*arguments: Any, **named: Any) -> Any:
            called.append(name)
            return original(*arguments, **named)

        return seed

    with contextlib.ExitStack() as stack:
        for module, name in SEEDING:
            label = f"{module.__name__}.{name}"
            spied = spy(label, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, spied))
        yield called


@contextlib.contextmanager
def _draws(moved: set[str], *, excused: bool) -> Iterator[None]:
    """Enter into ``moved`` whose global generator is in another state after it.

    Modules may draw from torch's in their forward pass (dropout): if one did, torch's is let be,
    as it is if ``excused``.
    """
    before, at_entry, depth, by_module = _states(), b"", 0, excused

    def enter(_module: Any, _inputs: Any) -> None:
        nonlocal at_entry, depth
        if depth == 0:
            at_entry = _torch_state()
        depth += 1

    def leave(_module: Any, _inputs: Any, _outputs: Any) -> None:
        nonlocal depth, by_module
        depth -= 1
        if depth == 0:
            by_module |= _torch_state() != at_entry

    hooks = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        moved.update(
            n for n, s in _states().items() if s != before[n] and not (n == "torch" and by_module)
        )


def _draws_noise(view: Any) -> bool:
    """Whether a task of the view draws from torch's own generator, as modules may."""
    holders = (view, getattr(view, "original", None), getattr(view, "restricted", None))
    return any(getattr(getattr(holder, "task", None), "draws", False) for holder in holders)


def _states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": _torch_state(),
        "numpy": (kind, np.asarray(keys).tobytes(), *rest),
        "random": random.getstate(),
    }


def _torch_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _declaration_problem(entry: Entry) -> str | None:
    """What is wrong with the class, before anything is run."""
    method = "build" if entry.kind == "scenario" else "run"
    if not entry.cls.__dataclass_params__.frozen:
        return "the dataclass is not frozen; write @dataclass(frozen=True, kw_only=True)"
    if not callable(getattr(entry.cls, method, None)):
        return f"{entry.cls.__name__} has no method {method!r}"
    for field in dataclasses.fields(entry.cls):
        if field.default is dataclasses.MISSING:
            return (
                f"hyperparameter {field.name!r} has no default value; give it one, so that the "
                f"plugin runs by its name alone"
            )
    try:
        trial = Trial(entry, construct(entry, {}))
        again = construct(entry, trial.parameters)
    except SelectorError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__} with the default hyperparameters: {error}"
    if again != trial.plugin:
        return "the default hyperparameters do not survive the trip through a record"
    return None


def _undocumented(entry: Entry) -> Iterator[str]:
    """What a reader will miss."""
    about = sys.modules[entry.cls.__module__].__doc__ or ""
    if PLACEHOLDER in about:
        yield f"the module docstring still has {PLACEHOLDER!r} where the citation goes"
    elif not CITATION.search(about):
        yield "the module docstring has no citation: add a line 'Reference: …, arXiv 0000.00000'"
    own = entry.cls.__doc__ or ""
    if not own.strip() or own.startswith(f"{entry.cls.__name__}("):
        yield "the class has no docstring; say in a sentence what is minimised or moved"
    documented = "".join(
        (c.__doc__ or "").partition("Args:")[2]
        for c in entry.cls.__mro__
        if dataclasses.is_dataclass(c)
    )
    names = [f.name for f in dataclasses.fields(entry.cls)]
    missing = [n for n in names if not re.search(rf"^\s*{n}:", documented, re.MULTILINE)]
    if missing:
        yield f"not documented under 'Args:' of the class: {', '.join(missing)}"


def _entries_of(path: Path) -> list[Entry]:
    """What a file registers: installed or not, loaded or not."""
    registry.discover()
    entries = list(_registered_in(path))
    if not entries:
        registry.load_file(path)
        entries = list(_registered_in(path))
    if not entries:
        raise BrokenPlugin(
            f"plugin file {str(path)!r} registers no class of its own; decorate a dataclass that "
            f"is defined in it"
        )
    return entries


def _registered_in(path: Path) -> Iterator[Entry]:
    for holder in (registry.attacks, registry.defenses, registry.scenarios):
        for name in holder.names(hidden=True):
            entry = holder.get(name)
            file = getattr(sys.modules.get(entry.cls.__module__), "__file__", None)
            if file is not None and Path(file).resolve() == path.resolve():
                yield entry


def _sentence(error: BaseException, path: Path) -> str:
    """What was raised, in one line, and where in the plugin's file."""
    hint = "; install it, or raise Incompatible" if isinstance(error, ImportError) else ""
    return sentence(error, lambda file: file.resolve() == path.resolve()) + hint


def _mended(reason: str) -> str:
    """The harness's sentence with advice, where it says only what is wrong."""
    advice = {
        "drew no sample": "train on view.batches(batch_size) or view.train",
        "never changed": "give the optimizer the weights that the predictor uses, and step it",
    }
    found = next((words for key, words in advice.items() if key in reason), None)
    return f"{reason}; {found}" if found else reason


def _said(problems: Problems) -> list[str]:
    return [problem for problem in problems.values() if problem]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal, also in where they are NaN."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _scores(found: Attacked) -> list[tuple[float, ...]]:
    return [(p.steps, p.units, p.validation, p.selection, p.test) for p in found.curve]


def _quiet(_fraction: float | None, _words: str) -> None:
    pass
