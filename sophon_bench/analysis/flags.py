"""Signs that a defense masks the attack instead of resisting it.

Flags are shown beside a score and never applied to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def raised(results: Results) -> DataFrame:
    """The flags of every defense, over all n and for each n by itself.

    Returns:
        One row per place, defense, restricted domain and n that an attack other than a control was
        run on, and one per place and defense with null ``domain`` and ``samples``, over all of
        them. Columns: `PLACE`, ``defense`` (its name in the place), ``role``, ``domain``,
        ``samples`` and ``flags``, a sorted list of phrases.
    """
    raise NotImplementedError(results)


def notes(results: Results) -> Series:
    """What is to be noted of single cells.

    Returns:
        Notes (what the defense said, or ``non-finite``) by cell key. A key is there once per note,
        and not at all where there is nothing to note.
    """
    raise NotImplementedError(results)
