"""Folders of pictures: levels, splits, what is left out and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sophon_bench.data import kept
from sophon_bench.data.domains import default_name, find_folder, read_set
from sophon_bench.data.folders import list_folder
from sophon_bench.data.roles import HELD_OUT, TEST, TRAINING, Role, domain
from sophon_bench.data.scenario import ScenarioError
from sophon_bench.results.files import WriteError


def draw(file: Path, number: int = 0) -> None:
    """A flat picture whose colour says its number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (number % 256, number // 256, 77)).save(file)


def fill(root: Path, names: str) -> Path:
    """Pictures of these names below ``root``; no two are equal."""
    for number, name in enumerate(names.split()):
        draw(root / name, number)
    return root


CLASSES = "b/1.png b/2.png a/1.png a/2.png a/3.png"
SPLITS = "train/b/1.png train/a/1.png train/a/2.png val/a/1.png val/b/1.png"


def test_classes_are_folders_in_sorted_order(tmp_path: Path) -> None:
    found = list_folder(fill(tmp_path, CLASSES))
    assert found.classes == ("a", "b")
    (pictures,) = found.parts.values()
    assert [(p.source, p.label) for p in pictures] == [
        *((f"a/{n}.png", 0) for n in (1, 2, 3)),
        *((f"b/{n}.png", 1) for n in (1, 2)),
    ]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("train", "val"), ["train", "validation"]),
        (("Train", "Test"), ["train", "test"]),
        (("training", "valid", "testing"), ["train", "validation", "test"]),
        (("train", "dev"), ["train", "validation"]),
    ],
)
def test_splits_are_known_by_their_names(
    names: tuple[str, ...], parts: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, " ".join(f"{name}/{label}/1.png" for name in names for label in "ab"))
    found = list_folder(tmp_path)
    assert [*found.parts] == parts
    assert found.parts["train"][1].source == f"{names[0]}/b/1.png"


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    found = list_folder(fill(tmp_path, "train/1.png plane/1.png test/1.png"))
    assert found.classes == ("plane", "test", "train")


def test_pictures_may_lie_deeper_inside_a_class(tmp_path: Path) -> None:
    found = list_folder(fill(tmp_path, "a/1.png a/more/deep/2.PNG b/x/1.JPG b/2.png"))
    assert [p.source for p in found.parts["all"]] == [
        *("a/1.png", "a/more/deep/2.PNG", "b/2.png", "b/x/1.JPG"),
    ]


def test_hidden_files_and_others_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, f"{CLASSES} .hidden/1.png a/._1.png a/.thumbs/1.png __MACOSX/a/1.png")
    for name in ("readme.txt", "a/Thumbs.db", "b/labels.csv", "b/noname"):
        (tmp_path / name).write_text("none")
    (found,) = list_folder(tmp_path).parts.values()
    assert len(found) == 5


def test_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", CLASSES)
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "real/a")
    draw(root / "b/1.png")
    (root / "b/2.png").symlink_to(tmp_path / "real/b/2.png")
    (tmp_path / "other").symlink_to(root)
    found = list_folder(tmp_path / "other").parts["all"]
    assert [p.source for p in found] == ["a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png"]


def test_names_in_any_script(tmp_path: Path) -> None:
    found = list_folder(fill(tmp_path, "Äpfel/ü.png 苹果/图.png"))
    assert found.classes == ("Äpfel", "苹果")


def linked(name: str, target: str) -> Callable[[Path], None]:
    return lambda root: (root / name).symlink_to(root / target if target else root)


def made(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).mkdir(parents=True)


