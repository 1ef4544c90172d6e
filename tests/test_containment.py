"""What plugins do to the process around them is kept to their stage, put back, and named."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sophon_bench import testing
from sophon_bench.api import AttackView, DefenseView, Incompatible, Model, Samples
from sophon_bench.cli import main
from sophon_bench.execution.plan import Request, Setting, make_plan
from sophon_bench.execution.worker import Worker
from sophon_bench.harness import containment, loop, speed
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.containment import Containment
from sophon_bench.harness.loop import Attacked, Made
from sophon_bench.harness.process_settings import HOOKS, LOOKED_AT, SWAPPED
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry, side_effects
from sophon_bench.plugins.suites import arsenal, trials
from sophon_bench.results.records import Cell, DataId, ModelRecord, dump
from sophon_bench.results.store import Store

FILE = Path(__file__).with_name("misbehaving.py")
before = set(registry.attacks.names(hidden=True))
registry.load_file(FILE)
(MISBEHAVING,) = (m for m in list(sys.modules.values()) if getattr(m, "__file__", "") == str(FILE))
ENTRIES = {n: registry.attacks.get(n) for n in registry.attacks.names(hidden=True)}
ENTRIES = {name: entry for name, entry in ENTRIES.items() if name not in before}
for name in ENTRIES:
    registry.attacks.remove(name)


@pytest.fixture(autouse=True)
def misbehaving(forget: None) -> Iterator[None]:
    """The attacks of the file, and no thread of theirs afterwards."""
    registry.attacks._entries.update(ENTRIES)
    MISBEHAVING.RELEASE.clear()
    yield
    MISBEHAVING.RELEASE.set()
    for thread in containment._LEFT:
        thread.join()
    containment._LEFT.clear()


@pytest.fixture(scope="module")
def setting() -> Setting:
    (trial,) = trials(registry.scenarios, ["tiny"])
    data = trial.plugin.build()
    identity = DataId(name="tiny", label="tiny", parameters={}, revision=data.revision)
    return Setting(trial, data, identity, Backbone.of("test_resnet"), "fp32")


RunTrials = Callable[[str], list[Cell]]


@pytest.fixture(scope="module")
def run_trials(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> RunTrials:
    """Two trials of an attack, one after the other in this process."""
    made: dict[str, ModelRecord] = {}
    store = Store(tmp_path_factory.mktemp("store"))
    worker = Worker(store, torch.device("cpu"), lambda stage, fraction, words: None)

    def run(name: str) -> list[Cell]:
        request = Request(
            defenses=trials(registry.defenses, ["none"]),
            attacks=arsenal(registry.attacks, [f"{name}[lr=[0.02,0.01]]"]),
            seeds=[0],
            samples=[20],
            steps=1,
        )
        plan = make_plan(request, [setting])
        for stage in plan.models:
            if stage.key not in made:
                (record,) = worker.do([stage], made)
                assert isinstance(record, ModelRecord)
                made[stage.key] = record
        stages = [stage for stage in plan.cells if stage.attack.name == name]
        cells = [cell for stage in stages for cell in worker.do([stage], made)]
        return [cell for cell in cells if isinstance(cell, Cell)]

    return run


@pytest.fixture(scope="module")
def alone(run_trials: RunTrials) -> list[Any]:
    """The curves of the attack that leaves nothing behind."""
    registry.attacks._entries.update(ENTRIES)
    return curves(run_trials("plain"))


def curves(cells: list[Cell]) -> list[Any]:
    curves = (cell.curve for cell in cells)
    return [(curve.steps, curve.fit, curve.validation, curve.test) for curve in curves]


def process() -> list[Any]:
    """All that is looked after, and what is swapped besides."""
    return [
        *(setting.read() for setting in (*SWAPPED, *LOOKED_AT)),
        [*sys.meta_path],
        torch.is_inference_mode_enabled(),
        torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
        (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()),
    ]


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Inside, nothing changes for good."""
    found = process()
    try:
        yield
        assert process() == found
    finally:
        for one, value in zip((*SWAPPED, *LOOKED_AT), found, strict=False):
            if one.read() != value:
                one.write(value)


