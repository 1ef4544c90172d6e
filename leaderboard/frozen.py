"""Which budgets and n count for a score, frozen per scenario and backbone in this repository."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from sophon_bench.analysis.frozen import Frozen
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results.files import write_atomic
from sophon_bench.results.records import dump

PUBLISHED = Path(__file__).parent / "frozen"


def published() -> list[Frozen]:
    """Every frozen document that comes with the package."""
    return [
        msgspec.json.decode(file.read_bytes(), type=Frozen)
        for file in sorted(PUBLISHED.glob("*.json"))
    ]


def write(document: Frozen, folder: Path) -> Path:
    """Write a document under scenario, backbone, precision and steps; returns the file.

    Raises:
        OSError: If it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps = f"{document.budget / REFERENCE_BATCH:g}"
    names = (document.scenario, document.backbone, document.precision, steps)
    file = folder / f"{'.'.join(map(_safe, names))}.json"
    write_atomic(file.absolute(), dump(document) + b"\n")
    return file


def _safe(name: str) -> str:
    """The name for a file; where characters had to go, a hash tells it from others."""
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
