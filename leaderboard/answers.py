"""What `sophon_bench.analysis` answers, with the names of the plugins that tables need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sophon_bench.analysis import agreement, comparison, cost, domains, score, series, tuning
from sophon_bench.analysis import images as made
from sophon_bench.analysis import trials as tried
from sophon_bench.analysis.envelope import once

if TYPE_CHECKING:
    from pandas import DataFrame

    from sophon_bench.results import Results


def _named(find: Callable[..., DataFrame], several: int = 1) -> Callable[..., DataFrame]:
    """The same answer with columns ``…_name`` and ``…_label`` of its defenses and attacks.

    A selector may stand with its version, where one place has two: both are known. ``several``
    says how many of the first arguments are results.
    """

    @functools.wraps(find)
    def answer(*arguments: Any) -> DataFrame:
        df = find(*arguments).copy()
        for kind in [kind for kind in ("defense", "attack") if kind in df]:
            plugins: dict[str, tuple[str, str]] = {}
            for results in arguments[:several]:
                plugins |= _plugins(results)[kind]
            for number, end in enumerate(("name", "label")):
                known = {shown: plugin[number] for shown, plugin in plugins.items()}
                df[f"{kind}_{end}"] = df[kind].map(known).astype(object)
        return df

    return answer


@once
def _plugins(results: Results) -> dict[str, dict[str, tuple[str, str]]]:
    """Names and selectors of defenses and of attacks, by what tables may show of them."""
    return {
        kind: {
            shown: (name, label)
            for label, name, version in results.cells[[kind, f"{kind}_name", f"{kind}_version"]]
            .drop_duplicates()
            .itertuples(index=False, name=None)
            for shown in (label, f"{label}@{version[:7]}")
        }
        for kind in ("defense", "attack")
    }


trials = _named(tried.trials)
scores = _named(score.scores)
differences = _named(score.differences)
winners = _named(series.winners)
curves = _named(series.curves)
sweeps = _named(series.sweeps)
by_domain = _named(domains.domains)
ablation = _named(series.ablation)
recipe = _named(series.recipe)
releases = _named(series.releases)
images = _named(made.images)
protection = _named(cost.protection)
half_costs = _named(cost.half_costs)
criteria = _named(tuning.criteria)
compare = _named(comparison.compare, several=2)
agreements = _named(agreement.agreements, several=2)
ranked = score.ranked
