"""How far a metric may change between two runs, in words such as ``restricted:+2pt``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sophon_bench.analysis.case import STATISTICS
from sophon_bench.analysis.statistics import Interval
from sophon_bench.plugins.registry import unknown

SHORT = {"restricted": "restricted_after", "original": "original_after"}
"""What metrics are called for short."""

UNITS: Mapping[str, Literal["pt", "%"]] = {
    "restricted_after": "pt",
    "original_after": "pt",
    **dict.fromkeys(STATISTICS, "pt"),
    "seconds": "%",
    "peak_memory": "%",
    "protect_cost": "%",
    "protect_seconds": "%",
    "protect_peak_memory": "%",
}
"""The metrics that can fail, and what their changes are counted in: points of 1/100, or percent."""

FORM = re.compile(
    r"(?P<metric>[^:]+):(?P<sign>[+-])(?P<limit>\d+(\.\d+)?)(?P<unit>pt|%)(?P<at>@same-machine)?"
)

ROUNDING = 1e-9
"""Differences of fractions are sums of floats: this much over a threshold is still on it."""


@dataclass(frozen=True)
class Threshold:
    """How far a metric may change.

    Attributes:
        text: As it was given.
        metric: Key of flat rows.
        sign: 1 if a rise by more than ``limit`` fails, -1 if a fall does.
        limit: At least 0, in the metric's unit (`UNITS`).
        same_machine: Whether it counts only between equal devices, threads and versions of torch.
    """

    text: str
    metric: str
    sign: int
    limit: float
    same_machine: bool

    def verdict(self, change: Interval) -> str:
        """``regression``, ``improvement`` or ``unchanged``.

        A change counts where it is beyond the limit and its interval, if any, excludes zero.
        """
        for sign, name in ((self.sign, "regression"), (-self.sign, "improvement")):
            size = sign * change.mean
            if size > self.limit + ROUNDING and size > (change.half_width or 0.0):
                return name
        return "unchanged"


def threshold(text: str) -> Threshold:
    """The threshold in words such as ``restricted:+2pt`` or ``seconds:+20%@same-machine``.

    Raises:
        ValueError: If it is none, with what to write instead.
    """
    found = FORM.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} is no threshold: write METRIC, a colon, a sign, a number and pt or %, as in "
            "'restricted:+2pt', 'original:-1pt' or 'seconds:+20%@same-machine'"
        )
    name, sign, unit = found["metric"], found["sign"], found["unit"]
    known = [*SHORT, *UNITS]
    metric = SHORT.get(name, name)
    if metric not in UNITS:
        raise ValueError(f"{unknown('metric', name, known)} (metrics: {', '.join(known)})")
    if unit != UNITS[metric]:
        raise ValueError(
            f"{text!r}: {name} changes in {UNITS[metric]}; did you mean "
            f"'{name}:{sign}{found['limit']}{UNITS[metric]}{found['at'] or ''}'?"
        )
    if found["at"] and metric in STATISTICS:
        raise ValueError(f"{text!r}: {name} covers many records, so @same-machine does not apply")
    return Threshold(text, metric, int(f"{sign}1"), float(found["limit"]), bool(found["at"]))
