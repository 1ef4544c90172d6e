"""How stages go, from workers to the driver.

Nothing heavy is imported: on a cluster this is a process of its own, which needs no torch.
"""

from __future__ import annotations


class News:
    """The last tick of each stage, until it is taken; an actor of Ray."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float | None, str]] = {}

    def tell(self, latest: dict[str, tuple[float | None, str]]) -> None:
        """Stages' last ticks, by key."""
        self._latest |= latest

    def take(self) -> dict[str, tuple[float | None, str]]:
        """What was told since it was taken last."""
        latest, self._latest = self._latest, {}
        return latest
