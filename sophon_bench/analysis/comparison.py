"""Whether one set of records is worse than another: pairs by seed, differences, verdicts.

*Base* is what was, *new* what is. Plugins are matched by label alone, so that one whose source
changed is compared with what it was.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from sophon_bench.results.frames import Results
from sophon_bench.results.records import OR

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

MACHINE = ["made_device", "made_threads", "made_torch"]
"""What time and memory depend on, of where a record was made."""

MODEL = ["defense", *Setting._fields]
"""A model in one setting."""

TRIAL = [*MODEL, "attack"]
"""A trial against it: cells that differ in their seed."""

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
    sides = [outcomes(results) for results in (base, new)]
    places = [list(found.places.itertuples(index=False, name=None)) for found in sides]
    rows: list[Row] = []
    for place in dict.fromkeys([*places[0], *places[1]]):
        pair = _Pair(
            *(
                _Run(found, known.index(place) if place in known else -1)
                for found, known in zip(sides, places, strict=True)
            )
        )
        of_place = [*pair.statuses(), *pair.seed_lists()]
        if pair.complete:
            of_place += pair.plugins()
            for each in dict.fromkeys(thresholds):
                told = {"metric": each.metric, "threshold": each.text, "unit": UNITS[each.metric]}
                of_place += ({**told, **row} for row in pair.compared(each, frozen))
        rows += ({"tentative": False, **pair.head, **row} for row in of_place)
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


class _Run:
    """One run's records in one place.

    Args:
        found: All of the run.
        place: A row of `Outcomes.places`, -1 if it has nothing there.

    Attributes:
        cells: Rows of `Outcomes.cells`, with the ``test`` utility that each cell counts for.
        listed: Those that no search added, one per trial and seed, in this order.
        models: The defenses, with their rows of `Outcomes.models`, in the order of tables.
        attacked: Those that attacks other than controls were run on.
    """

    def __init__(self, found: Outcomes, place: int) -> None:
        self.found, self.place = found, place
        cells = found.cells[found.cells["place"] == place]
        whole = np.searchsorted(found.times, cells["stretch"])
        self.cells = cells.assign(test=found.tests(found.counted[cells.index, whole]))
        listed = self.cells[~cells["derived"]].sort_values([*TRIAL, "seed"], kind="stable")
        self.listed = listed.drop_duplicates([*TRIAL, "seed"], keep="last")
        models = found.models[found.models["place"] == place].query("kind == 'defense'")
        self.models = dict(zip(models["defense_label"], models.index, strict=True))
        self.attacked = {name for name, row in self.models.items() if row in found.settings_of}

    @functools.cached_property
    def stages(self) -> DataFrame:
        """Released models by ``defense`` and ``seed``; ``multiple`` is of pre-training's units."""
        cells = self.cells.drop_duplicates(["defense", "seed"], keep="last")
        stages, units = self.found.stages.iloc[cells["after"]], self.found.stages["units"]
        before = units.iloc[cells["before"]].replace(0, np.nan).to_numpy()
        multiple = stages["units"].to_numpy() / before
        return stages.assign(defense=cells["defense"].to_numpy(), multiple=multiple)

    def envelopes(self, stretch: int, name: str) -> DataFrame:
        """What the attackers of defenses pick, as rows of ``cells`` whose ``attack`` is ``name``.

        ``test`` is the utility at the picked checkpoint within ``stretch`` budgets.
        """
        found = self.found
        choices = found.choices[found.choices["own"]]
        choices = choices[choices["model"].isin(self.models.values())]
        picks = found.best[choices.index, found.times.index(float(stretch))]
        choices, picks = choices[picks >= 0], picks[picks >= 0]
        labels = found.models["defense_label"].to_numpy()[choices["model"]]
        cells = found.cells.iloc[found.picked(picks)]
        return cells.assign(defense=labels, attack=name, test=found.tests(picks))

    def trials(self, defense: str, seeds: Iterable[int]) -> set[tuple[Any, ...]]:
        """The listed trials of a defense and of the controls on some seeds."""
        cells = self.listed[self.listed["seed"].isin(seeds)]
        cells = cells[(cells["defense"] == defense) | cells["defense_control"]]
        return set(cells[TRIAL[1:]].itertuples(index=False, name=None))

    def stretches(self, seeds: Iterable[int]) -> dict[tuple[Any, ...], int]:
        """How many budgets a trial went on to, on the shortest of some seeds, by `MODEL`."""
        cells = self.cells[self.cells["seed"].isin(seeds)]
        longest = cells.groupby([*MODEL, "seed"])["stretch"].max()
        shortest: dict[tuple[Any, ...], int] = longest.groupby(level=MODEL).min().to_dict()
        return shortest

    def case(self, defense: str, frozen: Frozen | Sequence[Frozen] | None) -> Case:
        """The case of a defense that was attacked."""
        place = self.found.places.iloc[self.place]
        return Case(self.found, self.models[defense], fitting(frozen, place))


