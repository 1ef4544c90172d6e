"""Each flag in a case in which it is raised, and in one in which it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conftest import Attempt, MakeCell, gather

from sophon_bench.analysis import flags
from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.statistics import Groups
from sophon_bench.results import Results
from sophon_bench.results.records import Ratios

SWEEP = "finetune[optimizer=momentum,lr={}]"


@pytest.fixture
def trial(make_cell: MakeCell) -> Any:
    """One trial that reaches a level at its whole budget."""

    def make(defense: str, attack: str, level: float, **changes: Any) -> Attempt:
        fields: dict[str, Any] = {"budget": 1600, "curve": [(1600.0, level, level)], **changes}
        return make_cell(defense=defense, attack=attack, **fields)

    return make


def flags_of(
    mine: Sequence[Attempt], theirs: Sequence[Attempt], fresh: Sequence[Attempt] = ()
) -> list[str]:
    """The flags of the defense whose cells these are, over all n."""
    (raised,) = (
        found
        for (_, defense, samples), found in all_flags([*mine, *theirs, *fresh]).items()
        if defense == mine[0].defense.label and samples is None
    )
    return raised


def all_flags(cells: Sequence[Attempt]) -> dict[tuple[str, str, int | None], list[str]]:
    """Flags by backbone, defense and n; None: over all n."""
    found = outcomes(Results.of(gather(cells)))
    backbones, defenses = found.places["backbone"], found.models["defense_label"]
    return {
        (
            backbones[found.models["place"][model]],
            defenses[model],
            None if setting is None else found.settings[setting].samples,
        ): raised
        for (model, setting), raised in flags.raised(found).items()
    }


def raised(
    mine: Sequence[Attempt], theirs: Sequence[Attempt], fresh: Sequence[Attempt] = ()
) -> list[str]:
    """Flags but for the one on unequal trials, which most of these small cases raise."""
    return [flag for flag in flags_of(mine, theirs, fresh) if "same trials" not in flag]


def sweep(trial: Any, defense: str, levels: dict[str, float], **changes: Any) -> list[Attempt]:
    return [trial(defense, SWEEP.format(lr), level, **changes) for lr, level in levels.items()]


FLAT = {"0.03": 0.8, "0.1": 0.8, "0.3": 0.8}


def test_a_best_rate_on_the_edge_of_its_sweep(trial: Any) -> None:
    edge = sweep(trial, "d", {"0.03": 0.5, "0.1": 0.55, "0.3": 0.6})
    inside = sweep(trial, "d", {"0.03": 0.55, "0.1": 0.6, "0.3": 0.55})
    single = sweep(trial, "d", {"0.3": 0.6})
    expected = "best lr on the edge of its sweep (momentum 0.3)"
    assert raised(edge, sweep(trial, "none", FLAT)) == [expected]
    assert raised(inside, sweep(trial, "none", FLAT)) == []
    assert raised(single, sweep(trial, "none", FLAT)) == []


def test_an_edge_needs_most_seeds(trial: Any) -> None:
    inside = {"0.03": 0.55, "0.1": 0.6, "0.3": 0.55}
    edge = {"0.03": 0.5, "0.1": 0.55, "0.3": 0.6}
    cells = [
        cell
        for seed, levels in enumerate((inside, edge, edge))
        for cell in sweep(trial, "d", levels, seed=seed)
    ]
    theirs = [cell for seed in range(3) for cell in sweep(trial, "none", FLAT, seed=seed)]
    assert len(raised(cells, theirs)) == 1
    assert raised([c for c in cells if c.seed < 2], [c for c in theirs if c.seed < 2]) == []


def test_fresh_weights_may_win_at_their_own_edge(trial: Any) -> None:
    fresh = [
        trial("none", f"scratch[lr={lr}]", level) for lr, level in [("0.1", 0.5), ("0.3", 0.7)]
    ]
    found = raised([trial("d", "probe", 0.4)], [trial("none", "probe", 0.8)], fresh)
    assert found == ["best lr on the edge of its sweep (scratch 0.3)"]


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [
        ("function", "the function alone beats fine-tuning by 20 points"),
        ("repair", "repaired weights beat fine-tuning by 20 points"),
        ("noise", "noise on the weights improves fine-tuning by 20 points"),
    ],
)
def test_another_way_than_plain_fine_tuning(trial: Any, mechanism: str, words: str) -> None:
    theirs = [trial("none", "finetune", 0.8), trial("none", "way", 0.8, mechanism=mechanism)]
    masked = [trial("d", "finetune", 0.4), trial("d", "way", 0.6, mechanism=mechanism)]
    honest = [trial("d", "finetune", 0.4), trial("d", "way", 0.44, mechanism=mechanism)]
    assert raised(masked, theirs) == [words]
    assert raised(honest, theirs) == []


def test_noise_that_helps_the_undefended_model_too_hides_nothing(trial: Any) -> None:
    theirs = [trial("none", "finetune", 0.6), trial("none", "noisy", 0.8, mechanism="noise")]
    mine = [trial("d", "finetune", 0.4), trial("d", "noisy", 0.6, mechanism="noise")]
    assert raised(mine, theirs) == []


def test_a_cliff_is_where_protection_falls_with_the_rate(trial: Any) -> None:
    # gap to the undefended model: .5 at lr .1, .2 at lr 1: 30 points in one decade
    theirs = sweep(trial, "none", {"0.01": 0.8, "0.1": 0.8, "1.0": 0.8})
    steep = sweep(trial, "d", {"0.01": 0.3, "0.1": 0.3, "1.0": 0.6})
    gentle = sweep(trial, "d", {"0.01": 0.3, "0.1": 0.45, "1.0": 0.6})
    cliff = "lr cliff of 30 points per decade (momentum 0.1 to 1)"
    assert cliff in raised(steep, theirs)
    assert not any("cliff" in flag for flag in raised(gentle, theirs))


def test_rates_that_were_tried_on_some_seeds_only_are_no_cliff(trial: Any) -> None:
    """Seeds differ in level by more than a cliff; a rate of one of them is not a neighbour."""

    def cells(defense: str, levels: dict[int, float]) -> list[Attempt]:
        rates = {0: ("0.001", "0.003", "0.01"), 1: ("0.001", "0.01")}
        return [
            cell
            for seed, level in levels.items()
            for cell in sweep(trial, defense, dict.fromkeys(rates[seed], level), seed=seed)
        ]

    found = raised(cells("d", {0: 0.7, 1: 0.2}), cells("none", {0: 0.8, 1: 0.8}))
    assert not any("cliff" in flag for flag in found)


def test_the_undefended_models_own_rates_are_no_cliff(trial: Any) -> None:
    theirs = sweep(trial, "none", {"0.01": 0.2, "0.1": 0.6, "1.0": 0.8})
    mine = sweep(trial, "d", {"0.01": 0.1, "0.1": 0.5, "1.0": 0.7})
    assert not any("cliff" in flag for flag in raised(mine, theirs))


def test_a_rate_that_undoes_the_undefended_model_alone_is_no_cliff(trial: Any) -> None:
    theirs = sweep(trial, "none", {"0.01": 0.7, "0.1": -4.9})
    held = sweep(trial, "d", {"0.01": 0.68, "0.1": 0.5})
    assert not any("cliff" in flag for flag in raised(held, theirs))
    hidden = sweep(trial, "d", {"0.01": 0.2, "0.1": 0.7})
    assert "lr cliff of 50 points per decade (momentum 0.01 to 0.1)" in raised(hidden, theirs)
    worthless = sweep(trial, "d", {"0.01": -4.9, "0.1": 0.7})
    assert "lr cliff of 70 points per decade (momentum 0.01 to 0.1)" in raised(worthless, theirs)


def test_samples_that_cannot_be_fitted(trial: Any) -> None:
    theirs, fresh = [trial("none", "finetune", 0.8)], [trial("none", "scratch", 0.3, fit=0.98)]
    words = "fits 61 % of its samples where scratch fits 98 %"
    assert raised([trial("d", "finetune", 0.4, fit=0.61)], theirs, fresh) == [words]
    assert raised([trial("d", "finetune", 0.4, fit=0.95)], theirs, fresh) == []
    no_better = [trial("none", "finetune", 0.8, fit=0.65)]
    assert raised([trial("d", "finetune", 0.4, fit=0.61)], no_better, fresh) == []
    assert raised(no_better, no_better, fresh) == []
    probe = trial("d", "probe", 0.4, fit=0.1, mechanism="function")
    assert raised([probe, trial("d", "finetune", 0.4, fit=0.95)], theirs, fresh) == []


def test_values_that_are_not_finite_where_undefended_they_are(trial: Any) -> None:
    mine = [trial("d", "a", 0.4), trial("d", "b", 0.4, nonfinite_step=5, status="diverged")]
    finite = [trial("none", "a", 0.8), trial("none", "b", 0.8)]
    diverged = [trial("none", "a", 0.8), trial("none", "b", 0.8, nonfinite_step=5)]
    assert raised(mine, finite) == ["non-finite values in 1 of 2 runs"]
    assert raised(mine, diverged) == []
    assert raised([mine[0]], finite) == []


def test_utility_that_falls_with_the_budget(trial: Any) -> None:
    def curve(*levels: float) -> dict[str, Any]:
        selection = [0.5, 0.6, 0.7]
        return {"curve": list(zip((400.0, 800.0, 1600.0), selection, levels, strict=True))}

    theirs = [trial("none", "finetune", 0.8)]
    falling = [trial("d", "finetune", 0.0, **curve(0.4, 0.5, 0.38))]
    rising = [trial("d", "finetune", 0.0, **curve(0.4, 0.5, 0.46))]
    assert raised(falling, theirs) == ["utility falls by 12 points as the budget grows"]
    assert raised(rising, theirs) == []


def ratios(smallest: float | None, largest: float | None) -> Ratios:
    return Ratios(smallest=smallest, smallest_at="a", largest=largest, largest_at="b")


def test_layers_out_of_scale(trial: Any) -> None:
    def found(**stage: Ratios) -> list[str]:
        mine = [trial("d", "finetune", 0.4, released={"key": "r", **stage})]
        return raised(mine, [trial("none", "finetune", 0.8)])

    assert found(sigma_ratios=ratios(0.5, 1e3)) == ["layer sigma ratio 1e+03 (b)"]
    assert found(gradient_ratios=ratios(1e-5, 2.0)) == ["layer gradient ratio 1e-05 (a)"]
    assert found(gradient_ratios=ratios(0.5, None)) == ["layer gradient ratio not finite (b)"]
    assert found(sigma_ratios=ratios(0.0, 1.0)) == ["layer sigma ratio 0 (a)"]
    assert found(sigma_ratios=ratios(0.02, 50), gradient_ratios=ratios(1e-2, 1e2)) == []


def test_failures_and_notes_of_stages_are_shown(trial: Any) -> None:
    note = {"note": "rolled back to iteration 3"}
    mine = [
        trial("d", "a", 0.4, released=note),
        trial("d", "b", 0.4, status="failed", curve=[], released=note),
    ]
    theirs = [trial("none", "a", 0.8), trial("none", "b", 0.8)]
    assert raised(mine, theirs) == ["1 of 2 runs failed", "rolled back to iteration 3"]


def test_what_is_skipped_on_the_defense_alone_is_shown(trial: Any) -> None:
    def skipped(defense: str) -> Attempt:
        return trial(defense, "b", 0.4, status="skipped", curve=[])

    mine = [trial("d", "a", 0.4), skipped("d")]
    theirs = [trial("none", "a", 0.8), trial("none", "b", 0.8)]
    assert raised(mine, theirs) == ["1 of 2 runs skipped, but not undefended"]
    assert raised(mine, [theirs[0], skipped("none")]) == []


def test_unequal_trials_are_flagged_but_for_what_the_search_added(trial: Any) -> None:
    theirs = [trial("none", "a", 0.8), trial("none", "b", 0.8)]
    mine = [trial("d", "a", 0.4), trial("d", "b", 0.4)]
    added = [trial("d", "c", 0.4, derived=True), trial("d", "a", 0.4, stretch=10)]
    words = "not the same trials and seeds as the undefended model"
    assert flags_of([*mine, *added], theirs) == []
    assert flags_of(mine[:1], theirs) == [words]
    assert flags_of([*mine, trial("d", "c", 0.4)], theirs) == [words]
    assert flags_of([*mine, trial("d", "a", 0.4, seed=1)], theirs) == [words]


def test_the_undefended_model_raises_no_comparative_flag(trial: Any) -> None:
    cells = [
        *sweep(trial, "none", {"0.01": 0.2, "0.1": 0.8, "1.0": 0.3}),
        trial("none", "probe", 0.95, mechanism="function"),
        trial("none", "repair", 0.95, mechanism="repair"),
        trial("none", "noisy", 0.95, mechanism="noise"),
        trial("none", "wild", 0.3, nonfinite_step=1, status="diverged", curve=[]),
    ]
    assert flags_of(cells, cells, [trial("none", "scratch", 0.3)]) == []


def test_benign_domains_raise_no_flags(trial: Any) -> None:
    mine = [trial("d", "a", 0.4, role="benign", domain="x", nonfinite_step=2)]
    assert all_flags(mine) == {}


def test_each_n_has_flags_of_its_own_and_all_have_the_strongest(trial: Any) -> None:
    mine, theirs = (
        [
            trial(defense, attack, level, samples=n, mechanism=mechanism)
            for n, gain in ((50, 0.0), (200, 0.1), (600, 0.2))
            for attack, level, mechanism in (
                ("finetune", 0.4, "gradient"), ("probe", 0.4 + gain, "function")
            )
        ]
        for defense in ("d", "none")
    )  # fmt: skip
    found = {n: raised for (_, d, n), raised in all_flags([*mine, *theirs]).items() if d == "d"}
    ten, twenty = (f"the function alone beats fine-tuning by {n} points" for n in (10, 20))
    assert found == {None: [twenty], 50: [], 200: [ten], 600: [twenty]}


def test_places_have_flags_of_their_own(trial: Any) -> None:
    cells = [
        trial(defense, "finetune", 0.4, backbone=backbone, nonfinite_step=step)
        for backbone, step in (("a", 5), ("b", None))
        for defense in ("d", "none")
        if (defense, backbone) != ("none", "a")
    ]
    found = all_flags(cells)
    assert {backbone: found[backbone, "d", 200] for backbone in "ab"} == {
        "a": [
            "non-finite values in 1 of 1 runs",
            "not the same trials and seeds as the undefended model",
        ],
        "b": [],
    }


def test_a_rate_of_nothing_is_no_cliff(trial: Any) -> None:
    rates = {"0.0": 0.2, "0.1": 0.6}
    found = raised(sweep(trial, "d", rates), sweep(trial, "none", dict.fromkeys(rates, 0.8)))
    assert not any("cliff" in flag for flag in found)


def test_nothing_was_attacked() -> None:
    assert all_flags([]) == {}


def test_notes_are_of_the_cells_of_a_group(trial: Any) -> None:
    said = {"note": "rolled back to iteration 3"}
    plain, noted, both = (
        trial("c", "finetune", 0.4),
        trial("d", "finetune", 0.4, released=said),
        trial("d", "other", 0.4, released=said, nonfinite_step=7),
    )
    found = outcomes(Results.of(gather([plain, noted, both])))
    by_key = dict(zip(found.cells["key"], flags.notes(found, Groups(np.arange(3))), strict=True))
    assert by_key == {
        plain.key: [],
        noted.key: [said["note"]],
        both.key: ["non-finite", said["note"]],
    }


def test_every_flag_says_when_it_is_raised() -> None:
    assert all(flag.__doc__ for flag in flags.FLAGS)
