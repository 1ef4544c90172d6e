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
    HEAD,
    Outcomes,
    Setting,
    envelope_name,
    outcomes,
)
from sophon_bench.analysis.frozen import Frozen
from sophon_bench.analysis.statistics import Groups, Interval, interval, table_of
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
    numbers = [
        {place: n for n, place in enumerate(map(tuple, side.places.to_numpy()))} for side in sides
    ]
    rows: list[Row] = []
    for place in dict.fromkeys(itertools.chain(*numbers)):
        runs = (
            _Run(side, known.get(place, -1)) for side, known in zip(sides, numbers, strict=True)
        )
        rows += _Pair(*runs).rows(thresholds, frozen)
    return table_of(rows, COLUMNS)


def _check(base: DataFrame, new: DataFrame) -> None:
    """Refuse what differs in more than the seed's noise and the plugins' own doing."""
    sides = {"base": base, "new": new}
    for name, cells in sides.items():
        for kind in ("defense", "attack"):
            versions = cells.groupby(kind)[f"{kind}_version"].nunique()
            for label, count in versions[versions > 1].items():
                raise Incomparable(f"{name} has {count} versions of the {kind} {label}")
    _same("protocol", [cells["protocol"] for cells in sides.values()])
    suites = [
        {label for each in cells["suite"].dropna().unique() for label in each.split(OR)}
        for cells in sides.values()
    ]
    names = [{label.rpartition(" v")[0] for label in labels} for labels in suites]
    for name in sorted(names[0] & names[1]):
        _same(
            "version of the suite",
            [[s for s in labels if s.rpartition(" v")[0] == name] for labels in suites],
        )
    sites = [dict(iter(cells.groupby(["scenario", "backbone"]))) for cells in sides.values()]
    if not (common := sorted(sites[0].keys() & sites[1].keys())):
        told = (" and ".join(", ".join(site) for site in found) for found in sites)
        raise Incomparable("nothing in common: base has {}; new has {}".format(*told))
    for site in common:
        at, both = f" in {', '.join(site)}", [found[site] for found in sites]
        _same(f"data revision{at}", [cells["revision"].str[:8] for cells in both])
        _same(f"precision{at}", [cells["precision"] for cells in both])
        steps = [cells["budget"].unique() / protocol.REFERENCE_BATCH for cells in both]
        _same(f"budget{at}", [[f"{count:g} steps" for count in counts] for counts in steps])
        old, fresh = (set(cells["seed"]) for cells in both)
        if not old & fresh:
            lists = f"{_listed(old)} in base, {_listed(fresh)} in new"
            raise Incomparable(f"no seed in common{at}: {lists}")


def _same(what: str, sides: Sequence[Iterable[str]]) -> None:
    old, fresh = (" and ".join(sorted(set(values))) for values in sides)
    if old != fresh:
        raise Incomparable(f"not the same {what}: {old} in base, {fresh} in new")


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
        seeds: Of the cells.
        models: The defenses, with their rows of `Outcomes.models`, in the order of tables.
        attacked: Those that attacks other than controls were run on.
    """

    def __init__(self, found: Outcomes, place: int) -> None:
        self.found = found
        cells = found.cells[found.cells["place"] == place]
        whole = np.searchsorted(found.times, cells["stretch"])
        self.cells = cells.assign(test=found.tests(found.counted[cells.index, whole]))
        listed = self.cells[~cells["derived"]].sort_values([*TRIAL, "seed"], kind="stable")
        self.listed = listed.drop_duplicates([*TRIAL, "seed"], keep="last")
        self.seeds = set(cells["seed"])
        models = found.models[
            (found.models["place"] == place) & (found.models["kind"] == "defense")
        ]
        self.models = dict(zip(models["defense_label"], models.index, strict=True))
        self.attacked = {name for name, row in self.models.items() if found.stretches[row].any()}

    @functools.cached_property
    def stages(self) -> DataFrame:
        """Released models by ``defense`` and ``seed``; ``multiple`` is of pre-training's units."""
        cells = self.cells.drop_duplicates(["defense", "seed"], keep="last")
        stages, units = self.found.stages.iloc[cells["after"]], self.found.stages["units"]
        multiple = stages["units"] / units.iloc[cells["before"]].replace(0, np.nan).to_numpy()
        return stages.assign(defense=cells["defense"].to_numpy(), multiple=multiple)

    def trials(self) -> list[tuple[Any, ...]]:
        """The listed trials on the restricted domain, as values of `TRIAL`."""
        listed = self.listed.loc[self.listed["role"] == "restricted", TRIAL].drop_duplicates()
        return list(listed.itertuples(index=False, name=None))

    def envelopes(self, stretch: int, name: str) -> DataFrame:
        """What the attackers of defenses pick, as rows of ``cells`` whose ``attack`` is ``name``.

        ``test`` is the utility at the picked checkpoint within ``stretch`` budgets.
        """
        found = self.found
        models = list(self.models.values())
        picks = found.picks[models, ..., found.times.index(float(stretch))]
        row, *_ = np.nonzero(picks >= 0)
        picks = picks[picks >= 0]
        cells = found.cells.iloc[found.picked(picks)]
        labels = np.array([*self.models], dtype=object)[row]
        return cells.assign(defense=labels, attack=name, test=found.tests(picks))

    def stretches(self, seeds: Iterable[int]) -> dict[tuple[Any, ...], int]:
        """How many budgets a trial went on to, on the shortest of some seeds, by `MODEL`."""
        cells = self.cells[self.cells["seed"].isin(seeds)]
        longest = cells.groupby([*MODEL, "seed"])["stretch"].max()
        shortest: dict[tuple[Any, ...], int] = longest.groupby(level=MODEL).min().to_dict()
        return shortest


