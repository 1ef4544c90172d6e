"""Published results: written, read back, checked, submitted, made again."""

from __future__ import annotations

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
from msgspec.structs import replace

from sophon_bench.analysis.agreement import agreements
from sophon_bench.analysis.statistics import wilson
from sophon_bench.api import attacks
from sophon_bench.cli import main
from sophon_bench.execution.plan import plugin_id
from sophon_bench.leaderboard import entries, page, submitting, tables
from sophon_bench.leaderboard.columns import records
from sophon_bench.leaderboard.entries import Entry, EntryError
from sophon_bench.plugins.selectors import Arsenal, Rules, trials
from sophon_bench.results import Results
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
    label="@standard v1",
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
                        suite=SUITE.label,
                        stretch=stretch,
                        derived=stretch > 1,
                    )
                    found.append(named(replace(cell, attack=plugin_id(trial))))
    return found


@pytest.fixture
def entry(whole: list[Attempt]) -> Entry:
    return Entry(**ABOUT, cells=whole)


def keys(cells: list[Attempt]) -> list[str]:
    return sorted(cell.key for cell in cells)


def test_an_entry_comes_back_as_it_was(entry: Entry, tmp_path: Path) -> None:
    file = entries.write(entry, tmp_path / "results")
    found = entries.read(file)
    assert found == replace(entry, cells=sorted(entry.cells, key=lambda cell: cell.key))
    assert file.read_bytes() == entries.pack(found)
    assert entries.read_all([file]) == [found]


def test_what_records_share_is_written_once(entry: Entry) -> None:
    content = json.loads(entries.pack(entry))
    assert {key: len(part) for key, part in content["parts"].items()} == {
        "scenario": 1, "defense": 2, "attack": 3, "pretrained": 2, "released": 4, "provenance": 1,
    }  # fmt: skip
    assert len(content["cells"]) == len(content["hashes"]) == len(entry.cells)


def test_another_entry_is_never_written_over(entry: Entry, tmp_path: Path) -> None:
    file = entries.write(entry, tmp_path)
    before = file.read_bytes()
    entries.write(entry, tmp_path)
    with pytest.raises(EntryError, match=r"acme-shield\.json' is there; choose another name"):
        entries.write(replace(entry, title="Another"), tmp_path)
    assert file.read_bytes() == before


Change = Callable[[dict[str, Any]], object]


def first(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["cells"][0]
    return found


def swap(content: dict[str, Any], key: str, value: object) -> None:
    content["parts"][key][0] = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda c: first(c)["curve"][0].__setitem__(5, 0.99), "edited", id="a number"),
        pytest.param(lambda c: first(c).update(seed=7), "edited", id="a seed"),
        pytest.param(lambda c: first(c).update(status="fine"), "status", id="a wrong status"),
        pytest.param(lambda c: first(c).update(attack=99), "attack", id="a part that is not there"),
        pytest.param(lambda c: first(c).update(attack="x"), "attack", id="a part of another kind"),
        pytest.param(lambda c: first(c).pop("seed"), "seed", id="a field that is missing"),
        pytest.param(lambda c: first(c).update(extra=1), "extra", id="a field too many"),
        pytest.param(lambda c: first(c).update(key=[1]), "key", id="a key that is a list"),
        pytest.param(lambda c: first(c)["curve"][0].pop(), "second_test|edited", id="a short row"),
        pytest.param(lambda c: first(c).update(curve=3), "curve", id="no curve"),
        pytest.param(
            lambda c: swap(c, "provenance", 3), "provenance", id="a part that is a number"
        ),
        pytest.param(lambda c: c["cells"].append(first(c)), "twice", id="a double"),
        pytest.param(lambda c: c["cells"].pop(), "is missing", id="a record that is missing"),
        pytest.param(lambda c: c["hashes"].popitem(), "hash is missing", id="a hash less"),
        pytest.param(lambda c: c.update(layout=9), "layout 9", id="another layout"),
        pytest.param(lambda c: c.update(schema=1), "schema 1", id="another schema"),
        pytest.param(lambda c: c["about"].update(link="javascript:x"), "link", id="a bad link"),
        pytest.param(lambda c: c["about"].update(name="../up"), "name", id="a name that climbs"),
        pytest.param(lambda c: c["about"].update(name="up\n"), "name", id="a name of two lines"),
        pytest.param(lambda c: c["about"].update(name="a" * 61), "name", id="a name that is long"),
        pytest.param(lambda c: c["about"].update(title="a\nb"), "title", id="two lines"),
        pytest.param(lambda c: c["about"].update(authors=[]), "authors", id="no authors"),
        pytest.param(lambda c: c["about"].update(label="certified"), "label", id="a label"),
        pytest.param(lambda c: c["about"].update(more=1), "more", id="something more"),
        pytest.param(lambda c: c.pop("parts"), "parts", id="no parts"),
    ],
)
def test_what_was_changed_is_named(entry: Entry, change: Change, words: str) -> None:
    content = json.loads(entries.pack(entry))
    change(content)
    with pytest.raises(EntryError, match=words) as raised:
        entries.unpack(json.dumps(content).encode(), "x.json")
    assert str(raised.value).startswith("'x.json'")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_what_is_cut_short_is_refused(entry: Entry, share: float) -> None:
    content = entries.pack(entry)
    with pytest.raises(EntryError, match="is not an entry"):
        entries.unpack(content[: int(share * len(content))], "x.json")


