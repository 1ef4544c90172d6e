"""Published sets: small ones in the published formats, through the real readers."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sophon_bench.data import checking
from sophon_bench.data.domains import read_set
from sophon_bench.data.published import DIGITS, near_duplicates
from sophon_bench.data.scenario import ScenarioError
from sophon_bench.data.scenarios.photographs import _Photographs
from sophon_bench.data.sets import SETS, WORDNET
from sophon_bench.plugins.registry import scenarios

SHARED = Path(__file__).parents[2] / "shared/data"
"""Where real sets may lie beside the repository."""

PAIRS = [f"imagenette-{name}" for name in ("cifar10", "cinic10", "stl10", "svhn", "mnist")]
PAIRS += ["cifar10-stl10"]

PER_CLASS = {"train": 6, "validation": 3, "test": 4}

STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def drawn(name: str, part: str, side: int, classes: int = 10) -> tuple[Any, NDArray[np.int64]]:
    """Images ``(N, side, side, 3)`` and labels of a part, mixed."""
    rng = np.random.default_rng([*f"{name}/{part}".encode()])
    labels = rng.permutation(np.repeat(np.arange(classes), PER_CLASS[part]))
    return rng.integers(0, 256, (len(labels), side, side, 3), np.uint8), labels


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    images, labels = drawn("cifar10", "train", 32)
    blocks = np.array_split(np.arange(len(labels)), 5)
    batches = {f"data_batch_{n}": (images[b], labels[b]) for n, b in enumerate(blocks, start=1)}
    for file, (pixels, targets) in {**batches, "test_batch": drawn("cifar10", "test", 32)}.items():
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        content = {"data": rows, "labels": targets.tolist()}
        folder.joinpath(file).write_bytes(pickle.dumps(content, protocol=2))
    folder.joinpath("batches.meta").write_bytes(pickle.dumps({"label_names": [*CIFAR]}, protocol=2))


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for part in ("train", "test"):
        images, labels = drawn("cifar100", part, 32, 100)
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        content = {"data": rows, "fine_labels": labels.tolist()}
        folder.joinpath(part).write_bytes(pickle.dumps(content, protocol=2))
    names = [f"c{n:02d}" for n in range(100)]
    folder.joinpath("meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for part in ("train", "test"):
        images, labels = drawn("stl10", part, 96)
        # column by column, labels from 1
        images.transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")
        (labels + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    folder.joinpath("class_names.txt").write_text("\n".join(STL) + "\n")


def write_svhn(root: Path) -> None:
    from scipy.io import savemat

    folder = root / "svhn"
    folder.mkdir()
    for part in ("train", "test"):
        images, labels = drawn("svhn", part, 32)
        content = {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels, labels, 10)[:, None]}
        savemat(folder / f"{part}_32x32.mat", content)


def write_idx(folder: Path, name: str, *, packed: bool) -> None:
    folder.mkdir(parents=True)
    for part, of in (("train", "train"), ("t10k", "test")):
        images, labels = drawn(name, of, 28)
        grey = images[..., 0]
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">4i", 0x803, *grey.shape) + grey.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">2i", 0x801, len(labels))
            + labels.astype(np.uint8).tobytes(),
        }
        for file, content in files.items():
            if packed:
                folder.joinpath(f"{file}.gz").write_bytes(gzip.compress(content))
            else:
                folder.joinpath(file).write_bytes(content)


def write_folder(root: Path, name: str, parts: dict[str, str], classes: tuple[str, ...]) -> None:
    for folder, part in parts.items():
        images, labels = drawn(name, part, 40)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = root / folder / classes[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)


CINIC = {"train": "train", "valid": "validation", "test": "test"}
IMAGENETTE = {"train": "train", "val": "validation"}

WRITE: dict[str, Callable[[Path], None]] = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "stl10": write_stl10,
    "svhn": write_svhn,
    "mnist": lambda root: write_idx(root / "MNIST/raw", "mnist", packed=True),
    "fashion-mnist": lambda root: write_idx(
        root / "FashionMNIST/raw", "fashion-mnist", packed=False
    ),
    "cinic10": lambda root: write_folder(root / "CINIC-10", "cinic10", CINIC, CIFAR),
    "imagenette": lambda root: write_folder(
        root / "imagenette2-160", "imagenette", IMAGENETTE, tuple(WORDNET)
    ),
}
SIDES = {"cifar10": 32, "cifar100": 32, "stl10": 96, "svhn": 32, "mnist": 28, "fashion-mnist": 28}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sets, and what is published as small as what tests write."""
    folder = tmp_path / "sets"
    folder.mkdir()
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(folder))
    for name, found in list(SETS.items()):
        classes = 100 if name == "cifar100" else 10
        counts = {part: classes * PER_CLASS[part] for part in found.counts}
        monkeypatch.setitem(SETS, name, dataclasses.replace(found, counts=counts))
    return folder


