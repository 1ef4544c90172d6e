"""Checks of attacks and defenses: each is run twice, and looked at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor

from sophon_bench.api import Attack, AttackMany
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.harness.honesty import NoUpdate, Uncounted
from sophon_bench.harness.loop import Attacked
from sophon_bench.plugins import side_effects
from sophon_bench.testing.spies import Watched, same
from sophon_bench.testing.toy import quiet

HIDDEN_EPOCHS = 4.0
"""Passes over the training samples that one update may take, on average after the first one."""

SCORES = 0.05
"""Largest difference of a score between a trial alone and among others: rounding differs."""

Problems = dict[str, str | None]
"""What each check found, by the check's name; None is a pass."""

ADVICE = {
    "drew no sample": "train on view.batches(batch_size) or view.train",
    "never changed": "give the optimizer the weights that the predictor uses, and step it",
}
"""What mends an attack, where the harness's sentence has this in it and says only what is wrong."""


class Twice(NamedTuple):
    """Two runs of a plugin with one seed.

    Attributes:
        first: How the one went, or what it released; ``second`` likewise.
        outputs: Of an attack's last predictors on the validation images, where they are finite.
        released: Outputs of the model that the attack began with.
    """

    watched: Watched
    first: Any
    second: Any
    outputs: tuple[Tensor | None, Tensor | None] = (None, None)
    released: Tensor | None = None
    samples: int = 0
    budget: int = 0


def _is_released(seen: Twice) -> bool:
    """Whether these are the outputs of the released model, or the first ones of them."""
    outputs, released = seen.outputs[0], seen.released
    if outputs is None or released is None or outputs.ndim != released.ndim:
        return False
    return same(released[:, : outputs.shape[1]], outputs)


class Check(NamedTuple):
    """Something to look at after the runs.

    Attributes:
        finds: What is wrong, for the words; anything empty is a pass.
        words: What is said of it, with how to mend it.
    """

    name: str
    finds: Callable[[Twice], Any]
    words: str


CHANCE = "draw every random number from view.rng, and order nothing by a set or by time"
"""Advice where two runs differ: no state outlives the first one."""

ATTACK = (
    Check("updates", _is_released,
        "the last predictor is the released model as it was; yield what the attack has made of it"),
    Check("finite", lambda seen: seen.first.reason,
        "{}; lower the default step size, clip gradients, or yield only what has finite outputs"),
    Check("budget", lambda seen: _above(seen.first.cost.units, 2 * seen.budget),
        "one update cost so much that {:.0f} units were spent, more than twice the budget; yield "
        "after every update"),
    Check("budget", lambda seen: _above(seen.watched.later_draws / seen.samples, HIDDEN_EPOCHS),
        "between two yields it draws every sample {:.0f} times; yield after every update"),
    Check("repeatable",
        lambda seen: _scores(seen.first) != _scores(seen.second) or not same(*seen.outputs),
        f"two runs with one seed differ; {CHANCE}"),
)  # fmt: skip
DEFENSE = (
    Check("updates", lambda seen: seen.watched.yields == 0, "the defense yielded no model"),
    Check("finite", lambda seen: _broken(seen.first),
        "it releases weights that are not finite ({}); lower the default step size or clip "
        "gradients"),
    Check("repeatable",
        lambda seen: not all(same(t, seen.second[name]) for name, t in seen.first.items()),
        f"two runs with one seed release different weights; {CHANCE}"),
)  # fmt: skip
COMMON = (
    Check("random state", lambda seen: seen.watched.seeded,
        "{} was called; draw from view.rng and leave the global random state alone"),
    Check("random state", lambda seen: seen.watched.moved,
        "numbers were drawn from the global generator of {}; pass generator=view.rng, or a "
        "generator seeded from it (new layers draw their weights too: build them inside "
        "'with view.seeded():')"),
    Check("side effects", lambda seen: side_effects.advised(seen.watched.contained), "{}"),
    Check("model", lambda seen: seen.watched.spoiled,
        "the class or the forward of the given model was replaced; wrap the model instead"),
    Check("data", lambda seen: seen.watched.overwritten,
        "{} was modified in place; clone what you change"),
)  # fmt: skip


