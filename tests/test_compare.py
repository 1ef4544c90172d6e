"""The regression gate: paired intervals by hand, every exit code, every format."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import Attempt, MakeCell, gather, read_cells, records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sophon_bench.analysis.comparison import Incomparable, compare
from sophon_bench.analysis.thresholds import UNITS, threshold
from sophon_bench.cli import main
from sophon_bench.leaderboard import compare as gate
from sophon_bench.leaderboard.tables import document, report
from sophon_bench.plugins import registry
from sophon_bench.plugins.suites import trials
from sophon_bench.results import Results

T1, T2 = 12.706204736, 4.302652730
"""97.5 % quantiles of Student's t with one and two degrees of freedom."""

LEVELS = (0.2, 0.5, 0.8)
"""Seeds that differ by far more than any change that is looked for."""

Row = dict[str, Any]


def attacked(
    make_cell: MakeCell, levels: Sequence[float], defense: str = "d", **changes: Any
) -> list[Attempt]:
    """One trial whose test utility is ``levels`` on seeds 0, 1, and so on."""
    return [
        make_cell(defense=defense, seed=seed, curve=[(100.0, level, level)], **changes)
        for seed, level in enumerate(levels)
    ]


def compared(base: Sequence[Attempt], new: Sequence[Attempt], *limits: str) -> list[Row]:
    limited = [threshold(limit) for limit in limits]
    return records(compare(Results.of(gather(base)), Results.of(gather(new)), limited))


def of(rows: Iterable[Row], **told: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in told.items())]


def only(rows: Iterable[Row], **told: Any) -> Row:
    (row,) = of(rows, **told)
    return row


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("restricted:+2pt", ("restricted_after", 1, 2.0, False)),
        ("restricted_after:+0.5pt", ("restricted_after", 1, 0.5, False)),
        ("original:-1pt", ("original_after", -1, 1.0, False)),
        ("resistance:-0pt", ("resistance", -1, 0.0, False)),
        ("peak_memory:+10%", ("peak_memory", 1, 10.0, False)),
        ("seconds:+20%@same-machine", ("seconds", 1, 20.0, True)),
    ],
)
def test_a_threshold_is_a_metric_a_direction_and_a_size(
    text: str, told: tuple[str, int, float, bool]
) -> None:
    found = threshold(text)
    assert (found.metric, found.sign, found.limit, found.same_machine) == told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("restricted", "is no threshold: write METRIC, a colon"),
        ("restricted:2pt", "is no threshold"),
        ("restricted:+2", "is no threshold"),
        ("restricted:+nanpt", "is no threshold"),
        ("restricted:+2pt@home", "is no threshold"),
        (
            "restrictd:+2pt",
            r"unknown metric 'restrictd'; did you mean 'restricted'.*metrics: .*sco",
        ),
        ("flags:+2pt", r"unknown metric 'flags'.*metrics: restricted, original, "),
        ("restricted:+2%", r"did you mean 'restricted:\+2pt'\?"),
        ("seconds:-20pt@same-machine", "did you mean 'seconds:-20%@same-machine'"),
        ("score:-2pt@same-machine", "does not apply"),
    ],
)
def test_what_is_no_threshold_says_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        threshold(text)


@pytest.mark.parametrize(
    ("rise", "limit", "half_width", "verdict"),
    [
        # points by seed; standard deviations are sqrt 2, 1, 2, 0
        ((3, 5), "+2pt", T1, "unchanged"),  # 4 ± 12.7 is no change of two seeds
        ((3, 4, 5), "+2pt", T2 / math.sqrt(3), "regression"),  # 4 ± 2.5
        ((3, 4, 5), "+4pt", T2 / math.sqrt(3), "unchanged"),  # on the threshold, not beyond it
        ((3, 4, 5), "-2pt", T2 / math.sqrt(3), "improvement"),
        ((-3, -4, -5), "+2pt", T2 / math.sqrt(3), "improvement"),
        ((-3, -4, -5), "-2pt", T2 / math.sqrt(3), "regression"),
        ((1, 3, 5), "+2pt", 2 * T2 / math.sqrt(3), "unchanged"),  # 3 ± 5.0
        ((1, 1, 1), "+2pt", 0.0, "unchanged"),  # as certain as small
        ((3, 3, 3), "+2pt", 0.0, "regression"),
        ((0, 0, 0), "+0pt", 0.0, "unchanged"),
    ],
)
def test_a_threshold_fails_beyond_it_and_outside_the_paired_interval(
    make_cell: MakeCell, rise: Sequence[int], limit: str, half_width: float, verdict: str
) -> None:
    before = LEVELS[: len(rise)]
    after = [level + points / 100 for level, points in zip(before, rise, strict=True)]
    rows = compared(attacked(make_cell, before), attacked(make_cell, after), f"restricted:{limit}")
    for row in rows:
        assert row["verdict"] == verdict
        assert row["difference"] == pytest.approx(sum(rise) / len(rise))
        assert row["half_width"] == pytest.approx(half_width)
        assert row["base"] == pytest.approx(sum(before) / len(before))
        assert row["new"] == pytest.approx(sum(after) / len(after))
        assert (row["seeds"], row["unit"], row["tentative"]) == (len(rise), "pt", False)
    assert [row["attack"] for row in rows] == ["finetune", "envelope"]


