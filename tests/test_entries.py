"""Published results: written, read back, checked, submitted, made again."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import published
import pytest
from click.testing import CliRunner, Result
from conftest import Attempt, MakeCell, attempts, gather, named
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pandas import DataFrame

from sophon_bench.analysis.agreement import agreements
from sophon_bench.analysis.envelope import multiples
from sophon_bench.analysis.statistics import wilson
from sophon_bench.api import attacks
from sophon_bench.cli import main
from sophon_bench.execution.plan import plugin_id
from sophon_bench.leaderboard import entries, page, submitting, tables
from sophon_bench.leaderboard.columns import records
from sophon_bench.leaderboard.entries import Entry, EntryError
from sophon_bench.leaderboard.finding import with_recipe
from sophon_bench.plugins.suites import Arsenal, Rules, trials
from sophon_bench.results import Results
from sophon_bench.results.documents import json_lines
from sophon_bench.results.records import SCHEMA, compact, content_key
from sophon_bench.results.store import Store

TINY = Path(__file__).parent / "tiny_scenario.py"
BENIGN = ("greek", "shapes")
SEEDS = (0, 1)
COSTS = (800.0, 1600.0, 3200.0, 6400.0, 12800.0)
ABOUT: dict[str, Any] = {
    "name": "acme-shield", "title": "Acme Shield", "authors": ["A. Author", "B. Author"],
    "link": "https://arxiv.org/abs/2404.12699", "submitted": "2026-01-31",
}  # fmt: skip

SUITE = submitting.Suite(
    labels=("@standard v1",),
    arsenal=Arsenal(
        trials=trials(attacks, ["finetune[lr=[1e-2,1e-1]]", "scratch"]),
        rules=Rules.model_validate({"continue": 1, "times": 10}),
        trainability=trials(attacks, ["finetune", "scratch"]),
    ),
)


@pytest.fixture
def whole(make_cell: MakeCell) -> list[Attempt]:
    """All that `SUITE` asks for: against the undefended model, fresh weights and ``d``."""
    found = []
    for defense, seed in ((d, s) for d in ("none", "d") for s in SEEDS):
        level = {"none": 0.8, "d": 0.6}[defense]
        for role, domain, listed in (
            ("restricted", "digits", SUITE.arsenal.trials),
            *(("benign", name, SUITE.arsenal.trainability) for name in BENIGN),
        ):
            for trial in listed:
                if trial.entry.control and defense != "none":
                    continue
                reached = 0.3 if trial.entry.control else level
                longer = role == "restricted"
                for stretch in (1, 10) if longer else (1,):
                    cell = make_cell(
                        defense=defense,
                        seed=seed,
                        curve=[(units, reached, reached) for units in COSTS],
                        role=role,
                        domain=domain,
                        suite=SUITE.labels[0],
                        stretch=stretch,
                        derived=stretch > 1,
                    )
                    found.append(named(replace(cell, attack=plugin_id(trial))))
    return found


@pytest.fixture
def entry(whole: list[Attempt]) -> Entry:
    return Entry.of(ABOUT, gather(whole))


def test_an_entry_comes_back_as_it_was(entry: Entry, tmp_path: Path) -> None:
    file = entries.write(entry, tmp_path / "results")
    found = entries.read(file)
    ordered = sorted(entry.records.cells, key=lambda cell: cell.key)
    assert found == replace(entry, records=dataclasses.replace(entry.records, cells=ordered))
    content = file.read_bytes()
    file.unlink()
    assert entries.write(found, tmp_path / "results").read_bytes() == content
    assert entries.read_all([file]) == [found]


def test_every_record_has_a_line(entry: Entry) -> None:
    head, *others = lines(entry)
    assert head == {"entry": {"schema": SCHEMA, **ABOUT, "label": "self-reported"}}
    kinds = [next(iter(line)) for line in others]
    records = entry.records
    assert kinds.count("model") == len(records.models) == 2 + 4
    assert kinds.count("asked") == kinds.count("cell") == len(records.cells)
    assert kinds == [k for k in ("model", "asked", "cell") for _ in range(kinds.count(k))]
    assert all(
        line["sha256"] == content_key(line[k]) for k, line in zip(kinds, others, strict=True)
    )


def test_another_entry_is_never_written_over(entry: Entry, tmp_path: Path) -> None:
    file = entries.write(entry, tmp_path)
    before = file.read_bytes()
    entries.write(entry, tmp_path)
    with pytest.raises(EntryError, match=r"acme-shield\.jsonl' is there, with other content"):
        entries.write(replace(entry, title="Another"), tmp_path)
    assert file.read_bytes() == before


def test_no_entry_is_written_that_cannot_be_read(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "LARGEST_ENTRY", 2**10)
    with pytest.raises(EntryError, match=r"at most 0 MiB.* one by one \(--defense\)"):
        entries.write(entry, tmp_path)
    assert not [*tmp_path.iterdir()]


Lines = list[dict[str, Any]]
Change = Callable[[Lines], object]


def lines(entry: Entry) -> Lines:
    """Those of its file, read."""
    return [json.loads(line) for line in json_lines(entry.head, entry.records).splitlines()]


def read(content: Lines, folder: Path) -> Entry:
    """The entry in a file of these lines."""
    file = folder / "acme-shield.jsonl"
    file.write_text("".join(f"{compact(line)}\n" for line in content))
    return entries.read(file)


def last(kind: str) -> Callable[[Lines], dict[str, Any]]:
    """The last record of a kind."""
    return lambda found: [line[kind] for line in found if kind in line][-1]


head, model, asked, cell = map(last, ("entry", "model", "asked", "cell"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda c: cell(c)["curve"]["test"].append(1.0), "edited", id="a point more"),
        pytest.param(lambda c: cell(c)["curve"]["fit"].pop(), "edited", id="a point less"),
        pytest.param(lambda c: model(c).update(original=1.0), "line 7 .*edited", id="a model"),
        pytest.param(lambda c: model(c).update(seed=7), "edited", id="a seed"),
        pytest.param(lambda c: asked(c).update(suites=["@x v1"]), "asked .*edited", id="who asked"),
        pytest.param(lambda c: cell(c).update(status="fine"), "status", id="a wrong status"),
        pytest.param(lambda c: cell(c).update(attack=99), "attack", id="no attack"),
        pytest.param(lambda c: cell(c).pop("model"), "model", id="a field that is missing"),
        pytest.param(lambda c: cell(c).update(extra=1), "extra", id="a field too many"),
        pytest.param(lambda c: cell(c).update(key=[1]), "key", id="a key that is a list"),
        pytest.param(lambda c: cell(c).update(curve=3), "curve", id="no curve"),
        pytest.param(lambda c: c.append(c[-1]), "twice", id="a double"),
        pytest.param(lambda c: c.pop(), "cell .* is missing", id="a cell that is missing"),
        pytest.param(lambda c: c.pop(1), "model .* is missing", id="a model that is missing"),
        pytest.param(lambda c: c.remove({"asked": asked(c), "sha256": content_key(asked(c))}),
                     "asked .* is missing", id="nobody asked"),
        pytest.param(lambda c: c[-1].pop("sha256"), "hash is missing", id="a hash less"),
        pytest.param(lambda c: c[-1].update(more=1), "line .* is damaged", id="a line of two"),
        pytest.param(lambda c: c[-1].clear(), "line .* is damaged", id="an empty line"),
        pytest.param(lambda c: head(c).update(schema=2), "schema version 2", id="another schema"),
        pytest.param(lambda c: head(c).update(link="javascript:x"), "link", id="a bad link"),
        pytest.param(lambda c: head(c).update(name="../up"), "name", id="a name that climbs"),
        pytest.param(lambda c: head(c).update(name="up\n"), "name", id="a name of two lines"),
        pytest.param(lambda c: head(c).update(name="a" * 61), "name", id="a name that is long"),
        pytest.param(lambda c: head(c).update(title="a\nb"), "title", id="two lines"),
        pytest.param(lambda c: head(c).update(authors=[]), "authors", id="no authors"),
        pytest.param(lambda c: head(c).update(label="certified"), "label", id="a label"),
        pytest.param(lambda c: head(c).update(more=1), "more", id="something more"),
    ],
)  # fmt: skip
def test_what_was_changed_is_named(
    entry: Entry, change: Change, words: str, tmp_path: Path
) -> None:
    content = lines(entry)
    change(content)
    with pytest.raises(EntryError, match=words) as raised:
        read(content, tmp_path)
    assert str(raised.value).startswith(f"'{tmp_path}/acme-shield.jsonl'")


@pytest.mark.parametrize("utility", [-0.1, 1.1])
def test_an_accuracy_is_a_share(whole: list[Attempt], utility: float, tmp_path: Path) -> None:
    forged = replace(whole[-1], curve=[replace(whole[-1].curve[0], selection=utility)])
    file = entries.write(Entry.of(ABOUT, gather([*whole[:-1], forged])), tmp_path)
    with pytest.raises(EntryError, match="an accuracy that is not within 0 and 1"):
        entries.read(file)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a record there is a value that has no parts."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if isinstance(part, dict | list) and part:
            yield from leaves(part, (*path, key))
        else:
            yield (*path, key)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_line_can_be_edited_doubled_or_left_out(
    entry: Entry, tmp_path: Path, data: st.DataObject
) -> None:
    content = lines(entry)
    number = data.draw(st.integers(1, len(content) - 1), label="line")
    edit = data.draw(st.sampled_from(["edited", "doubled", "left out"]))
    if edit == "doubled":
        content.insert(number, content[number])
    elif edit == "left out":
        del content[number]
    else:
        *path, key = data.draw(st.sampled_from(list(leaves(content[number]))), label="value")
        holder: Any = content[number]
        for step in path:
            holder = holder[step]
        holder[key] = data.draw(json_scalars.filter(lambda v: compact(v) != compact(holder[key])))
    with pytest.raises(EntryError, match=r"acme-shield\.jsonl"):
        read(content, tmp_path)


json_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(),
    st.floats(allow_nan=False, allow_infinity=False),
)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_what_is_cut_short_is_refused(entry: Entry, share: float, tmp_path: Path) -> None:
    file = entries.write(entry, tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(EntryError, match=r"line .* is damaged|cut short"):
        entries.read(file)


def test_what_an_older_version_wrote_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "acme-shield.json"
    file.write_text(json.dumps({"layout": 1, "schema": 2, "cells": [], "hashes": {}}, indent=1))
    with pytest.raises(EntryError, match=f"has schema version 2, this program reads {SCHEMA}"):
        entries.read(file)


def test_a_file_is_called_as_its_entry_is(entry: Entry, tmp_path: Path) -> None:
    file = entries.write(entry, tmp_path).rename(tmp_path / "other.jsonl")
    with pytest.raises(EntryError, match="says that its name is 'acme-shield'; call it so"):
        entries.read(file)
    with pytest.raises(EntryError, match="cannot be read"):
        entries.read(tmp_path / "none.jsonl")


def test_every_published_entry_is_whole() -> None:
    names = [entry.name for entry in entries.published()]
    assert names == sorted(names)


def test_defenses_of_one_name_are_told_apart(entry: Entry) -> None:
    less = [cell for cell in attempts(entry.records) if cell.seed == 0]
    other = replace(entry, name="other", records=gather(less))
    found = entries.report([other, entry], ())
    assert [row["defense"] for row in records(found.scores)] == [
        "none", "d (acme-shield)", "d (other)",
    ]  # fmt: skip
    assert [row["seeds"] for row in records(found.scores)] == [2, 2, 1]
    alone = entries.report([entry], ())
    of_records = with_recipe(tables.report(entry.records, ()), entry.records)
    assert records(alone.scores) == records(of_records.scores)


@pytest.mark.parametrize("start", ["pretrained=true", "weights=sha256:0123"])
def test_pre_trained_models_come_first(entry: Entry, start: str) -> None:
    """However few their seeds are: they are more like what people release."""
    few = [
        named(replace(cell, backbone=f"resnet18[{start}]"))
        for cell in attempts(entry.records)
        if cell.seed == 0
    ]
    real = replace(entry, name="real", records=gather(few))
    found = records(entries.report([entry, real], ()).scores)
    assert found[0]["backbone"] == f"resnet18[{start}]"
    assert len({row["backbone"] for row in found}) == 2


def test_controls_are_of_the_entry_with_most_seeds(entry: Entry) -> None:
    """Also where another one has a place that comes first."""
    few = [cell for cell in attempts(entry.records) if cell.seed == 0]
    both = [*few, *(named(replace(cell, backbone="r[pretrained=true]")) for cell in few)]
    real = replace(entry, name="real", records=gather(both))
    found = records(entries.report([entry, real], ()).scores)
    assert [(row["backbone"], row["defense"], row["seeds"]) for row in found] == [
        ("r[pretrained=true]", "none", 1),
        ("r[pretrained=true]", "d (real)", 1),
        ("b", "none", 2),
        ("b", "d (acme-shield)", 2),
        ("b", "d (real)", 1),
    ]


def test_whole_records_may_be_published(whole: list[Attempt]) -> None:
    assert submitting.faults(gather(whole), SUITE, ()) == []
    everything = gather(whole)
    assert everything.of_defenses(lambda defense: defense.label == "d") == everything


def drop(**fields: object) -> Callable[[list[Attempt]], list[Attempt]]:
    def without(cells: list[Attempt]) -> list[Attempt]:
        return [c for c in cells if any(_get(c, name) != v for name, v in fields.items())]

    return without


def _get(cell: Attempt, name: str) -> object:
    return {"defense": cell.defense.label, "attack": cell.attack.label}.get(
        name, getattr(cell, name)
    )


def make(**changes: object) -> Callable[[list[Attempt]], list[Attempt]]:
    def changed(cells: list[Attempt]) -> list[Attempt]:
        return [replace(cells[-1], **changes) if c is cells[-1] else c for c in cells]

    return changed


SLOW = "finetune[lr=0.01]"


@pytest.mark.parametrize("suite", [None, SUITE.labels[0]])
def test_no_trial_is_added_that_the_suite_does_not_list(
    whole: list[Attempt], suite: str | None
) -> None:
    """One more against the undefended model alone would raise the score of every defense."""
    (trial,) = trials(attacks, ["finetune[lr=3e-2]"])
    added = [
        named(replace(cell, attack=plugin_id(trial), suite=suite))
        for cell in whole
        if (cell.role, cell.defense.label, cell.attack.lr) == ("restricted", "none", 0.1)
        and cell.stretch == 1
    ]
    assert submitting.faults(gather([*whole, *added]), SUITE, ()) == [
        "2 records are of trials that are not listed in @standard v1 (finetune[lr=0.03]); "
        "'run' with no other --attack writes a file without them"
    ]


def test_a_control_that_no_suite_lists_is_part_of_every_run(whole: list[Attempt]) -> None:
    listed = [trial for trial in SUITE.arsenal.trials if not trial.entry.control]
    suite = dataclasses.replace(SUITE, arsenal=dataclasses.replace(SUITE.arsenal, trials=listed))
    cells = [
        replace(c, suite=None) if c.attack.control and c.role == "restricted" else c for c in whole
    ]
    assert submitting.faults(gather(cells), suite, ()) == []


def test_a_protocol_that_is_not_installed_is_named(whole: list[Attempt]) -> None:
    """Its version may be the same where a constant, or what the core computes, is not."""
    cells = [replace(c, protocol_digest="0" * 12) if c.seed == 1 else c for c in whole]
    (fault,) = submitting.faults(gather(cells), SUITE, ())
    assert fault.startswith("16 records are of protocol 1 (000000000000), and installed is 1 (")


def test_longer_runs_are_as_long_as_the_suites_say(searched: list[Attempt]) -> None:
    """Of several suites the longest counts."""
    shorter = [named(replace(c, stretch=5)) if c.stretch == 10 else c for c in searched]
    found = submitting.faults(gather(shorter), SEARCHED, ())
    assert any(re.search(r"missing \(finetune\[lr=0\.1\] ×10\)", fault) for fault in found)


def test_what_tells_seeds_apart_is_said(whole: list[Attempt]) -> None:
    """They may be of machines with another plugin, or with other images."""
    other = {"source": "f" * 64}
    cells = [
        named(replace(c, defense=replace(c.defense, **other)))
        if (c.defense.label, c.seed) == ("d", 1)
        else c
        for c in whole
    ]
    found = submitting.faults(gather(cells), SUITE, ())
    words = r"d is there in 2 versions, .*: d@\w{7} on seeds [01]; d@\w{7} on seeds [01]"
    assert any(re.fullmatch(words, fault) for fault in found), found
    cells = [
        named(replace(c, scenario=replace(c.scenario, revision="other"))) if c.seed == 1 else c
        for c in whole
    ]
    assert submitting.faults(gather(cells), SUITE, ()) == [
        "the seeds of s (data other), b, fp32, protocol 1, 200 steps, @standard v1 are 1; what is "
        "published is of seeds 0 to 0"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            drop(defense="d", seed=1, attack="finetune[lr=0.1]", stretch=1, role="restricted"),
            r"d with n=200, seed 1: 1 trials are missing \(finetune\[lr=0\.1\]\)",
            id="a trial",
        ),
        pytest.param(drop(defense="none"), "no controls", id="the controls"),
        pytest.param(drop(defense="none", seed=1), "", id="a seed of the controls"),
        pytest.param(
            drop(defense="d", stretch=10, seed=0), "seed 0: no trial went on", id="the longer runs"
        ),
        pytest.param(drop(defense="d"), "no defense is among", id="the defense"),
        pytest.param(
            drop(defense="d", domain="greek"), "d on greek, seed 0: 1 trials", id="a benign domain"
        ),
        pytest.param(drop(domain="greek"), "no score", id="a benign domain everywhere"),
        pytest.param(make(suite="@standard v0"), "1 records are of @standard v0", id="the suite"),
        pytest.param(
            make(status="failed", reason="boom"), "1 records failed .*boom", id="a failure"
        ),
    ],
)
def test_what_is_missing_is_said(
    whole: list[Attempt], change: Callable[[list[Attempt]], list[Attempt]], words: str
) -> None:
    found = submitting.faults(gather(change(whole)), SUITE, ())
    assert found
    assert any(re.search(words, fault) for fault in found), found


SEARCHED = submitting.Suite(
    labels=SUITE.labels,
    arsenal=dataclasses.replace(
        SUITE.arsenal, rules=Rules.model_validate({"refine": 1, "continue": 1, "times": 10})
    ),
)


@pytest.fixture
def searched(whole: list[Attempt]) -> list[Attempt]:
    """The same with what `SEARCHED` adds, where every trial spends its budget and 0.1 is best."""

    def spent(cell: Attempt) -> Attempt:
        steep = 0.01 if cell.attack.lr == 0.1 else 0.0
        curve = [replace(point, selection=point.selection + steep) for point in cell.curve]
        return replace(cell, curve=curve, cost=replace(cell.cost, units=12800.0))

    added = [
        named(replace(cell, attack=plugin_id(trial), derived=True))
        for cell in whole
        if (cell.role, cell.stretch, cell.attack.lr) == ("restricted", 1, 0.1)
        for trial in trials(attacks, [f"{cell.attack.name}[lr=[3e-2,3e-1]]"])
    ]
    return [*map(spent, whole), *map(spent, added)]


def test_a_whole_search_may_be_published(searched: list[Attempt]) -> None:
    assert submitting.faults(gather(searched), SEARCHED, ()) == []


@pytest.mark.parametrize("defense", ["none", "d"])
@pytest.mark.parametrize(
    ("attack", "stretch", "words"),
    [("finetune[lr=0.3]", 1, r"finetune\[lr=0\.3\]"), ("finetune[lr=0.1]", 10, "0\\.1.* ×10")],
)
def test_nothing_that_a_search_adds_is_left_out(
    searched: list[Attempt], defense: str, attack: str, stretch: int, words: str
) -> None:
    """A search goes by results that are there: whoever drops its best trial is found out."""
    less = drop(defense=defense, seed=1, attack=attack, stretch=stretch)(searched)
    (fault,) = submitting.faults(gather(less), SEARCHED, ())
    start = f"{defense} with n=200, seed 1: the search goes on to 1 trials that are missing"
    assert re.fullmatch(rf"{start} \(.*{words}.*\)", fault)


def test_nobody_chooses_seeds(whole: list[Attempt]) -> None:
    other = [named(replace(cell, seed=cell.seed + 2 * (cell.seed == 1))) for cell in whole]
    assert submitting.faults(gather(other), SUITE, ()) == [
        "the seeds are 0, 3; what is published is of seeds 0 to 1"
    ]


def test_a_defense_that_steps_aside_on_a_seed_is_not_judged_on_the_others(
    whole: list[Attempt],
) -> None:
    aside = {"status": "skipped", "reason": "bad luck", "curve": [], "cost": None}
    records = gather(
        replace(cell, **aside) if (cell.defense.label, cell.seed) == ("d", 1) else cell
        for cell in whole
    )
    assert (
        "d has a score of 1 of its 2 seeds: on the others no trial on it ran"
        in submitting.faults(records, SUITE, ())
    )


def test_attacks_of_another_version_are_named(whole: list[Attempt]) -> None:
    older = [
        replace(c, attack=replace(c.attack, source="old")) if c.attack.name == "scratch" else c
        for c in whole
    ]
    assert submitting.faults(gather(older), SUITE, ()) == [
        "made with another version of scratch than is installed; run them again"
    ]


def test_a_trial_is_its_parameters_and_not_what_a_label_leaves_out(whole: list[Attempt]) -> None:
    """A label has no defaults, and these may have been others when the records were made."""
    other = [
        replace(c, attack=replace(c.attack, label="s")) if c.attack.name == "scratch" else c
        for c in whole
    ]
    assert submitting.faults(gather(other), SUITE, ()) == []


def agreement(make_cell: MakeCell, before: float, now: float, count: int = 1) -> str:
    reported, again = (
        Results.of(
            gather(make_cell(seed=seed, curve=[(100.0, 0.5, test)]) for seed in range(count))
        )
        for test in (before, now)
    )
    (verdict,) = set(compared(reported, again)["agreement"])
    return str(verdict)


def compared(reported: Results, again: Results) -> DataFrame:
    """`agreements` where the sets have as many images as `make_cell` says of test splits."""
    examples = {"test": 500, "selection": 200, "original": 500}
    return agreements(reported, again, dict.fromkeys(reported.cells.index, examples))


def test_agreement_is_within_what_test_images_vary(make_cell: MakeCell) -> None:
    # p = .7 of 500 images: 1.95996 sqrt(2 .7 .3 / 500) = .0568; of ten pairs, 2.80703: .0814
    assert agreement(make_cell, 0.7, 0.7) == "identical"
    assert agreement(make_cell, 0.672, 0.728) == "agrees"
    assert agreement(make_cell, 0.671, 0.729) == "differs"
    assert agreement(make_cell, 0.660, 0.740, count=10) == "agrees"
    assert agreement(make_cell, 0.659, 0.741, count=10) == "differs"


def in_curve(**changes: float) -> Callable[[Attempt], Attempt]:
    """Every scoring of a cell with something added to its fields."""

    def changed(cell: Attempt) -> Attempt:
        return replace(cell, curve=[
            replace(p, **{n: getattr(p, n) + more for n, more in changes.items()})
            for p in cell.curve
        ])  # fmt: skip

    return changed


def in_models(before: float, after: float) -> Callable[[Attempt], Attempt]:
    """The original utility of a cell's models with something added to it."""
    return lambda cell: replace(
        cell,
        pretrained=replace(cell.pretrained, original=cell.pretrained.original + before),
        released=replace(cell.released, original=cell.released.original + after),
    )


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        pytest.param(in_curve(selection=-0.2), "selection", id="the envelope leaves it out"),
        pytest.param(in_curve(test=-0.2), "test", id="it reached less"),
        pytest.param(in_models(0.0, 0.1), "original", id="a released model that is intact"),
        pytest.param(in_models(-0.1, 0.0), "original", id="an undefended model that is worse"),
        pytest.param(lambda c: replace(c, role="benign"), "role", id="benign is not restricted"),
        pytest.param(lambda c: replace(c, test_examples=2), "test_examples", id="a wide bound"),
        pytest.param(lambda c: replace(c, utility="skill"), "utility", id="no share of images"),
        pytest.param(
            lambda c: replace(c, nonfinite_step=9), "nonfinite_step", id="it crashed later"
        ),
    ],
)
def test_whatever_a_score_goes_by_has_to_agree(
    make_cell: MakeCell, change: Callable[[Attempt], Attempt], differing: str
) -> None:
    again = make_cell(
        curve=[(units, 0.5, 0.6) for units in COSTS],
        original=(0.9, 0.8),
        status="diverged",
        nonfinite_step=1,
    )
    pair = [Results.of(gather([cell])) for cell in (change(again), again)]
    (row,) = records(compared(*pair))
    assert (row["agreement"], row["differing"]) == ("differs", differing)
    (row,) = records(compared(pair[1], pair[1]))
    assert (row["agreement"], row["differing"]) == ("identical", None)


