"""CIFAR-100 against faces: small sets in the published formats, through the real loaders."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from sophon_bench import testing
from sophon_bench.cli import main
from sophon_bench.data.scenario import ScenarioError
from sophon_bench.data.scenarios import faces
from sophon_bench.data.tasks.denoising import Denoising
from sophon_bench.harness import generation
from sophon_bench.harness.bench import Bench
from sophon_bench.leaderboard.page.sheets import sheets
from sophon_bench.models.unets import UNet
from sophon_bench.plugins import registry
from sophon_bench.plugins.selectors import construct

NAMES = ("cifar100-celeba", "cifar100-ffhq")

FINE = sorted(name for members in faces.SUPERCLASSES.values() for name in members)
PER_CLASS = {"train": 6, "test": 3}
COUNTS = {"defender": 20, "attacker": 20, "selection": 13, "test": 13}

HEADER = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard "
    "Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair "
    "Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young"
)
ATTRIBUTES = HEADER.split()
PARTITION = {
    identity: 0 if identity <= 12 else 1 if identity <= 16 else 2 for identity in range(21)
}
STRADDLER = 12
"""An identity of CelebA's training partition with most of its images in the test partition."""


def write_cifar(root: Path) -> dict[str, NDArray[np.uint8]]:
    """The raw rows of both parts."""
    folder = root / "cifar-100-python"
    folder.mkdir()
    raw = {}
    for part, count in PER_CLASS.items():
        rng = np.random.default_rng(count)
        labels = rng.permutation(np.repeat(np.arange(100), count)).tolist()
        raw[part] = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        content = {"data": raw[part], "fine_labels": labels, "coarse_labels": [0] * len(labels)}
        folder.joinpath(part).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"fine_label_names": FINE, "coarse_label_names": sorted(faces.SUPERCLASSES)}
    folder.joinpath("meta").write_bytes(pickle.dumps(meta, protocol=2))
    return raw


