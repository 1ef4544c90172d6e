"""A store in a bucket of a real server: the same records, whatever it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import TINY
from fsspec.registry import _registry
from test_engine import metrics

from sophon_bench.cli import main
from sophon_bench.results.documents import read_file
from sophon_bench.results.store import Store

RUN = [
    "run", "--scenario", "tiny", "--steps", "2", "--samples", "20", "--attack",
    "finetune[lr=[0.01,0.03]]", "--threads", "1",
]  # fmt: skip
COMMAND = [sys.executable, "-c", "from sophon_bench.cli import main; main()"]


def told(*arguments: object) -> Result:
    """What the command says in this process."""
    return CliRunner().invoke(main, [*map(str, arguments)])


def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command says in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_two_processes_leave_the_records_of_a_local_store(s3: str, tmp_path: Path) -> None:
    found = []
    for store, workers in ((tmp_path / "store", 1), (f"{s3}/store", 2)):
        file = tmp_path / f"{workers}.json"
        done = ran(*RUN, "--plugin", TINY, "--workers", workers, "--store", store, "--json", file)
        assert done.returncode == 0, done.stderr
        records = Store(store, reading=True).records()
        assert metrics(records) == metrics(read_file(file)[1])
        found.append((metrics(records), told("table", "--store", store)))
    (local, table), (remote, remote_table) = found
    assert remote == local
    assert remote_table.exit_code == 0, remote_table.output
    assert remote_table.stdout == table.stdout
    again = told(*RUN, "--store", f"{s3}/store", "--verbose")
    assert again.exit_code == 0, again.output
    assert ", 5 of them from the store" in again.stderr


def test_a_bucket_that_is_not_there_is_not_made(s3: str) -> None:
    gone = f"{s3}-gone"
    done = told(*RUN, "--store", f"{gone}/store")
    assert done.exit_code == 2
    assert f"store '{gone}/store' cannot be written: The specified bucket does not" in done.stderr
    assert told("table", "--store", f"{gone}/store").exit_code == 2


def test_the_extra_is_named_where_its_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    done = told("table", "--store", "s3://bucket/store")
    assert done.exit_code == 2
    assert "cannot be opened: pip install 'sophon-bench[s3]'" in done.stderr


@pytest.mark.parametrize("command", [("table",), (*RUN,)])
def test_a_password_in_a_url_is_refused_and_not_shown(command: tuple[str, ...]) -> None:
    done = told(*command, "--store", "s3://AKIDSHOWN:hunter2@bucket/store")
    assert done.exit_code == 2, done.output
    assert "with a password in it is refused" in done.stderr
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    for secret in ("hunter2", "AKIDSHOWN"):
        assert secret not in done.output
