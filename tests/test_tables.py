from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest
from conftest import drawn, gather

from sophon_bench.analysis.envelope import ENVELOPE, STRETCHED_ENVELOPE
from sophon_bench.leaderboard import layout, tables
from sophon_bench.leaderboard.columns import DIFFERENCES, frame, records
from sophon_bench.leaderboard.render import FORMATS, Flat, from_csv, printed
from sophon_bench.leaderboard.tables import Report

BUDGET = 12800
PLACE = {
    "scenario": "glyphs", "revision": "0123456789", "backbone": "b", "precision": "fp32",
    "protocol": "1", "budget": BUDGET, "suite": "@standard v1", "utility": "accuracy",
}  # fmt: skip
PLUGINS = ("defense_name", "attack_name", "attack_label")
UNDEFENDED = {
    "score": 0.0, "resistance": 0.0, "worst_resistance": 0.0, "intactness": 1.0, "b50": 1.0,
    "original_after": 0.985, "restricted_after": 0.843, "protect_cost": 0.0,
}  # fmt: skip


def report(
    rows: Sequence[dict[str, Any]] = (),
    scores: Sequence[dict[str, Any]] = (),
    winners: Sequence[dict[str, Any]] = (),
    names: Mapping[str, str] | None = None,
) -> Report:
    return Report(
        trials=frame(rows),
        scores=frame(scores),
        winners=frame(winners),
        images=frame([]),
        names=names or {},
    )


def score(defense: str, **changes: Any) -> dict[str, Any]:
    made = {
        **PLACE, "defense": defense, "control": defense == "none", "samples": "50,200", "seeds": 5,
        "original_before": 0.985, "original_after": 0.971, "restricted_before": 0.1,
        "restricted_after": 0.795, "undefended_after": 0.843, "scratch_after": 0.435,
        "score": 12.34, "score_half_width": 4.06, "resistance": 0.142,
        "resistance_half_width": 0.041, "worst_resistance": 0.08, "intactness": 0.86,
        "trainability": 0.97, "b50": 1.31, "b50_censored": False, "b50_search": 2.7,
        "b50_search_censored": False, "counted": 10, "frozen": True, "provisional": False,
        "unscored": None, "flags": [], "protect_cost": 5.78, "peak_memory": 1e9, "seconds": 3.0,
        "status": "ok",
        "rolled_back": 0, "released_seeds": 5, "rank": None, "defense_name": plugin(defense),
    }  # fmt: skip
    return {**made, **(UNDEFENDED if defense == "none" else {}), **changes}


def trial(defense: str, attack: str, **changes: Any) -> dict[str, Any]:
    made = {
        **PLACE, "defense": defense, "attack": attack, "parameters": {}, "control": False,
        "trials": 1, "best": attack, "samples": 200, "stretch": 1, "seeds": 5, "seeds_reached": 5,
        "original_before": 0.985, "original_after": 0.971, "restricted_before": 0.1,
        "restricted_after": 0.5, "restricted_after_half_width": 0.02, "restricted_loss": None,
        "restricted_loss_half_width": None, "original_loss_before": None, "original_loss": None,
        "score": None,
        "resistance": None, "intactness": 0.86, "trainability": None, "flags": [],
        "protect_cost": 5.78, "peak_memory": 1e9, "seconds": 3.0, "status": "ok",
        "defense_name": plugin(defense), "attack_name": plugin(attack), "attack_label": attack,
    }  # fmt: skip
    return {**made, **changes}


def plugin(label: str) -> str:
    return label.partition("[")[0]


def finetune(defense: str, optimizer: str, lr: float, **changes: Any) -> dict[str, Any]:
    parameters = {"optimizer": optimizer, "lr": lr, "batch_size": 64}
    label = f"finetune[lr={lr:g},optimizer={optimizer}]"
    return trial(defense, label, parameters=parameters, **changes)


def envelope(defense: str, times: int = 1, **changes: Any) -> dict[str, Any]:
    name = ENVELOPE if times == 1 else STRETCHED_ENVELOPE.format(times)
    return trial(defense, name, **{"parameters": None, "trials": 4, "stretch": times, **changes})


