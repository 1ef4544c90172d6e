"""Where numbers come from, in words: machines, days, and the command that makes records again.

Cells are rows of `Results.cells`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sophon_bench.leaderboard.columns import Row
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.results.records import OR

if TYPE_CHECKING:
    from pandas import DataFrame

MAKER = ("version", "commit", "dirty", "torch", "device", "threads")


def made_on(cells: DataFrame) -> str:
    """Package, commit, torch and device that records were made with, in words."""
    makers = cells[[f"made_{name}" for name in MAKER]].drop_duplicates()
    return "; ".join(sorted({_made_on(*row) for row in makers.itertuples(index=False)}))


def _made_on(
    version: str, commit: str | None, dirty: bool | None, torch: str, device: str, threads: int
) -> str:
    at = "an unknown commit" if commit is None else f"commit {commit[:8]}"
    return (
        f"sophon-bench {version} at {at}{' with changes' if dirty else ''}, torch {torch}, "
        f"{device}, {threads} thread{'' if threads == 1 else 's'}"
    )


def distinct(values: Iterable[Any]) -> str:
    """Each once, in order."""
    return ", ".join(map(str, sorted(set(values))))


def days(cells: DataFrame) -> str:
    """The first and the last day on which records were finished."""
    first, last = (f(cells["made_finished"])[:10] for f in (min, max))
    return first if first == last else f"{first} to {last}"


def suites(cells: DataFrame) -> Iterator[list[str]]:
    """The labels of the suites that asked for each cell."""
    return (suite.split(OR) if suite else [] for suite in cells["suite"])


def endings(made: Row) -> str:
    """How making models ended where it was not to plan (a row of `analysis.releases`)."""
    return "; ".join(f"{words} ({count} of {made['seeds']})" for words, count in made["ended"])


def statuses(cells: DataFrame) -> str:
    """How many records ended in which way."""
    return ", ".join(
        f"{count} {status}" for status, count in sorted(Counter(cells["status"]).items())
    )


def trouble(cells: DataFrame) -> list[str]:
    """Trials that did not run, or not to their end, and why."""
    bad = cells.loc[cells["status"] != "ok", ["attack", "samples", "status", "reason"]]
    votes = Counter(
        f"{attack}, n = {samples}: {status}" + (f", {reason}" if reason else "")
        for attack, samples, status, reason in bad.itertuples(index=False)
    )
    return [
        words if count == 1 else f"{words} ({count} records)"
        for words, count in sorted(votes.items())
    ]


def duration(cells: DataFrame) -> str:
    """How long attacks of these records took; what made the models comes on top."""
    hours = cells["seconds"].sum() / 3600
    return (
        f"The attacks of these {len(cells)} records took {hours:.1f} h of one process, on "
        f"{made_on(cells)}; pre-training, protection and scoring come on top."
    )


def reproduction(cells: DataFrame) -> str:
    """The command that makes records of one place again, those of the undefended model included.

    What a search added is not named: it follows from the suite. Plugins of a single file are: by
    its name, which is all that a record knows of where it was. So is an audited checkpoint.
    """
    first = cells.iloc[0]
    asked = cells[~cells["derived"] & (cells["stretch"] == 1) & (cells["role"] == "restricted")]
    listed = {
        name
        for control, attack, of in zip(
            asked["attack_control"], asked["attack"], suites(asked), strict=True
        )
        for name in [label.split()[0] for label in of] or ([] if control else [attack])
    }
    audited = first["defense_name"] == f"checkpoint-{first['defense_source'][:12]}"
    prefix = first["defense_parameters"].get("prefix") if audited else None
    defended = sorted(set(cells.loc[~cells["defense_control"], "defense"]))
    distributions = {*cells["defense_distribution"], *cells["attack_distribution"]}
    options = {
        "--scenario": [first["scenario"]],
        "--backbone": [first["backbone"]],
        "--sha256": [first["defense_source"]] if audited else [],
        "--prefix": [] if prefix is None else [prefix],
        "--defense": [] if audited else defended or [first["defense"]],
        "--attack": sorted(listed),
        "--samples": [",".join(map(str, sorted(set(asked["samples"]))))],
        "--seeds": [_ranges(cells["seed"])],
        "--steps": [f"{first['budget'] / REFERENCE_BATCH:g}"],
        "--precision": [first["precision"]],
        "--plugin": sorted(name for name in distributions if name.endswith(".py")),
    }
    words = [word for name, values in options.items() for value in values for word in (name, value)]
    made = ["audit", "MODEL.safetensors"] if audited else ["run"]
    return shlex.join(["sophon-bench", *made, *words])


def _ranges(numbers: Iterable[int]) -> str:
    """``0-2,7``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
