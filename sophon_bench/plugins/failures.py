"""Failures that are told in one line, and what the code of others raised, in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from traceback import extract_tb


class Failure(Exception):
    """Something that a user can mend; its message is one line that says how.

    Attributes:
        exit_code: What the command line ends with.
    """

    exit_code = 1


class BadInput(Failure):
    """Something that a user named or wrote cannot be used; raised before any work starts."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def sentence(error: BaseException, is_own: Callable[[Path], bool]) -> str:
    """``TypeError: words (file.py:12)``: what was raised, and where.

    Args:
        error: What was raised.
        is_own: Whether a file is the author's: the innermost line in such a file is named.
    """
    name, words = type(error).__name__, first_line(error)
    own = [f for f in extract_tb(error.__traceback__) if is_own(Path(f.filename))]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return (name if words == name else f"{name}: {words}") + where