def test_a_file_is_called_as_its_entry_is(entry: Entry, tmp_path: Path) -> None:
    file = entries.write(entry, tmp_path).rename(tmp_path / "other.json")
    with pytest.raises(EntryError, match="says that its name is 'acme-shield'; call it so"):
        entries.read(file)
    with pytest.raises(EntryError, match="cannot be read"):
        entries.read(tmp_path / "none.json")


def test_every_published_entry_is_whole() -> None:
    names = [entry.name for entry in entries.published()]
    assert names == sorted(names)


def test_defenses_of_one_name_are_told_apart(entry: Entry) -> None:
    other = replace(entry, name="other", cells=[c for c in entry.cells if c.seed == 0])
    found = entries.report([other, entry], ())
    assert [row["defense"] for row in records(found.scores)] == [
        "none", "d (acme-shield)", "d (other)",
    ]  # fmt: skip
    assert [row["seeds"] for row in records(found.scores)] == [2, 2, 1]
    alone = entries.report([entry], ())
    assert records(alone.scores) == records(tables.report(gather(entry.cells), ()).scores)


def test_whole_records_may_be_published(whole: list[Attempt]) -> None:
    assert submitting.faults(gather(whole), SUITE, ()) == []
    assert keys(submitting.chosen(whole, [])) == keys(whole)
    assert keys(submitting.chosen(whole, ["d"])) == keys(whole)


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
    (verdict,) = set(agreements(reported, again)["agreement"])
    return str(verdict)


def test_agreement_is_within_what_test_images_vary(make_cell: MakeCell) -> None:
    # p = .7 of 500 images: 1.95996 sqrt(2 .7 .3 / 500) = .0568; of ten pairs, 2.80703: .0814
    assert agreement(make_cell, 0.7, 0.7) == "identical"
    assert agreement(make_cell, 0.672, 0.728) == "agrees"
    assert agreement(make_cell, 0.671, 0.729) == "differs"
    assert agreement(make_cell, 0.660, 0.740, count=10) == "agrees"
    assert agreement(make_cell, 0.659, 0.741, count=10) == "differs"


def test_another_status_differs(make_cell: MakeCell) -> None:
    fine, failed = make_cell(), make_cell(status="failed", curve=[])
    other = make_cell(seed=1, status="failed", curve=[])
    found = agreements(Results.of(gather([fine, other])), Results.of(gather([failed, other])))
    assert dict(zip(found["key"], found["agreement"], strict=True)) == {
        fine.key: "differs", other.key: "identical"
    }  # fmt: skip


def test_only_what_was_made_again_is_compared(make_cell: MakeCell) -> None:
    cells = [make_cell(seed=seed) for seed in range(3)]
    found = agreements(Results.of(gather(cells)), Results.of(gather(cells[1:])))
    assert found["seed"].tolist() == [1, 2]
    nothing = agreements(Results.of(gather(cells)), Results.of(gather([])))
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


def test_submit_writes_an_entry(documents: Path) -> None:
    result = submit(documents)
    assert result.exit_code == 0, result.output
    entry = entries.read(documents / "results" / "acme.json")
    assert entry.authors == ["A. Author", "B. Author"]
    assert entry.label == "self-reported"
    assert entry.submitted == "2026-01-01"
    assert "next: sophon-bench verify" in result.output
    assert submit(documents).exit_code == 0
    again = submit(documents, title="Other")
    assert again.exit_code == 2
    assert "is there; choose another name" in again.output


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
    gone = [c for c in content["cells"] if c["defense"]["label"] == "d" and c["seed"] == 1]
    for cell in gone[:3]:
        content["cells"].remove(cell)
        del content["hashes"][cell["key"]]
    (documents / "run.json").write_text(json.dumps(content))
    result = submit(documents)
    assert result.exit_code == 2
    assert "missing: d with n=200, seed 1" in result.output
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
    cells = attempts(Store(folder / "store").records())
    entries.write(Entry(**{**ABOUT, "name": "tiny"}, cells=cells), folder)
    return folder


