"""Answers of `metrics` as the frames that figures take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """One row per row, with its keys as columns; whole numbers stay whole, None stays None."""
    import pandas as pd

    return pd.DataFrame(list(rows), dtype=object)
