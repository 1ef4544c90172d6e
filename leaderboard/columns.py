"""What columns tables have: each declared once, for the five formats and for the page.

A table is a list of `Column` over a frame. In the views of `TEXT` columns stand in the order of
that list, and cells are texts; in the views of `DATA` they stand in the frame's own order, under
their keys, and cells are the values. A frame's column that is declared nowhere is shown nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sophon_bench.results.frames import PLACE

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Row = Mapping[str, Any]
"""One row of a frame; what is missing is None, or not there."""

TEXT = frozenset({"console", "md", "latex", "page"})
"""Views that people read."""

DATA = frozenset({"csv", "json"})
"""Views that programs read: flat rows with stable keys."""

NOTHING = "·"
PROVISIONAL = "†"
ROLLED_BACK = "‡"
TENTATIVE = "~"
"""Marks a change on one seed, which has no interval."""

SCALES: Mapping[str, Callable[[float], float]] = {
    "%": lambda value: 100 * value,
    "MB": lambda value: value / 1e6,
    "M": lambda value: value / 1e6,
    "TFLOP": lambda value: value / 1e12,
}
"""From the unit of a frame's value to the unit that it is shown in."""

SIGNS = {"×": "×", "M": " M"}
"""What stands behind a number of a unit; other units stand in headers and titles."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Args:
        key: Its name in the frame, and in the views of `DATA`.
        header: Its name in the views of `TEXT`; None: the key.
        unit: What numbers are shown in, of `SCALES`.
        format: How a cell's text is made: a format of the number, which has its
            ``KEY_half_width`` behind it where the row has one, or a function of the row.
        sort: What the page sorts rows by; None: the value.
        views: Which views show it.
        best: Whether the highest value is set in bold, in LaTeX.
    """

    key: str
    header: str | None = None
    unit: str = ""
    format: str | Callable[[Row], str] = ""
    sort: Callable[[Row], Any] | None = None
    views: frozenset[str] = TEXT | DATA
    best: bool = False

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.key if self.header is None else self.header

    def text(self, row: Row) -> str:
        """The cell of ``row`` in words."""
        if callable(self.format):
            return self.format(row)
        value, half_width = row.get(self.key), row.get(f"{self.key}_half_width")
        return number(value, half_width, self.format, self.unit)

    def sort_value(self, row: Row) -> Any:
        """What ``row`` is sorted by; None comes last."""
        value = row.get(self.key) if self.sort is None else self.sort(row)
        return round(value, 6) if isinstance(value, float) else value


def shown_in(view: str, columns: Iterable[Column]) -> list[Column]:
    """The columns that a view shows."""
    return [column for column in columns if view in column.views]


def pick(columns: Iterable[Column], *keys: str) -> list[Column]:
    """The columns of these keys, in their order."""
    known = {column.key: column for column in columns}
    return [known[key] for key in keys]


def frame(rows: Iterable[Row]) -> DataFrame:
    """Rows as a frame whose cells are as they are: whole numbers stay whole."""
    import pandas as pd

    return pd.DataFrame([*rows], dtype=object)


