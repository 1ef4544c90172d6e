"""Whether one set of records is worse than another: pairs by seed, differences, verdicts.

*Base* is what was, *new* what is. Plugins are matched by label alone, so that one whose source
changed is compared with what it was.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sophon_bench import protocol
from sophon_bench.analysis.case import STATISTICS, Case, paired
from sophon_bench.analysis.envelope import (
    ENVELOPE,
    HEAD,
    STRETCHED_ENVELOPE,
    Outcomes,
    Setting,
    outcomes,
)
from sophon_bench.analysis.frozen import Frozen, fitting
from sophon_bench.analysis.statistics import Groups, Interval, interval, table
from sophon_bench.analysis.thresholds import UNITS, Threshold
from sophon_bench.records import OR
from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame, Series

STATUS = "status"
"""Metric of rows that say how cells ended."""

AFTER = "restricted_after"

GONE = "vanished"
"""Status of a cell that is not there any more."""

OF_CELLS = {AFTER: "test", "seconds": "seconds", "peak_memory": "peak_bytes"}
"""What is compared by trial and n, and its column; restricted utility by envelope besides."""

OF_MODELS = {
    "original_after": "original",
    "protect_cost": "multiple",
    "protect_seconds": "seconds",
    "protect_peak_memory": "peak_bytes",
}
"""What is compared once per defense, seed by seed, and its column."""

MACHINE = ("device", "threads", "torch")
"""What time and memory depend on, of where a record was made."""

TRIAL = ["defense", *Setting._fields, "attack"]
"""A trial against a model: cells that differ in their seed."""

COLUMNS = (
    *HEAD, "suite", "defense", "attack", "domain", "samples", "metric", "threshold", "unit", "base",
    "new", "difference", "half_width", "seeds", "verdict", "tentative", "reason",
)  # fmt: skip
"""Columns of `compare`."""

Row = Mapping[str, Any]
"""Values by column; what is left out is null."""


class Incomparable(ValueError):
    """Two sets of records that no difference means anything between."""


def compare(
    base: Results,
    new: Results,
    thresholds: Sequence[Threshold],
    frozen: Frozen | Sequence[Frozen] | None = None,
) -> DataFrame:
    """How ``new`` differs from ``base``, one row per comparison, with a ``verdict`` each.

    - ``metric`` of a threshold: one row per threshold and trial, n and defense, then the tuned
      envelope's; per defense where the metric is the defense's (``attack`` null). ``base`` and
      ``new`` are means over the ``seeds`` that both have, in the units of flat rows, and
      ``difference`` with ``half_width`` the change in ``unit``: a mean of paired differences with
      Student's t, and the jackknife's for scores. ``verdict`` is ``regression``, ``improvement``,
      ``unchanged``, or ``not applied`` with a ``reason``. ``tentative``: one seed, no interval.
    - ``status``: cells that vanished, or fail where they did not, are a ``regression``; those that
      do not fail any more are an ``improvement``, and those that base has not are ``new``. One
      row per trial, n, defense and status, ``reason`` has the seeds. Trials that a search added
      are not looked at: other results suggest other ones.
    - ``plugin``: label in both with another source or other parameters; ``changed``.
    - ``seeds``: those that base alone has; ``not applied``.

    Args:
        base: Records of one run, at least one.
        new: Records of another.
        thresholds: What fails.
        frozen: As in `scores`.

    Raises:
        Incomparable: If protocol, data revision, version of the suite, precision or budget are
            not the same, or there is no scenario with backbone and seed in common.
    """
    _check(base.cells, new.cells)
    sides = [_runs(outcomes(results)) for results in (base, new)]
    rows: list[Row] = []
    for place in dict.fromkeys([*sides[0], *sides[1]]):
        pair = _Pair(sides[0].get(place), sides[1].get(place), frozen)
        of_place = [*pair.statuses(), *pair.seed_lists()]
        if pair.complete:
            of_place += pair.plugins()
            for each in dict.fromkeys(thresholds):
                of_place += pair.judged(each)
        rows += [{"tentative": False, **pair.head, **row} for row in of_place]
    return table({name: [row.get(name) for row in rows] for name in COLUMNS})


def _check(base: DataFrame, new: DataFrame) -> None:
    """Refuse what differs in more than the seed's noise and the plugins' own doing."""
    for name, cells in (("base", base), ("new", new)):
        for kind in ("defense", "attack"):
            versions = cells.groupby(kind)[f"{kind}_version"].nunique()
            for label, count in versions[versions > 1].items():
                raise Incomparable(f"{name} has {count} versions of the {kind} {label}")
    _same("protocol", "", base["protocol"], new["protocol"])
    suites = [_suites(cells) for cells in (base, new)]
    for suite in sorted(suites[0].keys() & suites[1].keys()):
        _same("version of the suite", "", suites[0][suite], suites[1][suite])
    old, fresh = (dict(iter(cells.groupby(["scenario", "backbone"]))) for cells in (base, new))
    if not old.keys() & fresh.keys():
        sites = (" and ".join(", ".join(site) for site in found) for found in (old, fresh))
        raise Incomparable("nothing in common: base has {}; new has {}".format(*sites))
    for site in sorted(old.keys() & fresh.keys()):
        at, both = f" in {', '.join(site)}", (old[site], fresh[site])
        _same("data revision", at, *(cells["revision"].str[:8] for cells in both))
        _same("precision", at, *(cells["precision"] for cells in both))
        steps = (cells["budget"].unique() / protocol.REFERENCE_BATCH for cells in both)
        _same("budget", at, *([f"{count:g} steps" for count in counts] for counts in steps))
        seeds = [set(cells["seed"]) for cells in both]
        if not seeds[0] & seeds[1]:
            lists = [_listed(found) for found in seeds]
            raise Incomparable(f"no seed in common{at}: {lists[0]} in base, {lists[1]} in new")


def _suites(cells: DataFrame) -> dict[str, set[str]]:
    """The suites that asked for cells, with versions, by name."""
    found: dict[str, set[str]] = {}
    for labels in cells["suite"].dropna().unique():
        for suite in labels.split(OR):
            found.setdefault(suite.rpartition(" v")[0], set()).add(suite)
    return found


def _same(what: str, at: str, base: Iterable[str], new: Iterable[str]) -> None:
    if set(base) != set(new):
        old, fresh = (" and ".join(sorted(set(values))) for values in (base, new))
        raise Incomparable(f"not the same {what}{at}: {old} in base, {fresh} in new")


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


@dataclass(frozen=True)
class _Run:
    """One run's records in one place.

    Attributes:
        found: All of the run.
        place: A row of `Outcomes.places`.
    """

    found: Outcomes
    place: int

    @functools.cached_property
    def cells(self) -> DataFrame:
        """Rows of `Outcomes.cells`, with the ``test`` utility that each cell counts for."""
        cells = self.found.cells[self.found.cells["place"] == self.place]
        whole = np.searchsorted(self.found.times, cells["stretch"])
        return cells.assign(test=self.found.tests(self.found.counted[cells.index, whole]))

    @functools.cached_property
    def listed(self) -> DataFrame:
        """The cells that no search added, one per trial and seed, in this order."""
        listed = self.cells[~self.cells["derived"]].drop_duplicates([*TRIAL, "seed"], keep="last")
        return listed.sort_values([*TRIAL, "seed"])

    @functools.cached_property
    def stages(self) -> DataFrame:
        """Released models by ``defense`` and ``seed``; ``multiple`` is of pre-training's units."""
        cells = self.cells.drop_duplicates(["defense", "seed"], keep="last")
        stages = self.found.stages.iloc[cells["after"]]
        before = self.found.stages["units"].iloc[cells["before"]].to_numpy()
        multiple = stages["units"].to_numpy() / np.where(before == 0, np.nan, before)
        return stages.assign(defense=cells["defense"].to_numpy(), multiple=multiple)

    @functools.cached_property
    def models(self) -> dict[str, int]:
        """The defenses with their rows of `Outcomes.models`, in the order of tables."""
        models = self.found.models
        own = models[(models["place"] == self.place) & (models["kind"] == "defense")]
        return dict(zip(own["defense_label"], own.index, strict=True))

    def trials(self, defense: str, seeds: Iterable[int]) -> set[tuple[Any, ...]]:
        """The listed trials of a defense and of the controls on some seeds."""
        cells = self.listed[self.listed["seed"].isin(seeds)]
        cells = cells[(cells["defense"] == defense) | cells["defense_control"]]
        return set(cells[TRIAL[1:]].itertuples(index=False, name=None))

    def stretch(self, defense: str, setting: Setting, seeds: Iterable[int]) -> int:
        """How many budgets a trial of a defense went on to, on the shortest of some seeds."""
        cells = self.cells[(self.cells["defense"] == defense) & self.cells["seed"].isin(seeds)]
        cells = cells[cells["setting"] == self.found.settings.index(setting)]
        longest = cells.groupby("seed")["stretch"].max()
        return 1 if longest.empty else int(longest.min())

    def envelope(self, defense: str, setting: Setting, stretch: int) -> DataFrame:
        """The picked cell of each seed, with the ``test`` utility at the picked checkpoint."""
        found = self.found.envelopes.get((self.models[defense], setting))
        if found is None:
            return self.cells.iloc[:0]
        picks = found.picks[:, self.found.times.index(float(stretch))]
        cells = self.found.cells.iloc[self.found.picked(picks[picks >= 0])]
        return cells.assign(test=self.found.tests(picks[picks >= 0]))

    def case(self, defense: str, frozen: Frozen | Sequence[Frozen] | None) -> Case:
        """The case of a defense that was attacked."""
        place = self.found.places.iloc[self.place]
        return Case(self.found, self.models[defense], fitting(frozen, place))


