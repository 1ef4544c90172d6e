"""The conformance checks find each fault and leave conforming plugins alone; what a run makes of
faulty ones."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import read_cells
from torch import Tensor, nn
from toy import fine_tune as train

from sophon_bench import testing
from sophon_bench.api import AttackView, Batch, DefenseView, Model, Predictor
from sophon_bench.cli import main
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.testing import spies

RUNS: list[int] = []
TABLE: dict[str, Tensor] = {}

Update = Callable[[Model, AttackView, Batch], object]


def nothing(model: Model, view: AttackView) -> Iterator[Predictor]:
    yield from ()


def no_generator(model: Model, view: AttackView) -> Iterator[Predictor]:
    return None  # type: ignore[return-value]


def raises(model: Model, view: AttackView) -> Iterator[Predictor]:
    raise KeyError("weight")
    yield


def unchanged(model: Model, view: AttackView) -> Iterator[Predictor]:
    for _ in view.batches(16):
        yield model


def blind(model: Model, view: AttackView) -> Iterator[Predictor]:
    while True:
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        yield model


def nan_at_once(model: Model, view: AttackView) -> Iterator[Predictor]:
    for made in train(model, view):
        with torch.no_grad():
            next(made.parameters()).fill_(torch.nan)
        yield made


def nan_later(model: Model, view: AttackView) -> Iterator[Predictor]:
    for step, made in enumerate(train(model, view)):
        if step == 3:
            with torch.no_grad():
                next(made.head.parameters()).fill_(torch.nan)
        yield made


def nan_function(model: Model, view: AttackView) -> Iterator[Predictor]:
    for made in train(model, view):
        yield lambda inputs, made=made: made(inputs) * torch.nan


def greedy(model: Model, view: AttackView) -> Iterator[Predictor]:
    for step, made in enumerate(train(model, view)):
        if step % 12 == 0:
            yield made


def greedier(model: Model, view: AttackView) -> Iterator[Predictor]:
    for step, made in enumerate(train(model, view)):
        if step % 40 == 39:
            yield made


def late(model: Model, view: AttackView) -> Iterator[Predictor]:
    """Trains a copy whenever it is called, for a score that its cost does not tell."""

    def predictor(inputs: Tensor) -> Tensor:
        made, rng = copy.deepcopy(model), torch.Generator().manual_seed(0)
        with torch.enable_grad():
            optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
            for batch in itertools.islice(view.train.batches(16, rng), 2):
                torch.autograd.backward(view.task.loss(made, batch))
                optimizer.step()
        outputs: Tensor = made(inputs)
        return outputs

    for _ in train(model, view):
        yield predictor


def other_class(model: Model, view: AttackView) -> Iterator[Predictor]:
    model.__class__ = type("Other", (type(model),), {})
    yield from train(model, view)


def other_forward(model: Model, view: AttackView) -> Iterator[Predictor]:
    forward = model.forward
    model.forward = lambda inputs: 2 * forward(inputs)  # type: ignore[method-assign]
    yield from train(model, view)


def scaled_inputs(model: Model, view: AttackView) -> Iterator[Predictor]:
    view.train.inputs.mul_(0.5)
    yield from train(model, view)


def own_labels(model: Model, view: AttackView) -> Iterator[Predictor]:
    for made in train(model, view):
        view.validation.targets.zero_()
        yield made


def counting(model: Model, view: AttackView) -> Iterator[Predictor]:
    RUNS.append(1)
    yield from train(model, view, lr=0.01 * len(RUNS))


def caching(model: Model, view: AttackView) -> Iterator[Predictor]:
    TABLE.setdefault("ones", torch.ones(3))
    yield from train(model, view)


def by_time(model: Model, view: AttackView) -> Iterator[Predictor]:
    chance = random.SystemRandom().random()
    yield from train(model, view, lr=0.01 + 0.01 * chance)


def torch_draws(model: Model, view: AttackView) -> Iterator[Predictor]:
    for made in train(model, view):
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(1e-3 * torch.randn(parameter.shape))
        yield made


def new_layer(model: Model, view: AttackView) -> Iterator[Predictor]:
    for made in train(model, view):
        layer = nn.Linear(view.task.num_outputs, view.task.num_outputs)
        yield lambda inputs, made=made, layer=layer: layer(made(inputs))


def numpy_draws(model: Model, view: AttackView) -> Iterator[Predictor]:
    yield from train(model, view, lr=0.01 + 0.01 * np.random.rand())


def python_draws(model: Model, view: AttackView) -> Iterator[Predictor]:
    yield from train(model, view, lr=0.01 + 0.01 * random.random())


def seeds(model: Model, view: AttackView) -> Iterator[Predictor]:
    torch.manual_seed(0)
    np.random.seed(seed=0)
    yield from train(model, view)


def idle(model: Model, view: AttackView) -> Iterator[Predictor]:
    for _ in view.batches(16):
        yield lambda inputs: model(inputs)


def idle_first_outputs(model: Model, view: AttackView) -> Iterator[Predictor]:
    for _ in view.batches(16):
        yield lambda inputs: model(inputs)[:, : view.task.num_outputs]


def idle_wrapper(model: Model, view: AttackView) -> Iterator[Predictor]:
    for _ in view.batches(16):
        yield nn.Sequential(model)


ATTACK_FAULTS = [
    (nothing, "the attack yielded nothing; yield the predictor after every update"),
    (unchanged, "never changed a weight of the predictor that it yields; give the optimizer"),
    (blind, "drew no sample of view.train; train on view.batches"),
    (nan_at_once, "non-finite values at or before update 1; lower the default step size"),
    (nan_later, "non-finite values at or before update"),
    (nan_function, "non-finite values"),
    (greedy, "between two yields it draws every sample"),
    (greedier, "yield after every update"),
    (late, "the predictor takes gradients when it is called, which no budget counts"),
    (other_class, "the class or the forward of the given model was replaced; wrap the model"),
    (other_forward, "the class or the forward of the given model was replaced; wrap the model"),
    (scaled_inputs, "view.train was modified in place; clone what you change"),
    (own_labels, "view.validation was modified in place"),
    (counting, "it kept state: RUNS (keep state in local variables of run)"),
    (caching, "it kept state: TABLE (keep state in local variables of run)"),
    (by_time, "two runs with one seed differ; draw every random number from view.rng"),
    (torch_draws, "drawn from the global generator of torch; pass generator=view.rng"),
    (new_layer, "drawn from the global generator of torch"),
    (numpy_draws, "drawn from the global generator of numpy"),
    (python_draws, "drawn from the global generator of random"),
    (seeds, "numpy.random.seed, torch.manual_seed was called; draw from view.rng"),
    (idle, "yields what the released model computes, unchanged"),
    (idle_first_outputs, "the last predictor is the released model as it was"),
    (idle_wrapper, "the last predictor is the released model as it was"),
]

Run = Callable[[Model, AttackView], Iterator[Predictor]]


@dataclass(frozen=True)
class Doing:
    """An attack that does what a function does."""

    function: Run

    def run(self, model: Model, view: AttackView) -> Iterator[Predictor]:
        return self.function(model, view)


def check(function: Run, bench: Bench, pretrained: Made) -> list[str]:
    attack = Doing(function)
    return testing.check_attack(attack, bench, pretrained.weights, samples=40, budget=256)


@pytest.mark.parametrize(
    ("function", "message"), ATTACK_FAULTS, ids=[f.__name__ for f, _ in ATTACK_FAULTS]
)
def test_each_fault_of_an_attack_is_found_alone_with_how_to_mend_it(
    function: Run, message: str, bench: Bench, pretrained: Made
) -> None:
    found = check(function, bench, pretrained)
    assert len(found) == 1, found
    assert message in found[0]


def probe(model: Model, view: AttackView) -> Iterator[Predictor]:
    with torch.no_grad():
        features = model.eval().features(view.train.inputs)
        labels = nn.functional.one_hot(view.train.targets, view.task.num_outputs).float()
        gram = features.T @ features + 0.1 * torch.eye(features.shape[1])
        weight = torch.linalg.solve(gram, features.T @ labels)
    while True:
        yield lambda inputs: model.features(inputs) @ weight


def sign_flip(model: Model, view: AttackView) -> Iterator[Predictor]:
    for _ in view.batches(16):
        yield lambda inputs: -model(inputs)


class Noisy(nn.Module):
    """A model with dropout on its outputs."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.dropout = model, nn.Dropout(0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.dropout(self.model(inputs))


