"""Scenarios of others: what they build is looked at before any work, and refused in one line."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from sophon_bench.cli import main
from sophon_bench.data import checking
from sophon_bench.data import scenario as scenarios
from sophon_bench.data.scenario import Images, ScenarioData, ScenarioError, cached
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.data.tasks.denoising import Denoising
from sophon_bench.execution import runs
from sophon_bench.execution.plan import Setting
from sophon_bench.plugins import registry
from sophon_bench.results.files import WriteError

registry.load_file(TINY)
DATA: ScenarioData = registry.scenarios.get("tiny").cls().build()
NARROW = DATA.restricted

Damage = Callable[[], object]


@pytest.fixture
def settings_of(tmp_path: Path, forget: None) -> Callable[[Damage], list[Setting]]:
    """What a run starts from, on a scenario that builds what a function makes."""

    def find(made: Damage) -> list[Setting]:
        @registry.scenarios.register("theirs")
        @dataclass(frozen=True, kw_only=True)
        class Theirs:
            image_size: int = 16

            def build(self, cache: Path | None = None) -> Any:
                return made()

        return runs.find_settings(
            ["theirs"], ["test_resnet"], image_size=None, precision="fp32", cache=tmp_path
        )

    return find


def narrow(split: str, **changes: Any) -> ScenarioData:
    """The tiny data with other images in one split of the restricted domain."""
    images = replace(NARROW.splits[split], **changes)
    return replace(DATA, restricted=replace(NARROW, splits={**NARROW.splits, split: images}))


def restricted(**changes: Any) -> ScenarioData:
    return replace(DATA, restricted=replace(NARROW, **changes))


def without(*splits: str) -> dict[str, Images]:
    return {name: images for name, images in NARROW.splits.items() if name not in splits}


def cut(split: str, count: int) -> ScenarioData:
    images = NARROW.splits[split]
    parts = (images.pixels[:count], images.labels[:count], images.sources[:count])
    return restricted(splits={**NARROW.splits, split: Images(*parts)})


def labels(split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return NARROW.splits[split].labels.copy()


def pixels(split: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return NARROW.splits[split].pixels


def sources(split: str) -> list[str]:
    found: list[str] = NARROW.splits[split].sources.tolist()
    return found


def borrowed(split: str, other: str) -> list[str]:
    """The sources of one split, the first two of them of another."""
    return [*sources(other)[:2], *sources(split)[2:]]


EACH = "exactly 0 to 3 are expected, one for each of its 4 classes"

DAMAGED: dict[str, tuple[Damage, str]] = {
    "nothing": (lambda: None, "build returns None; ScenarioData is expected"),
    "parts": (lambda: (DATA.original, NARROW), "build returns (DomainData("),
    "class": (lambda: ScenarioData, "build returns <class"),
    "benign": (lambda: replace(DATA, benign=None), "benign is None; a tuple of DomainData"),
    "no domain": (
        lambda: replace(DATA, original="wide"),
        "the original domain is 'wide'; DomainData is expected",
    ),
    "one name": (
        lambda: restricted(name="wide"),
        "2 domains are called 'wide'; each needs a name of its own",
    ),
    "empty name": (
        lambda: restricted(name=""),
        "the restricted domain is called ''; a line of printable text is expected",
    ),
    "blank name": (
        lambda: restricted(name=" "),
        "the restricted domain is called ' '; a line of printable text",
    ),
    "two lines": (
        lambda: restricted(name="a\nb"),
        r"the restricted domain is called 'a\nb'; a line of printable text",
    ),
    "control": (
        lambda: restricted(name="a\x1b[2J"),
        r"the restricted domain is called 'a\x1b[2J'; a line of",
    ),
    "no name": (
        lambda: restricted(name=None),
        "the restricted domain is called None; a line of printable text",
    ),
    "no classes": (lambda: restricted(classes=()), "narrow: classes are (); their names are"),
    "text as classes": (lambda: restricted(classes="abcd"), "narrow: classes are 'abcd'; their"),
    "numbers as classes": (
        lambda: restricted(classes=(0, 1, 2, 3)),
        "narrow: classes are (0, 1, 2, 3);",
    ),
    "no splits": (lambda: restricted(splits=None), "narrow: splits are None; Images by the name"),
    "split's name": (
        lambda: restricted(splits={**NARROW.splits, 3: NARROW.splits["test"]}),
        "narrow: a split is called 3; a line of text is expected",
    ),
    "no images": (
        lambda: restricted(splits={**NARROW.splits, "test": pixels("test")}),
        "narrow/test is array(",
    ),
    "missing split": (
        lambda: restricted(splits=without("selection", "second_test")),
        "narrow: the restricted domain has no selection, second_test (it needs defender, attacker,",
    ),
    "benign split": (
        lambda: replace(DATA, benign=(replace(DATA.benign[0], splits={}),)),
        "broad: the benign domain has no train, selection, test (it needs train, selection, test)",
    ),
    "empty split": (lambda: cut("test", 0), "narrow: the restricted domain has no test (it needs"),
    "single image": (lambda: cut("test", 1), "narrow/test has 1 image; at least 2 are expected"),
    "no task": (lambda: restricted(task=None), "narrow: its task is None; one such as Class"),
    "task's class": (lambda: restricted(task=Denoising), "narrow: its task is <class"),
    "other task": (
        lambda: restricted(task=Denoising()),
        "narrow: its task is denoising, that of wide is classification; one is expected",
    ),
    "unknown task": (
        lambda: restricted(task=type("Other", (Classification,), {"name": "depth"})(4)),
        "narrow: its task is called 'depth'; classification or denoising is expected",
    ),
    "outputs": (
        lambda: restricted(task=Classification(6)),
        "narrow: its task has 6 outputs; 4 are expected, one for each class",
    ),
    "channels": (
        lambda: replace(
            DATA,
            original=replace(DATA.original, task=Denoising(num_outputs=1)),
            restricted=replace(NARROW, task=Denoising()),
            benign=(),
        ),
        "wide: its task has 1 outputs; 3 are expected, one for each channel",
    ),
    "float images": (
        lambda: narrow("attacker", pixels=pixels("attacker") / np.float32(255)),
        "narrow/attacker has float32 images of (3, 16, 16); uint8 of (3, 16, 16) is expected",
    ),
    "channels last": (
        lambda: narrow("test", pixels=pixels("test").transpose(0, 2, 3, 1)),
        "narrow/test has uint8 images of (16, 16, 3); uint8 of (3, 16, 16) is expected; its "
        "channels are last, transpose(0, 3, 1, 2) puts them first",
    ),
    "grey": (
        lambda: narrow("test", pixels=pixels("test")[:, 0]),
        "narrow/test has uint8 images of (16, 16); uint8 of (3, 16, 16) is expected",
    ),
    "smaller": (
        lambda: narrow("test", pixels=pixels("test")[..., :8, :8]),
        "narrow/test has uint8 images of (3, 8, 8); uint8 of (3, 16, 16) is expected",
    ),
    "list of images": (
        lambda: narrow("test", pixels=[*pixels("test")]),
        "narrow/test: pixels are of type list; a numpy array is expected",
    ),
    "no size": (lambda: replace(DATA, image_size=0), "image_size is 0; a whole number of pixels"),
    "half a pixel": (lambda: replace(DATA, image_size=16.5), "image_size is 16.5; a whole number"),
    "true": (lambda: replace(DATA, image_size=True), "image_size is True; a whole number of"),
    "from one": (
        lambda: narrow("defender", labels=labels("defender") + 1),
        f"narrow/defender: labels are 1, 2, 3, 4; {EACH}; missing: 0 (0)",
    ),
    "with gaps": (
        lambda: narrow("test", labels=np.array([0, 2, 3, 5])[labels("test")]),
        f"narrow/test: labels are 0, 2, 3, 5; {EACH}; missing: 1 (1)",
    ),
    "missing class": (
        lambda: restricted(
            classes=("disc", "star", "ring", "bar"),
            splits={
                **NARROW.splits,
                "attacker": replace(NARROW.splits["attacker"], labels=labels("attacker") % 3),
            },
        ),
        f"narrow/attacker: labels are 0, 1, 2; {EACH}; missing: 3 (bar)",
    ),
    "one too many": (
        lambda: narrow("selection", labels=[4, *labels("selection")[1:]]),
        f"narrow/selection: labels are 0, 1, 2, 3, 4; {EACH}",
    ),
    "negative": (
        lambda: narrow("selection", labels=[-1, *labels("selection")[1:]]),
        f"narrow/selection: labels are -1, 0, 1, 2, 3; {EACH}",
    ),
    "large": (
        lambda: narrow("test", labels=np.uint64(2**64 - 1) - labels("test").astype(np.uint64)),
        "narrow/test: labels are 18446744073709551612, 18446744073709551613, 184467440737095516",
    ),
    "set": (
        lambda: narrow("test", labels=set(range(40))),
        "narrow/test: labels are object of shape (); whole numbers of shape (40,) are expected",
    ),
    "numbered": (
        lambda: narrow("attacker", labels=range(40)),
        f"narrow/attacker: labels are 0, 1, 2, 3, …, 36, 37, 38, 39; {EACH}",
    ),
    "one class": (
        lambda: replace(
            DATA, benign=(replace(DATA.benign[0], classes=("all",), task=Classification(1)),)
        ),
        "broad/train: labels are 0, 1, 2; only 0 is expected, for its one class",
    ),
    "float labels": (
        lambda: narrow("test", labels=labels("test") / 1.0),
        "narrow/test: labels are float64 of shape (40,); whole numbers of shape (40,) are expected",
    ),
    "true and false": (
        lambda: narrow("test", labels=labels("test") > 1),
        "narrow/test: labels are bool of shape (40,); whole numbers",
    ),
    "words as labels": (
        lambda: narrow("test", labels=sources("test")),
        "narrow/test: labels are <U14 of shape (40,); whole numbers",
    ),
    "one-hot": (
        lambda: narrow("test", labels=np.eye(4, dtype=int)[labels("test")]),
        "narrow/test: labels are int64 of shape (40, 4); whole numbers",
    ),
    "numbered sources": (
        lambda: narrow("test", sources=range(40)),
        "narrow/test: sources are int64 of shape (40,); strings of shape (40,) are expected",
    ),
    "pairs of sources": (
        lambda: narrow("test", sources=[(one, one) for one in sources("test")]),
        "narrow/test: sources are <U14 of shape (40, 2); strings of shape (40,) are expected",
    ),
    "shared": (
        lambda: narrow("attacker", sources=borrowed("attacker", "defender")),
        "narrow: source 'narrow-defender-0' (and 1 more) is in defender and in attacker; split by",
    ),
    "second test of training": (
        lambda: narrow("second_test", sources=borrowed("second_test", "defender")),
        "narrow: source 'narrow-defender-0' (and 1 more) is in defender and in second_test; split",
    ),
    "no n": (lambda: replace(DATA, samples=()), "samples=(); whole numbers from 2 to the 40"),
    "only one n": (lambda: replace(DATA, samples=8), "samples=8; whole numbers from 2 to the 40"),
    "n of 1": (lambda: replace(DATA, samples=(1, 8)), "samples=(1, 8); whole numbers from 2 to"),
    "n above the pool": (
        lambda: replace(DATA, samples=(8, 41)),
        "samples=(8, 41); whole numbers from 2 to the 40 images of narrow/attacker are expected",
    ),
    "half an n": (lambda: replace(DATA, samples=(8.5,)), "samples=(8.5,); whole numbers from 2"),
    "no steps": (lambda: replace(DATA, steps=0), "steps is 0; a whole number is expected, at"),
    "half a step": (lambda: replace(DATA, steps=0.5), "steps is 0.5; a whole number is expected"),
    "no pre-training": (
        lambda: replace(DATA, pretrain_steps=0),
        "pretrain_steps is 0; a whole number is expected, at least 1",
    ),
    "no candidate": (
        lambda: replace(DATA, pretrain_steps=()),
        "pretrain_steps is (); whole numbers are expected, at least 1",
    ),
    "half a candidate": (
        lambda: replace(DATA, pretrain_steps=[8, 0.5]),
        "pretrain_steps is (8, 0.5); whole numbers are expected, at least 1",
    ),
    "a candidate twice": (
        lambda: replace(DATA, pretrain_steps=(8, 8)),
        "pretrain_steps is (8, 8); each candidate is expected once",
    ),
    "no step size": (
        lambda: replace(DATA, pretrain_lrs=()),
        "pretrain_lrs is (); a tuple of step sizes above 0 is expected",
    ),
    "one step size": (
        lambda: replace(DATA, pretrain_lrs=1e-3),
        "pretrain_lrs is 0.001; a tuple of step sizes above 0 is expected",
    ),
    "a step size of 0": (
        lambda: replace(DATA, pretrain_lrs=(1e-3, 0.0)),
        "pretrain_lrs is (0.001, 0.0); a tuple of step sizes above 0 is expected",
    ),
    "a step size that is none": (
        lambda: replace(DATA, pretrain_lrs=(float("nan"),)),
        "pretrain_lrs is (nan,); a tuple of step sizes above 0 is expected",
    ),
    "a step size in words": (
        lambda: replace(DATA, pretrain_lrs=("1e-3",)),
        "pretrain_lrs is ('1e-3',); a tuple of step sizes above 0 is expected",
    ),
    "nothing generated": (
        lambda: replace(DATA, generated=1),
        "generated is 1; a whole number is expected, at least 2: fewer images have no covariance",
    ),
}


@pytest.mark.parametrize(("made", "message"), DAMAGED.values(), ids=DAMAGED)
def test_each_fault_is_refused_in_a_line_that_says_where_and_what(
    made: Damage, message: str, settings_of: Callable[[Damage], list[Setting]]
) -> None:
    with pytest.raises(ScenarioError) as raised:
        settings_of(made)
    words = str(raised.value)
    assert words.startswith(f"scenario theirs: {message}")
    assert words.isprintable()


HARMLESS: dict[str, Damage] = {
    "as it is": lambda: DATA,
    "second test of the test": lambda: narrow("second_test", sources=sources("test")),
    "labels in a list": lambda: narrow("test", labels=labels("test").tolist()),
    "other integers": lambda: narrow("test", labels=labels("test").astype(">u2")),
    "names of files that are no Unicode": lambda: narrow(
        "test", sources=[f"\udce9-{source}" for source in sources("test")]
    ),
    "mirrored": lambda: narrow("test", pixels=pixels("test")[..., ::-1], labels=labels("test")),
    "numpy's numbers": lambda: replace(
        DATA, samples=np.array([8, 20]), steps=np.int32(8), image_size=np.int64(16)
    ),
    "lists": lambda: replace(DATA, samples=[8, 20], benign=[*DATA.benign]),
    "no benign domain": lambda: replace(DATA, benign=()),
}


@pytest.mark.parametrize("made", HARMLESS.values(), ids=HARMLESS)
def test_what_is_harmless_passes_as_what_the_harness_takes(
    made: Damage, settings_of: Callable[[Damage], list[Setting]]
) -> None:
    (setting,) = settings_of(made)
    for domain in setting.data.domains:
        for images in domain.splits.values():
            assert images.labels.dtype == np.int64
            assert images.labels.dtype.isnative
            assert min(images.pixels.strides) > 0
    assert {type(n) for n in (*setting.data.samples, setting.data.steps)} == {int}


def test_of_several_faults_the_first_is_said_and_the_others_are_counted(
    settings_of: Callable[[Damage], list[Setting]],
) -> None:
    with pytest.raises(ScenarioError, match=r"narrow/test: labels are 1, .* \(and 2 more\)$"):
        settings_of(lambda: replace(narrow("test", labels=labels("test") + 1), samples=(), steps=0))


@given(st.data())
def test_labels_pass_only_if_they_are_0_to_k_minus_1(data: st.DataObject) -> None:
    domain = data.draw(st.sampled_from(DATA.domains))
    split = data.draw(st.sampled_from(sorted(domain.splits)))
    count, size = len(domain.classes), len(domain.splits[split])
    values = st.integers(-2, count + 1) | st.integers(-(2**63), 2**63 - 1)
    kinds = data.draw(st.just(list(range(count))) | st.lists(values, min_size=1, max_size=8))
    given_labels = data.draw(st.permutations([*kinds, *(kinds[0],) * (size - len(kinds))]))
    images = replace(domain.splits[split], labels=given_labels)
    changed = replace(domain, splits={**domain.splits, split: images})
    of = {id(one): changed if one is domain else one for one in DATA.domains}
    original, *others = (of[id(one)] for one in DATA.domains)
    found = [*checking.problems(
        replace(DATA, original=original, restricted=others[0], benign=tuple(others[1:]))
    )]  # fmt: skip
    if set(kinds) == set(range(count)):
        assert found == []
    else:
        ((what, words),) = found
        assert what == "images"
        assert words.startswith(f"{domain.name}/{split}: labels are ")
        assert ", ".join(map(str, sorted(set(kinds)))) in words


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="got 40 pixels, 39 labels and 38 sources"):
        Images(pixels("test"), labels("test")[:39], np.array(sources("test")[:38]))


RAISED = {
    "type": ("1 + None", "TypeError: unsupported operand type(s) for +: 'int' and 'NoneType'"),
    "words of two lines": ("fail(ValueError('a\\nb'))", "ValueError: a"),
    "no words": ("fail(RuntimeError())", "RuntimeError"),
    "exit": ("exit(3)", "SystemExit: 3"),
    "file": (
        "open('/nowhere/faces')",
        "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/faces'",
    ),
    "images": (
        "Images(np.zeros((2, 3, 16, 16), np.uint8), [0], ['a', 'b'])",
        "ValueError: pixels, labels and sources must have one length; got 2 pixels, 1 labels and 2 "
        "sources",
    ),
}


@pytest.fixture
def plugin(tmp_path: Path, forget: None) -> Callable[[str, str], Path]:
    """The tiny scenario as somebody's file, with a change."""

    def write(old: str, new: str) -> Path:
        text = TINY.read_text().replace('"tiny"', '"theirs"')
        assert old in text
        file = tmp_path / "theirs.py"
        file.write_text(
            text.replace(old, new) + "\n\ndef fail(error):\n    raise error\n", encoding="utf-8"
        )
        return file

    return write


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(result: Result) -> str:
    """The one line of a command that was refused."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


@pytest.mark.parametrize(("code", "message"), RAISED.values(), ids=RAISED)
def test_an_error_in_build_is_one_line_with_its_place(
    code: str, message: str, plugin: Callable[[str, str], Path], tmp_path: Path
) -> None:
    file = plugin("return ScenarioData(", f"{code}\n        return ScenarioData(")
    lines = file.read_text().splitlines()
    result = call(
        "run", "--scenario", "theirs", "--plugin", file, "--attack", "finetune",
        "--store", tmp_path / "store",
    )  # fmt: skip
    # what a function of the same file raises is raised there
    number = len(lines) if "fail(" in code else lines.index(f"        {code}") + 1
    place = f"(theirs.py:{number})"
    assert refused(result) == f"scenario theirs cannot be built: {message} {place}"


WRITTEN = [
    ("labels, sources)", "labels + 1, sources)", "wide/train: labels are 1, 2, 3, 4, 5, 6; ex"),
    ("labels, sources)", "labels % 2, sources)", "wide/train: labels are 0, 1; exactly 0 to 5"),
    ('"attacker": 40', '"attacker": 3', "narrow/attacker: labels are 0, 1, 2; exactly 0 to 3"),
    ('{name}-{split}-{i}"', '{name}-{i}"', "wide: source 'wide-0' (and 59 more) is in train"),
    ("samples=(8, 20, 40)", "samples=(8, 20, 80)", "samples=(8, 20, 80); whole numbers from 2"),
    ("return ScenarioData(", "return dict(", "build returns {'image_size': 16, 'original'"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRITTEN)
def test_a_damaged_scenario_is_refused_by_every_command_before_any_work(
    old: str, new: str, message: str, plugin: Callable[[str, str], Path], tmp_path: Path
) -> None:
    file, store = plugin(old, new), tmp_path / "store"
    chosen = ("--plugin", file, "--store", store)
    line = refused(call("run", "--scenario", "theirs", "--attack", "finetune", *chosen))
    assert line.startswith(f"scenario theirs: {message}")
    assert not [*store.joinpath("models").iterdir(), *store.joinpath("cells").iterdir()]
    assert refused(call("show", "theirs", *chosen)) == line
    checked = call("check", file)
    assert checked.exit_code == 1, checked.output
    failed = [x for x in checked.stdout.splitlines() if x.startswith("  FAILED")]
    assert message in failed[0]


def test_a_refusal_of_the_scenario_s_own_is_one_line(
    plugin: Callable[[str, str], Path], tmp_path: Path
) -> None:
    code = (
        "from sophon_bench.data.scenario import ScenarioError\n"
        "        fail(ScenarioError('no\\nset'))"
    )
    file = plugin("return ScenarioData(", f"{code}\n        return ScenarioData(")
    result = call(
        "run", "--scenario", "theirs", "--plugin", file, "--attack", "finetune",
        "--store", tmp_path / "store",
    )  # fmt: skip
    assert refused(result) == "no"


def full(path: Path, _content: bytes) -> None:
    raise WriteError(errno.EIO, "Input/output error", str(path))


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_scenario(
    settings_of: Callable[[Damage], list[Setting]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "write_atomic", full)
    images = {("narrow", "test"): NARROW.splits["test"]}
    with pytest.raises(WriteError, match=r"Input/output error: .*key\.npz"):
        settings_of(lambda: cached(tmp_path, "key", lambda: images))


def test_nor_is_a_full_disk_that_its_own_code_writes_to(
    settings_of: Callable[[Damage], list[Setting]],
) -> None:
    def made() -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="^" + re.escape("[Errno 28] No space left on device")):
        settings_of(made)
