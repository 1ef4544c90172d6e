"""Train fresh weights as `strong-recipe` trains the released ones: its worth without them.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699 (train-from-scratch baseline).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sophon_bench.api import AttackView, Model, attacks

from .strong_recipe import StrongRecipe


@attacks.register("scratch-strong-recipe", control=True, optional=True)
@dataclass(frozen=True, kw_only=True)
class ScratchStrongRecipe(StrongRecipe):
    """As ``strong-recipe`` on fresh weights; the released ones are not looked at."""

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        yield from super().run(view.new_model(), view)
