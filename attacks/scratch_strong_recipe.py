"""`strong-recipe` from random initialisation: what the recipe reaches without released weights.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699 (train-from-scratch baseline).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sophon_bench.api import AttackView, Model, attacks

from .strong_recipe import StrongRecipe


@attacks.register("scratch-strong-recipe", control=True, optional=True)
@dataclass(frozen=True, kw_only=True)
class ScratchStrongRecipe(StrongRecipe):
    """As ``strong-recipe``, but from random initialisation, without the released weights."""

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        yield from super().run(view.new_model(), view)
