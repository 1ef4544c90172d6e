"""Photographs packed for another machine: the same data, from fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.pack_photographs import pack_sets
from test_published_sets import CIFAR, IMAGENETTE, WRITE, root, write_folder

from sophon_bench.data import roles
from sophon_bench.data.published import sets_in
from sophon_bench.data.roles import Share
from sophon_bench.data.scenario import ScenarioData
from sophon_bench.data.sets import WORDNET
from sophon_bench.plugins.registry import scenarios

__all__ = ["root"]

SIZE = 16


@pytest.fixture
def sets(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sets, of which splits take some images; two of CIFAR-10 are equal."""
    for role, split in (("original", "train"), ("restricted", "attacker"), ("benign", "train")):
        monkeypatch.setitem(roles.TEST, role, Share(20, 0.2))
        monkeypatch.setitem(roles.TRAINING, role, {split: Share(20, 0.5)})
    monkeypatch.setitem(
        roles.TRAINING, "restricted", {"attacker": Share(20, 0.5), "defender": Share(10, 0.2)}
    )
    write_folder(root / "imagenette2-160", "imagenette", IMAGENETTE, tuple(WORDNET))
    write_folder(root / "cifar10", "cifar10", {"train": "train", "test": "test"}, CIFAR)
    WRITE["mnist"](root)
    one, other = sorted((root / "cifar10/train/cat").iterdir())[:2]
    other.write_bytes(one.read_bytes())
    return root


def built(folder: Path) -> ScenarioData:
    with sets_in(folder):
        return scenarios.get("imagenette-cifar10").cls(image_size=SIZE).build()


def test_a_pack_is_the_same_data(sets: Path, tmp_path: Path) -> None:
    revision = pack_sets(sets, tmp_path / "pack", size=SIZE, cache=None)
    assert built(tmp_path / "pack").revision == revision == built(sets).revision
    for name in ("imagenette2-160", "cifar10"):
        files = [*(sets / name).rglob("*.png")]
        packed = [(tmp_path / "pack" / file.relative_to(sets)).read_bytes() for file in files]
        carried = [file.read_bytes() == given for file, given in zip(files, packed, strict=True)]
        assert {*carried} == {True, False}
        assert all(
            len(given) < 100 for given, same in zip(packed, carried, strict=True) if not same
        )


def test_a_lossy_pack_is_another_revision_of_the_same_draws(sets: Path, tmp_path: Path) -> None:
    revision = pack_sets(sets, tmp_path / "pack", size=SIZE, cache=None, quality=90)
    lossy, whole = built(tmp_path / "pack"), built(sets)
    assert lossy.revision != revision
    for one, other in zip(lossy.domains, whole.domains, strict=True):
        for split, images in one.splits.items():
            np.testing.assert_array_equal(images.sources, other.splits[split].sources)
            same = np.array_equal(images.pixels, other.splits[split].pixels)
            assert same == (one.name != "imagenette")
