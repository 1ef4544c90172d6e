"""Means over seeds, their intervals, and rows of a table by group."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Positions = NDArray[np.intp]
"""(rows,) positions in a table."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Interval(NamedTuple):
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


def jackknife(left_out: Sequence[float]) -> float | None:
    """Variance over seeds of a statistic, from its values with each seed left out once.

    None for fewer than two seeds, or if the statistic is missing (NaN) without one of them.
    """
    count = len(left_out)
    if count < 2 or any(map(math.isnan, left_out)):
        return None
    mean = statistics.fmean(left_out)
    return (count - 1) / count * sum((value - mean) ** 2 for value in left_out)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is neither None nor NaN; None if there is nothing."""
    found = [value for value in values if value is not None and value == value]  # NaN is not
    return math.fsum(found) / len(found) if found else None


def votes(labels: Iterable[str | None]) -> list[tuple[str, int]]:
    """How often each label is there, the most frequent first; None is no vote."""
    counts = Counter(label for label in labels if label is not None)
    return sorted(counts.items(), key=lambda vote: (-vote[1], vote[0]))


def table(columns: Mapping[str, Sequence[Any]]) -> DataFrame:
    """A frame of columns: whole numbers stay whole, and only missing floats become NaN."""
    import pandas as pd

    return pd.DataFrame({name: _series(list(values)) for name, values in columns.items()})


def table_of(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> DataFrame:
    """The same of rows; what one does not have is null."""
    return table({name: [row.get(name) for row in rows] for name in columns})


def _series(values: list[Any]) -> Series:
    import pandas as pd

    kinds = set(map(type, values))
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
        of_rows: (rows,) the index of each row's group, in the order of ``rows``.
        first: (groups,) the first position of each group.
        last: (groups,) the last.
    """

    def __init__(self, numbers: NDArray[Any], rows: Positions | None = None) -> None:
        order = np.argsort(numbers, kind="stable")
        self.rows: Positions = order if rows is None else rows[order]
        numbers = numbers[order]
        begins = np.ones(len(numbers), dtype=bool)
        begins[1:] = numbers[1:] != numbers[:-1]
        self._starts = np.flatnonzero(begins)
        self._ends = np.append(self._starts, len(numbers))[1:]
        self.numbers, self.of_rows = numbers[self._starts], np.cumsum(begins) - 1
        self.first, self.last = self.rows[self._starts], self.rows[self._ends - 1]

    @classmethod
    def of(cls, parts: Iterable[Positions]) -> Groups:
        """Groups that are given one by one, none of them empty."""
        found = list(parts)
        numbers = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        return cls(numbers, np.concatenate([np.empty(0, dtype=np.intp), *found]))

    def __len__(self) -> int:
        return len(self.numbers)

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
        values = np.asarray(column, dtype=float)
        missing = np.isnan(values)
        counts = np.bincount(self.of_rows, ~missing[self.rows], minlength=len(self)).tolist()
        sums = map(math.fsum, self.split(np.where(missing, 0.0, values)))
        return [total / n if n else None for total, n in zip(sums, counts, strict=True)]

    def intervals(self, column: Any) -> list[Interval | None]:
        """The mean with its interval of each group, over what is not NaN."""
        found = ([v for v in values if v == v] for values in self.split(column))  # NaN is not
        return [interval(values) if values else None for values in found]

    def distinct(self, column: Any) -> list[list[Any]]:
        """The sorted distinct values of each group, without missing ones."""
        import pandas as pd

        codes, values = pd.factorize(np.asarray(column)[self.rows], sort=True)
        known = codes >= 0
        pairs = np.unique(self.of_rows[known] * len(values) + codes[known])
        group, code = np.divmod(pairs, max(1, len(values)))
        ends = np.searchsorted(group, np.arange(len(self) + 1)).tolist()
        words = np.asarray(values)[code].tolist()
        return [words[start:end] for start, end in itertools.pairwise(ends)]

    def counts(self, column: Any) -> list[int]:
        """How many distinct values each group has, without missing ones."""
        return [len(values) for values in self.distinct(column)]

    def join(self, column: Any, between: str) -> list[str | None]:
        """The sorted distinct words of each group in one text, None where there are none."""
        return [between.join(words) or None for words in self.distinct(column)]

    def highest(self, values: Floats) -> Positions:
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
