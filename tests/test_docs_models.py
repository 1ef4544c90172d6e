"""What docs/models.md shows works, and its table is of the models that ship."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from sophon_bench.cli import main
from sophon_bench.leaderboard import zoo
from sophon_bench.results.records import ModelRecord
from sophon_bench.results.store import Store

PAGE = (Path(__file__).parent.parent / "docs/models.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ sophon-bench (.+)$", PAGE, re.MULTILINE)


@pytest.mark.slow
def test_the_page_works_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (snippet,) = SNIPPETS
    assert len(snippet.splitlines()) <= 10
    listing, fetch, run = (shlex.split(command, comments=True) for command in COMMANDS)
    listed, fetched = (CliRunner().invoke(main, words) for words in (listing, fetch))
    assert (listed.exit_code, fetched.exit_code) == (0, 0), listed.output + fetched.output
    with pytest.warns(UserWarning, match="made again"):
        exec(compile(snippet, "docs/models.md", "exec"), {})
    assert "Verdict, provisional" in capsys.readouterr().out
    assert len([*(tmp_path / "zoo/models").glob("*.safetensors")]) == 2, "nothing was trained"
    planned = CliRunner().invoke(main, [*run, "--dry-run"])
    assert "done   protect sophon-ice seed=0" in planned.output
    assert "done   pretrain test_resnet seed=0" in planned.output


def test_its_table_is_of_the_models_that_ship() -> None:
    store = Store(zoo.ZOO, reading=True)
    expected = []
    for released in zoo.published():
        copy = zoo.find(released, [store])
        if copy is not None:
            told = map(percent, (released.record, copy.record))
            expected.append((released.defense, *told, str(copy.record.weights)[:12]))
    assert expected
    rows = re.findall(r"^\| `([a-z-]+)` \| ([\d.]+) \| ([\d.]+) \| ([0-9a-f]+) \|$", PAGE, re.M)
    assert rows == expected


def percent(record: ModelRecord) -> str:
    assert record.original is not None
    return f"{100 * record.original:.1f}"