@pytest.mark.parametrize("name", sorted(MISBEHAVING.WORDS))
def test_a_trial_sees_nothing_of_an_earlier_one_and_the_record_names_what_was_done(
    name: str, run_trials: RunTrials, alone: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with untouched():
        cells = run_trials(name)
    assert [cell.status for cell in cells] == ["ok", "ok"], cells[0].reason
    assert curves(cells) == alone
    words = MISBEHAVING.WORDS[name]
    for cell in cells:
        (found,) = cell.contained
        assert found.startswith(words)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", sorted(MISBEHAVING.HARMLESS - {"plain"}))
@pytest.mark.filterwarnings("ignore:a warning is no printing")
def test_what_is_changed_between_two_yields_alone_is_no_matter(
    name: str, run_trials: RunTrials, alone: list[Any]
) -> None:
    changed = {"MISBEHAVING_LATE"} & os.environ.keys()
    with untouched() if name != "imports-late" else contextlib.nullcontext():
        cells = run_trials(name)
    assert [cell.status for cell in cells] == ["ok", "ok"], cells[0].reason
    assert [cell.contained for cell in cells] == [[], []]
    assert curves(cells) == alone
    assert not changed
    if name == "imports-late":  # as if it had been imported at the start
        assert os.environ.pop("MISBEHAVING_LATE") == "1"


@pytest.mark.parametrize("name", ["by-list", "left-dtype", "swallows", "left-prints-bytes"])
def test_the_check_says_how_to_mend_it(name: str, bench: Bench, pretrained: Made) -> None:
    plugin = ENTRIES[name].cls()
    (found,) = testing.check_attack(plugin, bench, pretrained.weights, samples=40, budget=64)
    words = MISBEHAVING.WORDS[name]
    assert found == f"it {words} ({side_effects.kind_of(words).advice})"


def test_every_kind_of_sentence_has_its_advice() -> None:
    kinds = {side_effects.kind_of(words) for words in MISBEHAVING.WORDS.values()}
    assert kinds == set(side_effects.KINDS)


RUN = ["run", "--scenario", "tiny", "--steps", "1", "--samples", "20"]


def test_a_run_says_it_once_for_each_plugin_and_exits_with_zero(tmp_path: Path) -> None:
    names = ["by-list", "left-prints", "left-environment", "swallows", "plain"]
    chosen = [word for name in names for word in ("--attack", f"{name}[lr=[0.02,0.01]]")]
    store = ["--store", str(tmp_path / "store"), "--json", str(tmp_path / "out.json")]
    result = CliRunner().invoke(main, [*RUN, *chosen, *store])
    assert result.exit_code == 0, result.output
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 4
    assert "warning: attack by-list: kept state: SEEN (in 2 of 2 cells); it was put back" in warned
    assert (
        "warning: attack left-environment: changed os.environ: MISBEHAVING (in 2 of 2 cells); "
        "it was put back"
    ) in warned
    (printed,) = (line for line in warned if "printed 5.1 MB" in line)
    assert printed.count("spam") == containment.SHOWN // len("spam")
    assert "spam" not in result.stdout
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert sum(bool(cell["contained"]) for cell in cells) == 8
    again = CliRunner().invoke(main, [*RUN, *chosen, *store])
    assert [line for line in again.stderr.splitlines() if line.startswith("warning: ")] == warned


@dataclass(frozen=True)
class Defending:
    """Shrinks a weight and does something besides."""

    what: str = ""

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        for _ in range(2):
            with torch.no_grad():
                next(model.parameters()).mul_(0.9)
            if self.what == "print":
                print("ham")
            if self.what == "fail":
                print("ham")
                raise OSError("no licence")
            yield model
        if self.what == "dtype":
            torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("", []),
        ("dtype", ["changed torch.set_default_dtype to float64"]),
        ("print", [r"printed 8 bytes: 'ham\nham\n'"]),
        ("fail", [r"printed 4 bytes: 'ham\n'"]),
    ],
)
def test_defenses_are_contained_too_and_where_they_fail(
    what: str, words: list[str], bench: Bench, pretrained: Made
) -> None:
    found: list[str] = []
    with (
        untouched(),
        pytest.raises(OSError, match="no licence")
        if what == "fail"
        else (contextlib.nullcontext()),
    ):
        made = loop.protect(
            bench, pretrained.weights, Defending(what), 0, lambda f, w: None, contained=found
        )
        assert made.contained is found
    assert found == words
    if what != "fail":
        checked = testing.check_defense(Defending(what), bench, pretrained.weights)
        assert len(checked) == len(words)