def records(df: DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as plain values; what is missing is None."""
    keys = list(df)
    values = [_plain(df[key]) for key in keys]
    return [dict(zip(keys, row, strict=True)) for row in zip(*values, strict=True)]


def _plain(column: Series) -> list[Any]:
    import pandas as pd

    values: list[Any] = column.tolist()
    missing = pd.isna(column.array)
    if missing.any():
        values = [None if lost else v for v, lost in zip(values, missing, strict=True)]
    if column.dtype != object:
        return values
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def number(
    value: Any, half_width: float | None = None, format_spec: str = "", unit: str = ""
) -> str:
    """A value with its interval and the sign of its unit: ``12.3 ± 4.1``."""
    if value is None:
        return NOTHING
    known = [part for part in (value, half_width) if part is not None]
    parts = [format(SCALES[unit](part) if unit in SCALES else part, format_spec) for part in known]
    return " ± ".join(parts) + SIGNS.get(unit, "")


def percent(value: float | None, half_width: float | None = None) -> str:
    """A fraction in percent, without the sign."""
    return number(value, half_width, ".1f", "%")


def loss(value: float | None, half_width: float | None = None) -> str:
    """Four decimals and no zero before them, as papers have it: ``.0372 ± .0011``."""
    parts = [f"{v:.4f}".removeprefix("0") for v in (value, half_width) if v is not None]
    return NOTHING if value is None else " ± ".join(parts)


def multiple(value: float, bound: str = "") -> str:
    """Two digits and a sign before them: ``>16×``."""
    text = f"{value:.0f}" if value >= 10 else f"{value:.2g}"
    return f"{bound}{text}×"


def amount(value: float) -> str:
    """Three digits, or all of a whole number that has more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def span(seeds: Iterable[int]) -> str:
    """Numbers of seeds in words: ``3–5 seeds``."""
    counts = sorted(set(seeds))
    listed = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{listed} seed{'' if counts[-1] == 1 else 's'}"


SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def superscript(count: int) -> str:
    """The mark of a footnote."""
    return str(count).translate(SUPERSCRIPTS)


def data(*keys: str) -> Iterator[Column]:
    """Columns that programs alone read."""
    return (Column(key=key, views=DATA) for key in keys)


def marked(key: str, format_spec: str, *marks: str) -> Callable[[Row], str]:
    """A number with the ``footnote`` of its row, if it has one, and with some of its `MARKS`."""

    def text(row: Row) -> str:
        value, half_width = row.get(key), row.get(f"{key}_half_width")
        signs = [MARKS[mark] for mark in marks if row.get(mark)]
        return "".join([number(value, half_width, format_spec), row.get("footnote") or "", *signs])

    return text


AGREEING = ("reported", "again")
"""Begin the columns of what an entry says and of what came out again."""

HALF_COSTS = (
    "half_cost", "undefended_cost", "scratch_cost", "times_undefended", "times_scratch",
)  # fmt: skip
"""Columns of `analysis.half_costs`, each with a bound."""

MARKS = {"provisional": PROVISIONAL, "rolled_back": ROLLED_BACK}
"""What stands behind a score where that is so, by the key that says it."""


def known(key: str, text: Callable[[Row], str], missing: str = NOTHING) -> Callable[[Row], str]:
    """What a row says that has this key."""
    return lambda row: missing if row.get(key) is None else text(row)


def _b50(row: Row) -> str:
    alone = multiple(row["b50"], ">" if row["b50_censored"] else "")
    if row["b50_search"] is None:
        return alone
    searched = multiple(row["b50_search"], ">" if row["b50_search_censored"] else "")
    return f"{alone} ({searched})"


def _original(row: Row) -> str:
    after, before = row.get("original_after"), row.get("original_before")
    return NOTHING if after is before is None else f"{percent(after)} ({percent(before)})"


def _count(row: Row) -> int | None:
    return None if row.get("flags") is None else len(row["flags"])


DEFENSE = Column(key="defense", header="")

OTHERS = (
    *data(
        *PLACE, "suite", "utility", "name", "control", "status", "family", "axis", "value",
        "attack", "trial_name", "trials", "best", "half", "domain", "key", "stretch", "unscored",
        "samples", "seeds", "seeds_reached", "released_seeds", "rolled_back", "provisional",
        "counted", "frozen", "original_before", "original_loss_before", "original_loss",
        "restricted_before", "restricted_loss", "restricted_loss_half_width",
        "restricted_after_half_width", "undefended_after", "scratch_after", "score_half_width",
        "resistance_half_width", "resistance_difference_half_width", "score_difference_half_width",
        "b50_censored", "b50_search", "b50_search_censored", "peak_memory", "seconds", "other",
        "unit", "half_width", "verdict", "tentative", "reason",
        *(f"{side}_{part}" for side in AGREEING for part in ("status", "low", "high")),
        *(f"protect_{name}_times" for name in ("seconds", "flops", "peak_memory", "examples")),
        *(f"{cost}{end}" for cost in HALF_COSTS for end in ("", "_bound")),
    ),
    Column(key="parameters", views=frozenset({"json"})),
)  # fmt: skip
"""What programs alone read, in the flat rows that have it."""

SCORES = (
    DEFENSE,
    Column(key="rank"),
    Column(key="score", format=marked("score", ".1f", *MARKS), best=True),
    Column(key="resistance", format=".2f", best=True),
    Column(key="worst_resistance", header="worst n", format=".2f"),
    Column(key="intactness", header="intact", format=".2f"),
    Column(key="trainability", header="trainable", format=".2f"),
    Column(key="b50", header="B50 (search)", unit="×", format=known("b50", _b50)),
    Column(key="original_after", header="original (was)", unit="%", format=_original),
    Column(key="restricted_after", header="restricted", unit="%", format=".1f"),
    Column(key="protect_cost", header="cost", unit="×", format=".2f"),
    Column(key="flags", format=lambda row: number(_count(row)), sort=_count),
    *OTHERS,
)
"""Of one row per defense, and in flat rows of one per attack and defense too."""

LISTED = Column(key="listed_after", header="listed", unit="%", format=".1f")

ABLATION = (
    *pick(SCORES, "score", "resistance", "original_after", "restricted_after"),
    LISTED,
    *pick(SCORES, "protect_cost", "flags"),
)

CRITERIA = (
    DEFENSE,
    Column(key="criterion", format=marked("criterion", ".1f")),
    Column(key="resistance", format=".3f"),
    *pick(SCORES, "intactness", "original_after", "restricted_after", "protect_cost"),
    *OTHERS,
)

DIFFERENCES = (
    DEFENSE,
    Column(key="seeds"),
    Column(key="resistance_difference", header="resistance", format=".2f", best=True),
    Column(key="score_difference", header="score", format=marked("score_difference", ".1f"),
           best=True),
    Column(key="clear", header="",
           format=lambda row: "clear of zero" if row["clear"] else NOTHING),
    *OTHERS,
)  # fmt: skip


def _longer(row: Row) -> str:
    return f"{row['attack']} ×{row['stretch']}" if row["stretch"] > 1 else str(row["attack"])


def _made(key: str) -> Callable[[Row], str]:
    """What a record says, with the interval over test images if it has one."""

    def text(row: Row) -> str:
        if row[key] is None:
            return str(row[f"{key}_status"])
        if row[f"{key}_low"] is None:
            return percent(row[key])
        return f"{percent(row[key])} ({percent(row[f'{key}_low'])}–{percent(row[f'{key}_high'])})"

    return text


AGREEMENTS = (
    Column(key="attack", header="", format=_longer),
    Column(key="defense"),
    Column(key="samples", header="n"),
    Column(key="seed"),
    Column(key="reported", unit="%", format=_made("reported")),
    Column(key="again", unit="%", format=_made("again")),
    Column(key="agreement", header=""),
    Column(key="differing"),
    *OTHERS,
)


def _maker(row: Row) -> str:
    ends = {"released": "", "attacked": ", attacked", "scratch": ""}
    return ("scratch" if row["maker"] == "scratch" else row["defense"]) + ends[row["maker"]]


def _distance(key: str) -> Callable[[Row], str]:
    """A Fréchet distance, and that of real images."""

    def text(row: Row) -> str:
        distance = number(row[key], row[f"{key}_half_width"], ".1f")
        return f"{distance} ({number(row[f'{key}_real'], None, '.1f')})"

    return known(key, text)


IMAGES = (
    Column(key="maker", header="", format=_maker),
    Column(key="domain", format=lambda row: "original" if row["maker"] == "released"
           else "restricted"),
    Column(key="samples", header="n"),
    Column(key="attack"),
    Column(key="frechet", header="Fréchet distance", format=_distance("frechet")),
    Column(key="classifier_score", header="classifier score", format=".2f"),
    Column(key="fid", header="FID (Inception)", format=_distance("fid")),
)  # fmt: skip


def _cost(key: str, header: str, unit: str) -> Column:
    """What protecting took, and that as a multiple of pre-training."""

    def text(row: Row) -> str:
        times = row[f"{key}_times"]
        spent = amount(SCALES.get(unit, float)(row[key]))
        return spent if row["control"] or times is None else f"{spent} ({multiple(times)})"

    return Column(key=key, header=header, unit=unit, format=known(key, text))


SPENT = (
    _cost("protect_seconds", "seconds", "s"),
    _cost("protect_flops", "TFLOP", "TFLOP"),
    _cost("protect_peak_memory", "peak MB", "MB"),
    _cost("protect_examples", "examples", ""),
)
"""What protecting took."""

PROTECTION = (DEFENSE, Column(key="seeds"), *SPENT, *OTHERS)
"""Of one row per defense, and in flat rows of one per attack and defense too."""


def _growing(key: str, text: Callable[[Any], str], header: str | None = None) -> Column:
    """A number that exponents, which stand below, lack."""
    return Column(key=key, header=header, format=known(key, lambda row: text(row[key]), ""))


def _measured(row: Row, key: str) -> str:
    """Seconds, or the exponent that they grow with."""
    return format(row[key], ".2f" if row.get("times") is None else ".4f")


GROWTH = (
    Column(key="backbone", header=""),
    _growing("parameters", lambda value: number(value, None, ".2f", "M")),
    _growing("flops", lambda value: number(value, None, ".1f", "M"), "FLOP per unit"),
    _growing("units", "{:.0f}".format),
    Column(key="seconds", unit="s", format=lambda row: _measured(row, "seconds")),
    Column(key="pretrain_seconds", header="pre-training", unit="s",
           format=lambda row: _measured(row, "pretrain_seconds")),
    _growing("times", multiple),
)  # fmt: skip


def _changed(side: str) -> Callable[[Row], str]:
    """A metric's value in one of two runs; a status is a word."""

    def text(row: Row) -> str:
        metric, value = row["metric"], row[side]
        if not isinstance(value, int | float):
            return NOTHING if value is None else str(value)
        if metric.endswith("seconds"):
            return f"{value:.3g} s"
        if metric.endswith("peak_memory"):
            return f"{number(value, None, '.0f', 'MB')} MB"
        if metric == "protect_cost":
            return number(value, None, ".2f", "×")
        return number(value, None, ".1f") if metric == "score" else percent(value)

    return text


def change(row: Row) -> str:
    """How much a metric changed; of a status, on which seeds."""
    if row["metric"] == "status" and row["verdict"] != "accepted":
        return str(row["reason"])
    if row["difference"] is None:
        return NOTHING
    sign = "+" if row["difference"] >= 0 else ""
    text = sign + number(row["difference"], row["half_width"], ".1f")
    return f"{text}{TENTATIVE if row['tentative'] else ''} {row['unit']}"


CHANGES = (
    Column(key="subject", header="", views=TEXT),
    Column(key="metric"),
    Column(key="base", format=_changed("base")),
    Column(key="new", format=_changed("new")),
    Column(key="difference", header="change", format=change),
    Column(key="threshold", header="allowed",
           format=known("threshold", lambda row: row["threshold"].partition(":")[2])),
    *data("defense"),
    *OTHERS,
)  # fmt: skip