def dropout(model: Model, view: AttackView) -> Iterator[Predictor]:
    yield from train(model, view, trained=Noisy(model))


def seeded_layer(model: Model, view: AttackView) -> Iterator[Predictor]:
    with view.seeded():
        layer = nn.Linear(view.task.num_outputs, view.task.num_outputs)
    for made in train(model, view):
        yield lambda inputs, made=made: layer(made(inputs))


@functools.cache
def drawn_once() -> Tensor:
    """As a library may draw that is imported at its first use."""
    return torch.rand(1) + random.random()


def importing(model: Model, view: AttackView) -> Iterator[Predictor]:
    drawn_once()
    yield from train(model, view)


def sharpness_aware(model: Model, view: AttackView) -> Iterator[Predictor]:
    steps = train(model, view)
    while True:
        next(steps)
        yield next(steps)


def augmented(model: Model, view: AttackView) -> Iterator[Predictor]:
    for made in train(model, view):
        flipped = view.train.inputs.clone().flip(-1)
        flipped.add_(0.01 * torch.randn(flipped.shape, generator=view.rng))
        yield made


@pytest.mark.parametrize(
    "function",
    [
        train,
        probe,
        sign_flip,
        dropout,
        seeded_layer,
        importing,
        sharpness_aware,
        augmented,
    ],
)
def test_conforming_attacks_pass(function: Run, bench: Bench, pretrained: Made) -> None:
    assert check(function, bench, pretrained) == []