def write_celeba(root: Path) -> None:
    """Flat squares that say who it is (red) and the label (green), white above and below."""
    folder = root / "celeba"
    folder.joinpath("img_align_celeba").mkdir(parents=True)
    lines: dict[str, list[str]] = {name: [] for name in ("attr", "bbox", "landmarks", "id", "part")}
    people = [*range(1, 21)] * 4
    for number, identity in enumerate(people, start=1):
        name, label = f"{number:06d}.jpg", (number - 1) // 20
        image = Image.new("RGB", (178, 218), "white")
        image.paste((10 * identity, 30 + 60 * label, 99), (0, 20, 178, 198))
        image.save(folder / "img_align_celeba" / name, quality=95)
        signs = {"Male": label // 2, "Smiling": label % 2}
        row = " ".join(f"{2 * signs.get(a, number % 2) - 1:2d}" for a in ATTRIBUTES)
        straddles = identity == STRADDLER and label > 0
        lines["attr"].append(f"{name} {row}")
        lines["bbox"].append(f"{name}    95  71 226 313")
        lines["landmarks"].append(f"{name} 69  109  106  113   77  142   73  152  108  154")
        lines["id"].append(f"{name} {identity}")
        lines["part"].append(f"{name} {2 if straddles else PARTITION[identity]}")
    heads = {
        "attr": HEADER + " ",
        "bbox": "image_id x_1 y_1 width height",
        "landmarks": "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x "
        "leftmouth_y rightmouth_x rightmouth_y",
    }
    files = {
        "attr": "list_attr_celeba.txt",
        "bbox": "list_bbox_celeba.txt",
        "landmarks": "list_landmarks_align_celeba.txt",
        "id": "identity_CelebA.txt",
        "part": "list_eval_partition.txt",
    }
    for key, file in files.items():
        head = [str(len(people)), heads[key]] if key in heads else []
        folder.joinpath(file).write_text("\n".join([*head, *lines[key]]) + "\n")


FFHQ_NUMBERS = {"training": range(980, 1020), "validation": range(1020, 1046)}


def write_ffhq(root: Path) -> None:
    """Flat thumbnails whose red tells the number."""
    for number in itertools.chain(*FFHQ_NUMBERS.values()):
        file = root / f"ffhq/thumbnails128x128/{number // 1000 * 1000:05d}/{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (128, 128), (number - 900, 0, 0)).save(file)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("sets")
    write_celeba(root)
    write_ffhq(root)
    return {"root": root, **write_cifar(root)}


@pytest.fixture
def root(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the sets, named by the environment; counts that suit them."""
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(raw["root"]))
    part = {"train": ("train", slice(0, 3)), "validation": ("train", slice(3, 5))}
    monkeypatch.setattr(faces, "ORIGINAL_SPLITS", {**part, "test": ("test", slice(0, 2))})
    part = {"train": ("train", slice(0, 4)), "selection": ("train", slice(4, 6))}
    monkeypatch.setattr(faces, "BENIGN_SPLITS", {**part, "test": ("test", slice(0, 3))})
    monkeypatch.setattr(faces, "FACE_COUNTS", COUNTS)
    monkeypatch.setattr(faces, "SAMPLES", (4, 20))
    monkeypatch.setattr(faces, "FFHQ_TRAINING", FFHQ_NUMBERS["training"])
    monkeypatch.setattr(faces, "FFHQ_VALIDATION", FFHQ_NUMBERS["validation"])
    found: Path = raw["root"]
    return found


@pytest.fixture
def published(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, taken for the published files, whose MD5 sums small ones cannot have."""
    for module in ("cifar", "celeba"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity",
            lambda path, _md5: Path(path).is_file(),
        )
    return root


def scenario(name: str, **parameters: Any) -> Any:
    return construct(registry.scenarios.get(name), parameters)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("published")
def test_a_scenario_keeps_the_contract(name: str) -> None:
    assert testing.check_scenario(scenario(name, image_size=16), UNet()) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("published")
def test_domains_have_the_documented_splits(name: str) -> None:
    data = scenario(name).build()
    found = {d.name: {s: len(images) for s, images in d.splits.items()} for d in data.domains}
    benign = {"train": 40, "selection": 20, "test": 30}
    assert found == {
        "cifar100": {"train": 240, "validation": 160, "test": 160, "second_test": 160},
        name.removeprefix("cifar100-"): {**COUNTS, "second_test": COUNTS["test"]},
        "vehicles": benign,
        "plants": benign,
    }
    assert data.original.task == data.restricted.task == Denoising(one_step=False)
    assert scenario(name, one_step=True).build().benign[1].task == Denoising(one_step=True)


def test_the_published_counts_are_those_of_the_docstrings() -> None:
    sizes = {split: block.stop - block.start for split, (_, block) in faces.ORIGINAL_SPLITS.items()}
    assert {split: 80 * size for split, size in sizes.items()} == {
        "train": 38400,
        "validation": 1600,
        "test": 1600,
    }
    for splits in (faces.ORIGINAL_SPLITS, faces.BENIGN_SPLITS):
        for part, available in (("train", 500), ("test", 100)):
            taken = [i for of, block in splits.values() if of == part for i in range(500)[block]]
            assert len(set(taken)) == len(taken), "no image of CIFAR-100 is in two splits"
            assert max(taken) < available
    assert faces.FACE_COUNTS["attacker"] == faces.SAMPLES[-1] == 10_000


@pytest.mark.usefixtures("published")
def test_benign_classes_are_held_out_of_the_original_domain(raw: dict[str, Any]) -> None:
    data = scenario("cifar100-celeba").build()
    assert len(set(FINE)) == 100
    assert len(data.original.classes) == 16
    assert data.benign[0].classes == (
        *("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
        *("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
    )
    labels = {
        part: pickle.loads((raw["root"] / "cifar-100-python" / part).read_bytes())["fine_labels"]
        for part in PER_CLASS
    }
    seen: dict[str, set[str]] = {}
    for domain in (data.original, *data.benign):
        for split, images in domain.splits.items():
            for pixels, label, source in zip(
                images.pixels, images.labels, images.sources, strict=True
            ):
                part, index = source.removeprefix("cifar-100-").split("-")
                assert part == ("test" if "test" in split else "train")
                shown = pixels[..., ::-1] if split == "second_test" else pixels
                row = raw[part][int(index)].reshape(3, 32, 32)
                np.testing.assert_array_equal(shown, row, err_msg="32x32 stay as they are")
                fine, named = FINE[labels[part][int(index)]], domain.classes[label]
                assert fine in faces.SUPERCLASSES.get(named, (named,))
                seen.setdefault(domain.name, set()).add(fine)
    assert [len(names) for names in seen.values()] == [80, 10, 10]
    assert len(set().union(*seen.values())) == 100


@pytest.mark.usefixtures("published")
def test_celeba_is_split_by_identity_along_its_partitions() -> None:
    restricted = scenario("cifar100-celeba").build().restricted
    people = {}
    for split, images in restricted.splits.items():
        named = [int(source.removeprefix("celeba-identity-")) for source in images.sources]
        red, green = images.pixels[:, 0].mean(axis=(1, 2)), images.pixels[:, 1].mean(axis=(1, 2))
        np.testing.assert_allclose(red, 10 * np.array(named), atol=4, err_msg="who it is")
        np.testing.assert_allclose(green, 30 + 60 * images.labels, atol=4, err_msg="labels")
        people[split] = set(named)
    assert people["defender"] | people["attacker"] == set(range(1, 13))
    assert not people["defender"] & people["attacker"]
    assert people["selection"] == {13, 14, 15, 16}
    assert people["test"] == {17, 18, 19, 20}, "not the one who is in the training partition too"
    assert restricted.classes == ("female", "female smiling", "male", "male smiling")


@pytest.mark.usefixtures("published")
def test_ffhq_is_split_by_image_along_its_parts() -> None:
    splits = scenario("cifar100-ffhq").build().restricted.splits
    numbers = {}
    for split, images in splits.items():
        numbers[split] = [int(source.removeprefix("ffhq-")) for source in images.sources]
        assert (images.pixels[:, 0].max(axis=(1, 2)) == np.array(numbers[split]) - 900).all()
        assert not images.labels.any()
    assert {*numbers["defender"], *numbers["attacker"]} == {*FFHQ_NUMBERS["training"]}
    assert {*numbers["selection"], *numbers["test"]} == {*FFHQ_NUMBERS["validation"]}
    assert numbers["attacker"] != sorted(numbers["attacker"])


def test_photographs_are_cropped_to_the_central_square_and_antialiased() -> None:
    picture = np.full((40, 64, 3), 255, np.uint8)
    picture[:, 12:52] = np.indices((40, 40)).sum(axis=0)[..., None] % 2 * 200
    square = faces._square(Image.fromarray(picture), 10)
    alone = Image.fromarray(picture[:, 12:52]).resize((10, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(square, np.asarray(alone).transpose(2, 0, 1))
    inner = square[:, 1:-1, 1:-1].astype(int)
    assert abs(inner - 100).max() <= 2, "a fine chequerboard becomes grey"
    upright = faces._square(Image.fromarray(picture.transpose(1, 0, 2)), 10)
    np.testing.assert_array_equal(upright, square.transpose(0, 2, 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("published")
def test_second_test_shows_the_test_mirrored(name: str) -> None:
    data = scenario(name, image_size=16).build()
    for domain in (data.original, data.restricted):
        test, second = domain.splits["test"], domain.splits["second_test"]
        np.testing.assert_array_equal(second.pixels, test.pixels[..., ::-1])
        np.testing.assert_array_equal(second.labels, test.labels)
        np.testing.assert_array_equal(second.sources, test.sources)


@pytest.mark.parametrize("name", NAMES)
def test_the_revision_is_of_the_data_and_not_of_where_it_lies(
    name: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = scenario(name, image_size=16).build().revision
    assert scenario(name, image_size=16, one_step=True).build().revision == revision
    assert scenario(name, image_size=16, seed=1).build().revision != revision
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(published)
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(elsewhere))
    np.random.seed(7)  # the global generator must not matter
    assert scenario(name, image_size=16).build().revision == revision


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("published")
def test_what_was_read_once_is_there_without_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = scenario(name, image_size=16).build(tmp_path).revision
    monkeypatch.delenv("SOPHON_BENCH_DATA")
    again = scenario(name, image_size=16, one_step=True).build(tmp_path)
    assert again.revision == revision
    assert again.restricted.task == Denoising(one_step=True)
    for other in ({"image_size": 32}, {"image_size": 16, "seed": 1}):
        with pytest.raises(ScenarioError, match="not set"):
            scenario(name, **other).build(tmp_path)
    (other_set,) = {*NAMES} - {name}
    with pytest.raises(ScenarioError, match="not set"):
        scenario(other_set, image_size=16).build(tmp_path)


def link(source: Path, target: Path) -> None:
    """A folder like ``source``, that may lose files."""
    shutil.copytree(source, target, copy_function=lambda a, b: Path(b).symlink_to(a))


def removes(pattern: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = next(iter(sorted(folder.glob(pattern))))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return path

    return spoil


@pytest.mark.parametrize(
    ("name", "spoil", "page"),
    [
        ("cifar100-celeba", removes("cifar-100-python/meta"), "cs.toronto.edu"),
        ("cifar100-celeba", removes("celeba/identity_CelebA.txt"), "mmlab.ie.cuhk.edu.hk"),
        ("cifar100-celeba", removes("celeba/img_align_celeba"), "mmlab.ie.cuhk.edu.hk"),
        ("cifar100-ffhq", removes("ffhq/thumbnails128x128"), "NVlabs/ffhq-dataset"),
        ("cifar100-ffhq", removes("ffhq/*/01000/01000.png"), "NVlabs/ffhq-dataset"),
    ],
)
def test_a_missing_file_is_named_before_any_image_is_read(
    name: str,
    spoil: Callable[[Path], Path],
    page: str,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link(published, tmp_path / "sets")
    path = spoil(tmp_path / "sets")
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr(faces, "_square", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(ScenarioError) as raised:
        scenario(name).build()
    assert f"{str(path)!r} does not exist" in str(raised.value)
    assert page in str(raised.value)


@pytest.mark.usefixtures("published")
def test_both_sets_are_named_where_both_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(tmp_path))
    with pytest.raises(ScenarioError, match=r"^CIFAR-100 is not in .*; FFHQ is missing too$"):
        scenario("cifar100-ffhq").build()


@pytest.mark.parametrize(("name", "title"), [(NAMES[0], "CelebA"), (NAMES[1], "CIFAR-100")])
@pytest.mark.usefixtures("root")
def test_other_files_than_the_published_ones_are_not_loaded(
    name: str, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("a pickle was loaded"))
    with pytest.raises(ScenarioError, match=f"^{title} in .* is not as published: the MD5 sum"):
        scenario(name).build()


def test_a_damaged_image_is_named(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(published, tmp_path / "sets")
    file = tmp_path / "sets/ffhq/thumbnails128x128/01000/01000.png"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-60])
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(tmp_path / "sets"))
    with pytest.raises(ScenarioError, match=r"01000\.png' cannot be read as an image"):
        scenario("cifar100-ffhq").build()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", [("show",), ("run", "--scenario")])
def test_without_the_sets_a_command_is_refused_in_one_line(
    command: tuple[str, ...], name: str
) -> None:
    result = CliRunner().invoke(main, [*command, name])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "SOPHON_BENCH_DATA is not set; it names the folder with cifar-100-python/train" in line
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in line


def test_a_page_goes_without_pictures_of_sets_that_are_not_here() -> None:
    cell: Any = SimpleNamespace(scenario=SimpleNamespace(label="cifar100-ffhq", revision="r"))
    told: list[str] = []
    assert sheets([cell], told.append) == {}
    assert "no images: the environment variable SOPHON_BENCH_DATA" in told[0]


@pytest.mark.parametrize(("name", "classes"), [(NAMES[0], 4), (NAMES[1], 16)])
@pytest.mark.usefixtures("published")
def test_the_critic_of_unlabelled_faces_learns_the_original_classes(
    name: str, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "STEPS", 3)
    data = dataclasses.replace(scenario(name).build(), generated=8)
    bench = Bench(data, UNet(), device=torch.device("cpu"), precision="fp32")
    made = bench.images(lambda noisy, timesteps: torch.zeros_like(noisy), data.restricted)
    found = bench.judged(made, data.restricted)
    assert found is not None
    critic = bench._critics[data.restricted.name]
    assert critic.model.num_outputs == classes
    assert 1 <= found.classifier_score <= classes
    assert 0 < found.frechet_real < found.frechet, "real faces are nearer than what is no image"
