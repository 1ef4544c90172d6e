"""Trials at once: each does what it would do alone, and costs what it would cost alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch

from sophon_bench.api import AttackView, Incompatible, Model, Samples
from sophon_bench.harness import loop, speed
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.honesty import NoUpdate
from sophon_bench.harness.loop import Attacked, Made
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry

TOGETHER = [
    name for name in registry.attacks.names() if hasattr(registry.attacks.get(name).cls, "run_many")
]
DESCENDING = [name for name in TOGETHER if "lr" in registry.attacks.get(name).cls.together]
LRS = (1e-3, 1e-2, 3e-2)
TOLERANCE = 1e-8
"""Largest difference of a weight after five updates in float64: kernels round in another order."""

SCORES = 0.05
"""Largest difference of a score in float32, of the order of one image in the tiny scenario."""

BACKBONES = {
    "test_resnet": {},
    "test_vit": {"img_size": 32},
    "test_efficientnet": {},
}


def quiet(_fraction: float | None, _words: str) -> None:
    pass


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def other(request: pytest.FixtureRequest, bench: Bench) -> Bench:
    backbone = Backbone.of(request.param, BACKBONES[request.param])
    return Bench(bench.data, backbone, device=bench.device, precision="fp32")


def view(bench: Bench) -> AttackView:
    train, _ = bench.attacker(bench.data.restricted, 40, 0)
    exact = Samples(train.inputs.double(), train.targets)
    return AttackView(
        task=bench.data.restricted.task,
        train=exact,
        validation=exact,
        auxiliary=None,
        new_model=lambda: bench.new_model(torch.Generator().manual_seed(1)).double(),
        device=bench.device,
        rng=torch.Generator().manual_seed(2),
    )


def start(bench: Bench) -> Model:
    return bench.new_model(torch.Generator().manual_seed(0)).double()


def after(run: Iterator[Any], steps: int) -> Any:
    """What the last of ``steps`` updates yields, drawing what dropout draws from one seed."""
    torch.manual_seed(3)
    *_, last = itertools.islice(run, steps)
    return last


SETTINGS = [
    {"weight_decay": 1e-2},
    {"optimizer": "adam"},  # with a penalty, Adam blows rounding up where the gradient is zero
    {"optimizer": "adamw", "weight_decay": 1e-2, "schedule": "one-cycle", "clip": 1.0, "steps": 5},
    {"scope": "norm", "optimizer": "rmsprop"},
    {"scope": "blocks"},
    {"head": "kept", "optimizer": "nesterov", "schedule": "warm-up"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", DESCENDING)
def test_each_trial_does_what_it_would_do_alone(
    name: str, settings: dict[str, Any], other: Bench
) -> None:
    cls: Any = registry.attacks.get(name).cls
    if not settings.keys() <= {field.name for field in dataclasses.fields(cls)}:
        pytest.skip("no such hyperparameter")
    trials = [cls(**{**settings, "lr": lr}) for lr in LRS]
    try:
        together = after(trials[0].run_many(trials, start(other), view(other)), 5)
    except Incompatible as error:
        pytest.skip(str(error))
    for trial, made in zip(trials, together, strict=True):
        alone = after(trial.run(start(other), view(other)), 5)
        for (path, one), two in zip(
            alone.state_dict().items(), made.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(two, one, atol=TOLERANCE, rtol=TOLERANCE, msg=path)
    assert not torch.equal(*(m.head.state_dict()["weight"] for m in together[:2]))


def many(bench: Bench, made: Made, trials: Sequence[Any], budget: int = 512) -> list[Any]:
    return loop.attack_many(
        bench, made.weights, trials, samples=40, seed=0, budget=budget, ticks=[quiet] * len(trials)
    )


@pytest.mark.parametrize("scope", ["all", "head", "blocks", "norm"])
@pytest.mark.parametrize("name", TOGETHER)
def test_curves_and_costs_are_those_of_one_at_a_time(
    name: str, scope: str, bench: Bench, pretrained: Made
) -> None:
    cls: Any = registry.attacks.get(name).cls
    if scope != "all" and "scope" not in {field.name for field in dataclasses.fields(cls)}:
        pytest.skip("it moves all weights")
    settings = {} if scope == "all" else {"scope": scope}
    field, values = ("lr", LRS) if "lr" in cls.together else (cls.together[0], (1, 3, 10))
    trials = [cls(**settings, **{field: value}) for value in values]
    for trial, found in zip(trials, many(bench, pretrained, trials), strict=True):
        alone = loop.attack(
            bench, pretrained.weights, trial, samples=40, seed=0, budget=512, tick=quiet
        )
        assert [(p.steps, pytest.approx(p.units, rel=0.01)) for p in found.curve] == [
            (p.steps, p.units) for p in alone.curve
        ]
        for one, other in zip(found.curve, alone.curve, strict=True):
            assert one.selection == pytest.approx(other.selection, abs=SCORES)
        assert found.cost.together == len(trials)
        assert (found.cost.units, found.cost.examples) == (
            pytest.approx(alone.cost.units, rel=0.01),
            alone.cost.examples,
        )


@pytest.mark.parametrize("name", sorted({*TOGETHER} - {*DESCENDING}))
def test_probes_share_one_extraction(name: str, bench: Bench) -> None:
    cls: Any = registry.attacks.get(name).cls
    seen: list[int] = []
    model = bench.new_model(torch.Generator().manual_seed(0))
    first, last = model.blocks()[0][1], model.blocks()[-1][1]
    for block in (first, last):
        block.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    train, validation = bench.attacker(bench.data.restricted, 40, 0)
    shown = dataclasses.replace(view(bench), train=train, validation=validation)
    trials = [cls(**{cls.together[0]: value}) for value in (1, 3, 10)]
    for _ in trials[0].run_many(trials, model, shown):
        pass
    assert seen == [len(train)] * 2 + [len(validation)] * 2


def test_probes_of_other_lengths_do_not_run_at_once(bench: Bench) -> None:
    cls: Any = registry.attacks.get("probe-ridge").cls
    assert speed.speed_up(bench, [cls(), cls(alpha=1.0)], samples=40) == 0


def test_one_that_diverges_leaves_the_others_alone(bench: Bench, pretrained: Made) -> None:
    cls: Any = registry.attacks.get("finetune").cls
    good, bad = many(bench, pretrained, [cls(lr=1e-2), cls(lr=1e30)])
    (alone,) = many(bench, pretrained, [cls(lr=1e-2)])
    assert (good.status, bad.status) == ("ok", "diverged")
    assert bad.nonfinite_step is not None
    assert [p.test for p in good.curve] == pytest.approx([p.test for p in alone.curve], abs=SCORES)


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Moves the weights of one trial alone."""

    lr: float
    together: ClassVar = ("lr",)

    def run(self, model: Model, view: AttackView) -> Iterator[Model]:
        for _ in view.batches(8):
            with torch.no_grad():
                next(model.parameters()).add_(self.lr)
            yield model

    def run_many(
        self, trials: Sequence[Lazy], model: Model, view: AttackView
    ) -> Iterator[list[Model]]:
        others = [model] * (len(trials) - 1)
        for moved in self.run(view.new_model(), view):
            yield [moved, *others]


def test_an_idle_trial_is_an_error_of_its_own(bench: Bench, pretrained: Made) -> None:
    moved, idle = many(bench, pretrained, [Lazy(0.1), Lazy(0.2)])
    assert isinstance(moved, Attacked)
    assert isinstance(idle, NoUpdate)


def test_another_number_of_predictors_is_an_error(bench: Bench, pretrained: Made) -> None:
    class Short(Lazy):
        def run_many(self, trials: Any, model: Model, view: AttackView) -> Iterator[list[Model]]:
            for made in super().run_many(trials, model, view):
                yield made[:-1]

    with pytest.raises(ValueError, match="update 1 yielded 1 predictors for 2 trials"):
        many(bench, pretrained, [Short(0.1), Short(0.2)])


def test_speed_up_is_measured_and_nothing_where_it_cannot_be(bench: Bench) -> None:
    class Refusing(Lazy):
        def run_many(self, trials: Any, model: Model, view: AttackView) -> Iterator[list[Model]]:
            raise RuntimeError("no batching rule")
            yield []

    assert speed.speed_up(bench, [Lazy(0.1), Lazy(0.2)], samples=40) > 0
    assert speed.speed_up(bench, [Refusing(0.1), Refusing(0.2)], samples=40) == 0