def wrote(name: str) -> Callable[[Path], None]:
    return lambda root: fill(root, name) and None


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        ("", made("."[1:] or "x"), "no picture in .*; expected"),
        ("1.png 2.png", None, r"/1.png' lies at the wrong level|/2.png' lies at the wrong level"),
        (CLASSES, wrote("stray.png"), "/stray.png' lies at the wrong level; expected in .*<class>"),
        (CLASSES, made("c"), "class folder .*/c' has no picture; remove it"),
        (SPLITS, made("val/c"), "class folder .*/val/c' has no picture"),
        (SPLITS, wrote("train/stray.png"), "/train/stray.png' lies at the wrong level"),
        (SPLITS, wrote("val/c/1.png"), "class 'c' is in .*/val' and not in .*/train'"),
        (SPLITS, wrote("train/c/1.png"), "class 'c' is in .*/train' and not in .*/val'"),
        (SPLITS, wrote("more/c/1.png"), "/more/c/1.png' lies beside the splits train, val of"),
        (SPLITS, wrote("valid/a/1.png valid/b/1.png"), "'val' and 'valid' in .* are both taken"),
        (
            "train/a/1.png train/b/1.png",
            None,
            "has 'train' and neither val nor test; name .*train'",
        ),
        ("set/a/1.png set/b/1.png", None, "too deep in .*; did you mean .*/set'[?]"),
        ("x/train/a/1.png x/val/a/1.png", None, "too deep in .*; did you mean .*/x'[?]"),
        ("x/a/1.png y/b/1.png", None, "too deep in .*, .*/x/a/1.png' for one; .* mean .*/x'[?]"),
        ("a/1.png a/2.png", None, "has one class folder, 'a'; at least 2 are expected"),
        (CLASSES, wrote("a/new/deep.png"), None),
        (CLASSES, linked("a/loop", ""), "/a/loop/a' is a link to a folder above it|/a/loop' is a"),
        (CLASSES, linked("a/9.png", "nowhere"), "/a/9.png' is a broken link"),
        (CLASSES, made("a/9.png"), None),
        (CLASSES, lambda root: (root / "a/IMG.HEIC").write_text("x"), "/a/IMG.HEIC': .heic is not"),
    ],
)
def test_wrong_levels_and_files_are_told_by_name(
    names: str, more: Callable[[Path], None] | None, words: str | None, tmp_path: Path
) -> None:
    root = fill(tmp_path, names)
    if more:
        more(root)
    if words is None:
        assert list_folder(root).classes == ("a", "b")
        return
    with pytest.raises(ScenarioError, match=words) as raised:
        list_folder(root)
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"^folder .* does not exist"):
        list_folder(tmp_path / "none")
    (tmp_path / "set.zip").write_text("x")
    with pytest.raises(ScenarioError, match=r"set.zip' is a file; unpack it and name the folder"):
        list_folder(tmp_path / "set.zip")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_has_to_be_readable(tmp_path: Path) -> None:
    fill(tmp_path, CLASSES)
    (tmp_path / "a").chmod(0)
    with pytest.raises(ScenarioError, match="/a' cannot be read: Permission denied"):
        list_folder(tmp_path)


# Kept sets -------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the sets that are decoded."""
    found: list[str] = []
    real = kept._write

    def write(unread: kept.Unread, folder: Path) -> None:
        found.append(unread.title)
        real(unread, folder)

    monkeypatch.setattr(kept, "_write", write)
    return found


def test_a_set_is_decoded_once_and_mapped_afterwards(tmp_path: Path, decoded: list[str]) -> None:
    root, cache = fill(tmp_path / "set", SPLITS), tmp_path / "cache"
    first = read_set(f"folder:{root}", 16, cache)
    again = read_set(f"folder:{root}", 16, cache)
    assert decoded == ["set"]
    assert isinstance(again.parts["train"].pixels, np.memmap)
    in_memory = read_set(f"folder:{root}", 16, None)
    for other in (again, in_memory):
        assert other.classes == first.classes == ("a", "b")
        for part, images in first.parts.items():
            np.testing.assert_array_equal(other.parts[part].pixels, images.pixels)
            np.testing.assert_array_equal(other.parts[part].labels, images.labels)
            np.testing.assert_array_equal(other.parts[part].sources, images.sources)
    train = first.parts["train"]
    assert train.sources.tolist() == ["train/a/1.png", "train/a/2.png", "train/b/1.png"]
    assert train.labels.tolist() == [0, 0, 1]
    assert train.pixels[:, 0, 3, 3].tolist() == [1, 2, 0]
    assert [*cache.iterdir()] == [next(cache.iterdir())], "nothing temporary is left"