@dataclass(frozen=True)
class AtOnce:
    """Runs trials at once, with one fault."""

    lr: float = 0.02
    together: ClassVar[tuple[str, ...]] = ("lr",)

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        yield from train(model, view, self.lr)

    def run_many(
        self, trials: Sequence[AtOnce], model: Model, view: AttackView
    ) -> Iterator[list[Model]]:
        for made in train(model, view, self.lr):
            yield [made] * len(trials)


class Misnamed(AtOnce):
    together: ClassVar[tuple[str, ...]] = ("rate", "lr")


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (AtOnce(lr=2.0), r"run_many gives other results for AtOnce\(lr=1.0\) than run"),
        (Misnamed(), "together names rate, which the attack has not; .* of lr"),
    ],
)
def test_trials_at_once_have_to_be_those_of_run(
    attack: AtOnce, words: str, bench: Bench, pretrained: Made
) -> None:
    (found,) = testing.check_attack(attack, bench, pretrained.weights, samples=40, budget=256)
    assert re.match(words, found)


def test_plugins_that_raise_raise_through_the_check(bench: Bench, pretrained: Made) -> None:
    with pytest.raises(KeyError):
        check(raises, bench, pretrained)
    with pytest.raises(TypeError, match="not a generator: yield after every update"):
        check(no_generator, bench, pretrained)


@dataclass(frozen=True)
class Defending:
    """A defense with one fault, or none."""

    fault: str = ""

    def run(self, model: Model, view: DefenseView) -> Iterator[Model]:
        if self.fault == "nothing":
            return
        if self.fault == "data":
            view.original.train.targets.zero_()
        scale = 1 - 0.1 * torch.rand((), generator=view.rng)
        if self.fault == "torch":
            scale = 1 - 0.1 * torch.rand(())
        if self.fault == "time":
            scale = scale * random.SystemRandom().random()
        if self.fault == "nan":
            scale = scale * torch.nan
        for _ in range(3):
            with torch.no_grad():
                next(model.parameters()).mul_(scale)
            yield model