def winner(defense: str, times: float, *votes: tuple[str, int], samples: int = 200) -> Any:
    return {
        **PLACE, "defense": defense, "control": defense == "none", "samples": samples, "seeds": 5,
        "cost": BUDGET * times, "times": times, "attacks": list(votes),
        "restricted_after": 0.623, "restricted_after_half_width": None,
    }  # fmt: skip


def rows(defense: str) -> list[dict[str, Any]]:
    return [
        finetune(defense, "sgd", 0.1),
        finetune(defense, "adam", 0.01),
        finetune(defense, "adam", 0.01, stretch=10, restricted_after=0.7),
        finetune(defense, "adam", 0.001),
        envelope(defense),
        envelope(defense, 10, restricted_after=0.7),
    ]


@pytest.fixture
def whole() -> Report:
    fresh = trial("none", "scratch", control=True, restricted_after=0.435)
    return report(
        rows=[fresh, *rows("none"), *rows("ice"), *rows("klu")],
        scores=[
            score("none"),
            score("ice", flags=["lr cliff (31 points)", "non-finite"]),
            score("klu", score=31.0, b50=10.0, b50_censored=True, provisional=True),
        ],
        winners=[
            winner("none", 1 / 16, ("scratch", 3), ("finetune[lr=0.1,optimizer=sgd]", 2)),
            winner("ice", 1 / 16, ("finetune[lr=0.01,optimizer=adam]", 5)),
            winner("ice", 10, ("finetune[lr=0.01,optimizer=adam]", 5)),
            winner("ice", 1, samples=50),
        ],
    )


def the_tables(report: Report) -> list[Any]:
    (place,) = tables.places(report)
    return [drawn(table) for table in place.tables]


def line(table: Any, name: str) -> dict[str, str]:
    (found,) = (x for x in [*table.quiet, *table.body, *table.loud] if x[0] == name)
    return dict(zip(table.columns, found, strict=True))


def test_the_heading_says_where(whole: Report) -> None:
    (place,) = tables.places(whole)
    assert place.title == "glyphs (data 01234567), b, fp32, protocol 1, 200 steps, @standard v1"
    assert len(place.tables) == 3


def test_the_heading_has_every_suite_once() -> None:
    where = ("glyphs", "0123456789", "b", "fp32", 12800, "1")
    suites = ["@b v1", "@a v2 or @b v1", None]
    title = layout.heading(where, pd.DataFrame({"suite": suites}))
    assert title.endswith("200 steps, @a v2 or @b v1")


def test_scores_are_sorted_with_controls_first(whole: Report) -> None:
    table, *_ = the_tables(whole)
    assert [x[0] for x in table.quiet] == ["none", "scratch"]
    assert [x[0] for x in table.body] == ["klu", "ice"]
    assert line(table, "ice") == {
        "": "ice", "score": "12.3 ± 4.1", "resistance": "0.14 ± 0.04", "worst n": "0.08",
        "intact": "0.86", "trainable": "0.97", "B50 (search)": "1.3× (2.7×)",
        "original (was)": "97.1 (98.5)", "restricted": "79.5", "cost": "5.78×", "flags": "2",
    }  # fmt: skip
    assert line(table, "none")["score"] == "0.0 ± 4.1"
    assert line(table, "scratch")["restricted"] == "43.5"
    assert line(table, "scratch")["score"] == "·"


def test_provisional_and_censored_are_marked(whole: Report) -> None:
    table, *_ = the_tables(whole)
    assert line(table, "klu")["score"] == "31.0 ± 4.1†"
    assert line(table, "klu")["B50 (search)"] == ">10× (2.7×)"
    assert any(note.startswith("† provisional") for note in table.notes)
    assert "ice: lr cliff (31 points), non-finite" in table.notes


def test_ranks_stand_where_there_are_several() -> None:
    scores = [score("none"), score("ice", rank=1), score("klu", rank=2), score("a", score=1.0)]
    (table,) = the_tables(report(scores=scores))
    assert table.columns[:3] == ["", "rank", "score"]
    assert [x[:2] for x in table.body] == [["ice", "1"], ["klu", "2"], ["a", "·"]]
    assert all(x[1] == "·" for x in table.quiet)
    assert any(note.startswith("rank:") for note in table.notes)


