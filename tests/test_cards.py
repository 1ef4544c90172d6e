"""Fidelity cards: what the code says of every defense, and numbers computed by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Attempt, MakeCell, gather, put, records

from sophon_bench.analysis.series import recipe, releases
from sophon_bench.analysis.trials import ROLLED_BACK
from sophon_bench.api import defenses
from sophon_bench.cli import main
from sophon_bench.leaderboard import cards, tables
from sophon_bench.leaderboard.cards import Subject
from sophon_bench.leaderboard.recipe import Recipe
from sophon_bench.results import Results
from sophon_bench.results.store import Store

T1 = 12.706204736
LISTED = ("finetune[lr=0.1]", "finetune[lr=0.2]")
RECIPE = Recipe(name="@paper v1", trials=LISTED, controls=("scratch",))
SUBJECT = Subject(
    name="d", description="Minimise ``L``.", reference="Doe, 2024", claim="", source="s",
    hyperparameters={"lr": "0.1"}, presets={},
)  # fmt: skip
BUILT_IN = [
    entry.name
    for entry in map(defenses.get, defenses.names())
    if not entry.control and entry.cls.__module__.startswith("sophon_bench.")
]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["cards", *map(str, arguments)])


def card_of(page: str, name: str) -> str:
    _, _, rest = page.partition(f"\n## {name}\n")
    return rest.partition("\n## ")[0]


def fact(card: str, name: str) -> str:
    (line,) = (x for x in card.splitlines() if x.startswith(f"- **{name}**: "))
    return line.partition(": ")[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("SOPHON_BENCH_STORE", raising=False)
        result = call()
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_defense_has_a_whole_card(page: str, name: str) -> None:
    card = card_of(page, name)
    assert "Minimise `" in card
    assert "``" not in card
    assert "arXiv" in fact(card, "Source")
    assert fact(card, "Different from the original") != "not stated"
    assert "batch_size = " in fact(card, "Hyperparameters")
    assert fact(card, "What we measure") == "not measured yet"
    claim = fact(card, "What its paper claims")
    known = {"ntl": "84.4", "sophon-dos": ".705", "sophon-ice": "15.2", "sophon-klu": "15.2"}
    assert known[name] in claim if name in known else claim == "no figure on record"


def test_controls_and_canaries_have_no_card(page: str) -> None:
    names = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert names == [n for n in defenses.names() if n != "none"] + ["What this page rests on"]
    assert "No records." in page


def run(make_cell: MakeCell, defense: str, attack: str, *levels: float, **changes: Any) -> Attempt:
    """One that selects at its last level; with one level alone, that is its test utility too."""
    selection, test = (*levels, levels[-1])[:2]
    return make_cell(defense=defense, attack=attack, curve=[(12800.0, selection, test)], **changes)


def both(make_cell: MakeCell) -> list[Attempt]:
    """The selection split picks lr 0.1 on seed 0 and lr 0.2 on seed 1 against d."""
    found = []
    for seed in (0, 1):
        found += [
            run(make_cell, "none", LISTED[0], 0.8, seed=seed),
            run(make_cell, "none", "scratch", 0.3 + 0.1 * seed, seed=seed),
            run(make_cell, "none", "other", 0.9, seed=seed),
            run(make_cell, "d", LISTED[seed], 0.5, 0.2 + 0.1 * seed, seed=seed),
            run(make_cell, "d", LISTED[1 - seed], 0.4, 0.7, seed=seed),
            run(make_cell, "d", "other", 0.6, seed=seed),
        ]
    return found


def test_a_recipe_is_the_best_of_its_trials_by_seed(make_cell: MakeCell) -> None:
    rows = records(recipe(Results.of(gather(both(make_cell))), {*LISTED, "scratch"}))
    (row,) = (row for row in rows if row["defense"] == "d")
    assert row["protected_after"] == pytest.approx(0.25)
    assert row["protected_half_width"] == pytest.approx(T1 * 0.05)
    assert row["undefended_after"] == pytest.approx(0.8)
    assert row["scratch_after"] == pytest.approx(0.35)
    assert [row[f"{side}_trials"] for side in cards.SIDES] == [2, 1, 1]
    assert row["protected_attacks"] == [(LISTED[0], 1), (LISTED[1], 1)]
    assert row["undefended_seeds"] == 2


@pytest.mark.parametrize(
    "changes", [{"status": "failed"}, {"stretch": 10}, {"seed": 7}, {"attack": "other"}]
)
def test_a_recipe_leaves_out_what_is_not_of_it(make_cell: MakeCell, changes: Any) -> None:
    other = {"attack": LISTED[0], **changes}
    cells = [make_cell(defense="none", **other), make_cell(defense="d", attack="other")]
    (row,) = (
        row for row in records(recipe(Results.of(gather(cells)), LISTED)) if row["defense"] == "d"
    )
    assert (row["undefended_after"], row["undefended_trials"]) == (None, 0)


def test_a_recipe_counts_a_crash_as_the_undefended_model(make_cell: MakeCell) -> None:
    cells = [
        run(make_cell, "none", LISTED[0], 0.8),
        run(make_cell, "d", LISTED[0], 0.1, status="diverged", nonfinite_step=1),
    ]
    (row,) = (
        row for row in records(recipe(Results.of(gather(cells)), LISTED)) if row["defense"] == "d"
    )
    assert row["protected_after"] == 0.8


def made(cells: list[Attempt], **changes: Any) -> str:
    subject = SUBJECT if not changes else Subject(**{**vars(SUBJECT), **changes})
    return cards.cards([subject], gather(cells), recipe=RECIPE, command="sophon-bench cards")


def lines(card: str) -> dict[str, list[str]]:
    """Rows of all tables by their first cell; the first of a name."""
    found: dict[str, list[str]] = {}
    for line in card.splitlines():
        if line.startswith("| "):
            first, *others = (part.strip() for part in line.strip("|").split("|"))
            found.setdefault(first, others)
    return found


def test_a_card_shows_what_records_say(make_cell: MakeCell) -> None:
    page = made(both(make_cell))
    found = lines(card_of(page, "d"))
    assert found["d: @paper v1"] == ["200", "25.0 ± 63.5", "80.0 ± 0.0", "35.0 ± 63.5"]
    assert found["trial picked"] == [
        "200", "finetune lr=0.1 (of 2, 1/2)", "finetune lr=0.1 (of 1)", "scratch (of 1)",
    ]  # fmt: skip
    envelope = found["d: tuned envelope, 2 seeds"]
    assert envelope == ["200", "60.0 ± 0.0", "90.0 ± 0.0", "35.0 ± 63.5"]
    assert "†" in found["d"][0]
    assert found["d"][6] == "98.0 (98.0)"
    assert found["d"][8] == "2.00×"
    assert "roll-backs and failures of protecting: none" in page
    assert "12 records, of protocol 1, seeds 0, 1," in page
    assert "another version" not in page
    assert "another version of its source (s) than this card (t)" in made(
        both(make_cell), source="t"
    )


def test_what_records_lack_is_not_measured_yet(make_cell: MakeCell) -> None:
    cells = [run(make_cell, "d", "other", 0.6), run(make_cell, "none", "other", 0.9)]
    found = lines(made(cells))
    assert found["d: @paper v1"] == ["200", *3 * ["not measured yet"]]
    assert found["d: tuned envelope, 1 seed"] == ["200", "60.0", "90.0", "not measured yet"]


def test_control_attacks_alone_measure_nothing(make_cell: MakeCell) -> None:
    card = card_of(made([run(make_cell, "d", "scratch", 0.3)]), "d")
    assert fact(card, "What we measure") == "not measured yet"


BACK = {"note": f"{ROLLED_BACK} to iteration 40: the state was not finite at iteration 60"}


def protected(make_cell: MakeCell) -> list[Attempt]:
    """Of three seeds, one is rolled back and one fails; each is attacked twice."""
    failed = {"status": "failed", "reason": "ValueError: no", "original": None, "cost": None}
    released = ({}, BACK, failed)
    found = []
    for (seed, stage), attack in itertools.product(enumerate(released), ("finetune", "sam")):
        failed_too = {"status": "failed", "curve": []} if stage is failed else {}
        like = {"attack": attack, "seed": seed}
        told = {"key": f"d-{seed}", **stage}
        found += [make_cell(**like), make_cell(defense="d", released=told, **like, **failed_too)]
    return found


def test_endings_are_counted_by_seed(make_cell: MakeCell) -> None:
    found = records(releases(Results.of(gather(protected(make_cell)))))
    (row,) = (row for row in found if not row["control"])
    assert (row["plugin"], row["source"], row["seeds"]) == ("d", "s", 3)
    assert row["ended"] == [("failed: ValueError: no", 1), (BACK["note"], 1)]


def test_a_roll_back_is_marked_in_the_score_table_and_on_the_card(make_cell: MakeCell) -> None:
    cells = protected(make_cell)
    table = tables.show("md", tables.report(gather(cells)))
    assert "‡ d: protection was rolled back on 1 of 3 seeds" in table
    assert lines(table)["d"][0].endswith("‡")
    assert "‡" not in lines(table)["none"][0]
    assert BACK["note"] in table
    assert f"failed: ValueError: no (1 of 3); {BACK['note']} (1 of 3)" in made(cells)


def test_a_store_without_records_is_like_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SOPHON_BENCH_STORE", raising=False)
    without = call("ntl")
    Store(tmp_path / "sophon-bench")  # as a dry run leaves it
    assert call("ntl").stdout == without.stdout != ""
    assert call("ntl", "--store", tmp_path / "sophon-bench").exit_code == 2, "it was asked for"
    monkeypatch.setenv("SOPHON_BENCH_STORE", str(tmp_path / "nowhere"))
    assert call("ntl").stdout == without.stdout


def test_the_command_reads_the_store_and_writes_a_file(make_cell: MakeCell, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for cell in [make_cell(), make_cell(defense="ntl")]:
        put(store, cell)
    out = tmp_path / "cards.md"
    result = call("ntl", "--store", store.root, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    assert out.read_text() == call("ntl", "--store", store.root).stdout
    assert "ntl: tuned envelope, 1 seed" in out.read_text()
    assert str(tmp_path) not in out.read_text()


def test_records_of_several_files_are_on_one_card(make_cell: MakeCell, tmp_path: Path) -> None:
    shared = [make_cell(), make_cell(attack="scratch")]
    files = []
    for attack in LISTED:
        files.append(tmp_path / f"{len(files)}.json")
        own = [*shared, make_cell(defense="ntl", attack=attack)]
        files[-1].write_text(tables.document(gather(own), tables.report(gather(own))))
    asked = [word for file in files for word in ("--from", file)]
    result = call("ntl", *asked)
    assert result.exit_code == 0, result.output
    assert f"- {2 + len(LISTED)} records" in result.stdout
    assert "cards ntl --from 0.json --from 1.json" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ntll"], "did you mean 'ntl'"),
        (["none"], "is a control"),
        (["--store", "nowhere"], "there is no store"),
        (["--from", "nowhere.json"], "cannot be read"),
        (["--out", "nowhere/cards.md"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
