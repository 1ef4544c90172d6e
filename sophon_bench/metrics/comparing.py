"""Whether one set of records is worse than another: pairs by seed, differences, verdicts.

*Base* is what was, *new* what is. Plugins are matched by label alone, so that one whose source
changed is compared with what it was.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sophon_bench.metrics.envelopes import (
    Interval,
    Sides,
    Where,
    head,
    interval,
    place,
    places,
    stretch_of,
    suites,
    where,
)
from sophon_bench.metrics.frozen import Frozen
from sophon_bench.metrics.scoring import STATISTICS, Case, document, paired
from sophon_bench.metrics.trials import ENVELOPE, STRETCHED_ENVELOPE, protect_cost
from sophon_bench.protocol import REFERENCE_BATCH
from sophon_bench.records import Cell, Cost, PluginId, Provenance
from sophon_bench.registry import unknown

SHORT = {"restricted": "restricted_after", "original": "original_after"}
"""What metrics are called for short."""

STATUS = "status"
"""Metric of rows that say how cells ended."""

AFTER = "restricted_after"

GONE = "vanished"
"""Status of a cell that is not there any more."""

OF_CELLS: Mapping[str, Callable[[Cost], float | None]] = {
    "seconds": lambda cost: cost.seconds,
    "peak_memory": lambda cost: cost.peak_bytes,
}
"""What attacking takes, by trial and n; so is restricted utility, and by envelope besides."""

OF_MODELS: Mapping[str, Callable[[Cell], float | None]] = {
    "original_after": lambda cell: cell.released.original,
    "protect_cost": protect_cost,
    "protect_seconds": lambda cell: _taken(cell.released.cost, "seconds"),
    "protect_peak_memory": lambda cell: _taken(cell.released.cost, "peak_memory"),
}
"""What is compared once per defense, seed by seed."""

UNITS: Mapping[str, Literal["pt", "%"]] = {
    AFTER: "pt",
    "original_after": "pt",
    **dict.fromkeys(STATISTICS, "pt"),
    **dict.fromkeys(OF_CELLS, "%"),
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


class Incomparable(ValueError):
    """Two sets of records that no difference means anything between."""


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

        A change counts where it is beyond the limit, on either side, and its interval excludes
        zero; without an interval, where it is beyond the limit.
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
        raise ValueError(f"{text!r}: {name} is of many records, and takes no @same-machine")
    return Threshold(text, metric, int(f"{sign}1"), float(found["limit"]), bool(found["at"]))


NOTHING_TOLD: Mapping[str, Any] = dict.fromkeys(
    ("defense", "attack", "domain", "samples", "metric", "threshold", "unit", "base",
     "new", "difference", "half_width", "seeds", "verdict", "tentative", "reason")
) | {"tentative": False}  # fmt: skip


def compare(
    base: Sequence[Cell],
    new: Sequence[Cell],
    thresholds: Sequence[Threshold],
    frozen: Frozen | Sequence[Frozen] | None = None,
) -> list[dict[str, Any]]:
    """Flat rows: how ``new`` differs from ``base``, with a ``verdict`` each.

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
    _check(base, new)
    before, after = ({place(s.cells[0]): s for s in places(cells)} for cells in (base, new))
    found: list[dict[str, Any]] = []
    for at in dict.fromkeys([*before, *after]):
        old, fresh = before.get(at), after.get(at)
        found += _statuses(old.cells if old else [], fresh.cells if fresh else [])
        if old is not None and fresh is not None:
            pair = _Pair(old, fresh, frozen)
            found += pair.plugins()
            for each in dict.fromkeys(thresholds):
                found += pair.rows(each)
    return found