def test_reports_are_united_with_controls_told_once_and_ranks_of_all() -> None:
    one, two = (
        report(
            rows=[trial("none", "finetune"), trial(name, "finetune")],
            scores=[score("none"), score(name, score=value, score_half_width=1.0)],
            winners=[winner("none", 1, ("finetune", 5)), winner(name, 1, ("finetune", 5))],
        )
        for name, value in (("ice", 12.0), ("klu", 30.0))
    )
    both = tables.united([one, two])
    assert [row["defense"] for row in records(both.scores)] == ["none", "ice", "klu"]
    assert [row["rank"] for row in records(both.scores)] == [None, 2, 1]
    assert [row["defense"] for row in records(both.trials)] == ["none", "ice", "klu"]
    assert [row["defense"] for row in records(both.winners)] == ["none", "ice", "klu"]


def test_differences_say_which_are_clear_and_why_there_is_no_score() -> None:
    made = {**PLACE, "other": "ice", "seeds": 5, "unscored": None, "clear": False,
            "resistance_difference": 0.034, "resistance_difference_half_width": 0.05,
            "score_difference": 3.2, "score_difference_half_width": 4.0,
            "defense_name": "d"}  # fmt: skip
    rows = [
        {**made, "defense": "a"},
        {**made, "defense": "b", "clear": True, "resistance_difference": -0.2},
        {**made, "defense": "c", "unscored": "no trainability runs", "score_difference": None},
    ]
    (place,) = tables.differences(frame(rows))
    (table,) = map(drawn, place.tables)
    assert table.body == [
        ["a", "5", "0.03 ± 0.05", "3.2 ± 4.0", "·"],
        ["b", "5", "-0.20 ± 0.05", "3.2 ± 4.0", "clear of zero"],
        ["c", "5", "0.03 ± 0.05", "·¹", "·"],
    ]
    assert table.notes == ["¹ no trainability runs"]
    assert "More than ice has" in table.title
    assert FORMATS == ("console", "md", "latex", "csv", "json")
    flat = Flat(frames=[frame(rows)], columns=DIFFERENCES)
    for form in FORMATS:
        assert "0.05" in printed(form, lambda: [place], flat)


def test_latex_escapes_and_sets_the_best_in_bold() -> None:
    scores = [score("none"), score("a_b"), score("c&d", score=31.0, flags=["10 % <x>"])]
    text = " ".join(tables.show("latex", report(scores=scores)).split())
    assert r"a\_b & 12.3 $\pm$ 4.1 & \textbf{0.14 $\pm$ 0.04}" in text
    assert r"c\&d & \textbf{31.0 $\pm$ 4.1} & \textbf{0.14 $\pm$ 0.04}" in text
    assert r"10 \% $<$x$>$" in text
    assert text.count(r"\midrule") == 2
    assert [text.count(rf"\{word}") for word in ("toprule", "bottomrule", "caption")] == [1, 1, 1]


def test_without_a_score_there_is_a_dot_and_the_reason_once() -> None:
    nothing = {
        "score": None, "score_half_width": None, "resistance": None,
        "resistance_half_width": None, "worst_resistance": None, "trainability": None,
        "b50": None, "b50_search": None, "scratch_after": None,
    }  # fmt: skip
    few = "fewer than three counted cells"
    scores = [
        score("none", **nothing, unscored=few),
        score("a", **nothing, unscored="no trainability runs"),
        score("b", **nothing, unscored=few),
        score("c", scratch_after=None),
    ]
    (table,) = the_tables(report(scores=scores))
    assert table.notes == [f"¹ {few}", "² no trainability runs"]
    assert [x[0] for x in table.quiet] == ["none"]
    assert [x[0] for x in table.body] == ["c", "a", "b"]
    assert line(table, "b") == {
        **dict.fromkeys(table.columns, "·"), "": "b", "score": "·¹", "intact": "0.86",
        "original (was)": "97.1 (98.5)", "restricted": "79.5", "cost": "5.78×", "flags": "0",
    }  # fmt: skip
    assert line(table, "a")["score"] == "·²"


