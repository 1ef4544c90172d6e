"""Scenarios of tasks that are related to the restricted one, and how related they are."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sophon_bench.data import checking
from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.data.scenarios.glyphs_digits import DIGIT_BLOCKS, GlyphsDigits
from sophon_bench.data.scenarios.related import (
    ALPHABETS,
    SHARED,
    SPLITS,
    VARIANTS,
    GlyphsRelated,
    _with_classes,
)
from sophon_bench.data.tasks.classification import Classification


@pytest.fixture(scope="module")
def data() -> ScenarioData:
    return GlyphsRelated(image_size=16).build()


def test_related_tasks_stand_beside_the_domains_of_the_embedded_scenario(
    data: ScenarioData,
) -> None:
    base = GlyphsDigits(image_size=16).build()
    known = len(base.domains)
    for own, other in zip(data.domains[:known], base.domains, strict=True):
        assert own.name == other.name
        for split, images in other.splits.items():
            assert np.array_equal(own.splits[split].pixels, images.pixels)
    assert [d.name for d in data.domains[known:]] == [*ALPHABETS, *VARIANTS]
    assert list(checking.problems(data)) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_no_defender_has_the_digits_of_a_related_task(name: str, data: ScenarioData) -> None:
    target = load_digits().target
    held = set(data.restricted.splits["defender"].sources.tolist())
    for split, block in SPLITS.items():
        images = data.domain(name).splits[split]
        assert not held & set(images.sources.tolist())
        digits = target[np.array(DIGIT_BLOCKS[block])]
        labels = digits % 2 if name == "digits-parity" else digits
        assert np.array_equal(images.labels, labels)


def test_rasters_are_shifted_turned_and_inverted() -> None:
    levels = load_digits().images[:8].astype(np.uint8)
    shifted = VARIANTS["digits-shifted"](levels)
    corners = [(y, x) for y in (0, 4) for x in (0, 4)] * 2
    for raster, into, (y, x) in zip(levels, shifted, corners, strict=True):
        assert np.array_equal(into[y : y + 8, x : x + 8], raster)
        assert into.sum() == raster.sum()
    turned = VARIANTS["digits-rotated"](levels)
    assert np.array_equal(turned[0], np.rot90(levels[0]))
    assert np.array_equal(VARIANTS["digits-inverted"](levels), 16 - levels)


def test_coloured_digits_have_more_colour(data: ScenarioData) -> None:
    def saturation(domain: DomainData) -> float:
        pixels = domain.splits["test"].pixels.astype(float)
        return float((pixels.max(axis=1) - pixels.min(axis=1)).mean())

    assert saturation(data.domain("digits-coloured")) > 1.5 * saturation(data.restricted)


def test_classes_that_are_not_shared_are_left_out() -> None:
    classes = ("airplane", "bird", "car", "monkey", "ship")
    labels = np.array([0, 3, 4, 2, 3, 1])
    pixels = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), np.uint8)
    images = Images(pixels, labels, np.array([f"i{n}" for n in range(6)]))
    found = _with_classes(
        DomainData("stl10", Classification(5), classes, {"test": images}), "stl10-shared"
    )
    assert found.classes == ("airplane", "bird", "car", "ship")
    assert set(found.classes) <= SHARED
    assert found.task.num_outputs == 4
    assert found.splits["test"].labels.tolist() == [0, 3, 2, 1]
    assert found.splits["test"].sources.tolist() == ["i0", "i2", "i3", "i5"]