class _Pair:
    """One place of both runs, one of which may have nothing there."""

    def __init__(self, old: _Run, new: _Run) -> None:
        self.runs = (old, new)
        self.seeds = old.seeds & new.seeds

    def rows(
        self, thresholds: Sequence[Threshold], frozen: Frozen | Sequence[Frozen] | None
    ) -> Iterator[Row]:
        """What there is to say of the place."""
        old, new = self.runs
        run = new if new.seeds else old
        cells = run.cells.index.to_numpy()
        (suite,) = run.found.suites(Groups.of([cells]))
        head = {"tentative": False, **run.found.head(cells[0]), "suite": suite}
        said = [self.statuses()]
        if old.seeds and new.seeds:
            said += [self.seed_lists(), self.plugins()]
            said += [self.compared(each, frozen) for each in dict.fromkeys(thresholds)]
        for row in itertools.chain(*said):
            yield {**head, **row}

    def statuses(self) -> Iterator[Row]:
        """How cells ended otherwise."""
        of = [*TRIAL, "seed"]
        among = self.seeds or set.union(*(run.seeds for run in self.runs))
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
            yield _status(trial, verdict, base, status, seeds)
        for trial, cells in both[added].groupby(TRIAL):
            status = " ".join(sorted(set(cells["status"])))
            yield _status(trial, "new", None, status, [str(seed) for seed in cells["seed"]])

    def seed_lists(self) -> Iterator[Row]:
        """Seeds that one of two runs alone has."""
        old, new = (run.seeds for run in self.runs)
        for alone, name, verdict in ((old - new, "base", "not applied"), (new - old, "new", "new")):
            if alone:
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
        told = {"metric": threshold.metric, "threshold": threshold.text}
        told["unit"] = UNITS[threshold.metric]
        if (column := OF_MODELS.get(threshold.metric)) is not None:
            both = [(defense,) for defense in old.models if defense in new.models]
            rows = _judged(threshold, column, both, old.stages, new.stages)
        elif (column := OF_CELLS.get(threshold.metric)) is not None:
            known = set(new.trials())
            trials = [trial for trial in old.trials() if trial in known]
            rows = _judged(threshold, column, trials, old.listed, new.listed)
            if threshold.metric == AFTER:
                models = dict.fromkeys(trial[:-1] for trial in trials)
                rows = itertools.chain(rows, self._envelopes(threshold, models))
        else:
            both = [(name,) for name in old.models if name in old.attacked & new.attacked]
            rows = (self._scored(threshold, defense, frozen) for (defense,) in both)
        for row in rows:
            yield {**told, **row}

    def _scored(
        self, threshold: Threshold, defense: str, frozen: Frozen | Sequence[Frozen] | None
    ) -> Row:
        if not self._same_trials(defense):
            return {"defense": defense, **_not_applied(OTHER_TRIALS)}
        cases = (Case.of(run.found, run.models[defense], frozen) for run in self.runs)
        return {"defense": defense, **_score(threshold, *cases)}

    def _envelopes(self, threshold: Threshold, models: Iterable[tuple[Any, ...]]) -> Iterator[Row]:
        """The tuned envelopes', also at the longer budget that both went on to."""
        old, new = (run.stretches(self.seeds) for run in self.runs)
        attacked = set.union(*(run.attacked for run in self.runs))
        rows: dict[tuple[Any, ...], Row] = {}
        lengths = [(model, 1) for model in models if model[0] in attacked]
        lengths += [(m, old[m]) for m, _ in lengths if old.get(m, 1) == new.get(m, 1) > 1]
        for stretch in sorted({stretch for _, stretch in lengths}):
            name = envelope_name(stretch)
            keys = [(*model, name) for model, found in lengths if stretch == found]
            judged = _judged(
                threshold, "test", keys, *(run.envelopes(stretch, name) for run in self.runs)
            )
            rows |= {(*key[:-1], stretch): row for key, row in zip(keys, judged, strict=True)}
        same = {defense: self._same_trials(defense) for defense in attacked}
        for row in (rows[key] for key in sorted(rows)):
            trial = {name: row[name] for name in TRIAL}
            yield row if same[row["defense"]] else {**trial, **_not_applied(OTHER_TRIALS)}

    def _same_trials(self, defense: str) -> bool:
        """Whether the envelopes of a defense and of the controls are of the same listed trials."""
        found = []
        for run in self.runs:
            own = (run.listed["defense"] == defense) | run.listed["defense_control"]
            cells = run.listed.loc[own & run.listed["seed"].isin(self.seeds), TRIAL[1:]]
            found.append(set(cells.itertuples(index=False, name=None)))
        return found[0] == found[1]