def _runs(found: Outcomes) -> dict[tuple[Any, ...], _Run]:
    """A run by place."""
    places = found.places.itertuples(index=False, name=None)
    return {place: _Run(found, number) for number, place in enumerate(places)}


class _Pair:
    """One place of both runs; one of them may have nothing there."""

    def __init__(
        self, old: _Run | None, new: _Run | None, frozen: Frozen | Sequence[Frozen] | None
    ) -> None:
        self.runs = [run for run in (old, new) if run is not None]
        self.frozen = frozen
        self.complete = len(self.runs) == 2
        of_place = self.runs[-1]
        cells = Groups(np.zeros(len(of_place.cells), dtype=int), of_place.cells.index.to_numpy())
        (suite,) = of_place.found.suites(cells)
        self.head = {**of_place.found.head(cells.first[0]), "suite": suite}
        self.listed = [
            self.runs[0].cells.iloc[:0] if run is None else run.listed for run in (old, new)
        ]
        self.ran = [set() if run is None else set(run.cells["seed"]) for run in (old, new)]
        self.seeds = self.ran[0] & self.ran[1]

    def statuses(self) -> Iterator[Row]:
        """How cells ended otherwise."""
        of = [*TRIAL, "seed"]
        among = self.seeds or self.ran[0] | self.ran[1]
        old, new = (
            cells.loc[cells["seed"].isin(among), [*of, "status", "reason"]] for cells in self.listed
        )
        both = old.merge(new, on=of, how="outer", suffixes=("_base", "_new"), indicator="side")
        both = both.sort_values(of)
        added = both["side"] == "right_only"
        both["ended"] = both["status_new"].mask(both["side"] == "left_only", GONE)
        was_fine, is_fine = both["status_base"] == "ok", both["ended"] == "ok"
        both["verdict"] = np.where(is_fine, "improvement", "regression")
        changed = both[~added & ((was_fine != is_fine) | (both["ended"] == GONE))]
        by = [*TRIAL, "verdict", "status_base", "ended"]
        for key, cells in changed.groupby(by, sort=False):
            told = [
                f"{seed} ({reason})" if isinstance(reason, str) and reason else str(seed)
                for seed, reason in zip(cells["seed"], cells["reason_new"], strict=True)
            ]
            *_, verdict, status, ended = key
            yield {**_trial(key), **_status(verdict, status, ended, told)}
        for key, cells in both[added].groupby(TRIAL):
            ended = " ".join(sorted(set(cells["ended"])))
            yield {**_trial(key), **_status("new", None, ended, list(map(str, cells["seed"])))}

    def seed_lists(self) -> Iterator[Row]:
        """Seeds that one of two runs alone has."""
        old, new = self.ran
        for alone, name, verdict in ((old - new, "base", "not applied"), (new - old, "new", "new")):
            if self.complete and alone:
                told = {"metric": "seeds", "seeds": len(alone), "verdict": verdict}
                yield {**told, "reason": f"seeds in {name} alone: {_listed(alone)}"}

    def plugins(self) -> Iterator[Row]:
        """What has its label and is another."""
        for kind in ("defense", "attack"):
            old, new = (
                run.cells.drop_duplicates(kind, keep="last").set_index(kind, drop=False)
                for run in self.runs
            )
            for label in sorted({*old.index} & {*new.index}):
                before, after = (cells.loc[label] for cells in (old, new))
                versions = [cell[f"{kind}_version"] for cell in (before, after)]
                if versions[0] != versions[1]:
                    told = {"metric": "plugin", "base": versions[0], "new": versions[1]}
                    reason = _changes(kind, before, after)
                    yield {kind: label, **told, "verdict": "changed", "reason": reason}

    def judged(self, threshold: Threshold) -> Iterator[Row]:
        """What a threshold says."""
        told = {
            "metric": threshold.metric,
            "threshold": threshold.text,
            "unit": UNITS[threshold.metric],
        }
        if threshold.metric in STATISTICS:
            rows = self._scores(threshold)
        elif threshold.metric in OF_MODELS:
            rows = self._models(threshold)
        else:
            rows = self._trials(threshold)
        for row in rows:
            yield {**told, **row}

    def _trials(self, threshold: Threshold) -> Iterator[Row]:
        column = OF_CELLS[threshold.metric]
        old, new = (
            dict(iter(cells[cells["role"] == "restricted"].groupby(TRIAL))) for cells in self.listed
        )
        common = [key for key in old if key in new]
        for key in common:
            yield {**_trial(key), **_judged(threshold, column, old[key], new[key])}
        if threshold.metric == AFTER:
            for defense, *setting in dict.fromkeys(key[:-1] for key in common):
                yield from self._envelopes(threshold, defense, Setting(*setting))

    def _envelopes(self, threshold: Threshold, defense: str, setting: Setting) -> Iterator[Row]:
        attacked = [run.models[defense] in run.found.settings_of for run in self.runs]
        if not any(attacked):
            return
        lengths = {run.stretch(defense, setting, self.seeds) for run in self.runs}
        for stretch in sorted({1, *lengths}) if len(lengths) == 1 else [1]:
            name = ENVELOPE if stretch == 1 else STRETCHED_ENVELOPE.format(stretch)
            told = _trial((defense, *setting, name))
            if self._same_trials(defense):
                picks = (run.envelope(defense, setting, stretch) for run in self.runs)
                yield {**told, **_judged(threshold, "test", *picks)}
            else:
                yield {**told, **_not_applied(OTHER_TRIALS)}

    def _models(self, threshold: Threshold) -> Iterator[Row]:
        column = OF_MODELS[threshold.metric]
        for defense in self.runs[0].models:
            if defense in self.runs[1].models:
                of = [run.stages[run.stages["defense"] == defense] for run in self.runs]
                yield {"defense": defense, **_judged(threshold, column, *of)}

    def _scores(self, threshold: Threshold) -> Iterator[Row]:
        for defense in self.runs[0].models:
            if not all(run.models.get(defense) in run.found.settings_of for run in self.runs):
                continue
            if self._same_trials(defense):
                cases = [run.case(defense, self.frozen) for run in self.runs]
                yield {"defense": defense, **_score(threshold, *cases)}
            else:
                yield {"defense": defense, **_not_applied(OTHER_TRIALS)}

    def _same_trials(self, defense: str) -> bool:
        """Whether the envelopes of a defense and of the controls are of the same listed trials."""
        old, new = (run.trials(defense, self.seeds) for run in self.runs)
        return old == new


