from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Gt
from hypothesis import given
from hypothesis import strategies as st

from sophon_bench.plugins import registry
from sophon_bench.plugins.registry import Registry, UnknownName, attacks, defenses
from sophon_bench.plugins.selectors import (
    Selector,
    SelectorError,
    Trial,
    accepted,
    format_selector,
    names_of,
    parse,
    split_name,
    vary,
)
from sophon_bench.plugins.suites import arsenal, load_suite, suite_files, trials

things = Registry("thing")


@things.register("thing")
@dataclass(frozen=True, kw_only=True)
class Thing:
    """A thing."""

    lr: Annotated[float, Gt(0)] = 0.1
    steps: int | None = None
    kind: Literal["a", "b"] = "a"
    on: bool = False
    several: tuple[str, ...] = ("x",)
    presets = {"strong": {"lr": 0.5, "kind": "b"}}

    def __post_init__(self) -> None:
        if self.kind == "b" and self.lr > 1:
            raise ValueError("kind b needs lr at most 1")


def plugins(*texts: str) -> list[Thing]:
    return [trial.plugin for trial in trials(things, texts)]


def test_values_get_the_fields_types() -> None:
    assert plugins("thing[lr=1e-3,steps=7,kind=b,on=true,several=[p,q]]") == [
        Thing(lr=1e-3, steps=7, kind="b", on=True, several=("p", "q"))
    ]
    assert plugins("thing[steps=none]") == [Thing()]


def test_a_list_is_a_grid_crossed_over_parameters_and_a_list_of_lists_for_list_fields() -> None:
    found = plugins("thing[lr=[0.1,0.2],kind=[a,b]]")
    assert [(t.lr, t.kind) for t in found] == [(0.1, "a"), (0.1, "b"), (0.2, "a"), (0.2, "b")]
    assert plugins("thing[several=[[p],[q,r]]]") == [
        Thing(several=("p",)),
        Thing(several=("q", "r")),
    ]


def test_a_preset_gives_way_to_what_is_given() -> None:
    assert plugins("thing[preset=strong]") == [Thing(lr=0.5, kind="b")]
    assert plugins("thing[preset=strong,lr=0.25]") == [Thing(lr=0.25, kind="b")]


def test_equal_trials_count_once_however_they_are_written() -> None:
    assert len(plugins("thing", "thing[lr=1e-1]", "thing[lr=[0.1,0.100]]")) == 1


def test_all_is_every_listed_plugin_with_its_defaults_once() -> None:
    found = trials(defenses, ["sophon-klu", "@all"])
    assert found[0].name == "sophon-klu"
    assert sorted(trial.label for trial in found) == sorted(defenses.names())
    assert not [trial for trial in found if trial.name.startswith("canary")]
    assert {t.name for t in arsenal(attacks, ["@all"]).trials} == {*attacks.names()}


def test_of_several_suites_the_most_thorough_rule_holds(tmp_path: Path) -> None:
    """A suite without longer runs says nothing of how long they are."""

    def rules(*searches: str) -> tuple[int, int, int]:
        files = [tmp_path / f"suite{number}.yaml" for number, _ in enumerate(searches)]
        for file, search in zip(files, searches, strict=True):
            file.write_text(
                f"version: 1\ndescription: d\ntrials: [finetune]\nsearch: {{{search}}}\n"
            )
        found = arsenal(attacks, [f"@{file}" for file in files]).rules
        return found.refine, found.continued, found.times

    assert rules("refine: 2, continue: 1, times: 5", "") == (2, 1, 5)
    assert rules("refine: 1, continue: 1, times: 5", "continue: 2, times: 3") == (1, 2, 5)
    assert rules("refine: 1", "refine: 3")[:2] == (3, 0)


