"""A store in a bucket of a real server: the same records, whatever it does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TINY, MakeCell
from fsspec.core import url_to_fs
from fsspec.registry import _registry
from msgspec.structs import replace
from object_store import ENVIRONMENT, Server
from s3fs import S3FileSystem
from test_engine import metrics

from sophon_bench.cli import main
from sophon_bench.plugins.failures import BadInput
from sophon_bench.results import files
from sophon_bench.results.copies import Copies
from sophon_bench.results.documents import read_file
from sophon_bench.results.files import Folder, folder
from sophon_bench.results.store import Store, StoreError, is_store

RUN = [
    "run", "--scenario", "tiny", "--steps", "2", "--samples", "20", "--attack",
    "finetune[lr=[0.01,0.03]]", "--threads", "1",
]  # fmt: skip
COMMAND = [sys.executable, "-c", "from sophon_bench.cli import main; main()"]

SLOW = pytest.mark.slow
SECRET_NAMES = [name for name in ENVIRONMENT if "KEY" in name]
SECRET = [ENVIRONMENT[name] for name in SECRET_NAMES]

Impatient = Callable[[Callable[[float], None]], None]


def told(*arguments: object) -> Result:
    """What the command says in this process."""
    return CliRunner().invoke(main, [*map(str, arguments)])


def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command says in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def impatient(
    object_store: Server, s3: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Impatient]:
    """Reading waits a moment; takes what happens in place of a pause, and thaws in the end."""
    S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(S3FileSystem, "read_timeout", 0.3)
    monkeypatch.setattr(files, "STALLED", 0.3)
    monkeypatch.setattr(files, "SLOWEST", 1e8)
    yield lambda pause: monkeypatch.setattr(
        files, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause)
    )
    object_store.thaw()
    S3FileSystem.clear_instance_cache()


def test_a_server_that_answers_again_was_waited_for(
    object_store: Server, s3: str, impatient: Impatient, make_cell: MakeCell
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            object_store.thaw()

    store, cell = Store(s3), make_cell().cell
    object_store.freeze()
    impatient(pause)
    with pytest.warns(RuntimeWarning, match="does not answer .*; trying again for") as warned:
        store.put_cell(cell)
    assert store.cell(cell.key) == cell
    assert pauses == [0.25, 0.5, 1.0]
    assert len(warned) == 2, "a short pause is not worth a word"


@pytest.mark.parametrize(
    "when",
    ["put_cell", "weights", *(pytest.param(w, marks=SLOW) for w in ("put_weights", "begin"))],
)
def test_a_server_that_is_gone_ends_the_run_in_one_line_and_the_same_command_goes_on(
    object_store: Server,
    s3: str,
    impatient: Impatient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    monkeypatch.setenv("SOPHON_BENCH_PATIENCE", "0")
    monkeypatch.setenv("SOPHON_BENCH_COPIES_GB", "0")
    whole = getattr(Store, when)

    def gone(*arguments: object) -> object:
        object_store.freeze()
        return whole(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(Store, when, gone)
        done = told(*RUN, "--store", s3)
    object_store.thaw()
    assert done.exit_code == 1, done.output
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert s3 in line
    assert "it does not answer (" in line
    assert "Everything finished is kept: when it answers, the same command does the rest" in line
    assert all(cell.status == "ok" for cell in Store(s3).cells()), "that is no fault of an attack"
    again = told(*RUN, "--store", s3, "--json", tmp_path / "out.json")
    assert again.exit_code == 0, again.output
    assert len(read_file(tmp_path / "out.json")[1].cells) == 3


@pytest.mark.parametrize("login", ["", "AKIDSHOWN:hunter2@"])
@pytest.mark.parametrize("command", [("table",), tuple(RUN)])
def test_a_server_that_is_not_there_is_named_without_credentials(
    s3: str, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], login: str
) -> None:
    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("SOPHON_BENCH_PATIENCE", "0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{login}127.0.0.1:1")
    done = told(*command, "--store", s3)
    S3FileSystem.clear_instance_cache()
    assert done.exit_code == 1
    reason = "An HTTP Client raised" if login else "Could not connect to the endpoint URL"
    assert f"'{s3}/store.json': it does not answer ({reason}" in done.stderr
    for secret in ("hunter2", "AKIDSHOWN", *SECRET):
        assert secret not in done.output


@pytest.mark.parametrize("text", ["-1", "many", "nan", "inf"])
def test_a_patience_that_is_no_number_is_refused(
    s3: str, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SOPHON_BENCH_PATIENCE", text)
    with pytest.raises(BadInput, match="SOPHON_BENCH_PATIENCE is a number of at least 0; got"):
        is_store(s3)


def test_weights_are_fetched_once_and_a_damaged_copy_again(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_cell: MakeCell
) -> None:
    weights = {"w": torch.arange(1000.0)}
    digest = Store(s3).put_weights(weights)
    record = replace(make_cell().pretrained, weights=digest)
    copy = tmp_path / "cache" / "sophon-bench" / "copies" / digest
    assert copy.exists(), "the machine that made it needs it next"
    name = f"models/{digest}.safetensors"
    whole = folder(s3).read(name)
    for damage in (b"", whole[:-1], bytes(len(whole))):
        copy.write_bytes(damage)
        assert torch.equal(Store(s3).weights(record)["w"], weights["w"])
        assert copy.read_bytes() == whole
    folder(s3).remove(name)
    assert torch.equal(Store(s3).weights(record)["w"], weights["w"]), "there is a copy"
    copy.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        Store(s3).weights(record)


def test_copies_that_were_not_read_for_longest_make_room(tmp_path: Path) -> None:
    copies = Copies(tmp_path / "copies", limit=250)
    contents = [bytes([n]) * 100 for n in range(4)]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    for number in (0, 1):
        copies.keep(digests[number], contents[number])
        os.utime(copies.root / digests[number], (number, number))
    assert copies.read(digests[0]) == contents[0], "which is now the last that was read"
    copies.keep(digests[2], contents[2])
    assert [copies.read(digest) for digest in digests] == [contents[0], None, contents[2], None]
    copies.keep("f" * 64, bytes(251))
    assert len(list(copies.root.iterdir())) == 2, "what takes more than all is not kept"


@pytest.mark.slow
def test_two_processes_leave_the_records_of_a_local_store(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    fs, _ = url_to_fs(s3)
    for name, content in fs.cat(fs.find(s3)).items():
        assert not any(secret.encode() in content for secret in SECRET), name
    one_by_one, read = [], Folder.read
    monkeypatch.setattr(Folder, "read", lambda at, name: one_by_one.append(name) or read(at, name))
    again = told(*RUN, "--store", f"{s3}/store", "--verbose")
    assert again.exit_code == 0, again.output
    assert ", 5 of them from the store" in again.stderr
    assert one_by_one
    assert not [name for name in one_by_one if name.startswith(("cells/", "models/"))]


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
    assert "cannot be opened: in a clone of the repository, pip install '.[s3]'" in done.stderr


@pytest.mark.parametrize("password", ["hunter2", "hunter2/with+slash="])
@pytest.mark.parametrize("command", [("table",), (*RUN,), ("store", "gc"), ("info",)])
def test_a_password_in_a_url_is_refused_and_not_shown(
    command: tuple[str, ...], password: str
) -> None:
    done = told(*command, "--store", f"s3://AKIDSHOWN:{password}@bucket/store")
    assert done.exit_code == 2, done.output
    assert "with a password in it is refused" in done.stderr
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    for secret in ("hunter2", "AKIDSHOWN"):
        assert secret not in done.output


def test_a_port_and_a_name_are_no_password() -> None:
    for url in ("sftp://me@host:22/store", "sftp://host:22/home/me@here", "s3://bucket/a:b@c"):
        assert not files.PASSWORD.search(url)


def test_credentials_that_are_missing_are_said_to_be(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRET_NAMES:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    S3FileSystem.clear_instance_cache()
    done = told(*RUN, "--store", s3)
    S3FileSystem.clear_instance_cache()
    assert done.exit_code == 2
    assert f"store '{s3}' cannot be written: Unable to locate credentials" in done.stderr
