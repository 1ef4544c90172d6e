"""Fréchet Inception distance, of Inception with drawn weights in the published file's format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import conftest
import pytest
import torch
from click.testing import CliRunner
from conftest import Attempt, gather, records
from msgspec.structs import replace
from toy import generation as records_of_images

from sophon_bench import testing
from sophon_bench.analysis.images import images as judged
from sophon_bench.cli import main
from sophon_bench.data.scenario import ScenarioError
from sophon_bench.harness import generation
from sophon_bench.harness.generation import frechet, gaussian
from sophon_bench.leaderboard import tables
from sophon_bench.models import inception
from sophon_bench.models.inception import Inception
from sophon_bench.models.unets import UNet
from sophon_bench.results import Results

COUNT = 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as torch-fidelity publishes, named by its own hash."""
    import torch_fidelity.feature_extractor_inceptionv3 as fidelity

    extractor = fidelity.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        made = extractor("inception-v3-compat", ["2048"])
    file = tmp_path_factory.mktemp("drawn") / "weights.pth"
    torch.save(made.state_dict(), file)
    begins = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return file.rename(file.with_name(f"weights-inception-2015-12-05-{begins}.pth"))


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def images(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (COUNT, 3, 16, 16), dtype=torch.uint8, generator=rng)


def test_without_the_file_there_is_none(checkpoints: Path) -> None:
    assert inception.weights() is None
    assert not any(checkpoints.iterdir())


def test_the_file_is_found_where_its_hash_is_that_of_its_name(
    checkpoints: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "WEIGHTS", drawn.name)
    (checkpoints / drawn.name).symlink_to(drawn)
    assert inception.weights() == checkpoints / drawn.name


def test_the_file_alone_is_not_enough(
    checkpoints: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "WEIGHTS", drawn.name)
    monkeypatch.setattr(inception, "PACKAGES", ("torchmetrics", "no_such_package"))
    (checkpoints / drawn.name).symlink_to(drawn)
    assert inception.weights() is None


def test_another_file_is_refused_before_any_work(checkpoints: Path, tmp_path: Path) -> None:
    (checkpoints / inception.WEIGHTS).write_bytes(b"half of a download")
    with pytest.raises(ScenarioError, match=r"SHA-256 begins with \w{8}, not 6726825d"):
        inception.weights()
    store = tmp_path / "store"
    words = ["--defense", "none", "--attack", "finetune", "--store", str(store)]
    found = CliRunner().invoke(main, ["run", "--scenario", "glyphs-digits-gen", *words])
    assert found.exit_code == 2
    assert "fetch it again, or move it away" in found.output
    assert not list(store.rglob("*.safetensors"))


@pytest.mark.slow
def test_it_is_the_frechet_distance_of_inceptions_features(drawn: Path) -> None:
    test, other = images(0), images(1)
    state = torch.get_rng_state()
    measured = Inception(drawn, test, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    seen = [measured._metric.inception(part).double().numpy() for part in (test, other)]
    expected = frechet(*(gaussian(features) for features in seen))
    scale = float(sum(features.var(axis=0, ddof=1).sum() for features in seen))
    assert expected > 0.01 * scale
    assert measured.distance(other) == pytest.approx(expected, abs=1e-3 * scale)
    assert measured.distance(test) == pytest.approx(0, abs=1e-3 * scale)
    assert measured.distance(other) == pytest.approx(expected, abs=1e-3 * scale)  # none adds up


@pytest.mark.slow
def test_a_critic_with_the_weights_tells_it_as_well(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "STEPS", 2)
    bench, _ = testing.small_bench(UNet(channels=(8, 8, 16)))
    data = bench.data.restricted
    without, critic = (
        generation.Critic(data, data, bench.device, count=COUNT, inception=path).judge(images(0))
        for path in (None, drawn)
    )
    assert without.fid is without.fid_real is None
    assert critic.fid is not None
    assert critic.fid_real is not None
    assert critic.fid > critic.fid_real > 0
    assert replace(critic, fid=None, fid_real=None) == without


def test_the_table_has_it_where_every_seed_has(make_cell: Callable[..., Attempt]) -> None:
    def measured(cell: Attempt, *, everywhere: bool) -> Attempt:
        assert cell.generated is not None
        if not everywhere and cell.seed == 1:
            return cell
        return replace(cell, generated=replace(cell.generated, fid=70.0 + cell.seed, fid_real=9.0))

    cells = [cell for cell in records_of_images(make_cell) if cell.generated is not None]
    for everywhere in (True, False):
        marked = [measured(cell, everywhere=everywhere) for cell in cells]
        attacked = [
            r for r in records(judged(Results.of(gather(marked)))) if r["maker"] == "attacked"
        ]
        assert {row["fid"] for row in attacked} == {70.5 if everywhere else None}
        (place,) = tables.places(tables.report(gather(marked)))
        (table,) = [
            conftest.drawn(t) for t in place.tables if t.title.startswith("Images made from noise")
        ]
        assert ("FID (Inception)" in table.columns) is everywhere
        if everywhere:
            assert table.body[-1][-1] == "70.5 ± 6.4 (9.0)"
            assert {len(line) for line in table.body} == {len(table.columns)}
