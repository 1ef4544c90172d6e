"""Files of strangers: how much is read of them, and what their text may do, which is nothing."""

from __future__ import annotations

import json
import re
from typing import Any

LARGEST = 2**30
"""Bytes of a file of records at most: those of 100 000 cells take less than half of it."""

LARGEST_ENTRY = 2**26
"""Bytes of an entry at most; the largest that is published has 2.7 MB."""

LONGEST_LINE = 2**24
"""Bytes of a record at most; a picture takes up to 8.5 MB of it."""

MOST_DIGITS = 20
"""Of a whole number, its sign included; those of 64 bits have no more."""

UNSEEN = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\ue000-\uf8ff"
)
"""Characters that control a terminal or the direction of text, end a line, or mean nothing, as in
the brackets of a regular expression: control and private characters, marks of direction, separators
of lines, invisible spaces, and halves of a pair."""

_UNSEEN = re.compile(f"[{UNSEEN}]")

_NUMBERS = {int, float, bool, type(None)}


def printable(plain: Any) -> Any:
    """JSON with the characters `UNSEEN` of its texts as escapes: ``\\x1b``."""
    if isinstance(plain, str):
        return plain if plain.isprintable() else _UNSEEN.sub(_escape, plain)
    if isinstance(plain, dict):
        return {printable(key): printable(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return plain if {*map(type, plain)} <= _NUMBERS else [*map(printable, plain)]
    return plain


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def unescaped(content: bytes) -> bool:
    """Whether JSON has no text with characters of `UNSEEN`, as is seen at a glance.

    There a control character stands as an escape, except for DEL, and the others are not ASCII.
    """
    return content.isascii() and b"\\" not in content and b"\x7f" not in content


def harmless(content: bytes) -> bytes:
    """The same JSON, `printable`.

    Raises:
        ValueError: If it is not `unescaped` and `parsed` refuses it.
        RecursionError: As `parsed`.
    """
    if unescaped(content):
        return content
    return json.dumps(printable(parsed(content)), allow_nan=False).encode()


def parsed(text: str | bytes) -> Any:
    """JSON in which each name of an object is there once, and whole numbers are not vast.

    Raises:
        ValueError: If it is none, or has one of those.
        RecursionError: If it is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_once, parse_int=_whole)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice in one object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number has more than {MOST_DIGITS} digits")
    return int(digits)
