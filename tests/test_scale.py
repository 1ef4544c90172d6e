"""Grids whose stages do nothing: what a run asks of its store is counted, nothing is timed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import scale

from sophon_bench.execution.worker import Worker
from sophon_bench.plugins.registry import load_file, scenarios
from sophon_bench.results import files
from sophon_bench.results.files import LocalFolder

PAGE = Path(__file__).parents[1] / "docs/scale.md"


@pytest.fixture(scope="module", autouse=True)
def idle() -> Iterator[None]:
    """Workers that do nothing, and a disk that keeps nobody waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: None)
        for name in ("_make", "_attack"):
            patch.setattr(Worker, name, getattr(Worker, name))
        patch.setattr(scale, "alone", lambda measure, *arguments: scale._told(measure, arguments))
        load_file(scale.IDLE)
        yield
        scenarios.remove("idle")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often files of a local store are listed, looked for and read, by folder."""
    found: Counter[str] = Counter()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: LocalFolder, file: str, *more: Any) -> Any:
            found[f"{name} {file.partition('/')[0]}"] += 1
            return real(self, file, *more)

        return call

    for name in ("_list", "exists", "read"):
        monkeypatch.setattr(LocalFolder, name, counted(name, getattr(LocalFolder, name)))
    return found


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Finished grids by their number of seeds."""
    made = {seeds: str(tmp_path_factory.mktemp("store")) for seeds in (1, 2)}
    for seeds, store in made.items():
        scale.run(seeds, store, "in-process")
    return made


def test_a_plan_is_made_without_a_look_at_the_cells(tmp_path: Path, calls: Counter[str]) -> None:
    assert len(scale.grid(1, str(tmp_path)).plan.cells) > 100
    assert not [call for call in calls if "cells" in call or "models" in call]


def test_a_finished_grid_takes_one_listing_and_reads_each_record_once(
    stores: dict[int, str], calls: Counter[str]
) -> None:
    found = {}
    for seeds, store in stores.items():
        calls.clear()
        count = scale.run(seeds, store, "in-process")["cells"]
        assert calls.pop("read cells") == count > 500 * seeds
        assert calls.pop("read models") == len(scale.grid(seeds, store).plan.models)
        found[seeds] = dict(calls)
    assert found[1] == found[2], "as many for any number of cells"
    assert found[1]["_list cells"] == found[1]["_list models"] == 1
    assert "exists cells" not in found[1]


def test_a_grid_that_is_done_reads_its_manifest_once_and_no_cell(
    tmp_path: Path, calls: Counter[str]
) -> None:
    cells = scale.run(1, str(tmp_path), "in-process")["cells"]
    assert len(list((tmp_path / "cells").iterdir())) == cells
    assert calls["read runs"] == 1
    assert calls["read cells"] == 0
    assert calls["_list cells"] == 1


def test_the_command_measures_and_puts_its_table_into_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "command", lambda *_: {"seconds": 1.0})
    file, page = tmp_path / "scale.json", tmp_path / "page.md"
    page.write_text(f"before\n{scale.BEGIN}old\n{scale.END}\nafter\n", encoding="utf-8")
    before = {"provenance": scale.provenance(), "points": []}
    file.write_text(json.dumps({"runs": [before]}), encoding="utf-8")
    words = ["--cells", "100", "--executor", "in-process"]
    scale.main([*words, "--json", str(file), "--markdown", str(page)])
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    assert [len(run["points"]) for run in runs] == [0, 6]
    found = {point["measure"]: point for point in runs[1]["points"]}
    whole = found["in-process"]["cells"]
    assert found["resume, all finished"]["cells"] == whole
    assert found["resume, 99 % finished"]["cells"] == whole > found["planning"]["cells"] > 100
    assert found["record"]["bytes"] > 1000
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| in-process: ms per cell" in text
    assert text.count("- `python ") == 2


def test_the_page_shows_what_was_measured() -> None:
    found = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    assert f"{scale.BEGIN}{scale.markdown(found)}{scale.END}" in PAGE.read_text(encoding="utf-8")