DEFENSE_FAULTS = [
    ("nothing", "the defense yielded no model"),
    ("data", "view.original.train was modified in place"),
    ("torch", "drawn from the global generator of torch"),
    ("time", "two runs with one seed release different weights"),
    ("nan", "it releases weights that are not finite"),
]


@pytest.mark.parametrize(("fault", "message"), DEFENSE_FAULTS)
def test_each_fault_of_a_defense_is_found_alone(
    fault: str, message: str, bench: Bench, pretrained: Made
) -> None:
    (found,) = testing.check_defense(Defending(fault), bench, pretrained.weights)
    assert message in found
    assert not testing.check_defense(Defending(), bench, pretrained.weights)


HEAD = '''"""A plugin.

Reference: none, arXiv 0000.00000.
"""
import itertools
from dataclasses import dataclass
from sophon_bench.api import Incompatible
from sophon_bench.api import attacks, defenses, scenarios
'''

GOOD = '''
@attacks.register("made-up")
@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """Move everything.

    Args:
        lr: Step size.
    """

    lr: float = 1e-2

    def run(self, model, view):
        model.fresh_head(view.task.num_outputs, view.rng)
        for batch in view.batches(8):
            model.zero_grad()
            view.task.loss(model, batch).backward()
            for p in model.parameters():
                p.data.sub_(p.grad, alpha=self.lr)
            yield model
'''


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def outcomes(result: Result) -> dict[str, str]:
    """Outcome by check, for a file with one plugin."""
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("  ")]
    return {check: outcome for outcome, check, *_ in lines}


@pytest.fixture
def plugin(tmp_path: Path, forget: None) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "plugin.py"
        file.write_text(HEAD + text)
        return file

    return write


def test_check_prints_a_line_per_check_and_exits_with_zero(
    plugin: Callable[[str], Path],
) -> None:
    result = call("check", plugin(GOOD))
    assert result.exit_code == 0, result.output
    first, *lines, last = result.stdout.splitlines()
    assert first == "attack made-up"
    assert len(lines) == 2 + len(testing.CHECKS["attack"])
    assert all(line.startswith("  passed") for line in lines)
    assert last == f"{len(lines)} passed"


FILES = [
    ("required", "lr: float = 1e-2", "lr: float", 1, "'lr' has no default value; give it one"),
    ("not frozen", "frozen=True", "frozen=False", 1, "the dataclass is not frozen"),
    ("no run", "def run(", "def go(", 1, "has no method 'run'"),
    ("type", "lr: float = 1e-2", "lr: complex.real = 1", 1, "type is not supported"),
    ("raises", "for batch in", "1 / 0\n        for batch in", 1, "ZeroDivisionError: division"),
    (
        "exits",
        "for batch in",
        "raise SystemExit(3)\n        for batch in",
        1,
        "the plugin called sys.exit",
    ),
    ("extra", "for batch in", "import notthere\n        for batch in", 1, "No module named"),
    ("odd", "yield model", "yield 3", 1, "TypeError"),
    (
        "incompatible",
        "for batch in",
        "raise Incompatible('no attention')\n        for batch in",
        0,
        "cannot apply to test_resnet: no attention",
    ),
    ("citation", "Reference: none, arXiv 0000.00000.", "", 0, "has no citation"),
    ("args", "lr: Step size.", "rate: Step size.", 0, "not documented under 'Args:'"),
    (
        "unsaid",
        '"""Move everything.\n\n    Args:\n        lr: Step size.\n    """',
        "",
        0,
        "no doc",
    ),
]


