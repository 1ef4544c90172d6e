"""The undefended model under another name: whatever it scores is the benchmark's own error.

Every score is relative to the undefended model, so this one has to come out at zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sophon_bench.api import DefenseView, Model, defenses


@defenses.register("canary-undefended", hidden=True)
@dataclass(frozen=True, kw_only=True)
class UndefendedCanary:
    """Change nothing: release the pre-trained model."""

    steps: ClassVar[int] = 1

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        yield model