def test_the_label_says_only_what_differs_and_reads_back() -> None:
    (trial,) = trials(things, ["thing[ steps = 7 , lr = 0.1, several=['p q', r] ]"])
    assert trial.label == "thing[steps=7,several=['p q',r]]"
    assert trials(things, [trial.label])[0].plugin == trial.plugin
    assert trial.parameters["lr"] == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thing[lr=1e-3", "unbalanced brackets"),
        ("thing[several=[a,b]", "unbalanced brackets"),
        ("thing]", "expected the end at character 6"),
        ("thing[lr]", "'=' after 'lr'"),
        ("thing[lr=1,lr=2]", "'lr' is given twice"),
        ("thing[lr=]", "a value"),
        ("thing[lr=[]]", "empty list"),
        ("", "a name"),
        ("thing[lr=abc]", "thing[lr=abc]: lr should be a valid number"),
        ("thing[lr=-1]", "lr should be greater than 0"),
        ("thing[lr=[1,-1]]", "thing[lr=-1]"),
        ("thing[kind=c]", "kind should be 'a' or 'b'"),
        ("thing[on=maybe]", "on should be a valid boolean"),
        ("thing[steps=1.5]", "steps"),
        ("thing[kind=b,lr=2]", "kind b needs lr at most 1"),
        ("thing[lrr=1]", "no parameter 'lrr'; did you mean 'lr'?"),
        ("thing[preset=weak]", "unknown preset of thing 'weak'"),
        (
            "@zzz",
            "unknown suite '@zzz'; there are: @denoising, @full, @light, @paper, @smoke, @standard",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SelectorError) as error:
        trials(things, [text])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_brings_close_matches() -> None:
    with pytest.raises(UnknownName, match="unknown attack 'finetun'; did you mean 'finetune'"):
        trials(attacks, ["finetun"])


tokens = st.text(st.characters(exclude_characters="\"'", exclude_categories=("C", "Z")), min_size=1)
values = st.recursive(tokens, lambda v: st.lists(v, min_size=1, max_size=3), max_leaves=5)


@given(tokens, st.dictionaries(tokens, values, max_size=3))
def test_parse_reads_what_format_writes(name: str, parameters: dict[str, object]) -> None:
    plain = name.translate({ord(c): "x" for c in "[],="})
    keys = {k.translate({ord(c): "x" for c in "[],="}): v for k, v in parameters.items()}
    assert parse(format_selector(plain, keys)) == Selector(plain, keys)


@given(st.text(max_size=30))
def test_any_text_parses_or_is_refused_as_a_selector(text: str) -> None:
    try:
        parse(text)
    except SelectorError as error:
        assert "\n" not in str(error) or "\n" in text


@pytest.mark.parametrize("name", sorted(suite_files()))
def test_every_suite_expands_to_trials(name: str) -> None:
    suite = load_suite(name)
    assert suite.version >= 1
    assert len(trials(attacks, [f"@{name}"])) >= len(suite.trials)


def test_the_paper_suite_is_five_optimizers_by_three_methods() -> None:
    found = [trial.parameters for trial in trials(attacks, ["@paper"])]
    methods = {(p["head"], p["scope"]) for p in found}
    assert len(found) == 15
    assert methods == {("kept", "all"), ("fresh", "all"), ("fresh", "head")}
    assert len({p["optimizer"] for p in found}) == 5
    assert {p["lr"] for p in found} == {1e-4}


def test_a_suite_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("version: 1\ndescription: mine\ntrials: ['thing[lr=[1,2]]']\n")
    assert len(trials(things, [f"@{file}"])) == 2
    file.write_text("version: 1\ndescription: mine\ntrials: []\nmore: 1\n")
    with pytest.raises(SelectorError, match="trials"):
        trials(things, [f"@{file}"])
    file.write_text("version: 1\ndescription: mine\ntrails: [thing]\ntrials: [thing]\n")
    with pytest.raises(SelectorError, match="unknown key 'trails'; did you mean 'trials'"):
        trials(things, [f"@{file}"])


@pytest.mark.parametrize(
    ("stem", "more", "message"),
    [
        ("my_suite", "", "name: 'my_suite' should be .* try 'my-suite'$"),
        ("=1+1", "", r"name: '=1\+1' should be lower-case letters and digits"),
        ("mine", "name: '@x'\n", "name: '@x' should be lower-case letters and digits"),
    ],
)
def test_a_suite_is_called_as_a_plugin_is(
    stem: str, more: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{stem}.yaml"
    file.write_text(f"version: 1\ndescription: mine\ntrials: [thing]\n{more}")
    with pytest.raises(SelectorError, match=message) as raised:
        trials(things, [f"@{file}"])
    assert "\n" not in str(raised.value)


def test_a_field_that_is_not_compared_is_no_hyperparameter() -> None:
    registry = Registry("thing")

    @registry.register("placed")
    @dataclass(frozen=True, kw_only=True)
    class Placed:
        size: int = 1
        where: str = field(default="here", compare=False)

    trial = Trial(registry.get("placed"), Placed(size=2, where="there"))
    assert trial.parameters == {"size": 2}
    assert trial.label == "placed[size=2]"
    with pytest.raises(SelectorError, match="has no parameter 'where'"):
        trials(registry, ["placed[where=there]"])


def test_what_a_parameter_takes_is_said_in_words() -> None:
    assert {name: accepted(Thing, name) for name in ("lr", "steps", "kind", "on", "several")} == {
        "lr": "float > 0",
        "steps": "int | none",
        "kind": "a | b",
        "on": "bool",
        "several": "list of str",
    }


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("raised", ["TypeError('no')", "KeyError(3)", "SystemExit('no')"])
def test_whatever_a_plugins_own_checks_raise_is_one_line(tmp_path: Path, raised: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from sophon_bench.plugins.registry import attacks\n"
        "@attacks.register('own')\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Own:\n"
        "    lr: float = 0.1\n"
        "    def __post_init__(self):\n"
        f"        raise {raised}\n"
    )
    registry.load_file(file)
    name = raised.split("(")[0]
    with pytest.raises(
        SelectorError, match=rf"attack own\[lr=2\] cannot be made: {name}.*own.py:8"
    ):
        trials(registry.attacks, ["own[lr=2]"])


@pytest.mark.parametrize(
    ("text", "name", "selector"),
    [
        ("mine=thing", "mine", "thing"),
        (" a-1 = thing[lr=0.2] ", "a-1", "thing[lr=0.2]"),
        ("thing[lr=0.2]", "", "thing[lr=0.2]"),
        ("@suite", "", "@suite"),
        ("a=b=c", "a", "b=c"),
    ],
)
def test_a_name_stands_before_the_selector(text: str, name: str, selector: str) -> None:
    assert split_name(text) == (name, selector)


def test_a_given_name_is_no_part_of_what_a_trial_is() -> None:
    (named,), (plain,) = trials(things, ["mine=thing[lr=0.2]"]), trials(things, ["thing[lr=0.2]"])
    assert (named.given_name, plain.given_name) == ("mine", "")
    assert named == plain
    assert (named.label, named.name, named.parameters) == (
        plain.label, plain.name, plain.parameters,
    )  # fmt: skip
    assert names_of([named]) == {"thing[lr=0.2]": "mine"}
    assert names_of([plain]) == {}
    assert vary(named, {"lr": 0.3}).given_name == ""


@pytest.mark.parametrize(
    "texts",
    [("thing", "mine=thing"), ("mine=thing", "thing"), ("mine=thing", "mine=thing[lr=0.1]")],
)
def test_one_trial_may_be_listed_with_and_without_its_name(texts: tuple[str, str]) -> None:
    (found,) = trials(things, texts)
    assert found.given_name == "mine"


@given(st.text(alphabet="ab-=[],@ '1Z\n", max_size=12))
def test_no_text_before_an_equals_sign_is_more_than_an_error(text: str) -> None:
    try:
        found = trials(things, [text])
    except (SelectorError, UnknownName) as error:
        assert str(error)
    else:
        assert all(not t.given_name or text.strip().startswith(t.given_name) for t in found)