@pytest.mark.parametrize(
    ("what", "old", "new", "code", "message"), FILES, ids=[f[0] for f in FILES]
)
def test_check_says_what_is_wrong_with_a_file_in_a_sentence(
    what: str, old: str, new: str, code: int, message: str, plugin: Callable[[str], Path]
) -> None:
    file = plugin(GOOD)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    result = call("check", file)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = (x for x in result.stdout.splitlines() if message in x)
    assert line.split()[0] == ("FAILED" if code else "skipped" if "apply" in line else "warning")
    assert "Traceback" not in result.output


def test_check_names_the_line_that_raised(plugin: Callable[[str], Path]) -> None:
    file = plugin(GOOD.replace("for batch in", "1 / 0\n        for batch in"))
    number = file.read_text().splitlines().index("        1 / 0") + 1
    result = call("check", file)
    assert f"division by zero (plugin.py:{number})" in result.stdout
    assert outcomes(result)["repeatable"] == "skipped"


def test_check_goes_through_every_plugin_of_a_file_or_the_named_one(
    plugin: Callable[[str], Path],
) -> None:
    bad = GOOD.replace("made-up", "made-down").replace("MadeUp", "MadeDown")
    file = plugin(GOOD + bad.replace("yield model", "break\n        yield from ()"))
    both = call("check", file)
    assert both.exit_code == 1
    assert "attack made-up\n" in both.stdout
    assert "attack made-down\n" in both.stdout
    assert "the attack yielded nothing" in both.stdout
    named = call("check", file, "--name", "made-up")
    assert named.exit_code == 0
    assert "made-down" not in named.stdout
    other = call("check", file, "--name", "made-upp")
    assert other.exit_code == 2
    assert "unknown plugin of plugin.py 'made-upp'; did you mean 'made-up'" in other.stderr


def test_check_follows_a_long_defense_only_so_far(plugin: Callable[[str], Path]) -> None:
    file = plugin(
        '@defenses.register("endless")\n'
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Endless:\n"
        '    """Shrink the weights."""\n'
        "    def run(self, model, view):\n"
        "        while True:\n"
        "            for p in model.parameters():\n"
        "                p.data.mul_(0.99)\n"
        "            yield model\n"
    )
    result = call("check", file)
    assert result.exit_code == 0, result.output
    assert outcomes(result)["repeatable"] == "passed"


SCENARIOS = [
    ("", "", 0, ""),
    ('"second_test": 40}', '"second_best": 40}', 1, "the restricted domain has no second_test"),
    ("rng = np.random.default_rng([ord(c) for c in name + split])",
     "rng = np.random.default_rng()", 1, "two builds differ"),
    ('f"{name}-{split}-{i}"', 'f"{name}-{i}"', 1, "is in train and in validation"),
    ("samples=(8, 20, 40)", "samples=(8, 20, 80)", 1, "from 2 to the 40 images"),
    ("steps=8,\n            pretrain_", "steps=8, generated=1, pretrain_", 1, "have no covariance"),
    ("astype(np.uint8)", "astype(np.float32)", 1, "float32 images"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "code", "message"), SCENARIOS)
def test_check_looks_at_scenarios_too(
    old: str, new: str, code: int, message: str, tmp_path: Path, forget: None
) -> None:
    text = Path(__file__).with_name("tiny_scenario.py").read_text()
    assert old in text
    file = tmp_path / "striped.py"
    file.write_text(text.replace('"tiny"', '"striped"').replace(old, new))
    result = call("check", file)
    assert result.exit_code == code, result.output
    assert message in result.stdout
    if code == 0:
        assert outcomes(result)["training"] == "passed"