OTHER_TRIALS = "the listed trials are not the same, and so not the attacker"


def _trial(key: Sequence[Any]) -> Row:
    """Values of `TRIAL`, without the role, by column."""
    return {name: value for name, value in zip(TRIAL, key, strict=False) if name != "role"}


def _status(verdict: str, base: str | None, new: str, seeds: Sequence[str]) -> Row:
    told = {"metric": STATUS, "base": base, "new": new, "seeds": len(seeds), "verdict": verdict}
    return {**told, "reason": f"seed{'s' if seeds[1:] else ''} {', '.join(seeds)}"}


def _not_applied(reason: str) -> Row:
    return {"verdict": "not applied", "reason": reason}


def _judged(threshold: Threshold, column: str, old: DataFrame, new: DataFrame) -> Row:
    """The change of a column, paired by seed."""
    pairs = (
        old.dropna(subset=[column])
        .merge(new.dropna(subset=[column]), on="seed", suffixes=("_base", "_new"))
        .sort_values("seed")
    )
    if pairs.empty:
        return _not_applied("not in both on any seed")
    if threshold.same_machine:
        reasons = [_other_machine(pair) for _, pair in pairs.iterrows()]
        pairs = pairs[[reason is None for reason in reasons]]
        if pairs.empty:
            return _not_applied(f"another machine: {reasons[0]}")
    base, now = (pairs[f"{column}_{side}"].tolist() for side in ("base", "new"))
    if UNITS[threshold.metric] == "pt":
        changes = [b - a for a, b in zip(base, now, strict=True)]
    elif any(a == 0 != b for a, b in zip(base, now, strict=True)):
        return _not_applied("0 in base, and nothing is a percentage of it")
    else:
        changes = [b / a - 1 if a else 0.0 for a, b in zip(base, now, strict=True)]
    means = {"base": interval(base).mean, "new": interval(now).mean, "seeds": len(base)}
    return {**means, **_changed(threshold, interval([100 * change for change in changes]))}


