"""What became of what a plugin did to the process, and how to mend the plugin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHORT = 200
"""Characters of a sentence that advice is given on."""


@dataclass(frozen=True)
class Kind:
    """A kind of what a plugin did.

    Attributes:
        begins: How its sentences begin.
        after: What became of it.
        advice: How to mend the plugin.
    """

    begins: str
    after: str
    advice: str


KINDS = (
    Kind("changed", "it was put back", "change it in a 'with', or put it back in a 'finally'"),
    Kind("kept state", "it was put back", "keep state in local variables of run"),
    Kind("printed", "it is shown here alone", "print nothing; say what matters by warnings.warn"),
    Kind("left threads", "they go on", "end them in a 'finally' around the yields"),
    Kind("left processes", "they were ended", "end them in a 'finally' around the yields"),
    Kind("left", "it was undone", "undo it in a 'finally' around the yields"),
    Kind("swallowed", "the generator was ended", "let it through; clean up in a 'finally'"),
    Kind(
        "raised", "it was ignored", "let what ends the plugin, or its threads, end without errors"
    ),
)
"""Kinds of sentences; the first that fits counts."""


def kind_of(words: str) -> Kind:
    """Of which kind a sentence in `Containment.found` is."""
    return next(kind for kind in KINDS if words.startswith(kind.begins))


def advised(found: Sequence[str]) -> str:
    """What a plugin did, in short, and how to mend it."""
    return "; ".join(f"it {words[:SHORT]} ({kind_of(words).advice})" for words in found)


def subject_of(words: str) -> str:
    """What a sentence is about, without the values that differ from one stage to the next."""
    return re.split(r" to |: | \d", words)[0]