@pytest.fixture
def published(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, taken for the published files, whose MD5 sums small ones cannot have."""
    for module in ("cifar", "svhn", "utils"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity",
            lambda path, _md5: Path(path).is_file(),
        )
    return root


def test_every_set_is_tested() -> None:
    assert WRITE.keys() == SETS.keys()


@pytest.mark.parametrize("name", SIDES)
def test_arrays_come_out_as_they_were_written(name: str, published: Path) -> None:
    WRITE[name](published)
    side, classes = SIDES[name], 100 if name == "cifar100" else 10
    found = read_set(name, side, None)
    assert len(found.classes) == classes
    assert [*found.parts] == ["train", "test"]
    for part, images in found.parts.items():
        pixels, labels = drawn(name, part, side, classes)
        if "mnist" in name:
            pixels = np.repeat(pixels[..., :1], 3, axis=-1)
        left_out = [*near_duplicates(name)] if part == "train" else []
        kept = np.setdiff1d(np.arange(len(labels)), left_out)
        np.testing.assert_array_equal(images.pixels, pixels[kept].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(images.labels, labels[kept])
        assert images.sources.tolist() == [f"{name}-{part}-{number:06d}" for number in kept]


@pytest.mark.parametrize(("name", "count"), [("cifar10", 279), ("cifar100", 831), ("mnist", 0)])
def test_near_duplicates_are_as_many_as_were_listed(name: str, count: int) -> None:
    assert len(near_duplicates(name)) == count
    assert near_duplicates(name) <= {*range(SETS[name].counts["train"])}


def test_another_list_is_another_set(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cache too; no test image is left out, nor any of a folder of pictures."""
    write_cifar10(published)
    keys = []
    for listed, left in ((set(), 60), ({0, 7, 59}, 57)):
        monkeypatch.setattr(
            "sophon_bench.data.published.near_duplicates", lambda _name, listed=listed: listed
        )
        unread = SETS["cifar10"].unread(16)
        keys.append(unread.key)
        _, parts = unread.open()
        assert {part: len(found.labels) for part, found in parts.items()} == {
            "train": left,
            "test": 40,
        }
    assert keys[0] != keys[1]
    assert not {f"cifar10-train-{n:06d}" for n in listed} & {*parts["train"].sources}
    (published / "cifar-10-batches-py").rename(published / "elsewhere")
    write_folder(published / "cifar10", "cifar10", {"train": "train", "test": "test"}, CIFAR)
    assert len(SETS["cifar10"].unread(16).open()[1]["train"].labels) == 60


@pytest.mark.parametrize(
    ("name", "folder"), [("cinic10", "CINIC-10"), ("imagenette", "imagenette2-160")]
)
def test_folders_come_out_as_they_were_written(name: str, folder: str, published: Path) -> None:
    WRITE[name](published)
    found = read_set(name, 40, None)
    names = CINIC if name == "cinic10" else IMAGENETTE
    assert found.classes == (CIFAR if name == "cinic10" else tuple(WORDNET.values()))
    assert {*found.parts} == {*names.values()}
    for above, part in names.items():
        pixels, labels = drawn(name, part, 40)
        for image, label, source in zip(
            found.parts[part].pixels, found.parts[part].labels, found.parts[part].sources,
            strict=True,
        ):  # fmt: skip
            number = int(Path(source).stem)
            assert source.startswith(f"{above}/")
            assert label == labels[number]
            np.testing.assert_array_equal(image, pixels[number].transpose(2, 0, 1))


def test_cifar10_may_be_a_folder_of_pictures(published: Path) -> None:
    write_folder(published / "cifar10", "cifar10", {"train": "train", "test": "test"}, CIFAR)
    assert len(read_set("cifar10", 16, None).parts["train"]) == 60


def test_svhn_has_zero_as_its_first_class(published: Path) -> None:
    write_svhn(published)
    found = read_set("svhn", 16, None)
    assert found.classes == DIGITS
    assert found.parts["train"].labels.tolist() == drawn("svhn", "train", 32)[1].tolist()


def test_imagenette_is_taken_in_the_smallest_size_that_suffices(published: Path) -> None:
    for end in ("-160", "-320", ""):
        write_folder(published / f"imagenette2{end}", "imagenette", IMAGENETTE, tuple(WORDNET))
    places = [SETS["imagenette"].place(size)[1].files[0] for size in (64, 160, 224, 400)]
    assert places == ["imagenette2-160", "imagenette2-160", "imagenette2-320", "imagenette2"]
    for end in ("-320", ""):
        (published / f"imagenette2{end}").rename(published / f"other{end}")
    assert SETS["imagenette"].place(224)[1].files == ("imagenette2-160",)


@pytest.mark.parametrize("name", PAIRS)
def test_named_pairs_are_scenarios(name: str, published: Path, tmp_path: Path) -> None:
    scenario: _Photographs = scenarios.get(name).cls(image_size=16)
    for each in scenario.domains:
        if each in WRITE:
            WRITE[each](published)
    data = scenario.build(tmp_path / "cache")
    assert list(checking.problems(data)) == []
    assert f"{data.original.name}-{data.restricted.name}" == name
    assert scenarios.get(name).cls().image_size == 64, "the paper's"
    words = f"pair[original={data.original.name},restricted={data.restricted.name},benign=["
    assert words + ",".join(d.name for d in data.benign) in scenario.__doc__.replace("\n    ", "")
    pair = scenarios.get("pair").cls(
        original=data.original.name,
        restricted=data.restricted.name,
        benign=tuple(d.name for d in data.benign),
        image_size=16,
    )
    assert pair.build(tmp_path / "cache").revision == data.revision, "a name for the pair"
    assert data.benign[0].name == ("greek" if name[-4:] in ("svhn", "nist") else "mnist")


def test_stl10_is_related_to_cifar10_by_its_shared_classes(published: Path, tmp_path: Path) -> None:
    scenario = scenarios.get("imagenette-cifar10-related").cls(image_size=16)
    for each in ("imagenette", "cifar10", "mnist", "stl10"):
        WRITE[each](published)
    data = scenario.build(tmp_path / "cache")
    assert list(checking.problems(data)) == []
    plain = scenarios.get("imagenette-cifar10").cls(image_size=16).build(tmp_path / "cache")
    assert [d.name for d in data.domains] == [*(d.name for d in plain.domains), "stl10-shared"]
    assert set(data.benign[-1].classes) == {*STL} - {"monkey"}


# What is wrong ---------------------------------------------------------------------------------


def refused(name: str) -> str:
    with pytest.raises(ScenarioError) as raised:
        read_set(name, 16, None)
    words = str(raised.value)
    assert len(words.splitlines()) == 1
    return words


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_is_told(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SETS[name]
    assert refused(name).startswith(
        f"{found.title} is not in '{root}'; expected there: {found.layouts[0].files[0]}"
    )
    assert found.page in refused(name)
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(root / "nowhere"))
    assert refused(name) == (
        f"the folder of sets '{root}/nowhere' (--data or SOPHON_BENCH_DATA) does not exist"
    )
    monkeypatch.delenv("SOPHON_BENCH_DATA")
    assert "by --data or SOPHON_BENCH_DATA" in refused(name)


def test_a_folder_that_may_not_be_looked_into_is_passed_over(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, stat = root / "lost+found", Path.stat
    closed.mkdir()

    def refusing(path: Path, **how: Any) -> Any:
        if path.parent == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", refusing)
    assert f"is not in '{root}'" in refused("cifar10")


@pytest.mark.parametrize("name", SETS)
def test_a_set_at_another_level_is_told(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeper = root / "deeper"
    deeper.mkdir()
    WRITE[name](deeper)
    assert f"name the folder above it: --data '{deeper}'" in refused(name)
    inside = next(path for path in deeper.iterdir() if path.is_dir())
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(inside))
    assert f"is at another level: '{deeper}/" in refused(name)


@pytest.mark.parametrize(
    ("name", "folder"),
    [(name, folder) for name, found in SETS.items() for folder in found.others],
)
def test_another_version_is_told(name: str, folder: str, root: Path) -> None:
    (root / folder).mkdir()
    assert refused(name).startswith(f"'{root / folder}' is {SETS[name].others[folder]}; expected")


ARRAYS = [name for name in SIDES if len(SETS[name].layouts[0].files) > 1]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_file_is_told(name: str, published: Path) -> None:
    WRITE[name](published)
    _, layout = SETS[name].place(16)
    (published / layout.files[-1]).unlink()
    assert refused(name).startswith(
        f"{SETS[name].title} is not whole: '{published / layout.files[-1]}' does not exist"
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "svhn"])
def test_other_files_than_the_published_ones_are_not_loaded(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITE[name](root)
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("a pickle was loaded"))
    monkeypatch.setattr("scipy.io.loadmat", lambda *_, **__: pytest.fail("a file was loaded"))
    assert "is not as published: the MD5 sum of one of its files differs" in refused(name)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:6],
        lambda content: b"",
        lambda content: b"<html>not found</html>" * 9,
    ],
)
def test_damaged_idx_files_are_told(
    name: str, damage: Callable[[bytes], bytes], root: Path
) -> None:
    WRITE[name](root)
    (file,) = (root / SETS[name].layouts[0].files[0]).parent.glob("train-images*")
    file.write_bytes(damage(file.read_bytes()))
    assert refused(name).startswith(f"'{file}' of {SETS[name].title} is damaged: ")


