"""Which recipe of pre-training a model is made by: all that the scenario states are tried."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sophon_bench.data.scenario import Recipe
from sophon_bench.results.recipes import ChosenRecipe, TriedRecipe
from sophon_bench.results.records import Cost

if TYPE_CHECKING:
    from sophon_bench.harness.bench import Weights
    from sophon_bench.harness.loop import Made, Tick


def best(
    recipes: Sequence[Recipe],
    train: Callable[[Recipe, Tick], Made],
    validate: Callable[[Weights], float],
    tick: Tick,
) -> Made:
    """The model of the recipe with the highest utility, the first of equals; the cost is of all.

    Args:
        recipes: At least one.
        train: Makes a model by a recipe, from the same weights and with the same draws each time.
        validate: Its utility on data that it is not judged by.
        tick: Told how all of it goes.
    """
    if len(recipes) == 1:
        return train(recipes[0], tick)
    total = sum(recipe.steps for recipe in recipes)
    begun = 0
    made, tried = [], []
    for recipe in recipes:
        made.append(train(recipe, _part(tick, recipe, begun, total)))
        begun += recipe.steps
        utility = validate(made[-1].weights)
        validation = utility if math.isfinite(utility) else None
        tried.append(TriedRecipe(steps=recipe.steps, lr=recipe.lr, validation=validation))
    ranks = [-math.inf if one.validation is None else one.validation for one in tried]
    chosen = ranks.index(max(ranks))
    return dataclasses.replace(
        made[chosen],
        cost=_total([one.cost for one in made]),
        recipe=ChosenRecipe(steps=recipes[chosen].steps, lr=recipes[chosen].lr, tried=tried),
    )


def _part(tick: Tick, recipe: Recipe, begun: int, total: int) -> Tick:
    """Tells ``tick`` of one recipe as a part of all."""

    def told(fraction: float | None, words: str) -> None:
        steps = begun + (fraction or 0.0) * recipe.steps
        tick(steps / total, f"lr {recipe.lr:g} for {recipe.steps}: {words}")

    return told


def _total(costs: Sequence[Cost]) -> Cost:
    """What several runs took, one after the other."""
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return Cost(
        seconds=sum(cost.seconds for cost in costs),
        steps=sum(cost.steps for cost in costs),
        examples=sum(cost.examples for cost in costs),
        units=sum(cost.units for cost in costs),
        flops=sum(cost.flops for cost in costs),
        peak_bytes=max(peaks, default=None),
    )