OTHER_TRIALS = "the listed trials are not the same, and so not the attacker"


def _status(
    trial: Sequence[Any], verdict: str, base: str | None, new: str, seeds: Sequence[str]
) -> Row:
    told = {"metric": STATUS, "base": base, "new": new, "seeds": len(seeds), "verdict": verdict}
    reason = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    return {**dict(zip(TRIAL, trial, strict=True)), **told, "reason": reason}


def _not_applied(reason: str) -> Row:
    return {"verdict": "not applied", "reason": reason}


def _judged(
    threshold: Threshold,
    column: str,
    keys: Iterable[tuple[Any, ...]],
    old: DataFrame,
    new: DataFrame,
) -> Iterator[Row]:
    """A row per key, values of `TRIAL` or its beginning: the change of a column, paired by seed."""
    keys = list(keys)
    by = TRIAL[: len(keys[0])] if keys else []
    of = [*by, "seed"]
    old, new = (side[[*of, column, *MACHINE]].dropna(subset=[column]) for side in (old, new))
    pairs = old.merge(new, on=of, suffixes=("_base", "_new")).sort_values(of)
    values = zip(pairs[f"{column}_base"], pairs[f"{column}_new"], _machines(pairs), strict=True)
    known: dict[tuple[Any, ...], list[tuple[float, float, str | None]]] = {}
    for key, pair in zip(pairs[by].itertuples(index=False, name=None), values, strict=True):
        known.setdefault(key, []).append(pair)
    for key in keys:
        found = known.get(key, [])
        fair = [pair for pair in found if not (threshold.same_machine and pair[2])]
        if fair:
            row = _change(threshold, [(base, now) for base, now, _ in fair])
        elif found:
            row = _not_applied(f"another machine: {found[0][2]}")
        else:
            row = _not_applied("not in both on any seed")
        yield {**dict(zip(by, key, strict=True)), **row}


def _machines(pairs: DataFrame) -> list[str | None]:
    """How the machine is another, in what time and memory depend on; None where it is not."""
    found: list[str | None] = [None] * len(pairs)
    for name in reversed(MACHINE):
        sides = zip(pairs[f"{name}_base"], pairs[f"{name}_new"], strict=True)
        for row, (base, new) in enumerate(sides):
            if base != new:
                found[row] = f"{name.removeprefix('made_')} {base} in base, {new} in new"
    return found


def _change(threshold: Threshold, pairs: Sequence[tuple[float, float]]) -> Row:
    """The change from one to the other, seed by seed."""
    if UNITS[threshold.metric] == "pt":
        changes = [new - base for base, new in pairs]
    elif any(base == 0 != new for base, new in pairs):
        return _not_applied("0 in base, so a percentage change is undefined")
    else:
        changes = [new / base - 1 if base else 0.0 for base, new in pairs]
    base, new = (interval(side).mean for side in zip(*pairs, strict=True))
    change = interval([100 * change for change in changes])
    return _changed(threshold, change, base, new, len(pairs))


def _changed(threshold: Threshold, change: Interval, base: float, new: float, seeds: int) -> Row:
    return {
        "base": base,
        "new": new,
        "seeds": seeds,
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
    return _changed(threshold, change, found.other, found.one, found.seeds)


def _missing(case: Case, metric: str) -> str | None:
    """Why a case has no such statistic, if it has none."""
    if metric == "score" and (reason := case.unscored()) is not None:
        return reason
    if not case.seeds or np.isnan(STATISTICS[metric](case)[0]):
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