def _problems(checks: Sequence[Check], seen: Twice) -> Problems:
    problems: Problems = dict.fromkeys(check.name for check in checks)
    for check in checks:
        found = check.finds(seen)
        if found and problems[check.name] is None:
            names = ", ".join(sorted(found)) if isinstance(found, set) else found
            problems[check.name] = check.words.format(names)
    return problems


def _broken(weights: Weights) -> str | None:
    """The first tensor that is not finite."""
    return next((name for name, t in weights.items() if not t.isfinite().all()), None)


def _above(value: float, limit: float) -> float:
    return value if value > limit else 0.0


def attack_problems(
    attack: Attack, bench: Bench, weights: Weights, *, samples: int, budget: int
) -> Problems:
    """What is wrong with an attack that is run twice."""
    watched = Watched(attack)

    def once() -> tuple[Attacked, Tensor | None]:
        found = loop.attack(
            bench, weights, watched, samples=samples, seed=0, budget=budget, tick=quiet,
            contained=watched.contained,
        )  # fmt: skip
        finite = found.status == "ok"
        return found, watched.predicted(watched.last, bench) if finite else None

    with watched.seedings():
        try:
            (first, before), (second, after) = once(), once()
        except NoUpdate as error:
            advice = (f"; {words}" for key, words in ADVICE.items() if key in str(error))
            return {"updates": f"{error}{next(advice, '')}"}
        except Uncounted as error:
            return {"budget": str(error)}
    released = watched.predicted(bench.load(weights), bench)
    seen = Twice(watched, first, second, (before, after), released, samples, budget)
    problems = _problems(ATTACK, seen)
    if isinstance(attack, AttackMany) and not any(problems.values()):
        problems["trials at once"] = _at_once(attack, bench, weights, seen)
    return problems | _problems(COMMON, seen)


def _at_once(attack: AttackMany, bench: Bench, weights: Weights, seen: Twice) -> str | None:
    """Whether `run_many` does for each trial what `run` does, at the same cost."""
    fields = {field.name for field in dataclasses.fields(cast("Any", attack))}
    if unknown := sorted({*attack.together} - fields):
        return (
            f"together names {', '.join(unknown)}, which the attack has not; it lists "
            f"hyperparameters, of {', '.join(sorted(fields))}"
        )
    trials = [attack, _varied(attack)]
    samples, budget = seen.samples, seen.budget
    many = loop.attack_many(
        bench, weights, trials, samples=samples, seed=0, budget=budget, ticks=[quiet] * 2,
        contained=seen.watched.contained,
    )  # fmt: skip
    for trial, found in zip(trials, many, strict=True):
        alone = loop.attack(
            bench, weights, trial, samples=samples, seed=0, budget=budget, tick=quiet
        )
        if isinstance(found, NoUpdate):
            return f"run_many of {trial}: {found}"
        one, other = _scores(alone), _scores(found)
        if not (len(one) == len(other) and all(map(_close, one, other))):
            return (
                f"run_many gives other results for {trial} than run (steps, units, scores: "
                f"{other[-1:]} at the end, alone {one[-1:]}); each trial has to see the same "
                f"batches and draws as alone"
            )
    return None


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Of two points: the same step and cost, and about the same scores."""
    return (
        one[0] == other[0]
        and math.isclose(one[1], other[1], rel_tol=0.01)
        and all(abs(a - b) <= SCORES for a, b in zip(one[2:], other[2:], strict=True))
    )


def _varied(attack: AttackMany) -> AttackMany:
    """The attack with half of the first hyperparameter in ``together`` that is a number, if any."""
    for name in attack.together:
        value = getattr(attack, name)
        if isinstance(value, float) and value:
            return cast("AttackMany", dataclasses.replace(cast("Any", attack), **{name: value / 2}))
    return attack


def _scores(found: Attacked) -> list[tuple[float, ...]]:
    return [(p.steps, p.units, p.validation, p.selection, p.test) for p in found.curve]


def defense_problems(watched: Watched, bench: Bench, weights: Weights) -> Problems:
    """What is wrong with a defense that is run twice."""
    with watched.seedings():
        try:
            first, second = (
                loop.protect(bench, weights, watched, 0, quiet, contained=watched.contained).weights
                for _ in range(2)
            )
        except ValueError as error:
            if watched.yields and "fit" not in str(error):
                raise
            return {"updates": str(error)}
    return _problems((*DEFENSE, *COMMON), Twice(watched, first, second))