@pytest.mark.parametrize("stretch", [1, 10])
def test_every_budget_has_to_agree(make_cell: MakeCell, stretch: int) -> None:
    """A resistance is the least over budgets, and at some of them there may be nothing to keep."""
    again = make_cell(
        curve=[(12800 * at, 0.5 + 0.01 * i, 0.6) for i, at in enumerate(multiples(stretch))],
        stretch=stretch,
    )
    for number, point in enumerate(again.curve):
        less = [*again.curve]
        less[number] = replace(point, test=0.4)
        pair = [Results.of(gather([cell])) for cell in (replace(again, curve=less), again)]
        assert compared(*pair)["differing"].tolist() == ["test"]


def test_a_bound_is_of_the_split_that_is_measured(make_cell: MakeCell) -> None:
    # 1.95996 sqrt(2 .5 .5 / 200) = .0980 of the selection split
    again = make_cell(curve=[(100.0, 0.5, 0.5)])
    for more, verdict in ((0.095, "agrees"), (0.1, "differs")):
        other = Results.of(gather([in_curve(selection=more)(again)]))
        (found,) = compared(other, Results.of(gather([again])))["agreement"]
        assert found == verdict


def test_another_status_differs(make_cell: MakeCell) -> None:
    fine, failed = make_cell(), make_cell(status="failed", curve=[])
    other = make_cell(seed=1, status="failed", curve=[])
    found = compared(Results.of(gather([fine, other])), Results.of(gather([failed, other])))
    assert dict(zip(found["key"], found["agreement"], strict=True)) == {
        fine.key: "differs", other.key: "identical"
    }  # fmt: skip