@pytest.mark.parametrize(("rise", "verdict"), [(3, "regression"), (1, "unchanged")])
def test_one_seed_is_judged_by_the_threshold_alone(
    make_cell: MakeCell, rise: int, verdict: str
) -> None:
    base, new = (attacked(make_cell, [level]) for level in (0.5, 0.5 + rise / 100))
    row = only(compared(base, new, "restricted:+2pt"), attack="finetune")
    assert (row["verdict"], row["tentative"], row["half_width"]) == (verdict, True, None)


def test_only_seeds_that_both_have_are_compared(make_cell: MakeCell) -> None:
    base = attacked(make_cell, (0.2, 0.2, 0.9))
    new = [cell for cell in attacked(make_cell, (0.9, 0.2, 0.9, 0.1)) if cell.seed]
    rows = compared(base, new, "restricted:+0pt")
    row = only(rows, attack="finetune")
    assert (row["seeds"], row["difference"], row["verdict"]) == (2, 0.0, "unchanged")
    assert [(r["verdict"], r["reason"]) for r in of(rows, metric="seeds")] == [
        ("not applied", "seeds in base alone: 0"),
        ("new", "seeds in new alone: 3"),
    ]
    assert not of(rows, metric="status")


def costing(cell: Attempt, seconds: float, peak: int, **provenance: Any) -> Attempt:
    """The same with other costs of attack, and another machine."""
    assert cell.cost is not None
    return replace(
        cell,
        cost=replace(cell.cost, seconds=seconds, peak_bytes=peak),
        provenance=replace(cell.provenance, **provenance),
    )


def test_costs_are_compared_in_percent_of_each_seed(make_cell: MakeCell) -> None:
    base, new = (
        [
            costing(cell, seconds, 10**8)
            for cell, seconds in zip(attacked(make_cell, LEVELS), spent, strict=True)
        ]
        for spent in ((1.0, 2.0, 10.0), (1.5, 3.0, 14.0))
    )
    rows = compared(base, new, "seconds:+20%", "peak_memory:+10%")
    row = only(rows, metric="seconds")  # +50, +50, +40 %
    assert row["difference"] == pytest.approx(140 / 3)
    assert row["half_width"] == pytest.approx(T2 * math.sqrt(100 / 3) / math.sqrt(3))
    assert row["verdict"] == "regression"
    assert only(rows, metric="peak_memory")["verdict"] == "unchanged"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"device": "B"}, "another machine: device cpu in base, B in new"),
        ({"threads": 8}, "another machine: threads 1 in base, 8 in new"),
        ({"torch": "3"}, "another machine: torch 2 in base, 3 in new"),
        ({"commit": "c"}, None),
    ],
)
def test_same_machine_looks_at_nothing_from_another_one(
    make_cell: MakeCell, other: dict[str, Any], reason: str | None
) -> None:
    base = [costing(cell, 1.0, 1) for cell in attacked(make_cell, LEVELS)]
    new = [costing(cell, 2.0, 1, **other) for cell in base]
    rows = compared(base, new, "seconds:+20%@same-machine", "seconds:+20%")
    bound, free = (only(rows, threshold=f"seconds:+20%{at}") for at in ("@same-machine", ""))
    assert free["verdict"] == "regression"
    verdict = "regression" if reason is None else "not applied"
    assert (bound["verdict"], bound["reason"]) == (verdict, reason)


def test_same_machine_compares_the_seeds_that_are_of_one(make_cell: MakeCell) -> None:
    base = [costing(cell, 1.0, 1) for cell in attacked(make_cell, LEVELS)]
    new = [costing(cell, 2.0, 1, threads=1 if cell.seed else 2) for cell in base]
    row = only(compared(base, new, "seconds:+20%@same-machine"))
    assert (row["seeds"], row["difference"], row["verdict"]) == (2, 100.0, "regression")