def test_a_defense_is_named_once_for_each_model(tmp_path: Path) -> None:
    registry.defenses.register("prints", hidden=True)(Defending)
    arguments = ["--defense", "prints[what=print]", "--attack", "plain[lr=[0.02,0.01]]"]
    result = CliRunner().invoke(main, [*RUN, *arguments, "--store", str(tmp_path / "store")])
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("warning: "))
    assert line == (
        r"warning: defense prints: printed 8 bytes: 'ham\nham\n' (in 1 of 1 models); "
        "it is shown here alone"
    )


def test_a_plugin_file_that_prints_while_it_is_loaded_leaves_standard_output_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prints.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from sophon_bench.plugins.registry import attacks\n"
        "print('loading')\n"
        "@attacks.register('prints')\n"
        "@dataclass(frozen=True)\n"
        "class Prints: ...\n"
    )
    registry.load_file(file)
    assert capsys.readouterr() == ("", "loading\n")


def test_a_generator_that_never_ends_is_freed_all_the_same() -> None:
    class Weights:
        pass

    def endless() -> Iterator[int]:
        held = Weights()
        freed.append(weakref.ref(held))
        while True:
            with contextlib.suppress(GeneratorExit):
                yield 1

    freed: list[weakref.ref[Weights]] = []
    with Containment([]) as stage:
        next(stage.drive(endless))
    assert stage.found == ["swallowed GeneratorExit"]
    assert freed[0]() is None


def test_a_driven_generator_that_is_freed_late_touches_no_other_stage() -> None:
    with Containment([]) as first:
        late = [first.drive(lambda: iter(range(3)))]
        assert next(late[0]) == 0
    with Containment([]) as second:

        def step() -> Iterator[int]:
            late.clear()
            yield sys.stdout.write("")

        assert list(second.drive(step)) == [0]
    assert second.found == []


def test_a_generator_that_somebody_holds_is_never_asked_again() -> None:
    script = (
        "import sys\n"
        "from sophon_bench.harness.containment import Containment\n"
        "def endless():\n"
        "    while True:\n"
        "        try: yield 1\n"
        "        except GeneratorExit: pass\n"
        "held = endless()\n"
        "with Containment([]) as stage: next(stage.drive(lambda: held))\n"
        "assert stage.found == ['swallowed GeneratorExit']\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--nothing",), 2)])