def test_only_what_was_made_again_is_compared(make_cell: MakeCell) -> None:
    cells = [make_cell(seed=seed) for seed in range(3)]
    found = compared(Results.of(gather(cells)), Results.of(gather(cells[1:])))
    assert found["seed"].tolist() == [1, 2]
    nothing = compared(Results.of(gather(cells)), Results.of(gather([])))
    assert nothing.empty
    assert nothing.columns.tolist() == found.columns.tolist()


def test_wilson_interval() -> None:
    # 8 of 10: (.8 + 1.9208/10 +- 1.96 sqrt(.016 + .009604)) / 1.384
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0.0, 10)[0] == 0.0
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def documents(whole: list[Attempt], tmp_path: Path) -> Iterator[Path]:
    suite = tmp_path / "small.yaml"
    suite.write_text(
        "version: 1\ndescription: small\ntrials: ['finetune[lr=[1e-2,1e-1]]', scratch]\n"
        "search: {refine: 0, continue: 1, times: 10}\ntrainability: [finetune, scratch]\n"
    )
    cells = [replace(cell, suite="@small v1") for cell in whole]
    (tmp_path / "run.json").write_text(tables.document(gather(cells), tables.report(gather(cells))))
    return tmp_path


def submit(folder: Path, *more: object, **changes: str) -> Result:
    about = {
        "name": "acme", "title": "Acme", "authors": "A. Author, B. Author",
        "link": "https://example.org/x", **changes,
    }  # fmt: skip
    given = [word for key, value in about.items() for word in (f"--{key}", value)]
    return call(
        "submit", "--records", folder / "run.json", "--suite", f"@{folder / 'small.yaml'}",
        "--out", folder / "results", *given, *more,
    )  # fmt: skip


