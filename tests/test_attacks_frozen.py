"""Attacks that leave the body's weights alone: what starts equal, what moves, what is chosen."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sophon_bench.api import Attack, AttackView, Incompatible, Model, Samples, attacks
from sophon_bench.attacks import _bottleneck, _peft, _probing, _rotation, _zeroth
from sophon_bench.attacks.evolution import Evolution
from sophon_bench.attacks.spsa import SPSA
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.models.backbones import Backbone

BACKBONES = {
    "test_resnet": {},
    "test_vit": {"img_size": 32, "patch_size": 8},
    "test_convnext": {},
    "test_efficientnet": {},
}

ADAPTED = (
    "lora", "dora", "adalora", "loha", "lokr", "ia3", "ln-tuning", "vera", "oft", "boft", "adapter",
)  # fmt: skip
"""Attacks that put something trainable into a frozen body."""

MOVES_NORMS = ("adapter", "spsa", "evolution")
"""Attacks whose gains and biases of normalisation move as well."""


def build(name: str = "test_resnet") -> Model:
    return Backbone.of(name, BACKBONES[name]).build(6, torch.Generator().manual_seed(0))


def make_view(classes: int = 4, seed: int = 0) -> AttackView:
    rng = torch.Generator().manual_seed(seed)

    def samples(count: int) -> Samples:
        targets = torch.arange(count) % classes
        means = torch.linspace(-2, 2, classes)[targets]
        noise = torch.randn(count, 3, 32, 32, generator=rng)
        return Samples(noise + means[:, None, None, None], targets)

    return AttackView(
        task=Classification(classes),
        train=samples(32),
        validation=samples(12),
        auxiliary=None,
        new_model=build,
        device=torch.device("cpu"),
        rng=rng,
    )


def make(name: str, **changes: Any) -> Any:
    return attacks.get(name).cls(**changes)


def steps(attack: Attack, model: Model, view: AttackView, count: int) -> Any:
    """What the attack yields last of ``count``; skips where it says that it cannot apply."""
    run = attack.run(model, view)
    try:
        *_, last = itertools.islice(run, count)
    except Incompatible as reason:
        pytest.skip(str(reason))
    return last


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", ADAPTED)
def test_what_is_put_in_changes_nothing_at_the_start_and_trains_with_the_head(
    name: str, backbone: str
) -> None:
    model, view = build(backbone), make_view()
    body = {id(p) for n, p in model.named_parameters() if not n.startswith("head")}
    norms = {id(p) for m in model.modules() if _peft.is_norm(m) for p in m.parameters()}
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0
    with torch.no_grad():
        features = model.eval().features(view.validation.inputs)
    started = steps(make(name, lr=1e-30), model.train(), view, 1).eval()
    with torch.no_grad():
        logits, expected = started(view.validation.inputs), model.head(features)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    trained = {id(p) for p in started.parameters() if p.requires_grad}
    head = {id(p) for p in model.head.parameters()}
    assert head < trained
    assert trained & body == (norms if name == "adapter" else set())
    assert trained - head - body


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", [*ADAPTED, "reprogram", "spsa", "evolution", "probe-ridge"])
def test_weights_of_the_body_do_not_move(name: str, backbone: str) -> None:
    model, view = build(backbone), make_view()
    norms = {
        id(p) for m in model.modules() if _peft.is_norm(m) for p in m.parameters(recurse=False)
    }
    body = [p for n, p in model.named_parameters() if not n.startswith("head")]
    before = [p.detach().clone() for p in body]
    steps(make(name), model, view, 4)
    moved = [not torch.equal(p, old) for p, old in zip(body, before, strict=True)]
    allowed = [name in MOVES_NORMS and id(p) in norms for p in body]
    assert not any(m and not a for m, a in zip(moved, allowed, strict=True))


@pytest.mark.parametrize("accepts", [_peft.is_linear, _peft.is_dense, _peft.is_weighted])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_targets_are_layers_of_the_body(backbone: str, accepts: Any) -> None:
    model = build(backbone)
    expected = {n for n, m in model.named_modules() if n.startswith("body.") and accepts(m)}
    if not expected:
        with pytest.raises(Incompatible, match="has no such layer"):
            _peft.targets(model, accepts, what="such layer")
        return
    pattern = _peft.targets(model, accepts, what="such layer")
    assert {n for n, _ in model.named_modules() if re.fullmatch(pattern, n)} == expected


def test_targets_say_what_the_model_lacks() -> None:
    with pytest.raises(Incompatible, match="the model's body has no linear layer"):
        next(iter(make("vera").run(build("test_resnet"), make_view())))


def test_adalora_prunes_to_the_mean_rank_that_was_asked_for() -> None:
    attack = make("adalora", initial_rank=4, rank=2, steps=10)
    adapted = steps(attack, build(), make_view(), 12)
    scales = [p for n, p in adapted.named_parameters() if "lora_E" in n]
    assert sum(int((p != 0).sum()) for p in scales) <= 2 * len(scales)
    with pytest.raises(ValueError, match="rank=4 must be below initial_rank=4"):
        make("adalora", initial_rank=4, rank=4)


def test_a_rotation_keeps_lengths_and_angles() -> None:
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    rotation = _rotation.Rotation(weight, block=6, factors=3, gains=True)
    assert torch.equal(rotation(weight), weight)
    nn.init.normal_(rotation.free)
    before, after = weight.flatten(1), rotation(weight).flatten(1)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after @ after.T, before @ before.T)


@pytest.mark.parametrize(
    ("shape", "last"),
    [((2, 5, 4, 4), False), ((2, 4, 4, 5), True), ((2, 4, 4, 4), False), ((2, 9, 5), True)],
)
def test_channels_are_found_by_shape(shape: tuple[int, ...], last: bool) -> None:
    activation = torch.randn(shape)
    assert _probing.channels_last(activation) is last
    width = shape[-1] if last else shape[1]
    pooled = _probing.pooled(activation, grid=1)
    mean = activation.flatten(1, -2).mean(1) if last else activation.flatten(2).mean(2)
    assert pooled.shape == (2, width)
    torch.testing.assert_close(pooled, mean)


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_a_bottleneck_of_a_channels_last_block_works_on_its_channels(form: Any) -> None:
    model, view = build("test_resnet"), make_view()
    adapted = _bottleneck.Adapted(
        model, view.train.inputs[:2], rank=3, form=form, rng=torch.Generator()
    )
    assert len(adapted.adapters) == len(model.blocks())
    widths = [m.down.in_features for m in adapted.adapters]
    assert widths[-1] == model.features(view.train.inputs[:2]).shape[1]


@pytest.mark.parametrize("name", ["probe-ridge", "probe-logistic", "probe-knn"])
def test_a_probe_is_chosen_on_validation(name: str) -> None:
    model, view = build(), make_view()
    held = view.validation
    found = [view.task.utility(probe, held) for probe in make(name, grid=1).run(model, view)]
    assert found[-1] == max(found[2:])
    assert found[-1] > 0.5


def test_a_probe_of_classes_it_never_saw_ranks_them_last() -> None:
    model, view = build(), make_view()
    wider = AttackView(**{**vars(view), "task": Classification(7)})
    *_, probe = make("probe-ridge").run(model, wider)
    scores = probe(view.validation.inputs)
    assert scores.shape == (12, 7)
    assert (scores[:, 4:] <= scores[:, :4].min()).all()


def test_a_probe_survives_activations_that_are_not_finite() -> None:
    model, view = build(), make_view()
    with torch.no_grad():
        model.blocks()[2][1].register_forward_hook(lambda m, a, out: out * float("nan"))
    for name in ("probe-ridge", "probe-logistic", "probe-knn"):
        *_, probe = make(name).run(model, view)
        assert probe(view.validation.inputs).isfinite().all()


@pytest.mark.parametrize("name", ["probe-ridge", "probe-knn", "spsa", "evolution"])
def test_classes_are_needed(name: str) -> None:
    view = make_view()
    soft = Samples(view.train.inputs, torch.rand(32, 4))
    with pytest.raises(Incompatible, match="class ids"):
        next(iter(make(name).run(build(), AttackView(**{**vars(view), "train": soft}))))


def quadratic(size: int) -> tuple[Tensor, Tensor, Any]:
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(size, size, generator=rng, dtype=torch.float64)
    slope = torch.randn(size, generator=rng, dtype=torch.float64)
    point = torch.randn(size, generator=rng, dtype=torch.float64)
    curvature = root @ root.T / size
    return point, curvature @ point + slope, lambda x: x @ curvature @ x / 2 + slope @ x


def test_spsa_estimates_the_gradient_of_a_quadratic() -> None:
    point, gradient, loss = quadratic(6)
    attack = SPSA(pairs=20000, radius=0.1)
    found = attack.gradient(loss, point, torch.Generator().manual_seed(0))
    assert float((found - gradient).norm() / gradient.norm()) < 0.05


def test_one_pair_of_spsa_gives_the_slope_along_its_signs() -> None:
    point, gradient, loss = quadratic(6)
    found = SPSA(pairs=1, radius=0.1).gradient(loss, point, torch.Generator().manual_seed(0))
    signs = found.sign() * found.sign()[0]
    torch.testing.assert_close(found.abs(), (signs @ gradient).abs().expand(6))


def test_evolution_points_where_the_loss_rises() -> None:
    point, gradient, loss = quadratic(6)
    attack = Evolution(pairs=5000, sigma=1e-3)
    found = attack.gradient(loss, point, torch.Generator().manual_seed(0))
    assert float(torch.cosine_similarity(found, gradient, dim=0)) > 0.99


@pytest.mark.parametrize("name", ["spsa", "evolution"])
def test_descent_never_raises_the_loss_on_validation(name: str) -> None:
    model, view = build(), make_view()
    held = (view.validation.inputs, view.validation.targets)
    losses = []
    for predictor in itertools.islice(make(name, lr=0.3).run(model, view), 6):
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(predictor(held[0]), held[1])))
    assert all(later <= sooner + 1e-5 for sooner, later in itertools.pairwise(losses))


def test_the_solved_head_is_the_ridge_that_validation_likes() -> None:
    model, view = build().eval(), make_view()
    head = _zeroth.solve_head(model, view)
    with torch.no_grad():
        logits = head(model.features(view.validation.inputs))
    assert float((logits.argmax(1) == view.validation.targets).float().mean()) > 0.5


@pytest.mark.parametrize(("width", "covered"), [(0.25, 1 - 0.5**2), (0.5, 1.0)])
def test_reprogramming_learns_a_frame_of_the_width_asked_for(width: float, covered: float) -> None:
    model, view = build(), make_view()
    predictor = steps(make("reprogram", width=width), model, view, 2)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    zeros = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        predictor(zeros)
    assert float((seen[0] != 0).float().mean()) == pytest.approx(covered, abs=0.02)