def test_the_models_own_metrics_are_compared_once_per_defense(make_cell: MakeCell) -> None:
    base, new = (
        [
            cell
            for attack in ("finetune", "finetune[lr=0.1]")
            for cell in attacked(make_cell, LEVELS, attack=attack, original=(0.98, after))
        ]
        for after in (0.97, 0.95)
    )
    limits = ("original:-1pt", "protect_cost:+5%", "protect_seconds:+5%", "protect_peak_memory:+5%")
    rows = compared(base, new, *limits)
    assert [(row["defense"], row["attack"], row["verdict"]) for row in rows] == [
        ("d", None, "regression"), *[("d", None, "unchanged")] * 3
    ]  # fmt: skip
    assert rows[0]["difference"] == pytest.approx(-2)
    assert [row["base"] for row in rows[1:]] == [2, 2, 10**8]  # 1280 units of 640, 2 s, bytes


def test_nothing_is_a_percentage_of_nothing(make_cell: MakeCell) -> None:
    cells = attacked(make_cell, [0.5])
    base, new = ([costing(cell, seconds, 1) for cell in cells] for seconds in (0.0, 1.0))
    row = only(compared(base, new, "seconds:+20%"))
    assert (row["verdict"], row["reason"]) == (
        "not applied", "0 in base, so a percentage change is undefined"
    )  # fmt: skip
    assert only(compared(base, base, "seconds:+20%"))["verdict"] == "unchanged"


def test_what_is_not_recorded_is_said_to_be_so(make_cell: MakeCell) -> None:
    cells = [
        replace(cell, cost=replace(cell.cost, peak_bytes=None))
        for cell in attacked(make_cell, LEVELS)
    ]
    row = only(compared(cells, cells, "peak_memory:+1%"))
    assert (row["verdict"], row["reason"]) == ("not applied", "not in both on any seed")


def test_the_envelope_is_picked_on_selection_in_each_run(make_cell: MakeCell) -> None:
    def run(second: float) -> list[Attempt]:
        """The other trial has the better selection utility and the worse test utility."""
        return [
            *attacked(make_cell, [0.6]),
            make_cell(defense="d", attack="finetune[lr=0.1]", curve=[(100.0, 0.9, second)]),
            make_cell(defense="none", attack="scratch", curve=[(100.0, 0.1, 0.1)]),
        ]

    rows = compared(run(0.5), run(0.55), "restricted:+2pt")
    row = only(rows, attack="envelope", defense="d")
    assert (row["base"], row["new"]) == (0.5, 0.55)
    assert row["verdict"] == "regression"
    assert not of(rows, attack="envelope", defense="none")  # fresh weights alone have no envelope


def test_the_longer_envelope_is_a_row_where_both_runs_went_so_far(make_cell: MakeCell) -> None:
    listed = attacked(make_cell, [0.5])
    longer = make_cell(
        defense="d", curve=[(128000.0, 0.9, 0.9)], stretch=10, derived=True, attack="finetune"
    )
    rows = compared([*listed, longer], [*listed, longer], "restricted:+2pt")
    assert {row["attack"]: row["base"] for row in rows} == {
        "finetune": 0.5, "envelope": 0.5, "envelope, 10× budget": 0.9
    }  # fmt: skip
    rows = compared([*listed, longer], listed, "restricted:+2pt")
    assert [row["attack"] for row in rows] == ["finetune", "envelope"]
    assert not of(rows, verdict="regression")  # what a search added may be another thing


def test_another_attacker_has_no_comparable_envelope(make_cell: MakeCell) -> None:
    base = attacked(make_cell, LEVELS)
    new = [*base, *attacked(make_cell, LEVELS, attack="finetune[lr=0.1]")]
    rows = compared(base, new, "restricted:+2pt", "resistance:-1pt")
    for row in of(rows, attack="envelope") + of(rows, metric="resistance"):
        assert row["verdict"] == "not applied"
        assert row["reason"] == "the listed trials are not the same, and so not the attacker"
    assert only(rows, verdict="new")["attack"] == "finetune[lr=0.1]"


def scored(make_cell: MakeCell, levels: Sequence[float], worth: float = 0.8) -> list[Attempt]:
    """The undefended model at ``worth``, fresh weights at 0.2, a defense at ``levels`` by seed."""
    costs = (800.0, 1600.0, 3200.0, 6400.0, 12800.0)

    def flat(defense: str, attack: str, seed: int, level: float, **place: Any) -> Attempt:
        curve = [(cost, level, level) for cost in costs]
        return make_cell(defense=defense, attack=attack, seed=seed, curve=curve, **place)

    return [
        flat(defense, attack, seed, value, **place)
        for seed, level in enumerate(levels)
        for defense, attack, value, left in (
            ("none", "finetune", worth, 0.8),
            ("none", "scratch", 0.2, 0.2),
            ("d", "finetune", level, 0.5),
        )
        for value, place in (
            (value, {}),
            *((left, {"domain": name, "role": "benign"}) for name in ("greek", "shapes")),
        )
    ]