def test_check_finds_an_installed_plugin_by_its_file() -> None:
    file = Path(__file__).parents[1] / "attacks" / "finetune.py"
    result = call("check", file)
    assert result.exit_code == 0, result.output
    assert "attack finetune" in result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("def broken(:\n", "SyntaxError at line"),
        ("x = 1\n", "registers nothing"),
        ("raise SystemExit(0)\n", "leaves Python while it is loaded"),
        (GOOD.replace("made-up", "finetune"), "'finetune' is registered twice"),
    ],
)
def test_check_refuses_what_is_no_plugin_file(
    text: str | None, message: str, tmp_path: Path, plugin: Callable[[str], Path]
) -> None:
    file = tmp_path / "plugin.py" if text is None else plugin(text)
    result = call("check", file)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_check_refuses_a_backbone_that_does_not_exist(plugin: Callable[[str], Path]) -> None:
    result = call("check", plugin(GOOD), "--backbone", "test_resnett")
    assert result.exit_code == 2
    assert "did you mean 'test_resnet" in result.stderr


FAULTY = (
    HEAD
    + """
import torch
from toy import fine_tune as training


def register(function):
    @attacks.register(function.__name__.replace("_", "-"))
    @dataclass(frozen=True, kw_only=True)
    class Attack:
        def run(self, model, view):
            return function(model, view)

    return function


@register
def raises_at_once(model, view):
    raise ValueError("no such layer\\nand a second line")
    yield model


@register
def raises_later(model, view):
    yield from itertools.islice(training(model, view), 3)
    raise RuntimeError


@register
def yields_nothing(model, view):
    yield from ()


@register
def is_no_generator(model, view):
    return None


@register
def changes_nothing(model, view):
    for _ in view.batches(16):
        yield model


@register
def changes_only_the_head_for_a_random_one(model, view):
    model.fresh_head(view.task.num_outputs, view.rng)
    for batch in view.batches(16):
        view.task.loss(model, batch)
        yield model


@register
def gives_one_column(model, view):
    for _ in training(model, view):
        yield lambda inputs: model(inputs)[:, 0]


@register
def gives_none(model, view):
    for _ in training(model, view):
        yield


@register
def gives_nan(model, view):
    for _ in training(model, view):
        yield lambda inputs: model(inputs) * torch.nan


@register
def gives_words(model, view):
    for _ in training(model, view):
        yield "model"


@register
def needs_an_extra(model, view):
    import sophon_bench_extra_that_nobody_has

    yield model


@register
def cannot_apply(model, view):
    raise Incompatible("the model has no attention")
    yield model


@register
def seeds(model, view):
    torch.manual_seed(0)
    yield from training(model, view)
"""
)

RECORDED = {
    "raises-at-once": ("failed", "ValueError: no such layer (plugin.py:"),
    "raises-later": ("failed", "RuntimeError"),
    "yields-nothing": ("failed", "the attack yielded nothing"),
    "is-no-generator": ("failed", "TypeError: run returned NoneType"),
    "changes-nothing": ("failed", "never changed a weight"),
    "gives-nan": ("diverged", "non-finite values at or before update"),
    "changes-only-the-head-for-a-random-one": (
        "failed",
        "never changed a weight of the predictor that it yields, whose head is the random one",
    ),
    "gives-one-column": ("failed", "inputs; expected a tensor of shape ("),
    "gives-none": ("failed", "TypeError: update 1 yielded None; yield a model, or a function"),
    "gives-words": ("failed", "TypeError: update 1 yielded a str; yield a model, or a function"),
    "needs-an-extra": ("failed", "No module named 'sophon_bench_extra_that_nobody_has'"),
    "cannot-apply": ("skipped", "the model has no attention"),
    "seeds": ("ok", ""),
    "finetune": ("ok", ""),
    "scratch": ("ok", ""),
}

FAST = ["--scenario", "tiny", "--steps", "2", "--samples", "20"]