def test_a_defense_with_other_seeds_says_what_its_controls_reach() -> None:
    other = {"seeds": 3, "undefended_after": 0.9, "scratch_after": 0.4}
    scores = [score("none"), score("dos"), score("ice", **other)]
    (table,) = the_tables(report(scores=scores))
    assert "3–5 seeds" in table.title
    assert table.notes == ["ice: on its seeds the undefended model reaches 90.0, scratch 40.0"]
    several = [*scores, score("klu", **other), score("seam", **{**other, "scratch_after": 0.3})]
    (table,) = the_tables(report(scores=several))
    assert table.notes == [
        "ice, klu: on their seeds the undefended model reaches 90.0, scratch 40.0",
        "seam: on its seeds the undefended model reaches 90.0, scratch 30.0",
    ]


def test_one_seed_has_no_interval() -> None:
    alone = score("ice", seeds=1, score_half_width=None, resistance_half_width=None)
    (table,) = the_tables(report(scores=[score("none", seeds=1), alone]))
    assert line(table, "ice")["score"] == "12.3"
    assert line(table, "ice")["resistance"] == "0.14"
    assert "1 seed:" in table.title


def test_names_leave_out_what_is_not_set_and_defaults_that_most_have() -> None:
    found = [
        trial("none", f"finetune[lr={lr}]", parameters={"lr": lr, "steps": steps, "by": "sgd"})
        for lr, steps in ((0.1, None), (0.2, 7))
    ]
    found += [trial("none", "finetune[by=adam]", parameters={"lr": 1, "steps": None, "by": "adam"})]
    won = winner("none", 1, ("finetune[lr=0.1]", 1))
    who, matrix = the_tables(report(rows=[*found, envelope("none")], winners=[won]))
    assert who.body == [["none", "200", "62.3 finetune lr=0.1"]]
    assert [x[0] for x in matrix.body] == [
        "finetune[lr=0.1]",
        "finetune[lr=0.2,steps=7]",
        "finetune[lr=1,by=adam]",
    ]


def test_no_seed_at_all_is_no_number() -> None:
    nothing = score("ice", samples="", seeds=0, score=None, unscored="no controls")
    (table,) = the_tables(report(scores=[nothing]))
    assert table.title.startswith("Scores: 100")


def test_who_won_by_defense_n_and_budget(whole: Report) -> None:
    _, table, _ = the_tables(whole)
    assert table.columns == ["", "n", "1/16×", "1×", "10×"]
    assert table.body == [
        ["none", "200", "62.3 scratch (3/5)", "·", "·"],
        ["ice", "50", "·", "·", "·"],
        ["ice", "200", "62.3 finetune adam lr=0.01", "·", "62.3 finetune adam lr=0.01"],
    ]


def test_the_matrix_has_stretched_trials_on_lines_of_their_own(whole: Report) -> None:
    *_, table = the_tables(whole)
    assert table.columns == ["", "none", "ice", "klu"]
    assert [x[0] for x in table.body] == [
        "scratch",
        "finetune[optimizer=adam,lr=0.001]",
        "finetune[optimizer=adam,lr=0.01]",
        "finetune[optimizer=adam,lr=0.01] ×10",
        "finetune[optimizer=sgd,lr=0.1]",
    ]
    assert line(table, "finetune[optimizer=adam,lr=0.01] ×10")["ice"] == "70.0 ± 2.0"
    assert line(table, "scratch")["ice"] == "·"
    assert [x[:2] for x in table.loud] == [
        ["tuned envelope", "50.0 ± 2.0"], ["tuned envelope ×10", "70.0 ± 2.0"]
    ]  # fmt: skip


def test_what_a_score_row_said_is_not_said_again() -> None:
    found = [envelope("none"), envelope("ice", flags=["non-finite", "rolled back"])]
    scored, matrix = the_tables(report(rows=found, scores=[score("ice", flags=["non-finite"])]))
    assert scored.notes[-1] == "ice: non-finite"
    assert matrix.notes == ["ice: rolled back"]