class _Pair:
    """One place of both runs, one of which may have nothing there."""

    def __init__(self, old: _Run, new: _Run) -> None:
        self.runs = (old, new)
        self.ran = [set(run.cells["seed"]) for run in self.runs]
        self.seeds = self.ran[0] & self.ran[1]
        self.complete = all(self.ran)
        of_place = new if self.ran[1] else old
        cells = of_place.cells.index.to_numpy()
        (suite,) = of_place.found.suites(Groups(np.zeros(len(cells), dtype=int), cells))
        self.head = {**of_place.found.head(cells[0]), "suite": suite}

    def statuses(self) -> Iterator[Row]:
        """How cells ended otherwise."""
        of, among = [*TRIAL, "seed"], self.seeds or self.ran[0] | self.ran[1]
        old, new = (run.listed[[*of, "status", "reason"]] for run in self.runs)
        both = old.merge(new, on=of, how="outer", suffixes=("_base", ""), indicator="side")
        both = both[both["seed"].isin(among)].sort_values(of)
        added, gone = both["side"] == "right_only", both["side"] == "left_only"
        both["status"] = both["status"].mask(gone, GONE)
        was_fine, is_fine = both["status_base"] == "ok", both["status"] == "ok"
        both["verdict"] = np.where(is_fine, "improvement", "regression")
        changed = both[~added & (gone | (was_fine != is_fine))]
        by = [*TRIAL, "verdict", "status_base", "status"]
        for (*trial, verdict, base, status), cells in changed.groupby(by, sort=False):
            told = zip(cells["seed"], cells["reason"], strict=True)
            seeds = [f"{seed} ({why})" if isinstance(why, str) else str(seed) for seed, why in told]
            yield {**_key(TRIAL, trial), **_status(verdict, base, status, seeds)}
        for trial, cells in both[added].groupby(TRIAL):
            status = " ".join(sorted(set(cells["status"])))
            seeds = list(map(str, cells["seed"]))
            yield {**_key(TRIAL, trial), **_status("new", None, status, seeds)}

    def seed_lists(self) -> Iterator[Row]:
        """Seeds that one of two runs alone has."""
        old, new = self.ran
        for alone, name, verdict in ((old - new, "base", "not applied"), (new - old, "new", "new")):
            if self.complete and alone:
                reason = f"seeds in {name} alone: {_listed(alone)}"
                yield {"metric": "seeds", "seeds": len(alone), "verdict": verdict, "reason": reason}

    def plugins(self) -> Iterator[Row]:
        """What has its label and is another."""
        for kind in ("defense", "attack"):
            old, new = (
                run.cells.drop_duplicates(kind, keep="last").set_index(kind) for run in self.runs
            )
            for label in sorted({*old.index} & {*new.index}):
                before, after = (cells.loc[label] for cells in (old, new))
                versions = [cell[f"{kind}_version"] for cell in (before, after)]
                if versions[0] != versions[1]:
                    told = {kind: label, "metric": "plugin", "verdict": "changed"}
                    told |= {"base": versions[0], "new": versions[1]}
                    yield {**told, "reason": _changes(kind, before, after)}

    def compared(
        self, threshold: Threshold, frozen: Frozen | Sequence[Frozen] | None
    ) -> Iterator[Row]:
        """What a threshold says."""
        old, new = self.runs
        if (column := OF_MODELS.get(threshold.metric)) is not None:
            both = [(defense,) for defense in old.models if defense in new.models]
            yield from _judged(threshold, column, ["defense"], both, old.stages, new.stages)
        elif (column := OF_CELLS.get(threshold.metric)) is not None:
            listed = [run.listed[run.listed["role"] == "restricted"] for run in self.runs]
            old_trials, new_trials = (
                dict.fromkeys(cells[TRIAL].itertuples(index=False, name=None)) for cells in listed
            )
            both = [trial for trial in old_trials if trial in new_trials]
            yield from _judged(threshold, column, TRIAL, both, *listed)
            if threshold.metric == AFTER:
                yield from self._envelopes(threshold, list(dict.fromkeys(t[:-1] for t in both)))
        else:
            for defense in (name for name in old.models if name in old.attacked & new.attacked):
                cases = (run.case(defense, frozen) for run in self.runs)
                same = self._same_trials(defense)
                yield {
                    "defense": defense,
                    **(_score(threshold, *cases) if same else _not_applied(OTHER_TRIALS)),
                }

    def _envelopes(self, threshold: Threshold, models: Sequence[tuple[Any, ...]]) -> Iterator[Row]:
        attacked = set.union(*(run.attacked for run in self.runs))
        old, new = (run.stretches(self.seeds) for run in self.runs)
        lengths = {
            model: {1, old.get(model, 1)} if old.get(model, 1) == new.get(model, 1) else {1}
            for model in models
            if model[0] in attacked
        }
        rows: dict[tuple[Any, ...], Row] = {}
        for stretch in set().union(*lengths.values()):
            name = ENVELOPE if stretch == 1 else STRETCHED_ENVELOPE.format(stretch)
            keys = [(*model, name) for model, found in lengths.items() if stretch in found]
            sides = (run.envelopes(stretch, name) for run in self.runs)
            judged = _judged(threshold, "test", TRIAL, keys, *sides)
            rows |= {(*key[:-1], stretch): row for key, row in zip(keys, judged, strict=True)}
        same = {defense: self._same_trials(defense) for defense in attacked}
        for row in (rows[key] for key in sorted(rows)):
            trial = {name: row[name] for name in TRIAL}
            yield row if same[row["defense"]] else {**trial, **_not_applied(OTHER_TRIALS)}

    def _same_trials(self, defense: str) -> bool:
        """Whether the envelopes of a defense and of the controls are of the same listed trials."""
        old, new = (run.trials(defense, self.seeds) for run in self.runs)
        return old == new


