"""What a plugin may declare besides its hyperparameters and ``run``: every name once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The optional attributes of a plugin: class variables, fields or properties of these names.

    Where a plugin has none of a name, the default holds. What an attack works by is said where it
    is registered: ``@attacks.register(NAME, mechanism=…)``.

    Attributes:
        claim: What the publication measured, in one sentence with the setting.
        presets: Named sets of hyperparameters; ``preset=NAME`` selects one.
        tuning: The grid that a search over hyperparameters tries: values by hyperparameter.
        steps: Updates of a whole run, which progress is a share of; None: unknown.
        planned_units: Forward and backward passes of a whole run, one per example; None: unknown.
        together: Fields in which the trials of one ``run_many`` may differ (`AttackMany`); None:
            the attack has no ``run_many``.
        answers_original: Of a defense: whether what it releases tells the original domain's
            classes apart. A file may have a head for others; its original utility is not scored.
        recorded: Of a scenario: other values of hyperparameters, under which records are kept; of
            those that also say where files lie, which is no part of what is in them.
    """

    claim: str = ""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuning: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    steps: int | None = None
    planned_units: float | None = None
    together: Sequence[str] | None = None
    answers_original: bool = True
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plugin: object) -> Declared:
        """What a plugin declares, or a class of plugins, of which properties are left out."""
        found = {f.name: getattr(plugin, f.name) for f in fields(cls) if hasattr(plugin, f.name)}
        return cls(**{k: value for k, value in found.items() if not isinstance(value, property)})
