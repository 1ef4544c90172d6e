"""Generation: noise, scores, U-Nets and what they make, next to what can be worked out."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from sophon_bench import testing
from sophon_bench.api import (
    AttackView,
    Batch,
    Generative,
    Incompatible,
    Model,
    Samples,
    attacks,
    scenarios,
)
from sophon_bench.cli import main
from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.data.scenarios.glyphs_digits_gen import GlyphsDigitsGen
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.data.tasks.denoising import TIMESTEPS, Denoising, schedule
from sophon_bench.execution import runs
from sophon_bench.harness import generation, loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.harness.generation import classifier_score, frechet, gaussian, picture
from sophon_bench.harness.loop import Attacked
from sophon_bench.harness.meter import Meter
from sophon_bench.models.architecture import BackboneError
from sophon_bench.models.unets import UNet, UNetModel
from sophon_bench.plugins.selectors import SelectorError
from sophon_bench.results.pictures import pixels_of

SMALL = UNet(channels=(8, 8, 16))
SHALLOW = UNet(channels=(8, 8))
TASK = Denoising()

CLASSIFIERS_ONLY = {"heal-first", "strong-recipe", "scratch-heal-first", "scratch-strong-recipe"}
"""Attacks whose own loss is of class ids."""


def quiet(_fraction: float | None, _words: str) -> None:
    pass


def kept(timestep: int) -> float:
    """``a_t`` of Ho et al., section 4: beta from 1e-4 to 0.02, linear."""
    betas = np.linspace(1e-4, 0.02, TIMESTEPS)
    return float(np.prod(1 - betas[: timestep + 1]))


@pytest.fixture(autouse=True)
def quick_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "STEPS", 60)


@pytest.fixture
def samples() -> Samples:
    rng = torch.Generator().manual_seed(9)  # noises are drawn from other seeds
    return Samples(torch.rand(150, 3, 8, 8, generator=rng) * 2 - 1, torch.zeros(150))


@pytest.fixture(scope="module")
def small() -> tuple[Bench, Weights]:
    return testing.small_bench(SHALLOW)


def silent(noisy: Tensor, timesteps: Tensor) -> Tensor:
    assert len(noisy) == len(timesteps)
    return torch.zeros_like(noisy)


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_the_schedule_is_the_papers(timestep: int) -> None:
    found = float(schedule().alphas_cumprod[timestep])
    assert found == pytest.approx(kept(timestep), rel=1e-4)


def test_one_step_is_noise_of_the_deviation_on_record(samples: Samples) -> None:
    found: list[Tensor] = []

    def spy(noisy: Tensor, timesteps: Tensor) -> Tensor:
        found.append(timesteps)
        found.append(noisy - samples.inputs * math.sqrt(kept(1)))
        return torch.zeros_like(noisy)

    Denoising(one_step=True).predict(spy, samples.inputs)
    assert found[0].unique().tolist() == [1]
    assert float(found[1].std()) == pytest.approx(0.0148, rel=0.02)


def test_training_draws_every_timestep() -> None:
    seen: list[Tensor] = []

    def spy(noisy: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(timesteps)
        return torch.zeros_like(noisy)

    torch.manual_seed(0)
    TASK.predict(spy, torch.zeros(5000, 3, 1, 1))
    counts = torch.bincount(seen[0] // 100, minlength=10)
    assert counts.min() > 400
    assert counts.max() < 600


def test_training_may_draw_from_the_first_timesteps_alone_and_scores_are_of_all(
    samples: Samples,
) -> None:
    seen: list[Tensor] = []

    def spy(noisy: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(timesteps)
        return torch.zeros_like(noisy)

    torch.manual_seed(0)
    early = Denoising(timesteps=20)
    early.predict(spy, torch.zeros(5000, 3, 1, 1))
    assert seen[0].unique().tolist() == list(range(20))
    assert early.errors(spy, samples) == TASK.errors(spy, samples)
    assert torch.cat(seen[1:]).max() > 900


def test_the_loss_is_the_square_error_of_the_noise(samples: Samples) -> None:
    made: list[Tensor] = []

    def spy(noisy: Tensor, timesteps: Tensor) -> Tensor:
        a = torch.tensor([kept(int(t)) for t in timesteps]).reshape(-1, 1, 1, 1)
        made.append((noisy - a.sqrt() * samples.inputs[: len(noisy)]) / (1 - a).sqrt())
        return made[-1] + 0.5

    batch = Batch(samples.inputs[:20], samples.targets[:20])
    assert float(TASK.loss(spy, batch)) == pytest.approx(0.25, rel=1e-3)


def test_who_knows_the_image_has_skill_one() -> None:
    image = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)
    constant = Samples(image.repeat(70, 1, 1, 1), torch.zeros(70))

    def oracle(noisy: Tensor, timesteps: Tensor) -> Tensor:
        a = schedule().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        return (noisy - a.sqrt() * image) / (1 - a).sqrt()

    assert TASK.utility(oracle, constant) == pytest.approx(1, abs=1e-4)


def test_skill_zero_is_the_best_that_knows_mean_and_variance_alone(samples: Samples) -> None:
    inputs = samples.inputs
    mean, variance = inputs.mean(dim=(0, 2, 3), keepdim=True), inputs.var(correction=0)

    def pixelwise(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return TASK.pixelwise(noisy, timesteps, mean, variance)

    def shrunk(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return 0.9 * pixelwise(noisy, timesteps)

    assert TASK.utility(pixelwise, samples) == pytest.approx(0, abs=1e-6)
    assert TASK.utility(shrunk, samples) < -0.01
    model, trivial = TASK.errors(pixelwise, samples)
    assert model == trivial == TASK.trivial_loss(samples)
    expected = np.mean([kept(t) * float(variance) / (kept(t) * float(variance) + 1 - kept(t))
                        for t in range(TIMESTEPS)])  # fmt: skip
    assert trivial == pytest.approx(expected, rel=0.05)


def test_utility_is_the_loss_of_which_it_is_told(samples: Samples) -> None:
    error, trivial = TASK.errors(silent, samples)
    assert error == pytest.approx(1, rel=0.02)  # the noise has variance one
    assert TASK.utility(silent, samples) == pytest.approx(1 - error / trivial, abs=1e-9)
    assert Classification(3).trivial_loss(samples) is None


def test_a_prediction_that_is_not_finite_counts_as_none(samples: Samples) -> None:
    def broken(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return torch.full_like(noisy, math.nan)

    assert TASK.utility(broken, samples) == TASK.utility(silent, samples)


def test_scoring_is_the_same_each_time_and_draws_nothing(samples: Samples) -> None:
    before = torch.get_rng_state()
    first = TASK.utility(silent, samples)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert TASK.utility(silent, samples) == first


def test_scoring_spreads_the_timesteps(samples: Samples) -> None:
    seen: list[Tensor] = []

    def spy(noisy: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(timesteps)
        return torch.zeros_like(noisy)

    TASK.utility(spy, samples)
    counts = torch.histc(torch.cat(seen).float(), bins=10, min=0, max=TIMESTEPS)
    assert counts.sum() == len(samples)
    assert counts.min() >= 13
    assert counts.max() <= 17


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda x, t: x[:, :1], r"made \(150, 1, 8, 8\) of noisy images \(150, 3, 8, 8\)"),
        (lambda x, t: (x,), "made tuple"),
    ],
)
def test_outputs_of_another_shape_are_an_error(
    outputs: object, said: str, samples: Samples
) -> None:
    with pytest.raises(ValueError, match=said):
        TASK.predict(outputs, samples.inputs)  # type: ignore[arg-type]


def test_a_predictor_without_timesteps_does_not_apply(samples: Samples) -> None:
    with pytest.raises(Incompatible, match="timestep"):
        TASK.utility(lambda inputs: inputs, samples)
    with pytest.raises(Incompatible, match="timestep"):
        TASK.utility(nn.Conv2d(3, 3, 1), samples)


def test_generation_is_the_same_each_time_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    made = [TASK.generate(silent, 70, 8, torch.device("cpu")) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    first, second = made
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert torch.equal(first, second)
    assert first.shape == (70, 3, 8, 8)
    assert first.dtype == torch.uint8
    assert isinstance(TASK, Generative)
    assert not isinstance(Classification(3), Generative)
    assert Denoising(one_step=True).generate(silent, 2, 8, torch.device("cpu")) is None


def test_generation_by_who_knows_the_image_is_that_image() -> None:
    image = (torch.arange(3 * 64).reshape(1, 3, 8, 8) * 1.3).round()

    def oracle(noisy: Tensor, timesteps: Tensor) -> Tensor:
        a = schedule().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        return (noisy - a.sqrt() * (image / 127.5 - 1)) / (1 - a).sqrt()

    made = TASK.generate(oracle, 3, 8, torch.device("cpu"))
    assert isinstance(made, Tensor)
    assert (made.float() - image).abs().max() <= 1


def test_frechet_of_gaussians_worked_out_by_hand() -> None:
    one = np.zeros(2), np.diag([1.0, 4.0])
    other = np.array([3.0, 0.0]), np.diag([9.0, 1.0])
    assert frechet(one, other) == pytest.approx(9 + (1 - 3) ** 2 + (2 - 1) ** 2)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = [(turn @ mean, turn @ cov @ turn.T) for mean, cov in (one, other)]
    assert frechet(*turned) == pytest.approx(14)  # whatever the axes are


def test_gaussian_is_mean_and_unbiased_covariance() -> None:
    mean, covariance = gaussian(np.array([[0.0, 1.0], [2.0, 5.0]]))
    assert mean.tolist() == [1, 3]
    assert covariance.tolist() == [[2, 4], [4, 8]]


def test_classifier_score_from_one_to_the_number_of_classes() -> None:
    assert classifier_score(np.full((6, 4), 0.25)) == pytest.approx(1)
    assert classifier_score(np.eye(4)) == pytest.approx(4)
    assert classifier_score(np.tile([[1.0, 0, 0, 0]], (5, 1))) == pytest.approx(1)


def test_a_picture_is_the_images_in_a_row() -> None:
    pixels = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    found = pixels_of(picture(pixels))
    assert found.shape == (4, 15, 3)
    assert (found[:, 5:10] == pixels[1].permute(1, 2, 0).numpy()).all()


def test_a_critic_prefers_the_domains_own_images(small: tuple[Bench, object]) -> None:
    bench, _ = small
    restricted, original = bench.data.restricted, bench.data.original
    critic = generation.Critic(restricted, restricted, bench.device, count=16)
    own, other = (
        critic.judge(torch.from_numpy(d.splits["second_test"].pixels))
        for d in (restricted, original)
    )
    noise = critic.judge(torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8))
    assert critic.accuracy > 0.9
    assert own.frechet < min(other.frechet, noise.frechet)
    assert own.classifier_score > 3 > noise.classifier_score
    assert own.frechet_real == other.frechet_real < other.frechet
    again = generation.Critic(restricted, restricted, bench.device, count=16)
    assert again.judge(torch.from_numpy(restricted.splits["second_test"].pixels)) == own


def attacked(small: tuple[Bench, Weights], name: str) -> Attacked:
    bench, weights = small
    return loop.attack(
        bench, weights, attacks.get(name).cls(), samples=40, seed=0, budget=8 * 64, tick=quiet
    )


@pytest.mark.parametrize("name", attacks.names())
def test_an_attack_works_on_a_denoiser_or_says_that_it_does_not_apply(
    name: str, small: tuple[Bench, Weights]
) -> None:
    bench, weights = small
    plugin = attacks.get(name).cls()
    if name in CLASSIFIERS_ONLY:
        with pytest.raises((RuntimeError, ValueError)):
            attacked(small, name)
        return
    try:
        found = testing.check_attack(plugin, bench, weights, samples=40, budget=4 * 64)
    except Incompatible as reason:
        pytest.skip(f"does not apply: {reason}")
    assert not found


def test_fine_tuning_lowers_the_restricted_loss(
    small: tuple[Bench, Weights],
) -> None:
    bench, weights = small
    before = bench.utility(weights, bench.data.restricted, "test")
    found = attacked(small, "finetune")
    assert found.curve[-1].test > before + 0.1
    assert found.generated is not None
    assert found.generated.count == bench.data.generated
    restricted = bench.data.restricted
    apart = generation.Critic(restricted, restricted, bench.device, count=16)
    real = apart.judge(torch.zeros(16, 3, 16, 16, dtype=torch.uint8)).frechet_real
    assert found.generated.frechet_real == real  # one made on the way is trained alike
    assert pixels_of(found.generated.picture).shape == (16, 16 * generation.SHOWN, 3)


def test_a_benign_task_asks_for_no_images(small: tuple[Bench, Weights]) -> None:
    bench, weights = small
    plugin = attacks.get("finetune").cls()
    (benign,) = bench.data.benign
    found = loop.attack(
        bench, weights, plugin, samples=20, seed=0, budget=64, tick=quiet, domain=benign
    )
    assert found.generated is None


def test_an_exploding_attack_is_recorded_as_such(
    small: tuple[Bench, Weights],
) -> None:
    bench, weights = small
    plugin = attacks.get("finetune").cls(optimizer="sgd", lr=1e30)
    found = loop.attack(bench, weights, plugin, samples=40, seed=0, budget=8 * 64, tick=quiet)
    assert found.status == "diverged"
    assert found.nonfinite_step is not None
    assert found.generated is None


def test_looking_never_changes_the_run(small: tuple[Bench, Weights]) -> None:
    """Scores, images and critics leave no trace in training, which draws from the global state."""
    bench, weights = small
    seen: SimpleQueue[Model] = SimpleQueue()  # lists are put back after a trial

    class Watched:
        def run(self, model: Model, view: AttackView) -> Iterator[Model]:
            try:
                for made in attacks.get("finetune").cls().run(model, view):
                    yield made
            finally:
                seen.put(made)

    for score_at in ([1.0], [0.125, 0.25, 0.5, 1.0]):
        loop.attack(
            bench,
            weights,
            Watched(),
            samples=40,
            seed=0,
            budget=8 * 64,
            score_at=score_at,
            tick=quiet,
        )
    first, second = (seen.get_nowait().state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_fresh_head_is_counted(small: tuple[Bench, Weights]) -> None:
    bench, weights = small
    meter = Meter(bench.profile, bench.device)
    model = meter.watch(bench.load(weights))
    model.fresh_head(3, torch.Generator().manual_seed(0))

    def updates() -> Iterator[None]:
        while True:
            TASK.loss(model, Batch(torch.zeros(8, 3, 16, 16), torch.zeros(8))).backward()
            yield

    for _ in zip(range(4), meter.drive(updates()), strict=False):
        pass
    assert meter.units == pytest.approx(8 * meter.steps, rel=1e-6)


@pytest.fixture(scope="module")
def unet() -> UNetModel:
    return SMALL.build(3, torch.Generator().manual_seed(3))


def test_weights_follow_from_the_generator_alone(unet: UNetModel) -> None:
    before = torch.get_rng_state()
    again = SMALL.build(3, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True)
    )
    assert all(p.requires_grad for p in again.parameters())


def test_body_then_head_is_what_diffusers_computes(unet: UNetModel) -> None:
    from diffusers import UNet2DModel

    whole = UNet2DModel(**{k: v for k, v in unet.body.config.items() if not k.startswith("_")})
    state = unet.body.state_dict()
    state |= {f"conv_out.{name}": tensor for name, tensor in unet.head.state_dict().items()}
    whole.load_state_dict(state)
    inputs, timesteps = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    expected = whole(inputs, timesteps).sample
    torch.testing.assert_close(unet(inputs, timesteps), expected)


def test_a_state_dict_is_all_there_is(unet: UNetModel) -> None:
    other = SMALL.build(3, torch.Generator().manual_seed(4))
    inputs, timesteps = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    assert not torch.equal(other(inputs, timesteps), unet(inputs, timesteps))
    other.load_state_dict(unet.state_dict())
    assert torch.equal(other(inputs, timesteps), unet(inputs, timesteps))


def test_a_fresh_head_is_another_of_the_same_shape(unet: UNetModel) -> None:
    model = copy.deepcopy(unet)
    old = copy.deepcopy(model.head)
    model.fresh_head(3, torch.Generator().manual_seed(0))
    assert isinstance(model.head, nn.Conv2d)
    assert isinstance(old, nn.Conv2d)
    assert model.head.weight.shape == old.weight.shape
    assert not torch.equal(model.head.weight, old.weight)
    with pytest.raises(Incompatible, match="denoiser of 3 channels"):
        model.fresh_head(10, torch.Generator())
    with pytest.raises(Incompatible, match="no feature vectors"):
        model.features(torch.zeros(1, 3, 16, 16))


def test_heal_first_does_not_apply_where_auxiliary_classes_are_no_channels(unet: UNetModel) -> None:
    view: Any = SimpleNamespace(
        auxiliary=Samples(torch.zeros(10, 3, 16, 16), torch.arange(10)), rng=torch.Generator()
    )
    with pytest.raises(Incompatible, match="of 3 channels predicts noise of as many; got 10"):
        next(attacks.get("heal-first").cls().run(copy.deepcopy(unet), view))


def test_blocks_are_the_body_in_order(unet: UNetModel) -> None:
    paths = [path for path, _ in unet.blocks()]
    assert paths[0] == "body.conv_in"
    assert paths[-1] == "body.conv_norm_out"
    assert [p for p in paths if "down" in p] == [f"body.down_blocks.{i}" for i in range(3)]
    held = {id(p) for _, block in unet.blocks() for p in block.parameters()}
    rest = {name for name, p in unet.body.named_parameters() if id(p) not in held}
    assert all(name.startswith("time_embedding") for name in rest)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("unet", "unet"),
        ("unet[channels=[8,16]]", "unet[channels=[8,16]]"),
        ("unet[layers=2,groups=4]", "unet[groups=4,layers=2]"),
        ("unet[attention=true]", "unet"),
    ],
)
def test_a_selector_is_the_shortest(text: str, label: str) -> None:
    found = runs.find_backbone(text)
    assert sorted(found.label) == sorted(label)
    assert runs.find_backbone(found.label) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unet[channel=[8]]", "did you mean 'channels'"),
        ("unet[channels=8]", "channels should be a valid tuple"),
        ("unet[channels=[12]]", "channels have to be multiples of groups=8; got 12"),
        ("unet[layers=0]", "layers should be greater than or equal to 1"),
        ("unet[attention=maybe]", "attention should be a valid boolean"),
    ],
)
def test_what_a_unet_does_not_take(text: str, said: str) -> None:
    with pytest.raises(SelectorError, match=said):
        runs.find_backbone(text)


def test_images_have_to_be_halved() -> None:
    UNet().check(16, 3)
    with pytest.raises(BackboneError, match=r"halves images 2 times.*--image-size 16 or .* 20"):
        UNet().check(18, 3)


def test_scaled_pixels_are_between_minus_one_and_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).repeat(1, 3, 1, 1)
    assert SMALL.normalize(pixels).unique().tolist() == [-1, 1]
    with pytest.raises(BackboneError, match="uint8"):
        SMALL.normalize(pixels.float())


@pytest.mark.parametrize(
    ("scenario", "backbone", "said"),
    [
        ("glyphs-digits-gen", "test_resnet", "denoising"),
        ("glyphs-digits", "unet", "classification"),
    ],
)
def test_a_backbone_for_another_task_is_refused(scenario: str, backbone: str, said: str) -> None:
    words = ["run", "--scenario", scenario, "--backbone", backbone, "--defense", "none"]
    found = CliRunner().invoke(main, [*words, "--attack", "finetune", "--seeds", "0"])
    assert found.exit_code == 2
    assert backbone in found.stderr
    assert said in found.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["tune", "naive-mse", "--configurations", "2"],
        ["study", "balance", "--attack", "finetune", "--seeds", "0"],
        ["overhead", "--roofline", "--rounds", "2", "--batch-size", "4", "--attack", "finetune"],
    ],
    ids=lambda command: command[0],
)
def test_the_default_backbone_is_the_scenarios(command: list[str], tmp_path: Path) -> None:
    where = ["--out", str(tmp_path), "--dry-run"] if command[0] != "overhead" else []
    words = [*command, *where, "--scenario", "glyphs-digits-gen", "--store", str(tmp_path / "s")]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    assert "unet" in found.output


def test_the_scenario_is_that_of_classification_denoised() -> None:
    made: ScenarioData = scenarios.get("glyphs-digits-gen").cls().build()
    twin: ScenarioData = scenarios.get("glyphs-digits").cls(image_size=16).build()
    assert made.revision == twin.revision
    assert {d.task for d in made.domains} == {Denoising()}
    one = scenarios.get("glyphs-digits-gen").cls(one_step=True).build()
    assert {d.task for d in one.domains} == {Denoising(one_step=True)}


def test_a_domain_without_samples_of_a_class_has_a_critic(
    small: tuple[Bench, object],
) -> None:
    bench, _ = small
    domain = bench.data.restricted
    few = Images(
        *(getattr(domain.splits["attacker"], n)[:3] for n in ("pixels", "labels", "sources"))
    )
    part: DomainData = dataclasses.replace(domain, splits={**domain.splits, "attacker": few})
    assert generation.Critic(part, part, bench.device, count=16).accuracy > 0.5


@pytest.mark.slow
def test_from_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's table, images of every model, and nothing is done twice."""
    build = GlyphsDigitsGen.build
    monkeypatch.setattr(
        GlyphsDigitsGen,
        "build",
        lambda *given: dataclasses.replace(build(*given), pretrain_steps=20, generated=16),
    )
    made, store = tmp_path / "made.json", tmp_path / "store"
    words = [
        "run", "--scenario", "glyphs-digits-gen", "--defense", "naive-mse[iterations=3]",
        "--backbone", "unet[channels=[8,16],attention=false]", "--steps", "2", "--seeds", "0",
        "--attack", "finetune[optimizer=[sgd,adam],lr=1e-3,head=kept]", "--store", str(store),
        "--json", str(made),
    ]  # fmt: skip
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    assert "Noise MSE (lower is better)" in found.stdout
    assert "accuracy" not in found.stdout
    content = json.loads(made.read_text())
    cells, models = content["cells"], content["models"]
    assert len(models) == 3
    assert {c["status"] for c in cells} == {"ok"}
    assert {c["utility"] for c in cells} == {"denoising skill"}
    assert all(0.1 < cell["trivial_loss"] < 0.3 for cell in cells)
    assert all(each["generated"]["count"] == 16 for each in [*cells, *models])
    written = {p: p.stat().st_mtime_ns for p in store.rglob("*.json")}
    assert CliRunner().invoke(main, words).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*.json")} == written
    drawn = tmp_path / "grid.png"
    words = ["pictures", "--from", str(made), "--out", str(drawn)]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert drawn.read_bytes().startswith(b"\x89PNG")