OTHER_TRIALS = "the listed trials are not the same, and so not the attacker"


def _key(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def _status(verdict: str, base: str | None, new: str, seeds: Sequence[str]) -> Row:
    told = {"metric": STATUS, "base": base, "new": new, "seeds": len(seeds), "verdict": verdict}
    return {**told, "reason": f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"}


def _not_applied(reason: str) -> Row:
    return {"verdict": "not applied", "reason": reason}


def _judged(
    threshold: Threshold,
    column: str,
    by: list[str],
    keys: Sequence[tuple[Any, ...]],
    old: DataFrame,
    new: DataFrame,
) -> Iterator[Row]:
    """A row per key, values of ``by``: the change of a column, paired by seed."""
    of = [*by, "seed"]
    old, new = (side[[*of, column, *MACHINE]].dropna(subset=[column]) for side in (old, new))
    pairs = old.merge(new, on=of, suffixes=("_base", "_new")).sort_values(of, ignore_index=True)
    pairs["same"] = np.logical_and.reduce(
        [pairs[f"{name}_base"] == pairs[f"{name}_new"] for name in MACHINE]
    )
    groups = Groups(pairs.groupby(by).ngroup().to_numpy())
    names = (f"{column}_base", f"{column}_new", "same")
    values = zip(*(groups.split(pairs[name]) for name in names), strict=True)
    found = pairs[by].iloc[groups.first].itertuples(index=False, name=None)
    known = dict(zip(found, zip(groups.first, values, strict=True), strict=True))
    for key in keys:
        if key not in known:
            yield {**_key(by, key), **_not_applied("not in both on any seed")}
            continue
        first, (base, now, same) = known[key]
        if threshold.same_machine:
            base, now = (list(itertools.compress(side, same)) for side in (base, now))
        if base:
            row = _change(threshold, base, now)
        else:
            row = _not_applied(f"another machine: {_other_machine(pairs.iloc[first])}")
        yield {**_key(by, key), **row}


def _other_machine(pair: Series) -> str:
    """How a machine is another, in what time and memory depend on."""
    name = next(name for name in MACHINE if pair[f"{name}_base"] != pair[f"{name}_new"])
    words = name.removeprefix("made_")
    return f"{words} {pair[f'{name}_base']} in base, {pair[f'{name}_new']} in new"


def _change(threshold: Threshold, base: Sequence[float], new: Sequence[float]) -> Row:
    """The change from one to the other, seed by seed."""
    pairs = list(zip(base, new, strict=True))
    if UNITS[threshold.metric] == "pt":
        changes = [b - a for a, b in pairs]
    elif any(a == 0 != b for a, b in pairs):
        return _not_applied("0 in base, and nothing is a percentage of it")
    else:
        changes = [b / a - 1 if a else 0.0 for a, b in pairs]
    means = {"base": interval(base).mean, "new": interval(new).mean, "seeds": len(pairs)}
    return {**means, **_changed(threshold, interval([100 * change for change in changes]))}


def _changed(threshold: Threshold, change: Interval) -> Row:
    return {
        "difference": change.mean,
        "half_width": change.half_width,
        "verdict": threshold.verdict(change),
        "tentative": change.half_width is None,
    }


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