def test_writing_to_mapped_pixels_changes_no_file(tmp_path: Path) -> None:
    root, cache = fill(tmp_path / "set", SPLITS), tmp_path / "cache"
    read_set(f"folder:{root}", 16, cache).parts["train"].pixels[:] = 9
    assert read_set(f"folder:{root}", 16, cache).parts["train"].pixels[0, 0, 0, 0] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda root: draw(root / "val/b/2.png", 9),
        lambda root: (root / "train/a/2.png").unlink(),
        lambda root: (root / "train/a/2.png").rename(root / "train/a/3.png"),
        lambda root: draw(root / "train/b/1.png", 9),
    ],
)
def test_changed_files_are_read_anew(
    change: Callable[[Path], object], tmp_path: Path, decoded: list[str]
) -> None:
    root, cache = fill(tmp_path / "set", SPLITS), tmp_path / "cache"
    for file in root.rglob("*.png"):
        os.utime(file, ns=(10**18, 10**18))
    read_set(f"folder:{root}", 16, cache)
    change(root)
    read_set(f"folder:{root}", 16, cache)
    read_set(f"folder:{root}", 32, cache)
    assert len(decoded) == 3


@pytest.mark.parametrize("file", ["pixels.npy", "labels.npy", "set.json"])
@pytest.mark.parametrize("content", [None, b"", b"half"])
def test_a_damaged_cache_is_made_anew(
    file: str, content: bytes | None, tmp_path: Path, decoded: list[str]
) -> None:
    root, cache = fill(tmp_path / "set", SPLITS), tmp_path / "cache"
    read_set(f"folder:{root}", 16, cache)
    (place,) = cache.iterdir()
    if content is None:
        (place / file).unlink()
    else:
        (place / file).write_bytes(content)
    assert len(read_set(f"folder:{root}", 16, cache).parts["validation"]) == 2
    assert len(decoded) == 2


def test_another_process_may_put_the_same_set_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = fill(tmp_path / "set", SPLITS), tmp_path / "cache"
    rename = Path.rename

    def slower(path: Path, place: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        read_set(f"folder:{root}", 16, cache)
        return rename(path, place)

    monkeypatch.setattr(Path, "rename", slower)
    found = read_set(f"folder:{root}", 16, cache)
    assert Path.rename is rename
    assert found.classes == ("a", "b")
    assert len([*cache.iterdir()]) == 1


def test_a_refused_picture_leaves_no_cache(tmp_path: Path) -> None:
    root, cache = fill(tmp_path / "set", SPLITS), tmp_path / "cache"
    (root / "val/a/0.png").write_bytes(b"")
    with pytest.raises(ScenarioError, match=r"/val/a/0.png' is empty \(0 bytes\)"):
        read_set(f"folder:{root}", 16, cache)
    assert [*cache.iterdir()] == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", SPLITS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError):
        read_set(f"folder:{root}", 16, tmp_path / "file")


# Splits ----------------------------------------------------------------------------------------


def many(root: Path, counts: dict[str, int]) -> Path:
    """So many pictures in each folder; no two are equal."""
    number = 0
    for folder, count in counts.items():
        for _ in range(count):
            draw(root / folder / f"{number:04d}.png", number)
            number += 1
    return root


def sizes(root: Path, role: Role, seed: int = 0) -> dict[str, list[int]]:
    """Images of each class by split."""
    found = domain("set", role, read_set(f"folder:{root}", 16, None), seed)
    sources = [set(i.sources.tolist()) for s, i in found.splits.items() if s != "second_test"]
    assert sum(map(len, sources)) == len(set().union(*sources)), "no file is in two splits"
    assert found.task.num_outputs == len(found.classes)
    return {s: np.bincount(i.labels).tolist() for s, i in found.splits.items()}


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("original", {"test": [8, 2], "validation": [4, 1], "train": [28, 7]}),
        ("restricted", {"test": [8, 2], "selection": [4, 1], "attacker": [20, 5],
                        "defender": [8, 2]}),
        ("benign", {"test": [8, 2], "selection": [4, 1], "train": [28, 7]}),
    ],
)  # fmt: skip
def test_a_folder_without_splits_is_split_by_class(
    role: Role, expected: dict[str, list[int]], tmp_path: Path
) -> None:
    if role != "benign":
        expected = {**expected, "second_test": expected["test"]}
    assert sizes(many(tmp_path, {"a": 40, "b": 10}), role) == expected


def test_test_images_come_from_the_test_part(tmp_path: Path) -> None:
    counts = {"train/a": 30, "train/b": 20, "val/a": 5, "val/b": 7}
    found = sizes(many(tmp_path, counts), "original")
    assert found == {
        **{"test": [5, 7], "second_test": [5, 7], "validation": [3, 2], "train": [27, 18]}
    }


