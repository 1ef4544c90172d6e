"""The notebooks run from top to bottom, and have no outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
CHECKS = {
    "quickstart": lambda names: [
        set(names["table"]["defense"]) == {"none", names["ASCENT"], names["ICE"]},
        names["sweep"].shape == (3, 3),
        names["sweep"].notna().all(axis=None),
        len(names["axes"].get_lines()) == 3,
        names["classes"].shape == (4,),
    ],
    "own-data": lambda names: [
        {"envelope", "scratch"} <= set(names["table"]["attack"]),
        names["table"]["restricted_after"].between(0, 1).all(),
        set(names["results"].cells["status"]) == {"ok"},
    ],
    "reading-results": lambda names: [
        set(names["envelope"].index) >= {"none", "sophon-ice", "sophon-wide"},
        names["envelope"].index.is_unique,
        len(names["sweep"]) >= 3,
        names["sweep"].notna().any(axis=None),
        set(names["winners"]["defense"]) == set(names["envelope"].index),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda file: file.stem)
def test_the_notebook_runs_from_top_to_bottom(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), file.name, "exec"), names)
    plt.close("all")
    assert all(CHECKS[file.stem](names))
