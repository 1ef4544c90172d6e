"""The architecture page says what import-linter holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_picture_shows_every_package_and_imports_point_down() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [layer.split(" : ") for layer in contracts["contracts"][0]["layers"]]
    height = {name: level for level, names in enumerate(layers) for name in names}
    arrows = re.findall(r"^  (\w+)(?:\[.*?\])? --> (\w+)", PAGE, re.MULTILINE)
    assert {name for arrow in arrows for name in arrow} == height.keys() - {"__main__"}
    assert all(height[above] < height[below] for above, below in arrows)


def test_the_path_of_a_run_is_told_in_at_most_eight_steps() -> None:
    steps = re.findall(r"^(\d)\. \*\*", PAGE, re.MULTILINE)
    assert steps == [str(number) for number in range(1, len(steps) + 1)]
    assert 5 <= len(steps) <= 8


def test_files_that_the_page_names_are_there() -> None:
    named = re.findall(
        r"`((?:analysis|data|execution|harness|leaderboard|results)/[\w/]+(?:\.py|/))`", PAGE
    )
    assert named
    assert [
        name
        for name in named
        if not any((ROOT / top / name).exists() for top in ("", "sophon_bench"))
    ] == []
