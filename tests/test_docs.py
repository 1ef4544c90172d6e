"""Links and names in the documentation; MkDocs checks the links between its pages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("file", sorted(ROOT.glob("*.md")), ids=lambda file: file.name)
def test_links_of_a_file_at_the_top_lead_somewhere(file: Path) -> None:
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        page = ROOT / name if name else file
        if ":" in name:
            continue
        if not page.exists() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_environment_variable_of_the_project_is_documented() -> None:
    page = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "sophon_bench").rglob("*.py")]
    used = {name for text in sources for name in re.findall(r"\bSOPHON_BENCH_[A-Z]+\b", text)}
    assert used
    assert sorted(name for name in used if f"`{name}`" not in page) == []


def test_the_row_that_is_explained_is_the_published_one() -> None:
    cells = {
        file: [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
            if line.startswith("| sophon-wide ")
        ]
        for file in ("README.md", "docs/reading-results.md")
    }
    (published,), (explained,) = cells.values()
    assert explained == published
    assert f"resistance {published[-1]} means" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tutorial_quotes_the_table_above_it() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    table, text = page.split("<!-- end of quick start -->")
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines()}
    usual, defended = map(float, rows["tuned envelope"][-2:])
    scratch = float(rows["scratch"][-2])
    shown = {float(number) for number in re.findall(r"\d+\.\d+", table)}
    gap = {round(usual - scratch, 1), round(usual - defended, 1)}
    quoted = [float(number) for number in re.findall(r"\d+\.\d+", text.partition("\n`·`")[0])]
    assert len(quoted) > 6
    assert {*quoted} <= shown | gap