def test_the_command_line_ends_with_its_code_whatever_threads_are_left(
    arguments: tuple[str, ...], code: int
) -> None:
    script = (
        "import sys, threading\n"
        "from sophon_bench.harness import containment\n"
        "from sophon_bench.cli import main\n"
        "thread = threading.Thread(target=threading.Event().wait)\n"
        "thread.start()\n"
        "containment._LEFT.append(thread)\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "list", "studies", *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stdout if code == 0 else done.stderr


@dataclass(frozen=True)
class AtOnce:
    """Runs trials at once, with a fault."""

    fault: str = ""
    together = ("fault",)

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        return MISBEHAVING.train(model, view, 0.02)

    def run_many(self, trials: Any, model: Model, view: AttackView) -> Iterator[list[Model]]:
        print("ham")
        if self.fault == "raises":
            raise KeyError("weight")
        if self.fault == "exits":
            raise SystemExit(3)
        if self.fault == "ends":
            return
        if self.fault == "no generator":
            return None
        for made in self.run(model, view):
            yield [made] * len(trials)


@pytest.mark.parametrize("fault", ["", "raises", "exits", "ends"])
def test_what_cannot_run_at_once_is_no_faster(
    fault: str, bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    with untouched():
        found = speed.speed_up(bench, [AtOnce(fault), AtOnce(fault)], samples=40)
    assert (found > 0) == (fault == "")
    assert capfd.readouterr() == ("", "")


def test_trials_at_once_are_contained_too(bench: Bench, pretrained: Made) -> None:
    found = loop.attack_many(
        bench, pretrained.weights, [AtOnce(), AtOnce("other")], samples=40, seed=0, budget=64,
        ticks=[lambda f, w: None] * 2,
    )  # fmt: skip
    for one in found:
        assert isinstance(one, Attacked)
        assert one.contained == [r"printed 4 bytes: 'ham\n'"]


LAYERS = {
    "batch": nn.BatchNorm2d(4),
    "instance": nn.InstanceNorm2d(4),
    "group": nn.GroupNorm(4, 4),
}


@pytest.mark.parametrize(
    ("layer", "size", "held", "words"),
    [
        ("batch", 1, 16, "a batch of one example cannot train .* use a larger batch_size"),
        ("group", 1, 16, "a batch of one example cannot train .* use a larger batch_size"),
        ("batch", 1, 1, "the training set has one example; take more samples"),
        ("instance", 16, 16, "where the map is 1x1; use larger images"),
    ],
)
def test_a_map_of_one_value_is_no_fault_of_the_plugin(
    layer: str, size: int, held: int, words: str, bench: Bench
) -> None:
    train_on = bench.attacker(bench.data.restricted, 40, 0)[0]
    inputs, targets = train_on[:held]
    with (
        pytest.raises(Incompatible, match=words),
        loop.in_our_words([Samples(inputs, targets)]),
    ):
        LAYERS[layer](torch.ones(size, 4, 1, 1))


def test_another_value_error_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match=r"^Expected more$"), loop.in_our_words([]):
        raise ValueError("Expected more")


@pytest.mark.parametrize(
    ("attack", "samples", "words"),
    [
        ("finetune[batch_size=1]", "20", "use a larger batch_size"),
        ("finetune", "2", "the training set has one example; take more samples"),
    ],
)
def test_a_batch_of_one_is_skipped_in_our_words(
    attack: str, samples: str, words: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    result = CliRunner().invoke(
        main,
        [*RUN, "--samples", samples, "--attack", attack, "--backbone", "resnet18", "--json",
         str(out), "--store", str(tmp_path / "store")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    cells = json.loads(out.read_text())["cells"]
    (cell,) = (cell for cell in cells if cell["attack"]["name"] == "finetune")
    assert cell["status"] == "skipped"
    assert words in cell["reason"]
    assert "torch" not in cell["reason"]


def test_torch_still_has_the_private_names() -> None:
    """Reads and writes of every setting, and what the stacks of modes are handled with."""
    with untouched():
        for one in (*SWAPPED, *LOOKED_AT):
            one.write(one.read())
    assert sum(len(hooks) >= 0 for hooks in HOOKS["modules"]) >= 8
    assert len(HOOKS["optimizers"]) == 2
    for name in ("_push_mode", "_pop_mode", "_get_current_dispatch_mode_stack"):
        assert callable(getattr(torch.utils._python_dispatch, name))


@pytest.mark.parametrize(
    ("written", "size"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (5_200_000, "5.2 MB")],
)
def test_what_is_printed_is_counted_and_its_beginning_kept(written: int, size: str) -> None:
    printed = containment.Printed()
    for _ in range(written // 100 + 1):
        printed.write(b"x" * min(100, written - printed.bytes))
    begin = "x" * min(written, containment.SHOWN)
    assert str(printed) == f"{size}: {begin!r}" + "…" * (written > containment.SHOWN)


def test_a_sentence_is_one_line_that_a_record_can_hold(make_cell: Any) -> None:
    with Containment([]) as stage:
        stage._say("left threads running: a\n\x1b\udc80")
    assert stage.found == [r"left threads running: a\n\x1b\udc80"]
    assert dump(make_cell(contained=stage.found))


def test_older_records_have_nothing_to_name(make_cell: Any) -> None:
    assert make_cell().contained == make_cell().released.contained == []