def _changed(threshold: Threshold, change: Interval) -> Row:
    return {
        "difference": change.mean,
        "half_width": change.half_width,
        "verdict": threshold.verdict(change),
        "tentative": change.half_width is None,
    }


def _other_machine(pair: Series) -> str | None:
    """How a machine is another, in what time and memory depend on; None if it is not."""
    for name in MACHINE:
        old, new = pair[f"made_{name}_base"], pair[f"made_{name}_new"]
        if old != new:
            return f"{name} {old} in base, {new} in new"
    return None


def _score(threshold: Threshold, old: Case, new: Case) -> Row:
    metric = threshold.metric
    if (reason := _missing(old, metric)) is not None:
        return _not_applied(f"none in base: {reason}")
    if (reason := _missing(new, metric)) is not None:
        return {"verdict": "regression", "reason": f"none in new: {reason}"}
    found = paired(metric, new, old)
    if found is None:
        return _not_applied("none on the seeds in common")
    scale = 1.0 if metric == "score" else 100.0
    half_width = None if found.half_width is None else scale * found.half_width
    change = Interval(scale * (found.one - found.other), half_width)
    means = {"base": found.other, "new": found.one, "seeds": len(found.seeds)}
    return {**means, **_changed(threshold, change)}


def _missing(case: Case, metric: str) -> str | None:
    """Why a case has no such statistic, if it has none."""
    if metric == "score" and (reason := case.unscored()) is not None:
        return reason
    if not case.seeds or STATISTICS[metric](case, None) is None:
        return case.unscored() or f"no {metric}"
    return None


def _changes(kind: str, old: Series, new: Series) -> str:
    """In what the plugin of a cell is another."""
    fields = ("name", "source", "distribution", "control", "mechanism")
    found = [field for field in fields if old[f"{kind}_{field}"] != new[f"{kind}_{field}"]]
    before, after = old[f"{kind}_parameters"], new[f"{kind}_parameters"]
    for key in dict.fromkeys([*before, *after]):
        if key not in before or key not in after or before[key] != after[key]:
            found += [f"{key} {before.get(key, 'absent')} -> {after.get(key, 'absent')}"]
    return ", ".join(found)