def test_scores_are_compared_by_the_paired_jackknife(make_cell: MakeCell) -> None:
    """R = 1 - (P - 0.2) / 0.6 is linear in P: its jackknife is Student's t of P / 0.6."""
    base, new = scored(make_cell, (0.3, 0.5, 0.7)), scored(make_cell, (0.36, 0.56, 0.79))
    rows = compared(base, new, "resistance:-2pt", "score:-2pt", "trainability:-2pt")
    row = only(rows, metric="resistance", defense="d")  # -10, -10, -15 points
    assert (row["base"], row["new"]) == (pytest.approx(0.5), pytest.approx(1 - 0.37 / 0.6))
    assert row["difference"] == pytest.approx(-35 / 3)
    assert row["half_width"] == pytest.approx(T2 * math.sqrt(25 / 3) / math.sqrt(3))
    assert row["verdict"] == "regression"
    row = only(rows, metric="score", defense="d")  # intactness 1, trainability 0.5
    assert (row["base"], row["difference"]) == (pytest.approx(25), pytest.approx(-35 / 6))
    assert row["half_width"] == pytest.approx(T2 * math.sqrt(25 / 3) / math.sqrt(3) / 2)
    assert row["verdict"] == "regression"
    assert only(compared(base, new, "score:-6pt"), defense="d")["verdict"] == "unchanged"
    row = only(rows, metric="trainability", defense="d")
    assert (row["base"], row["difference"]) == (pytest.approx(0.5), 0)
    assert only(rows, metric="score", defense="none")["difference"] == 0


def test_a_score_that_is_lost_is_a_regression(make_cell: MakeCell) -> None:
    base, new = scored(make_cell, LEVELS), scored(make_cell, LEVELS, worth=0.24)
    rows = compared(base, new, "score:-2pt")
    for row in rows:
        assert row["verdict"] == "regression"
        assert "in 0 cells of budget and n, and a score needs 3" in row["reason"]
    rows = compared(new, base, "score:-2pt")
    assert {row["verdict"] for row in rows} == {"not applied"}


@pytest.mark.parametrize("status", ["failed", "skipped", "diverged"])
def test_a_cell_that_newly_fails_is_a_regression_and_the_way_back_an_improvement(
    make_cell: MakeCell, status: str
) -> None:
    base = attacked(make_cell, LEVELS)
    new = [base[0], *(replace(cell, status=status, reason="boom") for cell in base[1:])]
    row = only(compared(base, new, "original:-1pt"), metric="status")
    assert (row["verdict"], row["base"], row["new"]) == ("regression", "ok", status)
    assert (row["attack"], row["defense"], row["samples"]) == ("finetune", "d", 200)
    assert (row["seeds"], row["reason"]) == (2, "seeds 1 (boom), 2 (boom)")
    back = only(compared(new, base, "original:-1pt"), metric="status")
    assert (back["verdict"], back["base"], back["new"]) == ("improvement", status, "ok")
    assert not of(compared(new, new, "original:-1pt"), metric="status")


def test_a_cell_that_failed_otherwise_is_no_news(make_cell: MakeCell) -> None:
    (cell,) = attacked(make_cell, [0.5])
    sides = [[replace(cell, status=status)] for status in ("diverged", "failed")]
    assert not of(compared(*sides, "original:-1pt"), metric="status")


def test_what_vanished_is_a_regression_and_what_is_new_is_not(make_cell: MakeCell) -> None:
    kept = attacked(make_cell, LEVELS)
    other = attacked(make_cell, LEVELS, attack="finetune[lr=0.1]", domain="greek", role="benign")
    backbone = attacked(make_cell, LEVELS, backbone="b2")
    base, new = [*kept, *other, *backbone], [*kept, *other[:1]]
    gone = of(compared(base, new, "original:-1pt"), metric="status")
    assert {row["verdict"] for row in gone} == {"regression"}
    assert [(r["backbone"], r["attack"], r["domain"], r["new"], r["reason"]) for r in gone] == [
        ("b", "finetune[lr=0.1]", "greek", "vanished", "seeds 1, 2"),
        ("b2", "finetune", "digits", "vanished", "seeds 0, 1, 2"),
    ]
    added = of(compared(new, base, "original:-1pt"), metric="status")
    assert {row["verdict"] for row in added} == {"new"}
    assert [row["reason"] for row in added] == ["seeds 1, 2", "seeds 0, 1, 2"]


