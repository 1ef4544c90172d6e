"""The embedded scenario: splits that do not leak, one rendering for all, the same bytes always."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sophon_bench.api import scenarios
from sophon_bench.data.rendering import RASTER, _weights, close, rasterise, stream
from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.data.scenarios.glyphs_digits import DIGIT_BLOCKS, SHAPES, GlyphsDigits
from sophon_bench.data.sheet import contact_sheet

SPLITS = {
    "letters": {"train": 5200, "validation": 520, "test": 1040, "second_test": 1040},
    "digits": {
        "defender": 500,
        "attacker": 600,
        "selection": 200,
        "test": 497,
        "second_test": 497,
    },
    "greek": {"train": 550, "selection": 176, "test": 462},
    "shapes": {"train": 600, "selection": 200, "test": 500},
}


@pytest.fixture(scope="module")
def data() -> ScenarioData:
    return GlyphsDigits().build()


@pytest.fixture(scope="module")
def small() -> ScenarioData:
    return GlyphsDigits(image_size=16).build()


def all_images(data: ScenarioData) -> Iterator[tuple[DomainData, str, Images]]:
    for domain in data.domains:
        for split, images in domain.splits.items():
            yield domain, split, images


def test_is_registered() -> None:
    assert scenarios.get("glyphs-digits").cls is GlyphsDigits


def test_domains_have_the_documented_splits(data: ScenarioData) -> None:
    found = {d.name: {s: len(images) for s, images in d.splits.items()} for d in data.domains}
    assert found == SPLITS
    assert [d.task.num_outputs for d in data.domains] == [26, 10, 22, 10]
    assert [len(d.classes) for d in data.domains] == [26, 10, 22, 10]
    assert data.samples == (50, 200, 600)


@pytest.mark.parametrize(("name", "size"), [("data", 32), ("small", 16)])
def test_shapes_and_types(name: str, size: int, request: pytest.FixtureRequest) -> None:
    data: ScenarioData = request.getfixturevalue(name)
    assert data.image_size == size
    for domain, _, images in all_images(data):
        assert images.pixels.shape == (len(images), 3, size, size)
        assert images.pixels.dtype == np.uint8
        assert images.labels.dtype == np.int64
        assert images.sources.dtype.kind == "U"
        assert set(images.labels) == set(range(len(domain.classes)))


def test_classes_are_balanced(data: ScenarioData) -> None:
    for domain, split, images in all_images(data):
        counts = np.bincount(images.labels)
        if domain.name == "digits":  # people wrote them; blocks are cut where they are
            assert counts.min() > 0.85 * counts.mean(), split
        else:
            assert counts.min() == counts.max(), (domain.name, split)


def test_same_fields_same_bytes(small: ScenarioData) -> None:
    np.random.seed(7)  # the global generator must not matter
    assert GlyphsDigits(image_size=16).build().revision == small.revision
    assert GlyphsDigits(image_size=16, seed=1).build().revision != small.revision


def test_revision_follows_every_pixel(small: ScenarioData) -> None:
    images = small.restricted.splits["test"]
    pixels = images.pixels.copy()
    pixels[3, 1, 4, 5] ^= 1
    splits = {**small.restricted.splits, "test": replace(images, pixels=pixels)}
    changed = replace(small, restricted=replace(small.restricted, splits=splits))
    assert changed.revision != small.revision


def test_no_source_is_in_two_splits(data: ScenarioData) -> None:
    for domain in data.domains:
        sources = {s: set(i.sources) for s, i in domain.splits.items() if s != "second_test"}
        for one, other in itertools.combinations(sources, 2):
            assert not sources[one] & sources[other], (domain.name, one, other)


def test_letters_and_greek_agree_on_held_out_fonts(data: ScenarioData) -> None:
    letters, greek = data.original.splits, data.benign[0].splits
    assert set(greek["test"].sources) < set(letters["test"].sources)
    assert set(greek["train"].sources) < set(letters["train"].sources)


def test_no_two_images_share_their_noise(data: ScenarioData) -> None:
    edges = [row.tobytes() for *_, images in all_images(data) for row in images.pixels[:, :, 0]]
    assert len(set(edges)) == len(edges)


def test_digits_are_contiguous_blocks(data: ScenarioData) -> None:
    assert list(itertools.chain(*DIGIT_BLOCKS.values())) == list(range(1797))
    target = load_digits().target
    for split, block in DIGIT_BLOCKS.items():
        images = data.restricted.splits[split]
        assert images.sources.tolist() == [f"digit-{i:04d}" for i in block]
        np.testing.assert_array_equal(images.labels, target[block])


def test_second_test_shows_the_test_sources_otherwise(data: ScenarioData) -> None:
    for domain in (data.original, data.restricted):
        test, second = domain.splits["test"], domain.splits["second_test"]
        np.testing.assert_array_equal(test.sources, second.sources)
        np.testing.assert_array_equal(test.labels, second.labels)
        assert (test.pixels != second.pixels).any(axis=(1, 2, 3)).all()
    assert not any("second_test" in domain.splits for domain in data.benign)


def border(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colour, spread and roughness ``(N, 9)`` of the outermost pixels."""
    sides = (pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1])
    edge = np.concatenate(sides, axis=2).astype(float)
    rough = np.abs(np.diff(edge, axis=2)).mean(axis=2)
    return np.concatenate([edge.mean(axis=2), edge.std(axis=2), rough], axis=1)


