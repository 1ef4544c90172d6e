"""Files that are either absent, old, or whole, in a folder on this machine or behind a URL."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCAL = "file://"


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Records have no cycles: among 100 000 of them the collector looks for nothing, and long."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class WriteError(OSError):
    """A file that cannot be written: the disk is full, a quota is used up, or it is read-only.

    ``filename`` is the file that was meant, not a temporary one.
    """


def folder(root: str | Path) -> Folder:
    """The folder at a path of this machine, or at a URL of any kind that fsspec knows."""
    return Folder(str(root)) if is_url(root) else LocalFolder(str(root).removeprefix(LOCAL))


def is_url(place: str | Path) -> bool:
    """Whether something is not at a path of this machine."""
    return "://" in str(place) and not str(place).startswith(LOCAL)


def read_bytes(place: str | Path, most: int) -> bytes:
    """What is in a file, at a path or a URL.

    Raises:
        OSError: If it cannot be read, or has more than ``most`` bytes.
    """
    if is_url(place):
        above, _, name = str(place).rpartition("/")
        files = folder(above)
        if (files.size(name) or 0) <= most:
            return files.read(name)
    else:
        with Path(place).open("rb") as file:
            content = file.read(most + 1)
        if len(content) <= most:
            return content
    raise OSError(errno.EFBIG, f"it has more than {most} bytes, and no more are read")


class Folder:
    """Files by their names relative to a URL; parts of a name are separated by slashes.

    What cannot be read raises an `OSError`, what cannot be written a `WriteError`. A file is put
    as a whole: that is atomic where puts of the file system are, as those of object stores.

    Attributes:
        shared: Whether other processes see the same files.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.root = url.rstrip("/")
        self._fs: Any
        self._fs, self._path = url_to_fs(self.root)
        self.shared: bool = self._fs.protocol != "memory"

    def place(self, name: str) -> str:
        """The whole URL or path of a file."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._fs.exists(self._inside(name)))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file."""
        try:
            return int(self._fs.size(self._inside(name)))
        except FileNotFoundError:
            return None

    def names(self, name: str, suffix: str) -> list[str]:
        """Names with that suffix in a folder inside, in order; none if there is no such folder."""
        try:
            found = self._list(name)
        except FileNotFoundError:
            return []
        return sorted(file for file in found if file.endswith(suffix))

    def read(self, name: str) -> bytes:
        """What is in a file."""
        return bytes(self._fs.cat_file(self._inside(name)))

    def make(self, name: str) -> None:
        """Make a folder inside, and those above it."""
        with _named(self.place(name)):
            self._fs.makedirs(self._inside(name), exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file."""
        with _named(self.place(name)):
            self._fs.pipe_file(self._inside(name), content)

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file; after a crash a part of it may be there."""
        self.write(name, self.read(name) + content)

    def probe(self, name: str, count: int) -> None:
        """Try whether a folder inside takes so many bytes; nothing is left of it."""
        file = f"{name}/{TEMPORARY}{secrets.token_hex(8)}"
        self.write(file, bytes(count))
        self._fs.rm_file(self._inside(file))

    def _list(self, name: str) -> list[str]:
        self._fs.invalidate_cache(self._inside(name))  # others write too
        found = self._fs.ls(self._inside(name), detail=False)
        return [str(path).rsplit("/", 1)[-1] for path in found]

    def _inside(self, name: str) -> str:
        return f"{self._path}/{name}"


class LocalFolder(Folder):
    """A directory of this machine; what is written is on the disk before the call returns."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.shared = True

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(self.place(name))  # noqa: PTH110 - a Path for each is slow

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file."""
        try:
            return Path(self.place(name)).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """What is in a file: of 100 000, file objects and their buffers take half the time."""
        file = os.open(self.place(name), os.O_RDONLY)
        try:
            parts = [os.read(file, SMALL)]
            while len(parts[-1]) == SMALL:
                parts.append(os.read(file, SMALL))
        finally:
            os.close(file)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def make(self, name: str) -> None:
        """Make a folder inside, and those above it."""
        with _named(self.place(name)):
            Path(self.root, name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file, as `write_atomic`."""
        write_atomic(Path(self.root, name), content)

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file; after a crash a part of it may be there."""
        with _named(self.place(name)), Path(self.root, name).open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def probe(self, name: str, count: int) -> None:
        """Try whether a folder inside takes so many bytes; nothing is left of it."""
        import tempfile

        with tempfile.TemporaryFile(dir=Path(self.root, name)) as file:
            file.write(bytes(count))

    def _list(self, name: str) -> list[str]:
        return os.listdir(self.place(name))  # noqa: PTH208


TEMPORARY = ".writing-"
"""How names of files begin that are not whole yet."""

SMALL = 1 << 16
"""Bytes that one record hardly ever has."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` is either absent, old, or whole, also after a crash.

    Raises:
        WriteError: If it cannot be written; ``path`` is then as it was.
    """
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    with _named(str(path)):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Turn what the system says inside into a `WriteError` of the file at ``place``."""
    try:
        yield
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), place) from error


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for a file."""


def remedy(error: OSError) -> str:
    """What the system refused, in one line, and how to go on."""
    place = "standard output" if error.filename is None else repr(str(error.filename))
    verb = " cannot be written" if isinstance(error, WriteError) else ""
    advice = "make room" if error.errno in FULL else "make it writable"
    return (
        f"{place}{verb}: {error.strerror}. Everything finished is kept: {advice}, and the same "
        f"command does the rest"
    )
