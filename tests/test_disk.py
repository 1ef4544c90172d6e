"""A disk that is full, or turns read-only: one line, nothing lost, the same command goes on."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import TINY
from test_engine import metrics

from sophon_bench.cli import main
from sophon_bench.results import files
from sophon_bench.results.documents import read_file
from sophon_bench.results.files import WriteError, folder
from sophon_bench.results.store import Store, StoreError

RUN = [
    "run", "--scenario", "tiny", "--steps", "2", "--samples", "20", "--attack",
    "finetune[lr=[0.01,0.03]]", "--threads", "1",
]  # fmt: skip
COMMAND = [sys.executable, "-c", "from sophon_bench.cli import main; main()"]


def run(store: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, [*RUN, "--store", str(store), *map(str, arguments)])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(folder, "--json", folder / "out.json")
    assert result.exit_code == 0, result.output
    return metrics(read_file(folder / "out.json")[1])


def failing(code: int, *, after: int) -> Callable[[int], None]:
    """In place of fsync: refuses what is written after so many writes."""
    left = after
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    return fsync


def one_line(stderr: str) -> str:
    """The error, which is one line and no traceback; progress lines come before it."""
    assert "Traceback" not in stderr
    (line,) = (line for line in stderr.splitlines() if line.startswith("Error: "))
    return line


FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]


@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
def test_a_write_that_fails_mid_run_ends_it_in_one_line_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any], code: int
) -> None:
    with monkeypatch.context() as broken:
        # one per file: marker, manifest, model's weights and record, …
        broken.setattr(files.os, "fsync", failing(code, after=7))
        result = run(tmp_path)
    assert result.exit_code == 1, result.output
    line = one_line(result.stderr)
    assert os.strerror(code) in line
    assert f"{tmp_path}/cells/" in line
    assert "Everything finished is kept" in line
    assert "the same command does the rest" in line
    kept = {f: f.stat().st_mtime_ns for f in tmp_path.glob("cells/*.json")}
    assert 0 < len(kept) < len(undisturbed)
    assert not list(tmp_path.glob("*/.writing-*"))

    again = run(tmp_path, "--json", tmp_path / "out.json")
    assert again.exit_code == 0, again.output
    assert metrics(read_file(tmp_path / "out.json")[1]) == undisturbed
    assert {f: f.stat().st_mtime_ns for f in kept} == kept


@pytest.mark.parametrize("after", range(7))
def test_whichever_file_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any], after: int
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(files.os, "fsync", failing(errno.ENOSPC, after=after))
        result = run(tmp_path)
    # before any work starts it is the directory that is no good, and bad input
    assert result.exit_code == (2 if after == 0 else 1)
    assert "No space left on device" in one_line(result.stderr)
    assert run(tmp_path, "--json", tmp_path / "out.json").exit_code == 0
    assert metrics(read_file(tmp_path / "out.json")[1]) == undisturbed


def test_a_full_disk_under_the_results_file_says_what_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path).exit_code == 0
    monkeypatch.setattr(files.os, "fsync", failing(errno.ENOSPC, after=0))
    result = run(tmp_path, "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    assert f"{str(tmp_path / 'out.json')!r} cannot be written: No space left" in result.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_real_limit_on_files(tmp_path: Path, undisturbed: dict[str, Any], workers: int) -> None:
    """The system itself refuses a file larger than so much, as a quota would."""
    largest = 1 << 17  # holds the probe and manifests, and no model
    options = ["--workers", workers, "--plugin", TINY, "--store", tmp_path, "--json"]
    words = [*COMMAND, *RUN, *map(str, options), str(tmp_path / "out.json")]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    broken = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=limited)
    assert broken.returncode == 1, broken.stderr
    assert ".safetensors' cannot be written: File too large. " in one_line(broken.stderr)
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert metrics(read_file(tmp_path / "out.json")[1]) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, which holds no second model."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("mounting a file system takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_real_disk_that_is_full_and_one_that_turns_read_only(
    small_disk: Path, undisturbed: dict[str, Any]
) -> None:
    store = small_disk / "store"
    full = run(store)
    assert full.exit_code == 1, full.output
    assert "cannot be written: No space left on device. Everything" in one_line(full.stderr)
    still = run(store)
    assert still.exit_code in (1, 2)
    assert "No space left on device" in one_line(still.stderr)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert run(store, "--json", small_disk / "out.json").exit_code == 0
    assert metrics(read_file(small_disk / "out.json")[1]) == undisturbed

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    more = run(store, "--seeds", "1")
    assert more.exit_code == 2, "nothing has begun"
    assert "Read-only file system; choose another directory" in one_line(more.stderr)
    table = CliRunner().invoke(main, ["table", "--store", str(store)])
    assert table.exit_code == 0, "what is finished can still be read"
    assert "finetune[lr=0.01]" in table.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", [["list", "attacks"], ["run", "--help"]])
def test_output_that_cannot_be_written_is_an_error_in_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: standard output: No space left on device. ")
    assert done.stderr.count("\n") == 1


def test_the_file_that_was_meant_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "no-such-folder" / "x.json"
    inside = folder(tmp_path)
    for write in (inside.write, inside.append):
        with pytest.raises(WriteError) as caught:
            write("no-such-folder/x.json", b"x")
        assert caught.value.filename == str(gone)
        assert caught.value.errno == errno.ENOENT


def test_a_store_that_is_read_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        Store(tmp_path / "nowhere", reading=True)
    assert not (tmp_path / "nowhere").exists()