def histogram(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares ``(N, 16)`` of the grey levels."""
    return np.stack([(pixels // 16 == level).mean(axis=(1, 2, 3)) for level in range(16)], axis=1)


Statistic = Callable[[NDArray[np.uint8]], NDArray[np.float64]]


# Solid shapes have more ink than strokes, so their histogram may tell; the border may not.
@pytest.mark.parametrize(
    ("statistic", "domains"),
    [(border, ("letters", "digits", "greek", "shapes")), (histogram, ("letters", "digits"))],
)
def test_no_artefact_tells_domains_apart(
    statistic: Statistic, domains: tuple[str, ...], data: ScenarioData
) -> None:
    rng = np.random.default_rng(0)
    splits = {d.name: d.splits for d in data.domains}

    def draw(domain: str, split: str) -> NDArray[np.float64]:
        images = splits[domain].get(split, splits[domain].get("attacker"))
        assert images is not None
        return statistic(images.pixels[rng.choice(len(images), 440, replace=False)])

    for pair in itertools.combinations(domains, 2):
        cheat = LinearDiscriminantAnalysis()
        cheat.fit(np.concatenate([draw(d, "train") for d in pair]), np.repeat([0, 1], 440))
        seen = np.concatenate([draw(d, "test") for d in pair])
        assert cheat.score(seen, np.repeat([0, 1], 440)) < 0.62, pair


def test_drawings_are_normalised_like_the_digits() -> None:
    rng = stream(0, "test")
    levels = rasterise([draw(rng) for draw in SHAPES.values() for _ in range(20)], rng)
    assert levels.shape == (20 * len(SHAPES), RASTER, RASTER)
    assert levels.max() == 16
    assert (levels[:, [0, -1]].max(axis=2) > 0).all(), "the ink fills the height"
    assert (levels.sum(axis=(1, 2)) >= 0.25 * 1024).all(), "no ink is fainter than the digits'"


def test_holes_stay_open() -> None:
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    solid, ring = rasterise([close(square), close(square, square[::-1] / 2)], stream(0, "holes"))
    assert solid[3:5, 3:5].min() == 16
    assert ring[3:5, 3:5].max() == 0


@pytest.mark.parametrize("kernel", ["cubic", "linear"])
def test_interpolation_is_exact_in_float32(kernel: Literal["cubic", "linear"]) -> None:
    weights = _weights(10, 40, kernel)
    np.testing.assert_array_equal(weights.sum(axis=1), 1)
    np.testing.assert_array_equal(weights * 64, np.rint(weights * 64))
    assert weights.min() >= 0


def test_contact_sheet_writes_a_png(small: ScenarioData, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    contact_sheet(small, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_cache_gives_back_what_was_rendered_and_survives_damage(
    tmp_path: Path, small: ScenarioData, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = GlyphsDigits(image_size=16)
    assert scenario.build(tmp_path).revision == small.revision
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(GlyphsDigits, "_render", lambda _self: pytest.fail("rendered again"))
        assert scenario.build(tmp_path).revision == small.revision
    file.write_bytes(file.read_bytes()[:1000])
    assert scenario.build(tmp_path).revision == small.revision
    assert GlyphsDigits(image_size=16, seed=1).build(tmp_path).revision != small.revision
    assert len(list(tmp_path.iterdir())) == 2
