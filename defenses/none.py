"""The undefended model, which every table compares against."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sophon_bench.api import DefenseView, Model, defenses


@defenses.register("none", control=True)
@dataclass(frozen=True, kw_only=True)
class Undefended:
    """Release the pre-trained model as it is."""

    steps: ClassVar[int] = 1
    planned_units: ClassVar[float] = 1.0

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        """Yield the model once, unchanged."""
        yield model