def _check(base: Sequence[Cell], new: Sequence[Cell]) -> None:
    """Refuse what differs in more than the seed's noise and the plugins' own doing."""
    for name, cells in (("base", base), ("new", new)):
        versions: dict[tuple[str, str], set[str]] = defaultdict(set)
        for cell in cells:
            versions["defense", cell.defense.label].add(cell.defense.version)
            versions["attack", cell.attack.label].add(cell.attack.version)
        for (kind, label), found in versions.items():
            if len(found) > 1:
                raise Incomparable(f"{name} has {len(found)} versions of the {kind} {label}")
    _same("protocol", "", [{cell.protocol for cell in cells} for cells in (base, new)])
    versioned = [_suites(cells) for cells in (base, new)]
    for suite in sorted(versioned[0].keys() & versioned[1].keys()):
        _same("version of the suite", "", [suites[suite] for suites in versioned])
    old, fresh = (_sites(cells) for cells in (base, new))
    if not old.keys() & fresh.keys():
        sites = (" and ".join(", ".join(site) for site in found) for found in (old, fresh))
        raise Incomparable("nothing in common: base has {}; new has {}".format(*sites))
    for site in sorted(old.keys() & fresh.keys()):
        at = f" in {', '.join(site)}"
        here = (old[site], fresh[site])
        _same("data revision", at, [{c.scenario.revision[:8] for c in cells} for cells in here])
        _same("precision", at, [{c.precision for c in cells} for cells in here])
        steps = [{f"{c.budget / REFERENCE_BATCH:g} steps" for c in cells} for cells in here]
        _same("budget", at, steps)
        seeds = [{cell.seed for cell in cells} for cells in here]
        if not seeds[0] & seeds[1]:
            lists = [_listed(found) for found in seeds]
            raise Incomparable(f"no seed in common{at}: {lists[0]} in base, {lists[1]} in new")


def _suites(cells: Iterable[Cell]) -> dict[str, set[str]]:
    """The suites that asked for the cells, with versions, by name."""
    found: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        for suite in cell.suites:
            found[suite.rpartition(" v")[0]].add(suite)
    return found


