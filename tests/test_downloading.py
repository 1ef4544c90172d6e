"""Downloads from a server in this process: cut, resumed, refused, and the sets' archives."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torchvision.datasets
from test_data_commands import call, refused
from test_published_sets import (
    CIFAR,
    CINIC,
    IMAGENETTE,
    PER_CLASS,
    write_cifar10,
    write_folder,
    write_idx,
)

from sophon_bench.data import downloading
from sophon_bench.data.downloading import Archive, DownloadError, fetch
from sophon_bench.data.sets import SETS, WORDNET

CONTENT = bytes(os.urandom(1000))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@dataclass
class Server:
    """Files by path, and how the server behaves.

    Attributes:
        url: Of its root.
        files: What it has.
        ranges: Whether it answers with the rest of a file where that is asked for.
        cut: Bytes after which it closes each connection; None: it sends everything.
        sized: Whether it says how long its answers are.
        shift: How far off the range is that it answers with.
        extent: What it says of that range; None: the truth.
        asked: Path and ``Range`` of every request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut: int | None = None
    sized: bool = True
    shift: int = 0
    extent: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted))
        if request.path not in self.files:
            request.send_error(404)
            return
        content, start = self.files[request.path], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                request.send_error(416)
                return
            start += self.shift
            request.send_response(206)
            extent = f"bytes {start}-{len(content) - 1}/{len(content)}"
            request.send_header("Content-Range", self.extent or extent)
        else:
            request.send_response(200)
        if self.sized:
            request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:][: self.cut])


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield found
        http.shutdown()
        thread.join()


def offered(server: Server, name: str = "set.bin", content: bytes = CONTENT) -> Archive:
    """An archive that the server has."""
    server.files[f"/{name}"] = content
    return Archive((f"{server.url}/{name}",), md5(content))


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    archive = offered(server)
    for _ in range(2):
        assert fetch(archive, tmp_path / "new").read_bytes() == CONTENT
    assert server.asked == [("/set.bin", None)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set.bin"]


@pytest.mark.parametrize(
    ("begun", "ranges", "asked"),
    [
        (0, True, [None]),
        (1, True, ["bytes=1-"]),
        (400, True, ["bytes=400-"]),
        (999, True, ["bytes=999-"]),
        (1000, True, ["bytes=1000-"]),  # all of it, answered with 416
        (400, False, ["bytes=400-"]),  # the whole file is sent instead
    ],
)
def test_what_was_begun_goes_on(
    begun: int, ranges: bool, asked: list[str | None], server: Server, tmp_path: Path
) -> None:
    server.ranges = ranges
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:begun])
    assert fetch(offered(server), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == asked
    assert not (tmp_path / "set.bin.part").exists()


def test_a_cut_connection_is_made_anew_while_it_brings_more(server: Server, tmp_path: Path) -> None:
    server.cut = 300
    assert fetch(offered(server), tmp_path).read_bytes() == CONTENT
    asked = [None, "bytes=300-", "bytes=600-", "bytes=900-"]
    assert [wanted for _, wanted in server.asked] == asked


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"ranges": False, "cut": 300}, 300), ({"cut": 0}, 0)],
)
def test_a_cut_download_is_told_and_goes_on_in_the_next_call(
    change: dict[str, int], kept: int, server: Server, tmp_path: Path
) -> None:
    archive = offered(server)
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(DownloadError, match=f"the connection was cut after {kept} of 1000 bytes$"):
        fetch(archive, tmp_path)
    assert (tmp_path / "set.bin.part").read_bytes() == CONTENT[:kept]
    server.ranges, server.cut = True, None
    server.asked.clear()
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/set.bin", f"bytes={kept}-" if kept else None)]


@pytest.mark.parametrize("sized", [True, False])
def test_another_file_is_refused_and_not_gone_on_with(
    sized: bool, server: Server, tmp_path: Path
) -> None:
    archive = offered(server)
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    server.files["/set.bin"], server.sized = wrong, sized
    with pytest.raises(DownloadError) as raised:
        fetch(archive, tmp_path)
    assert str(raised.value) == (
        f"{server.url}/set.bin has MD5 {md5(wrong)}, expected {md5(CONTENT)}"
    )
    assert [*tmp_path.iterdir()] == []


