"""Servers that hold files: which of their errors pass, and what is said of the others."""

from __future__ import annotations

import errno
import os
import re

from sophon_bench.plugins.failures import BadInput, first_line

SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
"""Environment variables that no message shows the values of."""

PATIENCE = "SOPHON_BENCH_PATIENCE"
"""Environment variable: for how many seconds a server that does not answer is asked again."""

ANSWERS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError,
           NotADirectoryError)  # fmt: skip
"""Errors that a server answered with, so that asking again helps nothing."""

PASSING = {
    errno.EIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNREFUSED,
    errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH,
    getattr(errno, "EREMOTEIO", errno.EIO), None,
}  # fmt: skip

PASSING_STATUS = (408, 425, 429)
"""HTTP status codes below 500 that say: later."""

CONNECTIONS = {"ConnectionError", "HTTPClientError", "ClientConnectionError", "TransportError"}
"""Classes of botocore, aiohttp and httpx for what happens between here and a server."""

NUMBERS: dict[type[Exception], int] = {
    FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST, PermissionError: errno.EACCES,
    IsADirectoryError: errno.EISDIR, NotADirectoryError: errno.ENOTDIR,
}  # fmt: skip
"""What the system calls errors that have no number."""


def patience() -> float:
    """Seconds that a server which does not answer is asked again.

    Raises:
        BadInput: If the environment says something else than a number.
    """
    return number_in(PATIENCE, 60.0)


def number_in(variable: str, default: float) -> float:
    """What an environment variable says, a number that is not negative.

    Raises:
        BadInput: If it is something else.
    """
    text = os.environ.get(variable, "")
    try:
        found = float(text or default)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise BadInput(f"{variable} is a number of at least 0; got {text!r}")
    return found


def passes(error: Exception) -> bool:
    """Whether the same may work later."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None and status < 500 and status not in PASSING_STATUS:
        return False
    if isinstance(error, OSError):
        return not isinstance(error, ANSWERS) and error.errno in PASSING
    return not CONNECTIONS.isdisjoint(each.__name__ for each in type(error).__mro__)


def plain(error: Exception, place: str) -> OSError:
    """The same as the system would say it of a file, with a number and no credentials."""
    number = getattr(error, "errno", None) or NUMBERS.get(type(error), errno.EINVAL)
    words = getattr(error, "strerror", None) or first_line(error)
    return OSError(number, hidden(words), place)


def hidden(words: str) -> str:
    """The same words without credentials."""
    words = re.sub(r"://[^/@\s]*@", "://…@", words)
    for value in filter(None, map(os.environ.get, SECRETS)):
        words = words.replace(value, "…")
    return words