def test_two_suites_that_were_run_together(documents: Path, whole: list[Attempt]) -> None:
    """Each has to be complete; what neither of them asked for is no part of it."""
    other = documents / "other.yaml"
    other.write_text("version: 3\ndescription: other\ntrials: ['finetune[lr=1e-1]']\n")
    cells = [replace(cell, suite="@small v1") for cell in whole]
    tenth = [c.role == "restricted" and c.attack.lr == 0.1 and c.stretch == 1 for c in cells]
    both = [
        replace(c, suite="@other v3") if own else c for c, own in zip(cells, tenth, strict=True)
    ]

    def with_suites(found: list[Attempt], *suites: Path) -> Result:
        document = tables.document(gather(found), tables.report(gather(found)))
        (documents / "run.json").write_text(document)
        return submit(documents, *(word for file in suites for word in ("--suite", f"@{file}")))

    alone = with_suites(both)
    assert alone.exit_code == 2
    assert "6 records are of @other v3, and what is published is of @small v1" in alone.output
    result = with_suites(both, other)
    assert result.exit_code == 0, result.output
    less = with_suites([c for c, own in zip(both, tenth, strict=True) if not own], other)
    assert less.exit_code == 2
    assert "1 trials are missing (finetune[lr=0.1])" in less.output


def test_an_entry_grows_by_seeds(documents: Path, whole: list[Attempt]) -> None:
    """Each seed may be run on a machine of its own: together they are the whole run's records."""
    assert submit(documents).exit_code == 0
    at_once = (documents / "results" / "acme.jsonl").read_bytes()
    cells = [replace(cell, suite="@small v1") for cell in whole]
    parts = [[cell for cell in cells if (cell.seed == 0) is first] for first in (True, False)]
    for name, part in zip(("run.json", "more.json"), parts, strict=True):
        document = tables.document(gather(part), tables.report(gather(part)))
        (documents / name).write_text(document)
    (documents / "results" / "acme.jsonl").unlink()
    alone = submit(documents)
    assert alone.exit_code == 0, alone.output
    grown = documents / "grown"
    result = submit(
        documents, "--records", documents / "results" / "acme.jsonl",
        "--records", documents / "more.json", "--out", grown,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (grown / "acme.jsonl").read_bytes() == at_once


def test_a_seed_that_was_run_twice_is_not_mixed(documents: Path, whole: list[Attempt]) -> None:
    """Keys do not say how a machine rounds: its models are others under the same keys."""
    cells = [replace(cell, suite="@small v1") for cell in whole]
    other = [
        replace(cell, pretrained=replace(cell.pretrained, original=0.5)) if cell.seed else cell
        for cell in cells
    ]
    for name, part in (("same.json", cells), ("other.json", other)):
        document = tables.document(gather(part), tables.report(gather(part)))
        (documents / name).write_text(document)
    result = submit(documents, "--records", documents / "other.json")
    assert result.exit_code == 2
    assert "several files have records of seed 1, of runs that differ" in result.output
    assert submit(documents, "--records", documents / "same.json").exit_code == 0


@pytest.mark.parametrize("order", [1, -1])
def test_joined_what_failed_gives_way_and_whoever_asked_is_kept(
    whole: list[Attempt], order: int
) -> None:
    first, *others = whole
    failed = {"status": "failed", "reason": "boom", "curve": [], "cost": None}
    parts = [
        gather([replace(first, suite="@a v1", derived=True, **failed), *others]),
        gather([replace(first, suite="@b v2"), *others]),
    ]
    joined = submitting.joined(parts[::order])
    assert {cell.status for cell in joined.cells} == {"ok"}
    who = joined.asked[first.key]
    assert (who.suites, who.derived) == (("@a v1", "@b v2"), False)


def test_submit_writes_an_entry(documents: Path) -> None:
    result = submit(documents)
    assert result.exit_code == 0, result.output
    entry = entries.read(documents / "results" / "acme.jsonl")
    assert entry.authors == ["A. Author", "B. Author"]
    assert entry.label == "self-reported"
    assert entry.submitted == "2026-01-01"
    assert "next: sophon-bench verify" in result.output
    assert submit(documents).exit_code == 0
    again = submit(documents, title="Other")
    assert again.exit_code == 2
    assert "is there, with other content; choose another name or --out" in again.output


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"name": "Acme!"}, (), "name"),
        ({"link": "http://example.org"}, (), "link"),
        ({"authors": " , "}, (), "authors"),
        ({}, ("--defense", "dd"), "no records of 'dd'; there are d"),
    ],
)
def test_submit_refuses(
    documents: Path, changes: dict[str, str], more: tuple[str, ...], words: str
) -> None:
    result = submit(documents, *more, **changes)
    assert result.exit_code == 2
    assert words in result.output
    assert not (documents / "results").exists()


