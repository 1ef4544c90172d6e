"""Stages as bytes, for the processes that a run started itself; settings are numbers in them.

A setting holds the data: it is sent to a process once, and then named.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

from sophon_bench.execution.plan import Setting


def pack(content: object, settings: Sequence[Setting]) -> bytes:
    """Pickled, with settings by their number."""
    numbers = {id(setting): number for number, setting in enumerate(settings)}
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: object) -> int | None:
            return numbers.get(id(item)) if isinstance(item, Setting) else None

    Pickler(buffer).dump(content)
    return buffer.getvalue()


def unpack(content: bytes, settings: Sequence[Setting]) -> Any:
    """What was packed, with these settings."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> Setting:
            return settings[number]

    return Unpickler(io.BytesIO(content)).load()