def test_a_changed_plugin_is_compared_and_told(make_cell: MakeCell) -> None:
    base = attacked(make_cell, [0.5], attack="finetune[lr=0.1]")
    new = [
        replace(
            cell,
            defense=replace(cell.defense, source="other"),
            attack=replace(cell.attack, parameters={"lr": 0.2, "steps": 3}),
        )
        for cell in attacked(make_cell, [0.6], attack="finetune[lr=0.1]")
    ]
    rows = compared(base, new, "restricted:+2pt")
    assert len(of(rows, verdict="regression")) == 2
    assert [
        (row["defense"], row["attack"], row["reason"]) for row in of(rows, metric="plugin")
    ] == [
        ("d", None, "source"),
        (None, "finetune[lr=0.1]", "lr 0.1 -> 0.2, steps absent -> 3"),
    ]
    assert not of(compared(new, new, "restricted:+2pt"), metric="plugin")


Change = Callable[[Attempt], Attempt]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: replace(c, protocol="2"), "not the same protocol: 1 in base, 2 in new"),
        (
            lambda c: replace(c, scenario=replace(c.scenario, revision="other-data")),
            "not the same data revision in s, b: r in base, other-da in new",
        ),
        (
            lambda c: replace(c, suite="@smoke v2"),
            "version of the suite: @smoke v1 in base, @smoke",
        ),
        (lambda c: replace(c, budget=640), "budget in s, b: 200 steps in base, 10 steps in new"),
        (lambda c: replace(c, precision="bf16"), "precision in s, b: fp32 in base, bf16 in new"),
        (lambda c: replace(c, seed=c.seed + 9), "no seed in common in s, b: 0, 1, 2 in base, 9,"),
        (
            lambda c: replace(c, backbone="b2"),
            "nothing in common: base has s, b; new has s, b2",
        ),
        (
            lambda c: replace(c, defense=replace(c.defense, source=str(c.seed))),
            "new has 3 versions of the defense d",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    make_cell: MakeCell, change: Change, words: str
) -> None:
    base = attacked(make_cell, LEVELS, suite="@smoke v1")
    with pytest.raises(Incomparable, match=words):
        compared(base, [change(cell) for cell in base], "restricted:+2pt")


