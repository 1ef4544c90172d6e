"""Files that are either absent, old, or whole, in a folder on this machine or behind a URL."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from sophon_bench.plugins.failures import BadInput, first_line
from sophon_bench.results.servers import hidden, passes, patience, plain

T = TypeVar("T")

LOCAL = "file://"

EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra that brings the library for a kind of URL, where the installation alone does not."""

BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs"}
"""Kinds of URL that have no folders; making one there would make a bucket."""

READ_ONLY = {"hf", "http", "https"}
"""Kinds of URL that are read, and not written file by file."""

PASSWORD = re.compile(r"://[^/@]*:(?!\d+/)[^@]*@")
"""Where a URL holds a name and a password, which may have slashes; a port is none."""

LONGEST_PAUSE = 15.0
"""Seconds between two of those attempts at most; the first follows after a quarter of one."""

STALLED = 20.0
"""Seconds after which a server that is given nothing more to do has stalled."""

SLOWEST = 50_000
"""Bytes in a second that a server takes at least."""

AT_ONCE = 64
"""Files that are asked for at once, where a file system can."""


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


class Unreachable(WriteError):
    """A server that did not answer for as long as `servers.patience` says."""


def folder(root: str | Path) -> Folder:
    """The folder at a path of this machine, also below ``~``, or at a URL that fsspec knows.

    Raises:
        BadInput: For a URL that holds a password, or is of a kind that cannot be opened.
    """
    if not is_url(root):
        return LocalFolder(local_path(root))
    kind = str(root).partition("://")[0]
    if PASSWORD.search(str(root)):
        raise BadInput(
            f"a URL {kind}://… with a password in it is refused: records and messages may show it. "
            f"Give credentials by the environment or a file (for S3, AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        )
    try:
        return Folder(str(root))
    except ImportError as error:
        extra = EXTRAS.get(kind)
        advice = f"in a clone of the repository, pip install '.[{extra}]'" if extra else str(error)
        raise BadInput(f"{str(root)!r} cannot be opened: {advice}") from error
    except ValueError as error:
        raise BadInput(f"{str(root)!r} cannot be opened: {error}") from error


def local_path(place: str | Path) -> str:
    """The path of something on this machine, without ``file://`` and ``~``, else as it is given."""
    return os.path.expanduser(str(place).removeprefix(LOCAL))  # noqa: PTH111


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
        if files.size(name) <= most:
            return files.read(name)
    else:
        with Path(local_path(place)).open("rb") as file:
            content = file.read(most + 1)
        if len(content) <= most:
            return content
    raise OSError(errno.EFBIG, f"it has more than {most} bytes, and no more are read")


class Folder:
    """Files by their names relative to a URL; parts of a name are separated by slashes.

    What cannot be read raises an `OSError`, what cannot be written a `WriteError`. A file is put
    as a whole: that is atomic where puts of the file system are, as those of object stores. A
    server that does not answer is asked again, with a warning, before `Unreachable` is raised.

    Attributes:
        shared: Whether other processes see the same files.
        writable: Whether files can be written there at all.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.root = url.rstrip("/")
        self._fs: Any
        self._fs, self._path = url_to_fs(self.root)
        if hasattr(self._fs.dircache, "use_listings_cache"):
            self._fs.dircache.use_listings_cache = False  # others write too
        if hasattr(self._fs, "config_kwargs"):  # S3: trying again is said, and so done here
            self._fs.config_kwargs.setdefault("retries", {"total_max_attempts": 1})
            self._fs.retries = 1
        self.shared: bool = self._fs.protocol != "memory"
        self.writable: bool = READ_ONLY.isdisjoint(self._kinds)

    @property
    def _kinds(self) -> Sequence[str]:
        kinds: str | Sequence[str] = self._fs.protocol
        return [kinds] if isinstance(kinds, str) else kinds

    def place(self, name: str) -> str:
        """The whole URL or path of a file."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._ask(name, lambda inside: self._fs.exists(inside)))

    def names(self, name: str, suffix: str) -> list[str]:
        """Names with that suffix in a folder inside, in order; none if there is no such folder."""
        try:
            found = self._list(name)
        except FileNotFoundError:
            return []
        return sorted(file for file in found if file.endswith(suffix))

    def read(self, name: str) -> bytes:
        """What is in a file."""
        return bytes(self._ask(name, lambda inside: self._fs.cat_file(inside)))

    def contents(self, names: Sequence[str]) -> Iterator[bytes | OSError]:
        """What is in each of several files, or why it cannot be read; many are read at once."""
        for start in range(0, len(names), AT_ONCE):
            batch = names[start : start + AT_ONCE]
            places = [self._inside(name) for name in batch]
            found = self._fs.cat_ranges(places, None, None, on_error="return")
            for name, content in zip(batch, found, strict=True):
                yield self.tried(name) if isinstance(content, Exception) else bytes(content)

    def tried(self, name: str) -> bytes | OSError:
        """What is in a file, or why it cannot be read."""
        try:
            return self.read(name)
        except Unreachable:
            raise
        except OSError as error:
            return error

    def make(self, name: str) -> None:
        """Make a folder inside, and those above it, where there are folders."""
        if BUCKETS.isdisjoint(self._kinds):
            with _named(self.place(name)):
                self._ask(name, lambda inside: self._fs.makedirs(inside, exist_ok=True))

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file."""
        self._put(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Make a file, and say so, unless there is one: of several writers the first wins.

        Where the file system cannot tell, as a server without conditional puts, one that writes at
        the same time may win; what then stands there is whole too.
        """
        try:
            self._put(name, content, mode="create")
        except Unreachable:
            raise
        except WriteError as error:
            if self.exists(name):
                return False
            if error.errno not in UNKNOWN:
                raise
            self.write(name, content)
        return True

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file; after a crash a part of it may be there.

        Where files are put as a whole, what another process adds at the same time may be lost.
        """
        self.write(name, self.read(name) + content)

    def probe(self, name: str, count: int) -> None:
        """Try whether a folder inside takes so many bytes; nothing is left of it."""
        file = f"{name}/{TEMPORARY}{secrets.token_hex(8)}"
        self.write(file, bytes(count))
        self.remove(file)

    def remove(self, name: str) -> None:
        """Delete a file."""
        with _named(self.place(name)):
            self._ask(name, lambda inside: self._fs.rm_file(inside))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self._ask(name, lambda inside: self._fs.size(inside)))

    def modified(self, name: str) -> float:
        """When a file was written, in seconds since 1970."""
        found: float = self._ask(name, lambda inside: self._fs.modified(inside)).timestamp()
        return found

    def _put(self, name: str, content: bytes, **how: Any) -> None:
        if self._fs.async_impl:  # aiohttp alone would wait for a server's "100 Continue" for ever
            how["timeout"] = STALLED + len(content) / SLOWEST
        with _named(self.place(name)):
            self._ask(name, lambda inside: self._fs.pipe_file(inside, content, **how))

    def _list(self, name: str) -> list[str]:
        found = self._ask(name, lambda inside: self._fs.ls(inside, detail=False))
        return [str(path).rsplit("/", 1)[-1] for path in found]

    def _ask(self, name: str, call: Callable[[str], T]) -> T:
        """What the file system says of the path of a file; asked again if it does not answer."""
        until, pause = time.monotonic() + patience(), 0.25
        while True:
            try:
                return call(self._inside(name))
            except Exception as error:
                if not passes(error):
                    raise plain(
                        error, self.place(name)
                    ) from None  # what it comes from may show credentials
                words = hidden(first_line(error)) if str(error) else "it took too long"
                left = until - time.monotonic()
            if left < pause:
                raise Unreachable(
                    errno.ETIMEDOUT, f"it does not answer ({words})", self.place(name)
                )
            if pause > 0.25:
                warnings.warn(
                    f"{self.root} does not answer ({words}); trying again for {left:.0f} seconds",
                    RuntimeWarning,
                    stacklevel=3,
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _inside(self, name: str) -> str:
        return f"{self._path}/{name}"


class LocalFolder(Folder):
    """A directory of this machine; the content of a file is on the disk before its name is there.

    Directories are not synced, which here takes longer than all else: a machine that loses its
    power may lose the names of the last seconds, and what they stood for is then done again.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.shared = self.writable = True

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(self.place(name))  # noqa: PTH110 - a Path for each is slow

    def read(self, name: str) -> bytes:
        """What is in a file: of 100 000, file objects and their buffers take half the time."""
        file = os.open(self.place(name), os.O_RDONLY | BINARY)
        try:
            return b"".join(iter(lambda: os.read(file, SMALL), b""))
        finally:
            os.close(file)

    def contents(self, names: Sequence[str]) -> Iterator[bytes | OSError]:
        """What is in each of several files, or why it cannot be read."""
        return map(self.tried, names)

    def make(self, name: str) -> None:
        """Make a folder inside, and those above it."""
        with _named(self.place(name)):
            Path(self.root, name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file, as `write_atomic`."""
        write_atomic(Path(self.root, name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Make a file, and say so, unless there is one: of several writers the first wins."""
        return not self.exists(name) and write_atomic(
            Path(self.root, name), content, replacing=False
        )

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

    def remove(self, name: str) -> None:
        """Delete a file."""
        with _named(self.place(name)):
            path = Path(self.root, name)
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def size(self, name: str) -> int:
        """Bytes of a file, or of what is in a folder."""
        return sum(each.stat().st_size for each in self._within(name))

    def modified(self, name: str) -> float:
        """When a file, or the last in a folder, was written, in seconds since 1970."""
        return max(each.stat().st_mtime for each in self._within(name))

    def _within(self, name: str) -> Iterator[Path]:
        path = Path(self.root, name)
        return chain([path], path.rglob("*") if path.is_dir() else ())

    def _list(self, name: str) -> list[str]:
        return os.listdir(self.place(name))  # noqa: PTH208


TEMPORARY = ".writing-"
"""How names of files begin that are not whole yet."""

SMALL = 1 << 16
"""Bytes that one record hardly ever has."""

BINARY = getattr(os, "O_BINARY", 0)
"""Without it, Windows changes the ends of lines and stops at a Ctrl-Z."""

UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EINVAL)
"""What a file system says that cannot tell whether it makes a file or replaces one."""


def write_atomic(path: Path, content: bytes, *, replacing: bool = True) -> bool:
    """Write ``content`` so that ``path`` is either absent, old, or whole, also after a crash.

    Args:
        path: The file.
        content: All that is to be in it.
        replacing: Whether a file that is there is replaced; if not, it stays, unless the file
            system has no hard links.

    Returns:
        Whether it was written.

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
            made = _move(temporary, path, replacing=replacing)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return made


def _move(temporary: Path, path: Path, *, replacing: bool) -> bool:
    if not replacing:
        try:
            path.hardlink_to(temporary)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
    temporary.replace(path)
    return True


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Turn what the system says inside into a `WriteError` of the file at ``place``."""
    try:
        yield
    except Unreachable:
        raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), place) from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for a file."""


def remedy(error: OSError) -> str:
    """What the system refused, in one line, and how to go on."""
    place = "standard output" if error.filename is None else repr(str(error.filename))
    if isinstance(error, Unreachable):
        return (
            f"{place}: {error.strerror}. Everything finished is kept: when it answers, the same "
            "command does the rest"
        )
    verb = " cannot be written" if isinstance(error, WriteError) else ""
    advice = "make room" if error.errno in FULL else "make it writable"
    return (
        f"{place}{verb}: {error.strerror}. Everything finished is kept: {advice}, and the same "
        f"command does the rest"
    )
