"""Files from the network: what was interrupted goes on, and only the published file gets its name.

A file that is not whole yet has the suffix ``.part``; the next call asks its server for the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from sophon_bench.plugins.failures import first_line

CHUNK = 1 << 20
"""Bytes that are asked of a connection at once."""

TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as cut."""

NOTHING_LEFT = 416
"""Status of a request for what comes after a file's end."""


class DownloadError(Exception):
    """A file cannot be had, or is another than the published one."""


@dataclass(frozen=True)
class Archive:
    """A file as its publisher offers it.

    Attributes:
        urls: Where it is, in the order in which they are tried.
        md5: Its MD5 sum, in hexadecimal.
        folder: Where its content belongs, below the folder of sets.
    """

    urls: tuple[str, ...]
    md5: str
    folder: str = "."

    @property
    def name(self) -> str:
        """Of the file."""
        return self.urls[0].rpartition("/")[2]

    @property
    def packed(self) -> bool:
        """Whether it has to be unpacked; others are read as they are."""
        return self.name.endswith((".tar.gz", ".tgz"))


def fetch(archive: Archive, folder: Path) -> Path:
    """The file in ``folder``, downloaded unless it is there; a bar on a terminal.

    Raises:
        DownloadError: If no server sends it whole, or another file has its name.
        OSError: If ``folder`` cannot be made or read.
    """
    file = folder / archive.name
    if file.exists():
        if (found := _md5(file)) != archive.md5:
            raise DownloadError(f"{str(file)!r} has MD5 {found}, expected {archive.md5}; remove it")
        return file
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    reasons = []
    for url in archive.urls:
        try:
            _receive(url, part)
        except (OSError, HTTPException, ValueError) as error:  # the last of headers without sense
            reasons.append(f"{url}: {first_line(error)}")
            continue
        if (found := _md5(part)) == archive.md5:
            return part.replace(file)
        part.unlink()
        reasons.append(f"{url} has MD5 {found}, expected {archive.md5}")
    raise DownloadError("; ".join(reasons))


def _receive(url: str, part: Path) -> None:
    """Append what ``part`` lacks, over new connections as long as each brings more.

    A server that sends the whole file instead of the rest is listened to from the beginning.
    """
    while True:
        begun = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": "sophon-bench", **({"Range": f"bytes={begun}-"} if begun else {})}
        try:
            response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
        except HTTPError as error:
            error.close()
            if begun and error.code == NOTHING_LEFT:
                return
            raise
        with response:
            start, total = _extent(response)
            if start not in (0, begun):
                raise OSError(f"bytes from {start} came, those from {begun} were asked for")
            _append(response, part, start, total)
        size = part.stat().st_size
        if total is None or size == total:
            return
        if size <= begun:
            raise OSError(f"the connection was cut after {size} of {total} bytes")


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """At which byte of the file an answer begins, and how many the file has, if that is said."""
    if content_range := response.headers.get("Content-Range"):
        place, _, total = content_range.removeprefix("bytes ").partition("/")
        return int(place.partition("-")[0]), int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length")
    return 0, None if length is None else int(length)


def _append(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    """Write what comes from byte ``start`` on, until the end or until the connection is cut."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    with (
        part.open("ab") as file,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress,
        contextlib.suppress(ConnectionError, TimeoutError, HTTPException),
    ):
        file.truncate(start)
        task = progress.add_task(f"getting {part.stem}", total=total, completed=start)
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