@given(
    levels=st.lists(
        st.tuples(*[st.floats(0, 1)] * 2, *[st.floats(0.1, 10)] * 2), min_size=1, max_size=5
    ),
    limit=st.integers(0, 5),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_way_back_undoes_the_change(
    make_cell: MakeCell, levels: list[tuple[float, ...]], limit: int
) -> None:
    """A regression one way is an improvement the other way; nothing changed from itself."""
    before, after = (attacked(make_cell, [by_seed[side] for by_seed in levels]) for side in (0, 1))
    words = f"restricted:+{limit}pt"
    there, back, same = (
        compared(*sides, words) for sides in ((before, after), (after, before), (before, before))
    )
    turned = {"regression": "improvement", "improvement": "regression", "unchanged": "unchanged"}
    for one, other in zip(there, back, strict=True):
        assert one["difference"] == pytest.approx(-other["difference"], abs=1e-9)
        assert other["verdict"] == turned[one["verdict"]]
    assert {(row["difference"], row["verdict"]) for row in same} == {(0.0, "unchanged")}


def test_every_metric_is_compared_in_a_row_or_refused_with_a_reason(make_cell: MakeCell) -> None:
    cells = scored(make_cell, LEVELS)
    for metric, unit in UNITS.items():
        rows = compared(cells, cells, f"{metric}:+1{unit}")
        assert {row["verdict"] for row in rows} == {"unchanged"}, metric


# The command.


@pytest.fixture
def files(tmp_path: Path, make_cell: MakeCell) -> Callable[..., list[Path]]:
    def write(*runs: Sequence[Attempt]) -> list[Path]:
        found = []
        for name, cells in zip(("base", "new"), runs, strict=True):
            found.append(tmp_path / f"{name}.json")
            found[-1].write_text(document(gather(cells), report(gather(cells))))
        return found

    return write


def call(*arguments: object, limits: Sequence[str] = ("restricted:+2pt",)) -> Result:
    options = [word for limit in limits for word in ("--fail-on", limit)]
    wide = {"COLUMNS": "160"}  # a narrow terminal folds names
    return CliRunner(env=wide).invoke(main, ["compare", *map(str, arguments), *options])


@pytest.fixture
def weakened(make_cell: MakeCell, files: Any) -> list[Path]:
    """An attack gets 20, 21, 22 points more out of a defense that costs half of what it did."""
    base, new = (
        [
            *attacked(make_cell, levels, released={"cost": spent.cost}),
            *attacked(make_cell, (0.8, 0.8, 0.8), defense="none"),
        ]
        for levels, units in (((0.3, 0.4, 0.5), 1280.0), ((0.5, 0.61, 0.72), 640.0))
        for spent in [replace(make_cell().released, cost=replace(make_cell().cost, units=units))]
    )
    return files(base, new)


def test_seed_noise_passes(make_cell: MakeCell, files: Any) -> None:
    base, new = attacked(make_cell, (0.30, 0.45, 0.52)), attacked(make_cell, (0.37, 0.41, 0.58))
    result = call(*files(base, new))  # +7, -4, +6 points: a mean of 3, ± 15
    assert result.exit_code == 0, result.output
    assert result.output == (
        "fine: no regression in 2 comparisons\n\n"
        "0 regressions, 0 accepted, 0 improvements, 2 unchanged, 0 not applied, 0 new\n"
    )


def test_a_weakened_defense_fails_and_its_cells_are_named(weakened: list[Path]) -> None:
    result = call(*weakened, limits=("restricted:+2pt", "protect_cost:+10%"))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == "REGRESSION: 2 in 6 comparisons"
    said = "\n".join(lines)
    assert (
        said.index("Regressions") < said.index("Improvements") < said.index("2 regressions, 0 ac")
    )
    assert "finetune against d (digits, n=200)" in said
    assert "+21.0 ± 2.5 pt" in said
    assert "-50.0 ± 0.0 %" in said
    assert "against none" not in said
    assert len(result.stderr) == 0


def test_one_seed_is_marked(make_cell: MakeCell, files: Any) -> None:
    result = call(*files(attacked(make_cell, [0.5]), attacked(make_cell, [0.6])))
    assert result.exit_code == 1
    assert "+10.0~ pt" in result.output
    assert "~ one seed in common: no interval, the threshold alone" in result.output


def test_what_was_not_applied_or_changed_or_is_new_is_said(make_cell: MakeCell, files: Any) -> None:
    base = attacked(make_cell, LEVELS)
    new = [replace(c, provenance=replace(c.provenance, threads=2)) for c in base]
    more = attacked(make_cell, [0.5], defense="e")
    output = call(*files(base, [*new, *more]), limits=["seconds:+9%@same-machine"]).output
    words = (
        "not applied: seconds:+9%@same-machine to d: another machine: threads 1 in base, 2 in new"
    )
    assert f"{words}\n" in output
    assert "new: finetune against e (digits, n=200)\n" in output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "is cut short at line"),
        (lambda text: re.sub(r'("test": \[\s*)0.5', r"\g<1>0.4", text, count=1), "it was edited"),
        (lambda text: text.replace('"seed": 0', '"seed": "x"', 1), "Expected `int`, got `str`"),
        (lambda text: "[]", "is not a file of 'sophon-bench run --json'"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_record(
    make_cell: MakeCell, files: Any, change: Callable[[str], str], words: str
) -> None:
    base, new = files(attacked(make_cell, [0.5]), attacked(make_cell, [0.5]))
    new.write_text(change(new.read_text()))
    result = call(base, new)
    assert result.exit_code == 2
    assert words in result.output
    assert "new.json" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_record_that_is_there_twice_is_refused(make_cell: MakeCell, files: Any) -> None:
    base, new = files(*[attacked(make_cell, LEVELS)] * 2)
    content = json.loads(new.read_text())
    content["cells"].append(content["cells"][1])
    new.write_text(json.dumps(content))
    result = call(base, new)
    assert result.exit_code == 2
    assert "finetune against d, n=200, seed=" in result.output
    assert "there twice" in result.output


@pytest.mark.parametrize(
    ("arguments", "limits", "words"),
    [
        ((), ["restricted:2pt"], "--fail-on: 'restricted:2pt' is no threshold"),
        ((), [], "Missing option '--fail-on'"),
        (("--format", "pdf"), ["restricted:+2pt"], "'pdf' is not one of"),
        (("--accept", "nowhere.yaml"), ["restricted:+2pt"], "'nowhere.yaml' does not exist"),
    ],
)
def test_bad_words_are_one_line_and_exit_2(
    weakened: list[Path], arguments: Sequence[str], limits: Sequence[str], words: str
) -> None:
    result = call(*weakened, *arguments, limits=limits)
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.splitlines()) == 1


