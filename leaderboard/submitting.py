"""What records have to have before they are published: nothing left out, nothing of another suite.

A score of a few chosen attacks is worth nothing. Every defense has to have met the whole suite, its
search and its recipes for benign domains, on the same seeds as the controls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from sophon_bench import protocol
from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.frozen import Frozen
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard.columns import records
from sophon_bench.leaderboard.entries import Entry, EntryError
from sophon_bench.leaderboard.layout import heading
from sophon_bench.leaderboard.searched import identity, unfinished
from sophon_bench.plugins.registry import attacks
from sophon_bench.plugins.selectors import Trial
from sophon_bench.plugins.suites import Arsenal, arsenal, load_suite, trials
from sophon_bench.results import Results
from sophon_bench.results.frames import PLACE
from sophon_bench.results.records import OR, Cell, ModelRecord, Records

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 3
"""Examples that a fault names."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite as it is installed, or several run together.

    Attributes:
        labels: Of each, with the version.
        arsenal: All that they ask for.
    """

    labels: tuple[str, ...]
    arsenal: Arsenal

    def asked(self, label: str) -> bool:
        """Whether it asked for what has this label in records."""
        return not {*self.labels}.isdisjoint(label.split(OR))


def installed(selectors: Sequence[str]) -> Suite:
    """What ``@NAME`` stands for, each of them."""
    labels = tuple(load_suite(selector.removeprefix("@")).label for selector in selectors)
    return Suite(labels=labels, arsenal=arsenal(attacks, selectors))


def joined(parts: Sequence[Records]) -> Records:
    """The records of several runs or entries as one.

    Raises:
        EntryError: If two of them made the same model or cell, and it came out otherwise: what
            else is in them then rests on two models that count as one, and on two searches.
    """
    known: dict[str, ModelRecord | Cell] = {}
    twice: set[int] = set()
    for part in parts:
        seeds = {model.key: model.seed for model in part.models.values()}
        for record in _records(part):
            if record.status == "failed":
                continue
            if known.setdefault(record.key, record) != record:
                twice.add(record.seed if isinstance(record, ModelRecord) else seeds[record.model])
    if twice:
        raise EntryError(
            f"several files have records of seed {_listed(twice)}, of runs that differ; give one "
            "file of each seed, or run all of it on one store"
        )
    return Records.joined(parts)


def chosen(cells: Records, defenses: Collection[str]) -> Records:
    """The cells of the defenses with these labels, and of the controls; of all if none is named.

    Raises:
        EntryError: If a defense has no records.
    """
    known = cells.defended
    for label in defenses:
        if label not in known:
            raise EntryError(f"no records of {label!r}; there are {', '.join(known)}")
    return cells.of_defenses(lambda made: not defenses or made.label in defenses)


def entry(cells: Records, *, authors: str, **head: str) -> Entry:
    """An entry of these records, of the day of the last one.

    Args:
        authors: Names, separated by commas.
        head: Other fields of `entries.Head`: ``name``, ``title``, ``link``.

    Raises:
        EntryError: If a field is not what it has to be.
    """
    whole = {
        **head,
        "authors": [author.strip() for author in authors.split(",") if author.strip()],
        "submitted": max(cell.provenance.finished for cell in cells.cells)[:10],
    }
    try:
        return Entry.of(whole, cells)
    except msgspec.ValidationError as error:
        raise EntryError(f"the entry is not well-formed: {error}") from error


def faults(cells: Records, suite: Suite, frozen: Sequence[Frozen]) -> list[str]:
    """Everything that stands against publishing ``cells``, in words; nothing if they may be.

    Args:
        cells: Records of defenses and of their controls.
        suite: What every defense has to have met.
        frozen: What budgets and n count.
    """
    results = Results.of(cells)
    met = outcomes(results).cells
    tried = list(map(identity, met["attack_name"], met["attack_parameters"]))
    by_key = {cell.key: cell for cell in cells.cells}
    met = met.assign(trial=tried, record=[by_key[key] for key in met["key"]])
    found = [
        *_of_protocol(cells), *_of_suite(met, suite), *_unlisted(met, suite), *_failed(met),
        *_of_versions(met), *_chosen_seeds(met), *_left_out(met, suite),
    ]  # fmt: skip
    scores = records(analysis.scores(results, frozen))
    if not any(not row["control"] for row in scores):
        found.append("no defense is among the records, only controls")
    for row in scores:
        if row["unscored"]:
            found.append(f"{row['defense']} has no score: {row['unscored']}")
        elif row["seeds"] < row["released_seeds"]:
            found.append(
                f"{row['defense']} has a score of {row['seeds']} of its {row['released_seeds']} "
                "seeds: on the others no trial on it ran"
            )
    return found


def _of_suite(met: DataFrame, suite: Suite) -> Iterator[str]:
    suites = met["suite"].dropna()
    others = suites[[not suite.asked(label) for label in suites]]
    for other, count in others.value_counts().sort_index().items():
        named = " and ".join(suite.labels)
        yield f"{count} records are of {other}, and what is published is of {named}"
    installed = {identity(t.entry.name, t.parameters): t.entry.source for t in _trials(suite)}
    now = met["trial"].map(installed)
    changed = met["attack"][now.notna() & (now != met["attack_source"]) & ~met["derived"]]
    if len(changed):
        yield f"made with another version of {_some(changed)} than is installed; run them again"


def _of_protocol(cells: Records) -> Iterator[str]:
    """A version is for people; the digest, which is in keys, tells every constant."""
    now = (protocol.VERSION, protocol.digest())
    made = Counter((record.protocol, record.protocol_digest) for record in _records(cells))
    for (version, digest), count in sorted(made.items()):
        if (version, digest) != now:
            yield (
                f"{count} records are of protocol {version} ({digest}), and installed is {now[0]} "
                f"({now[1]}); run them again"
            )


def _unlisted(met: DataFrame, suite: Suite) -> Iterator[str]:
    """Trials that somebody chose: one more against the undefended model alone raises a score.

    A run adds controls that its suites do not list.
    """
    arsenal = suite.arsenal
    added = trials(attacks, {*attacks.controls()} - {trial.name for trial in arsenal.trials})
    listed = {
        role: {identity(trial.entry.name, trial.parameters) for trial in own}
        for role, own in (
            ("restricted", [*arsenal.trials, *added]),
            ("benign", arsenal.trainability),
        )
    }
    columns = met[["role", "trial", "suite", "derived", "attack"]]
    unlisted = [
        attack
        for role, trial, label, derived, attack in columns.itertuples(index=False)
        if not derived and (label is None or suite.asked(label)) and trial not in listed[role]
    ]
    if unlisted:
        named = " and ".join(suite.labels)
        yield (
            f"{len(unlisted)} records are of trials that are not listed in {named} "
            f"({_some(unlisted)}); 'run' with no other --attack writes a file without them"
        )


def _of_versions(met: DataFrame) -> Iterator[str]:
    """What one selector stands for differs between records, and is two rows of a table."""
    for kind in ("defense", "attack"):
        for (_, selector), own in met.groupby(["place", kind]):
            seeds = own.groupby(f"{kind}_label")["seed"].unique()
            if len(seeds) > 1:
                told = "; ".join(f"{label} on seeds {_listed(of)}" for label, of in seeds.items())
                yield (
                    f"{selector} is there in {len(seeds)} versions, of another source, package or "
                    f"defaults: {told}"
                )


def _failed(met: DataFrame) -> Iterator[str]:
    failed = records(met[met["status"] == "failed"])
    if failed:
        names = (f"{c['attack']} against {c['defense']}, seed {c['seed']}: {c['reason']}"
                 for c in failed)  # fmt: skip
        yield f"{len(failed)} records failed ({_some(names)}); 'run --retry-failed' does them again"


def _chosen_seeds(met: DataFrame) -> Iterator[str]:
    """Seeds count from 0, so that nobody chooses the best of many."""
    places = met.groupby("place")
    for _, place in places:
        seeds = sorted(set(place["seed"]))
        if seeds != [*range(len(seeds))]:
            where = tuple(place.iloc[0][name] for name in PLACE)
            told = f" of {heading(where, place)}" if len(places) > 1 else ""
            yield (
                f"the seeds{told} are {_listed(seeds)}; what is published is of seeds 0 to "
                f"{len(seeds) - 1}"
            )


def _left_out(met: DataFrame, suite: Suite) -> Iterator[str]:
    for _, place in met.groupby("place"):
        seeds = sorted(set(place["seed"]))
        benign = sorted(set(place.loc[place["role"] == "benign", "domain"]))
        samples = sorted(set(place.loc[place["role"] == "restricted", "samples"]))
        arsenal = suite.arsenal
        targets: list[tuple[str, str, str | int, list[Trial]]] = [
            *(("restricted", "samples", n, arsenal.trials) for n in samples),
            *(("benign", "domain", domain, arsenal.trainability) for domain in benign),
        ]
        for _, own in place.groupby("model"):
            defense, control = own[["defense_label", "defense_control"]].iloc[0]
            for role, column, value, listed in targets:
                wanted = {
                    identity(t.entry.name, t.parameters): t.label
                    for t in listed
                    if control or not t.entry.control
                }
                here = own[(own["role"] == role) & (own[column] == value)]
                where = f"on {value}" if role == "benign" else f"with n={value}"
                yield from _missing(f"{defense} {where}", seeds, wanted, here)
                if role == "restricted" and arsenal.rules.continued:
                    longer = here["stretch"] == arsenal.rules.times
                    for seed in sorted({*seeds} - {*here.loc[longer, "seed"]}):
                        yield (
                            f"{defense} {where}, seed {seed}: no trial went on to the longer "
                            "budget; the run was not finished"
                        )
                if role == "restricted":
                    searched = here[[suite.asked(str(s)) for s in here["suite"]]]
                    for (seed, _), tried in searched.groupby(["seed", "attack_control"]):
                        if left := unfinished(arsenal.rules, listed, [*tried["record"]]):
                            yield (
                                f"{defense} {where}, seed {seed}: the search goes on to {len(left)}"
                                f" trials that are missing ({_some(left)})"
                                + ("; run the suites together" if len(suite.labels) > 1 else "")
                            )


def _missing(
    what: str, seeds: Iterable[int], wanted: Mapping[str, str], here: DataFrame
) -> Iterator[str]:
    for seed in seeds:
        met = {*here.loc[(here["seed"] == seed) & (here["stretch"] == 1), "trial"]}
        if left := [label for identity, label in wanted.items() if identity not in met]:
            yield f"{what}, seed {seed}: {len(left)} trials are missing ({_some(left)})"


def _trials(suite: Suite) -> list[Trial]:
    return [*suite.arsenal.trials, *suite.arsenal.trainability]


def _records(cells: Records) -> list[ModelRecord | Cell]:
    return [*cells.models.values(), *cells.cells]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _some(names: Iterable[str]) -> str:
    listed = sorted(set(names))
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