def test_submit_says_all_that_is_missing(documents: Path) -> None:
    content = json.loads((documents / "run.json").read_text())
    (model,) = (
        m
        for m in content["models"]
        if m["defense"] and m["defense"]["label"] == "d" and m["seed"] == 1
    )
    gone = [cell["key"] for cell in content["cells"] if cell["model"] == model["key"]]
    for part in ("cells", "asked"):
        content[part] = [each for each in content[part] if each["key"] not in gone[:3]]
    (documents / "run.json").write_text(json.dumps(content))
    result = submit(documents)
    assert result.exit_code == 2
    assert "refused: d with n=200, seed 1" in result.output
    assert not (documents / "results").exists()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An entry of real records on the tiny scenario, and the store that they came from."""
    folder = tmp_path_factory.mktemp("ran")
    result = call(
        "run", "--plugin", TINY, "--scenario", "tiny", "--steps", "2", "--samples", "20",
        "--defense", "none", "--attack", "finetune", "--attack", "scratch", "--seeds", "0-1",
        "--store", folder / "store", "--threads", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    entries.write(Entry.of({**ABOUT, "name": "tiny"}, Store(folder / "store").records()), folder)
    return folder


def verify(file: Path, *more: object) -> Result:
    return call("verify", file, "--plugin", TINY, "--threads", "1", "--cells", "2", *more)


def test_what_was_reported_comes_out_again(ran: Path, tmp_path: Path) -> None:
    result = verify(ran / "tiny.jsonl", "--draw", "7", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "reproduced"
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows["draw"] == 7
    assert [row["agreement"] for row in rows["cells"]] == ["identical"] * 2


def test_a_file_is_checked_without_its_plugins(documents: Path) -> None:
    assert submit(documents).exit_code == 0
    file, suite = documents / "results" / "acme.jsonl", f"@{documents / 'small.yaml'}"
    result = call("verify", file, "--cells", "0", "--suite", suite)
    assert result.exit_code == 0, result.output
    assert "nothing of" in result.output
    entry = entries.read(file)
    cells = attempts(entry.records)
    less = [cell for cell in cells if cell.domain != "greek" or cell.defense.control]
    partial = entries.write(replace(entry, records=gather(less)), documents)
    result = call("verify", partial, "--cells", "0", "--suite", suite)
    assert result.exit_code == 2
    assert "refused: d on greek, seed 0: 1 trials are missing" in result.output


def test_the_draw_is_repeatable(ran: Path) -> None:
    drawn = [verify(ran / "tiny.jsonl", "--dry-run", "--draw", n).output for n in (1, 1)]
    assert drawn[0] == drawn[1]
    assert "made again: 2 of 4, --draw 1" in drawn[0]


def test_what_was_made_up_is_not_reproduced(ran: Path, tmp_path: Path) -> None:
    entry = entries.read(ran / "tiny.jsonl")
    curves = [replace(cell.curve, test=[1.0] * len(cell.curve)) for cell in entry.records.cells]
    cells = [replace(c, curve=curve) for c, curve in zip(entry.records.cells, curves, strict=True)]
    better = dataclasses.replace(entry.records, cells=cells)
    file = entries.write(replace(entry, records=better), tmp_path)
    result = verify(file)
    assert result.exit_code == 1, result.output
    assert "not reproduced: 2 of 2 differ" in result.output


def test_where_nothing_can_be_made_again_nothing_is_said_to_be(
    entry: Entry, tmp_path: Path
) -> None:
    cells = [replace(c, status="failed", reason="broken") for c in entry.records.cells]
    records = dataclasses.replace(entry.records, cells=cells)
    result = verify(entries.write(replace(entry, records=records), tmp_path))
    assert result.exit_code == 2
    assert "has no record that could be made again" in result.output
    assert "reproduced" not in result.output


def test_another_version_is_not_comparable(ran: Path, tmp_path: Path) -> None:
    entry = entries.read(ran / "tiny.jsonl")
    cells = [
        named(replace(cell, attack=replace(cell.attack, source="f" * 64)))
        for cell in attempts(entry.records)
    ]
    result = verify(entries.write(replace(entry, records=gather(cells)), tmp_path))
    assert result.exit_code == 2
    assert "not comparable" in result.output
    assert ", source is " in result.output


def test_the_store_that_an_entry_is_from_repeats_nothing(ran: Path) -> None:
    result = verify(ran / "tiny.jsonl", "--store", ran / "store")
    assert result.exit_code == 2
    assert "has the very records of the entry; name another" in result.output


def test_verify_goes_on_in_a_store_of_its_own(ran: Path, tmp_path: Path) -> None:
    for _ in range(2):
        result = verify(ran / "tiny.jsonl", "--draw", "3", "--store", tmp_path / "work")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--published", "--from", "x.json"), "--published is of entries that come with"),
        (("--published", "--store", "x"), "--published is of entries that come with"),
        (("--published", "--against", "d"), "give --from FILE or --store DIR"),
        (("--from", "run.json", "--against", "dd"), "unknown defense 'dd'"),
    ],
)
def test_table_refuses(documents: Path, more: tuple[str, ...], words: str) -> None:
    result = call("table", *(documents / x if x == "run.json" else x for x in more))
    assert result.exit_code == 2
    assert words in result.output


def test_table_of_differences(documents: Path) -> None:
    result = call("table", "--from", documents / "run.json", "--against", "none", "--format", "md")
    assert result.exit_code == 0, result.output
    assert "More than none has" in result.output


def test_table_of_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHON_BENCH_STORE", "nowhere")
    result = call("table", "--published", "--format", "json")
    assert result.exit_code == 0
    assert isinstance(msgspec.json.decode(result.output), list)


def test_leaderboard_and_readme_are_made_of_what_is_published() -> None:
    stale = [f.name for f, made in published.documents().items() if f.read_bytes() != made]
    assert not stale, "run: make leaderboard"


@pytest.mark.slow
def test_a_package_of_its_own_is_submitted_shown_and_made_again(tmp_path: Path) -> None:
    """What CONTRIBUTING says, with a small suite: install, run, submit, look, verify."""
    package = Path(__file__).parent.parent / "examples" / "label-smoothing"
    suite = tmp_path / "small.yaml"
    suite.write_text(
        "version: 1\ndescription: small\n"
        "trials: ['finetune[optimizer=adam]', 'scratch[optimizer=adam]']\n"
        "trainability: ['finetune[optimizer=adam]', 'scratch[optimizer=adam]']\n"
    )
    copied = shutil.copytree(package, tmp_path / "package")
    site = tmp_path / "site"
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    shell(tmp_path, "pip", "install", *offline, "--target", site, copied)

    def bench(*words: object) -> str:
        return shell(tmp_path, "sophon_bench.cli", *words, PYTHONPATH=str(site))

    assert "label-smoothing" in bench("list", "defenses")
    bench(
        "run", "--image-size", "16", "--defense", "label-smoothing[steps=20]",
        "--attack", f"@{suite}", "--steps", "60",
        "--json", "mine.json", "--store", "store", "--threads", "1",
    )  # fmt: skip
    bench(
        "submit", "--records", "mine.json", "--suite", f"@{suite}", "--name", "smooth",
        "--title", "Smooth", "--authors", "A. Author", "--link", "https://arxiv.org/abs/2010.16402",
        "--out", "results",
    )  # fmt: skip
    entry = entries.read(tmp_path / "results" / "smooth.jsonl")
    (row,) = [r for r in records(entries.report([entry], ()).scores) if not r["control"]]
    assert row["defense"] == "label-smoothing[steps=20]"
    assert row["score"] is not None
    submission = page.Submission(cells=entry.records, **entry.head)
    html = page.site([submission])["index.html"].decode()
    assert "label-smoothing[steps=20]" in html
    assert "https://arxiv.org/abs/2010.16402" in html
    again = bench("verify", "results/smooth.jsonl", "--cells", "2", "--threads", "1")
    assert again.splitlines()[-1] == "reproduced"


def shell(folder: Path, module: str, *words: object, **environment: str) -> str:
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