def test_a_part_of_another_file_is_told_and_the_next_call_starts_over(
    server: Server, tmp_path: Path
) -> None:
    archive = offered(server)
    (tmp_path / "set.bin.part").write_bytes(b"x" * 1500)  # longer than the file: 416
    with pytest.raises(DownloadError, match="has MD5 "):
        fetch(archive, tmp_path)
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=1500-", None]


def test_an_answer_of_unknown_length_that_is_cut_is_not_taken(
    server: Server, tmp_path: Path
) -> None:
    archive = offered(server)
    server.sized, server.cut = False, 300
    with pytest.raises(DownloadError, match="has MD5 "):
        fetch(archive, tmp_path)
    assert not (tmp_path / "set.bin").exists()


@pytest.mark.parametrize(
    ("extent", "words"),
    [
        (None, "bytes from 405 came, those from 400 were asked for"),
        ("bytes */1000", "invalid literal for int"),
        ("nonsense", "invalid literal for int"),
    ],
)
def test_another_range_than_asked_for_is_refused(
    extent: str | None, words: str, server: Server, tmp_path: Path
) -> None:
    server.shift, server.extent = 5, extent
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:400])
    with pytest.raises(DownloadError, match=re.escape(words)):
        fetch(offered(server), tmp_path)
    assert (tmp_path / "set.bin.part").read_bytes() == CONTENT[:400]


def test_a_file_of_the_same_name_is_not_written_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"set\.bin' has MD5 .* remove it$"):
        fetch(offered(server), tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == b"mine"
    assert server.asked == []


def test_mirrors_are_tried_in_order(server: Server, tmp_path: Path) -> None:
    archive = offered(server)
    (url,) = archive.urls
    mirrors = (f"{server.url}/gone/set.bin", url)
    assert fetch(dataclasses.replace(archive, urls=mirrors), tmp_path / "a").exists()
    with pytest.raises(DownloadError) as raised:
        fetch(dataclasses.replace(archive, urls=(mirrors[0], f"{url}?no")), tmp_path / "b")
    assert str(raised.value) == (
        f"{mirrors[0]}: HTTP Error 404: Not Found; {url}?no: HTTP Error 404: Not Found"
    )


@pytest.mark.parametrize("sized", [True, False])
def test_progress_has_a_total_and_goes_on_where_it_stopped(
    sized: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.progress import Progress

    begun: list[tuple[float | None, float]] = []
    gained: list[float] = []
    real = Progress.add_task

    def add_task(self: Progress, words: str, *, total: float | None, completed: int) -> object:
        assert words == "getting set.bin"
        begun.append((total, completed))
        return real(self, words, total=total, completed=completed)

    monkeypatch.setattr(Progress, "add_task", add_task)
    monkeypatch.setattr(Progress, "advance", lambda _self, _task, more: gained.append(more))
    server.sized = sized
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:400])
    fetch(offered(server), tmp_path)
    assert begun == [(1000, 400)]
    assert sum(gained) == 600


# Sets ------------------------------------------------------------------------------------------


def packed(folder: Path, names: list[str], file: Path) -> bytes:
    """A tar archive of some of a folder's content."""
    with tarfile.open(file, "w:gz") as archive:
        for name in names:
            archive.add(folder / name, name)
    return file.read_bytes()


Offer = Callable[[Path], dict[str, bytes]]


def _idx(work: Path) -> dict[str, bytes]:
    write_idx(work / "raw", "mnist", packed=True)
    return {f"MNIST/raw/{path.name}": path.read_bytes() for path in (work / "raw").iterdir()}


def _cifar10(work: Path) -> dict[str, bytes]:
    write_cifar10(work)
    return {"./cifar-10-python.tar.gz": packed(work, ["cifar-10-batches-py"], work / "tar")}


def _cinic10(work: Path) -> dict[str, bytes]:
    write_folder(work, "cinic10", CINIC, CIFAR)
    (work / "README.md").write_text("about")
    return {"CINIC-10/CINIC-10.tar.gz": packed(work, [*CINIC, "README.md"], work / "tar")}


def _imagenette(work: Path) -> dict[str, bytes]:
    write_folder(work / "imagenette2-160", "imagenette", IMAGENETTE, tuple(WORDNET))
    return {"./imagenette2-160.tgz": packed(work, ["imagenette2-160"], work / "tar")}


