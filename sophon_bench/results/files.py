"""Files that are either absent, old, or whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


class WriteError(OSError):
    """A file that cannot be written: the disk is full, a quota is used up, or it is read-only.

    ``filename`` is the file that was meant, not a temporary one.
    """


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` is either absent, old, or whole, also after a crash.

    Raises:
        WriteError: If it cannot be written; ``path`` is then as it was.
    """
    temporary = path.parent / f".writing-{secrets.token_hex(8)}"
    with _named(path):
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


def append(path: Path, content: bytes) -> None:
    """Add ``content`` at the end of a file; after a crash a part of it may be there.

    Raises:
        WriteError: If it cannot be written.
    """
    with _named(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the system says inside into a `WriteError` of ``path``."""
    try:
        yield
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error


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