def verify(file: Path, *more: object) -> Result:
    return call("verify", file, "--plugin", TINY, "--threads", "1", "--cells", "2", *more)


def test_what_was_reported_comes_out_again(ran: Path, tmp_path: Path) -> None:
    result = verify(ran / "tiny.json", "--draw", "7", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "reproduced"
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows["draw"] == 7
    assert [row["agreement"] for row in rows["cells"]] == ["identical"] * 2


def test_a_file_is_checked_without_its_plugins(documents: Path) -> None:
    assert submit(documents).exit_code == 0
    file, suite = documents / "results" / "acme.json", f"@{documents / 'small.yaml'}"
    result = call("verify", file, "--cells", "0", "--suite", suite)
    assert result.exit_code == 0, result.output
    assert "nothing of" in result.output
    entry = entries.read(file)
    less = [cell for cell in entry.cells if cell.domain != "greek" or cell.defense.control]
    partial = entries.write(replace(entry, cells=less), documents)
    result = call("verify", partial, "--cells", "0", "--suite", suite)
    assert result.exit_code == 2
    assert "missing: d on greek, seed 0: 1 trials are missing" in result.output


def test_the_draw_is_repeatable(ran: Path) -> None:
    drawn = [verify(ran / "tiny.json", "--dry-run", "--draw", n).output for n in (1, 1)]
    assert drawn[0] == drawn[1]
    assert "made again: 2 of 4, --draw 1" in drawn[0]


def test_what_was_made_up_is_not_reproduced(ran: Path, tmp_path: Path) -> None:
    entry = entries.read(ran / "tiny.json")
    best = [[replace(point, test=1.0) for point in cell.curve] for cell in entry.cells]
    cells = [replace(c, curve=curve) for c, curve in zip(entry.cells, best, strict=True)]
    file = entries.write(replace(entry, cells=cells), tmp_path)
    result = verify(file)
    assert result.exit_code == 1, result.output
    assert "not reproduced: 2 of 2 differ" in result.output


def test_another_version_is_not_comparable(ran: Path, tmp_path: Path) -> None:
    entry = entries.read(ran / "tiny.json")
    cells = [named(replace(c, attack=replace(c.attack, source="f" * 64))) for c in entry.cells]
    result = verify(entries.write(replace(entry, cells=cells), tmp_path))
    assert result.exit_code == 2
    assert "not comparable" in result.output
    assert ", source is " in result.output


def test_the_store_that_an_entry_is_from_repeats_nothing(ran: Path) -> None:
    result = verify(ran / "tiny.json", "--store", ran / "store")
    assert result.exit_code == 2
    assert "has the very records of the entry; name another" in result.output


def test_verify_goes_on_in_a_store_of_its_own(ran: Path, tmp_path: Path) -> None:
    for _ in range(2):
        result = verify(ran / "tiny.json", "--draw", "3", "--store", tmp_path / "work")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--published", "--from", "x.json"), "--published is of entries that come with"),
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


def test_table_of_what_is_published() -> None:
    result = call("table", "--published", "--format", "json")
    assert result.exit_code == 0
    assert isinstance(msgspec.json.decode(result.output), list)


def test_leaderboard_and_readme_are_made_of_what_is_published() -> None:
    stale = [
        f.name for f, text in published.documents().items() if f.read_text(encoding="utf-8") != text
    ]
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
    entry = entries.read(tmp_path / "results" / "smooth.json")
    (row,) = [r for r in records(entries.report([entry], ()).scores) if not r["control"]]
    assert row["defense"] == "label-smoothing[steps=20]"
    assert row["score"] is not None
    about = {name: getattr(entry, name) for name in entry.__struct_fields__}
    html = page.site([page.Submission(**about)])["index.html"].decode()
    assert "label-smoothing[steps=20]" in html
    assert "https://arxiv.org/abs/2010.16402" in html
    again = bench("verify", "results/smooth.json", "--cells", "2", "--threads", "1")
    assert again.splitlines()[-1] == "reproduced"


def shell(folder: Path, module: str, *words: object, **environment: str) -> str:
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
