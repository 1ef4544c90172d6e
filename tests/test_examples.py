from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

QUICKSTART = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    notebook = json.loads(QUICKSTART.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), QUICKSTART.name, "exec"), names)
    plt.close("all")
    assert set(names["table"]["defense"]) == {"none", names["ASCENT"], names["ICE"]}
    assert names["sweep"].shape == (3, 3)
    assert names["sweep"].notna().all(axis=None)
    assert len(names["axes"].get_lines()) == 3
    assert names["classes"].shape == (4,)