def test_another_protocol_and_a_missing_file_exit_2(make_cell: MakeCell, files: Any) -> None:
    cells = attacked(make_cell, [0.5])
    base, new = files(cells, attacked(make_cell, [0.5], protocol="2"))
    result = call(base, new)
    assert result.exit_code == 2
    assert "cannot be compared: not the same protocol: 1 in base, 2 in new" in result.output
    result = call(base, base.with_name("nowhere.json"))
    assert result.exit_code == 2
    assert "cannot be read" in result.output


def accepting(folder: Path, *entries: dict[str, Any]) -> Path:
    file = folder / "accepted.json"
    file.write_text(json.dumps({"accepted": entries}, indent="\t"))  # tabs, which YAML refuses
    return file


def test_an_accepted_regression_does_not_fail(weakened: list[Path], tmp_path: Path) -> None:
    trial = {"defense": "d", "attack": "finetune", "metric": "restricted", "reason": "see #12"}
    rest = {
        "defense": "d",
        "attack": "envelope",
        "metric": "restricted_after",
        "reason": "so is it",
    }
    file = accepting(tmp_path, trial)
    result = call(*weakened, "--accept", file)
    assert result.exit_code == 1
    assert "REGRESSION: 1 in 4 comparisons" in result.output
    result = call(*weakened, "--accept", accepting(tmp_path, trial, rest))
    assert result.exit_code == 0, result.output
    assert "fine: no regression in 4 comparisons" in result.output
    assert "Accepted" in result.output
    assert "finetune against d (digits, n=200), restricted_after: see #12" in result.output
    assert "2 accepted" in result.output


def test_an_accepted_loss_of_cells_does_not_fail(
    make_cell: MakeCell, files: Any, tmp_path: Path
) -> None:
    base = [*attacked(make_cell, LEVELS), *attacked(make_cell, LEVELS, samples=50)]
    sides = files(base, base[:3])
    gone = {"attack": "finetune", "samples": 50, "metric": "status", "reason": "out of the suite"}
    assert call(*sides).exit_code == 1
    assert call(*sides, "--accept", accepting(tmp_path, gone)).exit_code == 0
    other = accepting(tmp_path, {**gone, "samples": 600})
    assert call(*sides, "--accept", other).exit_code == 1


def test_an_unused_acceptance_is_a_warning(weakened: list[Path], tmp_path: Path) -> None:
    spare = {"defense": "d", "metric": "original", "reason": "r"}
    result = call(*weakened, "--accept", accepting(tmp_path, spare))
    assert result.exit_code == 1
    assert result.stderr == (
        "warning: --accept: nothing to accept in defense d, metric original_after\n"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("accepted: [{defense: d, metric: restricted}]", "accepted.0.reason: Field required"),
        ("accepted: [{defense: d, metric: restricted, reason: ' '}]", "accepted.0.reason"),
        ("accepted: [{defense: d, metric: restrictd, reason: r}]", "did you mean 'restricted'"),
        ("accepted: [{metric: restricted, reason: r}]", "neither which defense nor which attack"),
        ("accepted: [{defens: d, metric: restricted, reason: r}]", "accepted.0.defens"),
        ("acepted: []", "unknown key 'acepted'; did you mean 'accepted'"),
        ("- 1", "is not YAML of a acceptance"),
        ("{", "is not YAML"),
        (b"\xff", "is not YAML"),
    ],
)
def test_a_malformed_acceptance_is_refused(
    weakened: list[Path], tmp_path: Path, content: str | bytes, words: str
) -> None:
    file = tmp_path / "accepted.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = call(*weakened, "--accept", file)
    assert result.exit_code == 2
    assert "accepted.yaml" in result.output
    assert words in result.output
    assert len(result.output.splitlines()) == 1


def test_json_is_flat_rows_with_stable_keys(weakened: list[Path]) -> None:
    result = call(*weakened, "--format", "json")
    assert result.exit_code == 1
    rows = json.loads(result.output)
    assert all(list(row) == list(rows[0]) for row in rows)
    assert set(rows[0]) == {
        "scenario", "revision", "backbone", "precision", "protocol", "budget", "suite", "defense",
        "attack", "domain", "samples", "metric", "threshold", "unit", "base", "new", "difference",
        "half_width", "seeds", "verdict", "tentative", "reason", "utility",
    }  # fmt: skip
    assert len(of(rows, verdict="regression")) == 2
    assert len(of(rows, verdict="unchanged")) == 2


