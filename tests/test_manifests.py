"""Who asked for a cell is said by the manifests of runs, and `run` and `table` say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import MakeCell, attempts, put

from sophon_bench.cli import main
from sophon_bench.results.files import folder
from sophon_bench.results.provenance import capture
from sophon_bench.results.records import Asked, Run
from sophon_bench.results.store import Manifest, Store

FAST = ["--scenario", "tiny", "--steps", "2", "--samples", "20"]
TRIAL = "finetune[lr=0.02]"


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def suites_of_table(store: Path) -> dict[str, str | None]:
    """By attack, what the table of a store says of who asked."""
    rows = json.loads(call("table", "--store", store, "--format", "json").stdout)
    return {row["attack"]: row["suite"] for row in rows if "attack" in row}


def suites_of_run(store: Path, *arguments: str) -> dict[str, str | None]:
    store.mkdir(exist_ok=True)
    out = store / "out.json"
    call("run", *FAST, "--store", store, "--json", out, *arguments)
    rows = json.loads(out.read_text())["summary"]
    return {row["attack"]: row["suite"] for row in rows if "attack" in row}


def suite(folder: Path, name: str, *trials: str, search: str = "") -> str:
    listed = "".join(f'  - "{trial}"\n' for trial in trials)
    file = folder / f"{name}.yaml"
    file.write_text(f"version: 1\ndescription: d\ntrials:\n{listed}{search}")
    return f"@{file}"


@pytest.mark.parametrize("suite_first", [False, True])
def test_a_trial_run_alone_and_then_by_a_suite_is_told_the_same_by_run_and_table(
    tmp_path: Path, suite_first: bool
) -> None:
    own = suite(tmp_path, "own", TRIAL, "finetune[lr=0.03]")
    store = tmp_path / "store"
    for attack in (own, TRIAL) if suite_first else (TRIAL, own):
        printed = suites_of_run(store, "--attack", attack)
    found = suites_of_table(store)
    assert found.items() >= {TRIAL: "@own v1", "finetune[lr=0.03]": "@own v1"}.items()
    if not suite_first:
        assert printed == found


def test_a_cell_that_two_suites_ask_for_is_of_both(tmp_path: Path) -> None:
    one = suite(tmp_path, "one", TRIAL, "finetune[lr=0.03]")
    two = suite(tmp_path, "two", "finetune[lr=0.03]")
    together = suites_of_run(tmp_path / "a", "--attack", one, "--attack", two)
    assert together[TRIAL] == "@one v1"
    assert together["finetune[lr=0.03]"] == "@one v1 or @two v1"
    assert suites_of_table(tmp_path / "a") == together
    for attack in (one, two):
        suites_of_run(tmp_path / "b", "--attack", attack)
    assert suites_of_table(tmp_path / "b") == together


def test_what_a_search_adds_is_in_the_manifest_and_listed_wins(tmp_path: Path) -> None:
    own = suite(tmp_path, "own", TRIAL, search="search: {refine: 1}\n")
    store = tmp_path / "store"
    suites_of_run(store, "--attack", own)
    (file,) = (store / "runs").iterdir()
    lines = list(Manifest(folder(store), f"runs/{file.name}").lines())
    derived = {cell.attack.label for cell in attempts(Store(store).records()) if cell.derived}
    assert derived
    assert len([line for line in lines if line.derived]) == len(derived)
    assert json.loads(file.read_text().splitlines()[0])["command"].startswith(
        "sophon-bench run --attack "
    )
    label = sorted(derived)[0]
    suites_of_run(store, "--attack", label)
    now = {cell.attack.label for cell in attempts(Store(store).records()) if cell.derived}
    assert now == derived - {label}
    before = {f: f.read_bytes() for f in (store / "runs").iterdir()}
    suites_of_run(store, "--attack", own)
    assert {f: f.read_bytes() for f in (store / "runs").iterdir()} == before, "the same run goes on"


def asked(store: Store, *lines: Asked) -> Manifest:
    return store.begin(Run(command="c", provenance=capture(torch.device("cpu"))), lines)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], (None, False)),
        ([("k", (), False)], (None, False)),
        ([("k", ("@s v1",), True)], ("@s v1", True)),
        ([("k", ("@s v1",), True), ("k", (), False)], ("@s v1", False)),
        ([("k", ("@s v1",), False), ("k", ("@a v2", "@s v1"), True)], ("@a v2 or @s v1", False)),
        ([("other", ("@s v1",), False)], (None, False)),
    ],
)
def test_a_cell_is_as_all_runs_asked_for_it_together(
    tmp_path: Path, make_cell: MakeCell, lines: list[Any], expected: tuple[str | None, bool]
) -> None:
    store = Store(tmp_path)
    put(store, make_cell(key="k"))
    for key, suites, derived in lines:
        asked(store, Asked(key=key, suites=suites, derived=derived))
    (cell,) = attempts(store.records())
    assert (cell.suite, cell.derived) == expected


def test_a_line_that_a_crash_cut_off_is_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = Asked(key="a"), Asked(key="b", suites=("@s v1",), derived=True)
    manifest = asked(store, first)
    file = tmp_path / manifest.name
    whole = file.read_bytes()
    manifest.add([second])
    added = file.read_bytes()
    for cut in range(len(whole), len(added)):
        file.write_bytes(added[:cut])
        assert list(manifest.lines()) == [first]
        asked(store, first).add([second])  # the run that goes on
        assert list(manifest.lines()) == [first, second]
        manifest.add([second, first])
        assert list(manifest.lines()) == [first, second]