def _sites(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """The cells by scenario and backbone."""
    found: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        found[cell.scenario.label, cell.backbone].append(cell)
    return found


def _same(what: str, at: str, found: Sequence[set[str]]) -> None:
    if found[0] != found[1]:
        base, new = (" and ".join(sorted(values)) for values in found)
        raise Incomparable(f"not the same {what}{at}: {base} in base, {new} in new")


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


class Group(NamedTuple):
    """A trial against a model: cells that differ in their seed."""

    defense: str
    at: Where
    attack: str


Groups = Mapping[Group, Mapping[int, Cell]]
"""Cells of listed trials by group and seed."""


def _groups(cells: Iterable[Cell]) -> Groups:
    found: dict[Group, dict[int, Cell]] = defaultdict(dict)
    for cell in cells:
        if not cell.derived:
            found[Group(cell.defense.label, where(cell), cell.attack.label)][cell.seed] = cell
    return {group: found[group] for group in sorted(found)}


def _statuses(old: Sequence[Cell], new: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """How cells of one place ended otherwise; either run may have none there."""
    before, after = _groups(old), _groups(new)
    ran, runs = ({cell.seed for cell in cells} for cells in (old, new))
    shared = ran & runs or ran | runs
    for group, was in before.items():
        now = after.get(group, {})
        found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for seed in sorted(was.keys() & shared):
            ended, reason = (now[seed].status, now[seed].reason) if seed in now else (GONE, None)
            if ended == GONE or (ended == "ok") != (was[seed].status == "ok"):
                verdict = "improvement" if ended == "ok" else "regression"
                told = f"{seed} ({reason})" if reason else str(seed)
                found[verdict, was[seed].status, ended].append(told)
        for (verdict, status, ended), seeds in found.items():
            yield _status(new or old, group, verdict, (status, ended), seeds)
    for group, now in after.items():
        added = sorted((now.keys() & shared) - before.get(group, {}).keys())
        if added:
            ended = " ".join(sorted({now[seed].status for seed in added}))
            yield _status(new, group, "new", (None, ended), [str(seed) for seed in added])
    if old and new:
        for left, name, verdict in (
            (ran - runs, "base", "not applied"),
            (runs - ran, "new", "new"),
        ):
            if left:
                reason = f"seeds in {name} alone: {_listed(left)}"
                yield _row(
                    new,
                    {"metric": "seeds", "seeds": len(left), "verdict": verdict, "reason": reason},
                )


def _status(
    cells: Sequence[Cell],
    group: Group,
    verdict: str,
    statuses: tuple[str | None, str],
    seeds: Sequence[str],
) -> dict[str, Any]:
    told = {
        "metric": STATUS,
        "base": statuses[0],
        "new": statuses[1],
        "seeds": len(seeds),
        "verdict": verdict,
        "reason": f"seed{'s' if seeds[1:] else ''} {', '.join(seeds)}",
    }
    return _row(cells, {**_of(group), **told})


def _of(group: Group) -> dict[str, Any]:
    return {
        "defense": group.defense,
        "attack": group.attack,
        "domain": group.at.domain,
        "samples": group.at.samples,
    }


def _row(cells: Sequence[Cell], told: Mapping[str, Any]) -> dict[str, Any]:
    place = {**head(cells[0]), "suite": suites(cells)}
    return {**place, **NOTHING_TOLD, **told}


Values = Mapping[int, tuple[float, Provenance]]
"""A metric by seed, with where it was made."""


class _Pair:
    """One place of both runs, on the seeds that both have."""

    def __init__(self, old: Sides, new: Sides, frozen: Frozen | Sequence[Frozen] | None) -> None:
        self.both = (old, new)
        self.groups = (_groups(old.cells), _groups(new.cells))
        self.frozen = frozen
        old_seeds, new_seeds = ({cell.seed for cell in sides.cells} for sides in self.both)
        self.seeds = old_seeds & new_seeds

    def plugins(self) -> Iterator[dict[str, Any]]:
        """What has its label and is another."""
        for kind in ("defense", "attack"):
            old, new = (
                {plugin.label: plugin for cell in sides.cells for plugin in [getattr(cell, kind)]}
                for sides in self.both
            )
            for label in sorted(old.keys() & new.keys()):
                if old[label].version != new[label].version:
                    yield _row(
                        self.both[1].cells,
                        {
                            kind: label,
                            "metric": "plugin",
                            "base": old[label].version,
                            "new": new[label].version,
                            "verdict": "changed",
                            "reason": _changes(old[label], new[label]),
                        },
                    )

    def rows(self, threshold: Threshold) -> Iterator[dict[str, Any]]:
        """What a threshold says."""
        if threshold.metric in STATISTICS:
            yield from self._scores(threshold)
        elif threshold.metric in OF_MODELS:
            yield from self._models(threshold)
        else:
            yield from self._trials(threshold)

    def _trials(self, threshold: Threshold) -> Iterator[dict[str, Any]]:
        before, after = self.groups
        common = [group for group in before if group in after and group.at.role == "restricted"]
        for group in common:
            values = [
                _read(sides, groups[group].values(), threshold.metric)
                for sides, groups in zip(self.both, self.groups, strict=True)
            ]
            yield self._judged(threshold, _of(group), *values)
        if threshold.metric == AFTER:
            for defense, at in dict.fromkeys((group.defense, group.at) for group in common):
                if any(defense in sides.defenses for sides in self.both):
                    yield from self._envelopes(threshold, defense, at)

    def _envelopes(self, threshold: Threshold, defense: str, at: Where) -> Iterator[dict[str, Any]]:
        lengths = [
            stretch_of(c for c in sides.models[defense][at] if c.seed in self.seeds)
            for sides in self.both
        ]
        for stretch in sorted({1, *lengths}) if lengths[0] == lengths[1] else [1]:
            name = ENVELOPE if stretch == 1 else STRETCHED_ENVELOPE.format(stretch)
            told = {**_of(Group(defense, at, name))}
            if not self._same_trials(defense):
                yield self._not_applied(threshold, told, OTHER_TRIALS)
                continue
            values = []
            for sides in self.both:
                best = {
                    seed: tried.best(sides.cells[0].budget * stretch)
                    for seed, tried in sides.of(defense).get(at, {}).items()
                }
                values.append({seed: (b[1].test, b[0].provenance) for seed, b in best.items() if b})
            yield self._judged(threshold, told, *values)

    def _models(self, threshold: Threshold) -> Iterator[dict[str, Any]]:
        of = OF_MODELS[threshold.metric]
        for defense in self._common(sides.models for sides in self.both):
            values = [
                {
                    cell.seed: (value, cell.released.provenance)
                    for cells in sides.models[defense].values()
                    for cell in cells
                    if (value := of(cell)) is not None
                }
                for sides in self.both
            ]
            yield self._judged(threshold, {"defense": defense}, *values)

    def _scores(self, threshold: Threshold) -> Iterator[dict[str, Any]]:
        for defense in self._common(sides.defenses for sides in self.both):
            told = {"defense": defense}
            if not self._same_trials(defense):
                yield self._not_applied(threshold, told, OTHER_TRIALS)
                continue
            cases = [Case(s, defense, document(s, self.frozen)) for s in self.both]
            yield self._score(threshold, told, cases[0], cases[1])

    def _score(
        self, threshold: Threshold, told: Mapping[str, Any], one: Case, other: Case
    ) -> dict[str, Any]:
        metric = threshold.metric
        missing = [_missing(case, metric) for case in (one, other)]
        if missing[0] is not None:
            return self._not_applied(threshold, told, f"none in base: {missing[0]}")
        if missing[1] is not None:
            lost = {"verdict": "regression", "reason": f"none in new: {missing[1]}"}
            return self._row(threshold, {**told, **lost})
        found = paired(metric, other, one)
        if found is None:
            return self._not_applied(threshold, told, "none on the seeds in common")
        scale = 1.0 if metric == "score" else 100.0
        half = None if found.half_width is None else scale * found.half_width
        change = Interval(scale * (found.one - found.other), half)
        values = {"base": found.other, "new": found.one, "seeds": len(found.seeds)}
        return self._changed(threshold, {**told, **values}, change)

    def _judged(
        self, threshold: Threshold, told: Mapping[str, Any], old: Values, new: Values
    ) -> dict[str, Any]:
        relative = UNITS[threshold.metric] == "%"
        common = sorted(old.keys() & new.keys())
        if not common:
            return self._not_applied(threshold, told, "not in both on any seed")
        reason = _other_machine(old[common[0]][1], new[common[0]][1])
        seeds = [
            seed
            for seed in common
            if not threshold.same_machine or _other_machine(old[seed][1], new[seed][1]) is None
        ]
        if not seeds:
            return self._not_applied(threshold, told, f"another machine: {reason}")
        pairs = [(old[seed][0], new[seed][0]) for seed in seeds]
        if relative and any(a == 0 != b for a, b in pairs):
            return self._not_applied(
                threshold, told, "0 in base, and nothing is a percentage of it"
            )
        change = interval(
            [100 * ((b / a - 1 if a else 0.0) if relative else b - a) for a, b in pairs]
        )
        base, now = (interval(values).mean for values in zip(*pairs, strict=True))
        values = {"base": base, "new": now, "seeds": len(seeds)}
        return self._changed(threshold, {**told, **values}, change)

    def _changed(
        self, threshold: Threshold, told: Mapping[str, Any], change: Interval
    ) -> dict[str, Any]:
        found = {
            "difference": change.mean,
            "half_width": change.half_width,
            "verdict": threshold.verdict(change),
            "tentative": change.half_width is None,
        }
        return self._row(threshold, {**told, **found})

    def _not_applied(
        self, threshold: Threshold, told: Mapping[str, Any], reason: str
    ) -> dict[str, Any]:
        return self._row(threshold, {**told, "verdict": "not applied", "reason": reason})

    def _row(self, threshold: Threshold, told: Mapping[str, Any]) -> dict[str, Any]:
        metric = threshold.metric
        asked = {"metric": metric, "threshold": threshold.text, "unit": UNITS[metric]}
        return _row(self.both[1].cells, {**asked, **told})

    def _common(self, found: Iterable[Collection[str]]) -> list[str]:
        old, new = found
        return [defense for defense in old if defense in new]

    def _same_trials(self, defense: str) -> bool:
        """Whether the envelopes of a defense and of the controls are of the same listed trials."""
        old, new = (
            {
                (group.at, group.attack)
                for group, cells in groups.items()
                for seed, cell in cells.items()
                if seed in self.seeds and (group.defense == defense or cell.defense.control)
            }
            for groups in self.groups
        )
        return old == new


OTHER_TRIALS = "the listed trials are not the same, and so not the attacker"


def _read(sides: Sides, cells: Iterable[Cell], metric: str) -> Values:
    found = {}
    for cell in cells:
        if metric == AFTER:
            pick = sides.stand_ins.best(cell, cell.budget * cell.stretch)
            value = None if pick is None else pick[1].test
        else:
            value = _taken(cell.cost, metric)
        if value is not None:
            found[cell.seed] = (value, cell.provenance)
    return found


def _taken(cost: Cost | None, what: str) -> float | None:
    return None if cost is None else OF_CELLS[what](cost)


def _missing(case: Case, metric: str) -> str | None:
    """Why a case has no such statistic, if it has none."""
    if metric == "score" and (reason := case.unscored()) is not None:
        return reason
    if not case.seeds or STATISTICS[metric](case, None) is None:
        return case.unscored() or f"no {metric}"
    return None


def _other_machine(one: Provenance, other: Provenance) -> str | None:
    """How a machine is another, in what time and memory depend on; None if it is not."""
    for name in ("device", "threads", "torch"):
        old, new = getattr(one, name), getattr(other, name)
        if old != new:
            return f"{name} {old} in base, {new} in new"
    return None


def _changes(old: PluginId, new: PluginId) -> str:
    """In what a plugin is another."""
    before, after = old.parameters, new.parameters
    keys = dict.fromkeys([*before, *after])
    found = [
        f"{key} {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]
    fields = ("name", "source", "distribution", "control", "mechanism")
    return ", ".join([*(f for f in fields if getattr(old, f) != getattr(new, f)), *found])
