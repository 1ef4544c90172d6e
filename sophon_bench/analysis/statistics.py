"""Means over seeds, their intervals, and rows of a table by group."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Positions = NDArray[np.intp]
"""(rows,) positions in a table."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the half-width of its 95 % interval; None for one seed."""

    mean: float
    half_width: float | None


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of at least one value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Interval(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Interval(mean, t95(count - 1) * math.sqrt(variance / count))


@functools.cache
def t95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


@functools.cache
def z95(comparisons: int) -> float:
    """The normal quantile of a 95 % interval over so many comparisons (Bonferroni)."""
    from scipy.special import ndtri

    return float(ndtri(1 - 0.025 / comparisons))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count``."""
    z = z95(1)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def jackknife(
    statistic: Callable[[int | None], float | None], seeds: Sequence[int]
) -> float | None:
    """Variance of a statistic over seeds.

    Args:
        statistic: A function of the seed to leave out; None leaves none out.
        seeds: The seeds.

    Returns:
        None for fewer than two seeds, or if the statistic is missing without one of them.
    """
    if len(seeds) < 2:
        return None
    values = [value for out in seeds if (value := statistic(out)) is not None]
    if len(values) < len(seeds):
        return None
    mean = statistics.fmean(values)
    return (len(seeds) - 1) / len(seeds) * sum((value - mean) ** 2 for value in values)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is neither None nor NaN; None if there is nothing."""
    found = [value for value in values if value is not None and value == value]  # NaN is not
    return math.fsum(found) / len(found) if found else None


def table(columns: Mapping[str, Sequence[Any]]) -> DataFrame:
    """A frame of columns: whole numbers stay whole, and only missing floats become NaN."""
    import pandas as pd

    return pd.DataFrame({name: _series(list(values)) for name, values in columns.items()})


def _series(values: list[Any]) -> Series:
    import pandas as pd

    kinds = {type(value) for value in values}
    if kinds <= {float, type(None)} and float in kinds:
        return pd.Series(values, dtype="float64")
    if len(kinds) == 1 and kinds <= {int, bool}:
        return pd.Series(values)
    return pd.Series(values, dtype=object)


class Groups:
    """Rows of a table by group: sorted once, reduced column by column.

    Means are exact sums (`math.fsum`), which those of `DataFrame.groupby` are not.

    Args:
        numbers: (rows,) the group of each row; groups are in the order of their numbers.
        rows: (rows,) positions in the table, all of them if not given. Within a group they keep
            their order.

    Attributes:
        numbers: (groups,) the number of each group.
        rows: (rows,) positions in the table, group by group.
        first: (groups,) the first position of each group.
    """

    def __init__(self, numbers: NDArray[Any], rows: Positions | None = None) -> None:
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        self.rows = order if rows is None else rows[order]
        begins = np.ones(len(numbers), dtype=bool)
        begins[1:] = numbers[1:] != numbers[:-1]
        self._starts = np.flatnonzero(begins)
        self._ends = np.append(self._starts, len(numbers))[1:]
        self.numbers = numbers[self._starts]
        self.first = self.rows[self._starts]

    @classmethod
    def of(cls, parts: Iterable[Positions]) -> Groups:
        """Groups that are given one by one, none of them empty."""
        found = list(parts)
        numbers = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        return cls(numbers, np.concatenate([np.empty(0, dtype=np.intp), *found]))

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def of_rows(self) -> NDArray[np.intp]:
        """(rows,) the index of each row's group, in the order of ``rows``."""
        return np.repeat(np.arange(len(self)), self._ends - self._starts)

    @property
    def last(self) -> Positions:
        """(groups,) the last position of each group."""
        found: Positions = self.rows[self._ends - 1]
        return found

    def positions(self) -> list[Positions]:
        """The rows of each group."""
        return np.split(self.rows, self._starts[1:]) if len(self) else []

    def split(self, column: Any) -> Iterator[list[Any]]:
        """The column's values of each group."""
        values = np.asarray(column)[self.rows].tolist()
        for start, end in zip(self._starts.tolist(), self._ends.tolist(), strict=True):
            yield values[start:end]

    def means(self, column: Any) -> list[float | None]:
        """The mean of each group (`mean`)."""
        return [mean(values) for values in self.split(column)]

    def intervals(self, column: Any) -> list[Interval | None]:
        """The mean with its interval of each group, over what is not NaN."""
        found = ([v for v in values if v == v] for values in self.split(column))  # NaN is not
        return [interval(values) if values else None for values in found]

    def distinct(self, column: Any) -> list[list[Any]]:
        """The sorted distinct values of each group, without missing ones."""
        groups, codes, values = self._distinct(column)
        found: list[list[Any]] = [[] for _ in range(len(self))]
        for group, code in zip(groups.tolist(), codes.tolist(), strict=True):
            found[group].append(values[code])
        return found

    def counts(self, column: Any) -> list[int]:
        """How many distinct values each group has, without missing ones."""
        found: list[int] = np.bincount(self._distinct(column)[0], minlength=len(self)).tolist()
        return found

    def _distinct(self, column: Any) -> tuple[Positions, Positions, Any]:
        import pandas as pd

        codes, values = pd.factorize(np.asarray(column)[self.rows], sort=True)
        known = codes >= 0
        count = max(1, len(values))
        pairs = np.unique(self.of_rows[known] * count + codes[known])
        return pairs // count, pairs % count, values.tolist()

    def join(self, column: Any, between: str) -> list[str | None]:
        """The sorted distinct words of each group in one text, None where there are none."""
        return [between.join(words) or None for words in self.distinct(column)]

    def highest(self, values: NDArray[np.float64]) -> NDArray[np.intp]:
        """The first position in each group that has its highest value.

        Args:
            values: (rows, columns), in the order of ``rows``; -inf where there is none.

        Returns:
            (groups, columns) indices into ``values``, -1 where a group has none.
        """
        if not len(values):
            return np.empty((0, values.shape[1]), dtype=np.intp)
        highest = np.maximum.reduceat(values, self._starts, axis=0)
        beaten = values < highest[self.of_rows]
        index = np.where(beaten, len(values), np.arange(len(values))[:, None])
        found = np.minimum.reduceat(index, self._starts, axis=0)
        return np.where(highest == -np.inf, -1, found)