def test_a_run_with_faulty_attacks_records_each_and_finishes_the_rest(
    tmp_path: Path, plugin: Callable[[str], Path]
) -> None:
    file = plugin("")
    file.write_text(FAULTY)
    chosen = [word for name in RECORDED for word in ("--attack", name)]
    out = tmp_path / "out.json"
    before = torch.get_rng_state()
    result = call(
        "run", *FAST, "--plugin", file, *chosen, "--store", tmp_path / "store", "--json", out
    )
    assert result.exit_code == 1, result.output
    assert torch.equal(torch.get_rng_state(), before)
    assert "Traceback" not in result.output
    cells = {c["attack"]["name"]: c for c in json.loads(out.read_text())["cells"]}
    assert set(cells) == set(RECORDED)
    for name, (status, reason) in RECORDED.items():
        assert cells[name]["status"] == status, cells[name]["reason"]
        assert reason in (cells[name]["reason"] or "")
        assert "\n" not in (cells[name]["reason"] or "")
        said = [x for x in result.stderr.splitlines() if x.startswith(f"failed: {name} against")]
        assert len(said) == (status == "failed")


def test_a_run_with_a_faulty_defense_keeps_the_undefended_cells(
    tmp_path: Path, plugin: Callable[[str], Path]
) -> None:
    file = plugin(
        '@defenses.register("falls")\n'
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Falls:\n"
        "    def run(self, model, view):\n"
        "        yield model\n"
        "        raise OSError('no licence')\n"
    )
    out = tmp_path / "out.json"
    result = call(
        "run", *FAST, "--plugin", file, "--defense", "falls", "--attack", "finetune",
        "--store", tmp_path / "store", "--json", out,
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    cells = {(cell.defense.name, cell.attack.name): cell for cell in read_cells(out)}
    assert cells["none", "finetune"].status == "ok"
    assert cells["falls", "finetune"].status == "failed"
    assert "OSError: no licence (plugin.py:" in cells["falls", "finetune"].reason
    assert "failed: finetune against falls" in result.stderr


def test_a_batch_larger_than_n_is_all_n(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = call(
        "run", *FAST, "--attack", "finetune[batch_size=4096]", "--store", tmp_path / "store",
        "--json", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (cell,) = (c for c in json.loads(out.read_text())["cells"] if c["attack"]["name"] == "finetune")
    assert cell["cost"]["examples"] == 16 * cell["cost"]["steps"], "a fifth of 20 is validation"


REFUSED = [
    (["--attack", "finetunee"], "unknown attack 'finetunee'; did you mean 'finetune'"),
    (["--attack", "finetune[batchsize=4]"], "did you mean 'batch_size'"),
    (["--attack", "finetune[batch_size=0]"], "batch_size should be greater than 0"),
    (["--attack", "finetune[batch_size=1.5]"], "batch_size should be a valid integer"),
    (
        ["--attack", "finetune[scope=heads]"],
        "scope should be 'all', 'head', 'blocks', 'norm' or 'bias'",
    ),
    (["--samples", "41"], "between 2 and 40"),
    (["--samples", "1"], "between 2 and 40"),
    (["--steps", "-3"], "at least 1 step"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_a_run_refuses_bad_input_in_one_line(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = call("run", *FAST, "--store", tmp_path / "store", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("slow", "yields"),
    [((0,), 2), ((1, 2), 5), ((), 5)],
    ids=["the first run is late", "a later run is late", "no run is late"],
)
def test_later_runs_of_a_defense_are_as_long_as_the_first(
    monkeypatch: pytest.MonkeyPatch, slow: Sequence[int], yields: int
) -> None:
    """A machine that is busy during one of two runs must not make them differ."""

    class Counting:
        def run(self, model: Model, view: object) -> Iterator[int]:
            yield from range(9)

    clock = 0.0

    def now() -> float:
        return clock

    monkeypatch.setattr(spies.time, "perf_counter", now)
    watched = spies.Watched(Counting(), updates=5, seconds=1.5)
    counts = []
    for number in range(3):
        found = 0
        for _ in watched.run(nn.Identity(), SimpleNamespace()):  # type: ignore[arg-type]
            found += 1
            clock += 1.0 if number in slow else 0.0
        counts.append(found)
    assert counts == [yields] * 3