def test_validation_images_come_from_the_validation_part_if_there_is_a_test(tmp_path: Path) -> None:
    counts = {f"{part}/{label}": n for part, n in (("train", 8), ("val", 5), ("test", 6))
              for label in "ab"}  # fmt: skip
    root = many(tmp_path, counts)
    assert sizes(root, "restricted") == {
        **{"test": [6, 6], "second_test": [6, 6], "selection": [5, 5]},
        **{"attacker": [4, 4], "defender": [4, 4]},
    }
    found = domain("set", "original", read_set(f"folder:{root}", 16, None), 0)
    for split, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert {source.split("/")[0] for source in found.splits[split].sources} == {part}


def test_splits_have_at_most_so_many_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in (TEST, HELD_OUT, TRAINING):
        monkeypatch.setitem(table, "restricted", table["restricted"])
    monkeypatch.setitem(TEST, "restricted", TEST["restricted"]._replace(most=6))
    shares = {name: share._replace(most=8) for name, share in TRAINING["restricted"].items()}
    monkeypatch.setitem(TRAINING, "restricted", shares)
    found = sizes(many(tmp_path, {"a": 40, "b": 40}), "restricted")
    assert found["test"] == [3, 3]
    assert found["attacker"] == found["defender"] == [4, 4]


@pytest.mark.parametrize("count", [4, 5, 6])
def test_every_class_is_in_every_split(count: int, tmp_path: Path) -> None:
    for counts in sizes(many(tmp_path, {"a": count, "b": 30}), "restricted").values():
        assert min(counts) >= 1


def test_splits_depend_on_the_seed_alone(tmp_path: Path) -> None:
    found = read_set(f"folder:{many(tmp_path, {'a': 20, 'b': 20})}", 16, None)
    one, again, other = (
        domain("set", "original", found, seed).splits["test"].sources.tolist() for seed in (0, 0, 1)
    )
    assert one == again != other


@pytest.mark.parametrize(
    ("counts", "role", "words"),
    [
        ({"a": 1, "b": 9}, "original", "set: class 'a' has 1 different image; at least 3 are "
         "needed, one for each of test, validation, train$"),
        ({"a": 9, "b": 3}, "restricted", "set: class 'b' has 3 different images; at least 4 are "
         "needed, one for each of test, selection, attacker, defender$"),
        ({"train/a": 9, "train/b": 1, "val/a": 2, "val/b": 2}, "benign", "set/train: class 'b' "
         "has 1 different image; at least 2"),
    ],
)  # fmt: skip
def test_too_few_images_of_a_class_are_told(
    counts: dict[str, int], role: Role, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ScenarioError, match=words):
        sizes(many(tmp_path, counts), role)


def test_of_equal_images_one_is_used_and_the_test_part_comes_first(tmp_path: Path) -> None:
    root = many(tmp_path, {f"{p}/{c}": 6 for p in ("train", "val") for c in "ab"})
    for copy in ("train/a/copy.png", "train/a/again.png"):
        (root / copy).write_bytes(next((root / "val/b").iterdir()).read_bytes())
    found = sizes(root, "benign")
    assert found == {"test": [6, 6], "selection": [1, 1], "train": [5, 5]}


def test_second_test_shows_the_test_mirrored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        file = tmp_path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    splits = domain("set", "original", read_set(f"folder:{tmp_path}", 16, None), 0).splits
    np.testing.assert_array_equal(splits["second_test"].pixels, splits["test"].pixels[..., ::-1])
    assert splits["second_test"].sources.tolist() == splits["test"].sources.tolist()


# Names -----------------------------------------------------------------------------------------


def test_a_folder_is_found_where_its_path_says_or_among_the_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sets/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_folder("folder:sets/mine") == Path("sets/mine")
    with pytest.raises(ScenarioError, match=r"folder 'mine' is not there: no .*, and SOPHON_BENCH"):
        find_folder("folder:mine")
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(tmp_path / "sets"))
    assert find_folder("folder:mine") == tmp_path / "sets/mine"
    with pytest.raises(ScenarioError, match=r"'other' is not there: no .* or .*sets/other'$"):
        find_folder("folder:other")
    with pytest.raises(ScenarioError, match=r"'folder:' names no folder; the form is folder:PATH"):
        find_folder("folder:")


def test_a_folder_is_called_by_its_last_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {
        "folder:.": "mine",
        "folder:../link/": "link",
        "folder:~/mine": "mine",
        "cifar10": "cifar10",
    }
    assert {text: default_name(text) for text in names} == names