def test_cells_that_did_not_end_well_say_so() -> None:
    found = [
        envelope("none"),
        trial("none", "a", restricted_after=None, status="skipped"),
        trial("none", "b", status="diverged", seeds_reached=3),
        trial("none", "c", seeds=1, seeds_reached=1, restricted_after_half_width=None),
    ]
    (matrix,) = the_tables(report(rows=found))
    assert line(matrix, "a")["none"] == "skipped"
    assert line(matrix, "b")["none"] == "50.0 ± 2.0 (diverged, 3 of 5 seeds)"
    assert line(matrix, "c")["none"] == "50.0 (1 of 5 seeds)"


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_console_never_breaks_a_number(
    columns: int, whole: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = tables.show("console", whole)
    for text in (
        "12.3 ± 4.1",
        "31.0 ± 4.1†",
        "0.14 ± 0.04",
        "50.0 ± 2.0",
        "1.3×",
        "5.78×",
        "flags",
    ):
        assert text in shown
    assert max(map(len, shown.splitlines())) <= max(columns, 120)


def test_console_and_markdown_show_the_same_cells(
    whole: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    console, markdown = tables.show("console", whole), tables.show("md", whole)
    for text in ("12.3 ± 4.1", "tuned envelope ×10", "finetune[optimizer=adam,lr=0.01] ×10"):
        assert text in console
        assert text in markdown
    assert "### glyphs (data 01234567)" in markdown
    assert "| **tuned envelope**" in markdown


def test_flat_rows_have_the_scores_first_and_no_attack(whole: Report) -> None:
    found = json.loads(tables.show("json", whole))
    rows = [*records(whole.scores), *records(whole.trials)]
    assert found == [{k: v for k, v in row.items() if k not in PLUGINS} for row in rows]
    assert [("attack" in row) for row in found] == [False] * 3 + [True] * 19
    lines = from_csv(tables.show("csv", whole))
    assert [x["attack"] for x in lines[:4]] == ["", "", "", "scratch"]
    assert lines[1]["score"] == "12.34"
    assert lines[1]["flags"] == "lr cliff (31 points); non-finite"
    assert lines[1]["samples"] == "50,200"
    assert lines[4]["trials"] == "1"
    assert lines[4]["score"] == ""
    assert json.loads(tables.document(gather([]), whole))["summary"] == found


def test_the_meaning_of_scores_is_two_sentences(whole: Report) -> None:
    said = tables.meaning(whole)
    assert said.startswith(
        "Against a tuned attacker, who reaches 84.3 % from the undefended model and 43.5 % from "
        "random initialisation, klu scores 31.0 ± 4.1 of 100 (provisional; 79.5 % reached) and ice "
        "scores 12.3 ± 4.1 of 100 (79.5 % reached). "
    )
    assert said.count(". ") == 1
    assert "\n" not in said


def test_without_a_score_the_meaning_is_the_envelopes() -> None:
    fresh = trial("none", "scratch", control=True, restricted_after=0.435)
    found = [fresh, envelope("none", best="finetune"), envelope("ice", best="finetune")]
    scores = [score("none"), score("ice", score=None, unscored="no trainability runs")]
    said = tables.meaning(report(rows=found, scores=scores))
    assert "reaches 50.0 % against none (best of 4 trials: finetune) and 50.0 %" in said
    assert "the 43.5 % of random initialisation" in said
    failed = [envelope("none", restricted_after=None)]
    nothing = tables.meaning(report(rows=failed))
    assert nothing.startswith("No attack produced a predictor")


def test_a_report_is_made_of_records(make_cell: Any) -> None:
    cells = [
        make_cell(defense=defense, attack=attack, seed=seed, curve=[(12800.0, test, test)])
        for seed in (0, 1)
        for defense, attack, test in (
            ("none", "scratch", 0.3),
            ("none", "finetune", 0.8),
            ("ice", "finetune", 0.5),
        )
    ]
    made = tables.report(gather(cells))
    assert {row["defense"] for row in records(made.scores)} == {"none", "ice"}
    shown = tables.show("console", made)
    assert "50.0 ± 0.0" in shown
    assert "·¹†" in shown
    assert "Who won" in shown