@pytest.fixture
def offer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Offer], None]:
    """Puts a small set onto the server, in the form that its publisher gives it."""
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda path, _md5: Path(path).is_file()
    )

    def put(name: str, write: Offer) -> None:
        work = tmp_path / "work"
        work.mkdir()
        found = SETS[name]
        files = write(work)
        archives = tuple(
            dataclasses.replace(offered(server, Path(file).name, content),
                                folder=file.rpartition("/")[0])
            for file, content in files.items()
        )  # fmt: skip
        counts = {part: 10 * PER_CLASS[part] for part in found.counts}
        small = dataclasses.replace(found, counts=counts, archives=lambda: archives)
        monkeypatch.setitem(SETS, name, small)

    return put


PUT: dict[str, Offer] = {
    "mnist": _idx,
    "cifar10": _cifar10,
    "cinic10": _cinic10,
    "imagenette": _imagenette,
}


@pytest.mark.parametrize("name", PUT)
def test_a_missing_set_is_downloaded_if_asked_for(
    name: str, offer: Callable[[str, Offer], None], server: Server, tmp_path: Path
) -> None:
    offer(name, PUT[name])
    words = ["data", "prepare", name, "--data", tmp_path / "new", "--image-size", "16",
             "--store", tmp_path / "store"]  # fmt: skip
    assert "does not exist" in refused(*words)
    assert "does not exist" in refused(*words, "--offline")
    assert server.asked == []
    server.cut = 4000
    prepared = call(*words, "--download")
    assert prepared.stdout.startswith(f"{name}: 10 classes; train 60, "), prepared.output
    assert any(wanted for _, wanted in server.asked), "cut and resumed"
    server.asked.clear()
    assert call(*words, "--download").stdout == prepared.stdout
    assert call(*words).stdout == prepared.stdout
    assert server.asked == []
    assert not [path for path in (tmp_path / "new").iterdir() if path.name.startswith(".")]


def test_files_that_are_missing_are_downloaded(
    offer: Callable[[str, Offer], None], server: Server, tmp_path: Path
) -> None:
    offer("mnist", _idx)
    shutil.copytree(tmp_path / "work/raw", tmp_path / "new/MNIST/raw")
    (tmp_path / "new/MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    words = ["data", "prepare", "mnist", "--data", tmp_path / "new", "--store", tmp_path / "s"]
    assert "is not whole" in refused(*words)
    assert call(*words, "--download").exit_code == 0
    assert [path for path, _ in server.asked] == ["/t10k-labels-idx1-ubyte.gz"]


def test_a_folder_that_is_not_whole_is_not_written_over(
    offer: Callable[[str, Offer], None], tmp_path: Path
) -> None:
    offer("cifar10", _cifar10)
    folder = tmp_path / "new/cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(b"mine")
    line = refused("data", "prepare", "cifar10", "--download", "--data", tmp_path / "new")
    assert f"'{folder}' is there and is not whole; remove it" in line
    assert (folder / "batches.meta").read_bytes() == b"mine"
    assert {path.name for path in folder.parent.iterdir()} == {
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    }


def test_a_download_that_fails_is_told(
    offer: Callable[[str, Offer], None], server: Server, tmp_path: Path
) -> None:
    offer("cifar10", _cifar10)
    server.files.clear()
    line = refused("data", "prepare", "cifar10", "--download", "--data", tmp_path / "new")
    assert line == (
        f"CIFAR-10 cannot be downloaded: {server.url}/cifar-10-python.tar.gz: HTTP Error 404: Not "
        f"Found; get it from {SETS['cifar10'].page} and unpack it in '{tmp_path}/new'"
    )


def test_a_network_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_words: object, **_more: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(downloading, "urlopen", fail)
    line = refused("data", "prepare", "mnist", "--download", "--data", tmp_path)
    assert re.match(r"MNIST cannot be downloaded: (https?://\S+: no route; ){2}get it from", line)


@pytest.mark.parametrize("name", SETS)
def test_every_set_has_archives_with_sums(name: str) -> None:
    archives = SETS[name].archives()
    assert archives
    for archive in archives:
        assert re.fullmatch(r"[0-9a-f]{32}", archive.md5)
        assert {url.rpartition("/")[2] for url in archive.urls} == {archive.name}
    unpacked = [f"{each.folder}/{each.name}" for each in archives if not each.packed]
    assert not unpacked or any({*unpacked} == {*each.files} for each in SETS[name].layouts)


def test_imagenette_is_the_one_of_torchvision() -> None:
    (archive,) = SETS["imagenette"].archives()
    assert (*archive.urls, archive.md5) == torchvision.datasets.Imagenette._ARCHIVES["160px"]