def test_markdown_has_the_verdict_as_its_heading(
    make_cell: MakeCell, files: Any, weakened: list[Path]
) -> None:
    said = call(*weakened, "--format", "md").output
    assert said.startswith("## REGRESSION: 2 in 4 comparisons\n\n### s (data r), b, fp32,")
    assert "| finetune against d (digits, n=200) | restricted_after | 40.0 | 61.0 |" in " ".join(
        said.split()
    )
    base = attacked(make_cell, LEVELS)
    new = [replace(cell, status="failed", reason="a | b") for cell in base]
    assert r"a \| b" in call(*files(base, new), "--format", "md").output


def test_github_gets_escaped_commands_and_a_summary(
    make_cell: MakeCell, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = attacked(make_cell, LEVELS)
    new = [replace(c, status="failed", reason="50 %\nof it, or: all") for c in base]
    sides = files(base, new)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    plain = call(*sides, "--format", "github")
    assert plain.exit_code == 1
    first = plain.output.splitlines()[0]
    assert first.startswith(
        "::error title=regression in status::finetune against d (digits, n=200)"
    )
    assert r"50 %25\nof it, or: all" in first
    assert plain.output.splitlines()[-2] == "REGRESSION: 1 in 2 comparisons"
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert call(*sides, "--format", "github").output == plain.output
    assert summary.read_text().startswith("before\n## REGRESSION: 1 in 2 comparisons")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "summary.md"))
    assert call(*sides, "--format", "github").exit_code == 2


def test_github_titles_escape_what_ends_them() -> None:
    assert gate._command("error", "a: b, c", "d: e, f") == "::error title=a%3A b%2C c::d: e, f"


def test_github_is_warned_of_unused_acceptances(weakened: list[Path], tmp_path: Path) -> None:
    spare = {"defense": "d", "metric": "original", "reason": "r"}
    output = call(*weakened, "--format", "github", "--accept", accepting(tmp_path, spare)).output
    assert "::warning title=unused acceptance::defense d, metric original_after\n" in output


ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "docs" / "ci.md",
    ROOT / "docs" / "design.md",
    ROOT / "README.md",
    ROOT / "Makefile",
]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_what_is_written_down_is_taken(file: Path) -> None:
    limits = re.findall(r"--fail-on '([^']+)'", file.read_text())
    assert limits
    for limit in limits:
        threshold(limit)


def test_the_documented_job_and_acceptances_are_well_formed(tmp_path: Path) -> None:
    job, accepted = (
        textwrap.dedent(block)
        for block in re.findall(r"```yaml\n(.*?)```", DOCUMENTS[0].read_text(), flags=re.DOTALL)
    )
    (only_job,) = yaml.safe_load(job)["jobs"].values()
    for step in only_job["steps"]:
        for words in re.findall(r"sophon-bench .*", step.get("run", "")):
            command = main.commands[words.split()[1]]
            known = {name for option in command.params for name in option.opts}
            assert set(re.findall(r"--[a-z-]+", words)) <= known
    file = tmp_path / "accepted.yaml"
    (shown,) = re.findall(r"( *accepted:\n.*?)\n\n", call("--help").output, flags=re.DOTALL)
    for text in (accepted, textwrap.dedent(shown)):
        file.write_text(text)
        assert [each.metric for each in gate.load_accepted(file)] == ["original_after", "status"]


def test_the_committed_baseline_is_whole_and_small() -> None:
    file = ROOT / "tests" / "baseline.json"
    assert file.stat().st_size < 200_000
    result = call(file, file)
    assert result.exit_code == 0, result.output
    (selector,) = re.findall(r"--defense '([^']+)'", (ROOT / "Makefile").read_text())
    defenses = {cell.defense.label for cell in read_cells(file)}
    assert {trial.label for trial in trials(registry.defenses, [selector])} <= defenses


def test_a_run_again_is_no_regression_and_another_budget_is_refused(tmp_path: Path) -> None:
    tiny = Path(__file__).with_name("tiny_scenario.py")

    def run(name: str, *words: str) -> Path:
        file = tmp_path / f"{name}.json"
        common = ["--scenario", "tiny", "--attack", "finetune", "--seeds", "0-1", "--threads", "1"]
        where = ["--plugin", str(tiny), "--store", str(tmp_path / name), "--json", str(file)]
        result = CliRunner().invoke(main, ["run", *common, *where, *words])
        assert result.exit_code == 0, result.output
        return file

    one, again, shorter = run("one"), run("again"), run("shorter", "--steps", "4")
    result = call(one, again, limits=("restricted:+0pt", "original:-0pt", "protect_cost:+0%"))
    assert result.exit_code == 0, result.output
    assert call(one, shorter).exit_code == 2