@pytest.mark.parametrize(("name", "part"), [("imagenette", "val"), ("cinic10", "train")])
def test_a_set_with_too_few_pictures_is_told(name: str, part: str, root: Path) -> None:
    WRITE[name](root)
    folder = root / SETS[name].layouts[0].files[0]
    next((folder / part).rglob("*.png")).unlink()
    assert f"{SETS[name].title} in '{root}' has " in refused(name)
    assert " were published; get it again from " in refused(name)


def test_nothing_is_decoded_where_another_set_is_missing(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITE["imagenette"](published)
    monkeypatch.setattr("sophon_bench.data.kept._write", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ScenarioError, match=r"^CIFAR-10 is not in "):
        scenarios.get("imagenette-cifar10").cls(image_size=16).build()


# Real sets -------------------------------------------------------------------------------------

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")


@needs_shared
def test_the_real_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(SHARED))
    classes, found = SETS["mnist"].arrays()
    assert classes == DIGITS
    assert found["train"][1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert found["test"][0].shape == (10_000, 28, 28)
    assert found["train"][0].mean() == pytest.approx(33.318, abs=1e-3)


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("archive", "name"), [("imagenette2-96.zip", "imagenette"), ("cifar10-images.zip", "cifar10")]
)
def test_real_photographs(
    archive: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(SHARED / archive) as packed:
        packed.extractall(tmp_path)
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(tmp_path))
    found = read_set(name, 16, tmp_path / "cache")
    assert {part: len(images) for part, images in found.parts.items()} == SETS[name].counts
    assert found.classes == (tuple(WORDNET.values()) if name == "imagenette" else CIFAR)
    assert 90 < found.parts["train"].pixels.mean() < 130
