"""Pictures of the scenarios whose records the page shows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from sophon_bench.data.sheet import contact_sheet
from sophon_bench.execution.runs import build, find_scenarios
from sophon_bench.plugins.failures import BadInput
from sophon_bench.results.records import ModelRecord


def sheets(models: Iterable[ModelRecord], tell: Callable[[str], object]) -> dict[str, bytes]:
    """PNGs of the scenarios that are here with the same data, by label; ``tell`` of the others."""
    revisions = {model.scenario.label: model.scenario.revision for model in models}
    found = {}
    for label, revision in sorted(revisions.items()):
        try:
            found[label] = _sheet(label, revision)
        except BadInput as error:
            tell(f"no images: {error}")
    return found


def _sheet(label: str, revision: str) -> bytes:
    (trial,) = find_scenarios([label], None)
    data = build(trial, None)
    if data.revision != revision:
        raise BadInput(f"{label} has other data here than its records are of ({revision[:8]})")
    with tempfile.TemporaryDirectory() as folder:
        contact_sheet(data, Path(folder) / "sheet.png")
        return (Path(folder) / "sheet.png").read_bytes()
