"""``pair[…]``: two folders of pictures as a scenario."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sophon_bench import testing
from sophon_bench.cli import main
from sophon_bench.data import checking
from sophon_bench.data.domains import build_domain
from sophon_bench.data.scenario import ScenarioError
from sophon_bench.data.scenarios.pair import Pair
from sophon_bench.execution.plan import Setting, _pretrain
from sophon_bench.execution.runs import build, find_scenarios, find_setting
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry
from sophon_bench.plugins.failures import BadInput
from sophon_bench.plugins.selectors import SelectorError, construct, parse

SMALL = "image_size=16,pretrain_steps=2"


def draw(root: Path, classes: str, count: int, *, split: str = "") -> Path:
    """Stripes with noise, as JPEG files; their direction is the class."""
    rng = np.random.default_rng([len(classes), count])
    y, x = np.mgrid[:24, :24]
    for number, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        angle = np.pi * number / len(classes)
        for image in range(count):
            wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 2 + rng.uniform(0, 6))
            noisy = 128 + 80 * wave[..., None] + rng.normal(0, 20, (24, 24, 3))
            pixels = noisy.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{image}.jpg")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    draw(root / "flowers", "abc", 12)
    draw(root / "animals", "xy", 30, split="train")
    draw(root / "animals", "xy", 8, split="test")
    draw(root / "tools", "pq", 10)
    return root


@pytest.fixture
def here(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folders)
    return folders


def selector(root: Path | str, more: str = SMALL) -> str:
    at = {name: f"'folder:{Path(root) / name}'" for name in ("flowers", "animals", "tools")}
    return (
        f"pair[original={at['flowers']},restricted={at['animals']},benign=[{at['tools']}],{more}]"
    )


def setting(text: str, cache: Path) -> Setting:
    return find_setting(text, "test_resnet", "fp32", cache=cache)


def test_two_folders_are_a_scenario(folders: Path, tmp_path: Path) -> None:
    (trial,) = find_scenarios([selector(folders)], None)
    data = build(trial, tmp_path)
    found = {d.name: {s: len(images) for s, images in d.splits.items()} for d in data.domains}
    assert found == {
        "flowers": {"test": 6, "second_test": 6, "validation": 3, "train": 27},
        "animals": {"test": 16, "second_test": 16, "selection": 6, "attacker": 30, "defender": 24},
        "tools": {"test": 4, "selection": 2, "train": 14},
    }
    assert data.original.classes == ("a", "b", "c")
    assert (data.image_size, data.samples) == (16, (30,))
    assert data.recipes == ((2, 3e-4), (2, 1e-3))
    assert testing.check_scenario(trial.plugin, Backbone.of("test_resnet")) == []


def test_drawn_domains_are_benign_by_default(here: Path, tmp_path: Path) -> None:
    data = Pair(original="folder:flowers", restricted="folder:animals", image_size=16).build(
        tmp_path
    )
    assert [domain.name for domain in data.benign] == ["greek", "shapes"]
    assert list(checking.problems(data)) == []


def test_drawn_domains_are_enlarged_to_large_sizes(tmp_path: Path) -> None:
    small, large = (
        build_domain("shapes", "benign", name="s", size=size, seed=0, cache=tmp_path)
        for size in (64, 80)
    )
    images = large.splits["test"]
    assert images.pixels.shape == (500, 3, 80, 80)
    assert images.pixels.mean() == pytest.approx(small.splits["test"].pixels.mean(), abs=1)
    assert len([*tmp_path.iterdir()]) == 1, "drawn once"


def test_drawn_domains_take_their_roles(here: Path, tmp_path: Path) -> None:
    data = Pair(original="letters", restricted="folder:animals", image_size=16).build(tmp_path)
    assert len(data.original.classes) == 26
    with pytest.raises(ScenarioError, match="'shapes' is drawn as benign domain; it"):
        Pair(original="letters", restricted="shapes", benign=(), image_size=16).build(tmp_path)


def test_the_attacker_is_given_as_many_samples_as_there_are(tmp_path: Path) -> None:
    draw(tmp_path / "o", "ab", 10)
    draw(tmp_path / "r", "ab", 240)
    data = Pair(
        original=f"folder:{tmp_path}/o", restricted=f"folder:{tmp_path}/r", image_size=16
    ).build()
    assert len(data.restricted.pool) == 240
    assert data.samples == (100,)


# Identity --------------------------------------------------------------------------------------


def test_records_name_no_path(folders: Path, tmp_path: Path) -> None:
    found = setting(selector(folders), tmp_path).data_id
    assert found.label == (
        "pair[original=folder:flowers,restricted=folder:animals,benign=[folder:tools],"
        "image_size=16,pretrain_steps=2]"
    )
    assert str(folders) not in json.dumps(found.parameters)
    assert found.parameters["names"] == []


def test_where_the_folders_lie_is_no_part_of_the_identity(folders: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(folders, tmp_path / "else where")
    (tmp_path / "renamed").mkdir()
    for name in ("flowers", "animals", "tools"):
        shutil.copytree(folders / name, tmp_path / "renamed" / name)
    (tmp_path / "renamed/flowers").rename(tmp_path / "renamed/plants")
    here, there = (setting(selector(root), cache) for root in (folders, tmp_path / "else where"))
    assert here.data_id == there.data_id
    assert _pretrain(here, 0).key == _pretrain(there, 0).key
    renamed = selector(tmp_path / "renamed", f"{SMALL},names=[flowers,animals,tools]")
    named = setting(renamed.replace("/flowers'", "/plants'"), cache)
    assert named.data_id == here.data_id


@pytest.mark.parametrize("change", ["pixels", "label", "file"])
def test_what_is_in_the_folders_is_the_identity(change: str, folders: Path, tmp_path: Path) -> None:
    before = setting(selector(folders), tmp_path).data_id
    copy = tmp_path / "copy"
    shutil.copytree(folders, copy)
    file = copy / "tools/p/3.jpg"
    if change == "pixels":
        Image.new("RGB", (24, 24), "red").save(file)
    elif change == "label":
        file.rename(copy / "tools/q/10.jpg")
    else:
        file.unlink()
    after = setting(selector(copy), tmp_path).data_id
    assert after.parameters == before.parameters
    assert after.revision != before.revision


def test_a_record_is_built_again_where_its_folders_are(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = setting(selector(here), tmp_path).data_id
    assert setting(found.label, tmp_path).data_id == found
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError, match="folder 'flowers' is not there"):
        setting(found.label, tmp_path)
    monkeypatch.setenv("SOPHON_BENCH_DATA", str(here))
    assert setting(found.label, tmp_path).data_id == found


def test_names_of_published_and_drawn_domains_are_kept() -> None:
    pair = Pair(original="letters", restricted="folder:/x/a", benign=(), names=("capitals", "b"))
    assert pair.recorded == {
        "original": "letters",
        "restricted": "folder:b",
        "benign": (),
        "names": ("capitals", "b"),
    }


def test_the_seed_decides_the_splits(folders: Path, tmp_path: Path) -> None:
    one, other = (setting(selector(folders, f"{SMALL},seed={n}"), tmp_path) for n in (0, 1))
    assert one.data_id.revision != other.data_id.revision
    assert one.data.original.splits["test"].sources.tolist() != (
        other.data.original.splits["test"].sources.tolist()
    )


# Words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["my set", "a,b", "c=d", "[e]", "f:g", "it's", 'say "so"', "ü 苹果"]
)
def test_a_path_may_have_any_name_in_quotes(name: str, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "tools", tmp_path / name)
    quote = '"' if "'" in name else "'"
    path = f"{quote}folder:{tmp_path / name}{quote}"
    text = f"pair[original={path},restricted=folder:{folders}/animals,benign=[],{SMALL}]"
    text = text.replace("benign=[],", f"benign=[folder:{folders}/flowers],")
    found = setting(text, tmp_path / "cache")
    assert found.data.original.name == name
    assert parse(found.data_id.label).parameters["original"] == f"folder:{name}"


def test_a_path_without_its_quotes_is_refused(folders: Path) -> None:
    with pytest.raises(SelectorError, match="expected '=' after 'b' at character"):
        find_scenarios([f"pair[original=folder:{folders}/a,b,restricted=letters]"], None)
    with pytest.raises(SelectorError, match="expected ',' or ']' at character"):
        find_scenarios([f"pair[original=folder:{folders}/a b,restricted=letters]"], None)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("", r"pair needs its original domain: 'pair\[original=folder:PATH,restricted="),
        ("original=folder:flowers", "pair needs its restricted domain"),
        ("original=folder:flowers,restricted=folder:flowers",
         r"2 domains are called 'flowers'; name all 4 in order: names=\["),
        ("original=folder:flowers,restricted=folder:animals,names=[a,b]",
         "names has 2 of 4 domains: original, restricted, and 2 benign"),
        ("original=folder:nowhere,restricted=folder:animals", "folder 'nowhere' is not there"),
        ("original=folder:flowers/a,restricted=folder:animals", r"0.jpg' lies at the wrong level|"
         r"flowers/a.*wrong level"),
        ("original=flowers,restricted=folder:animals", "unknown domain 'flowers'"),
        ("original=letter,restricted=folder:animals", "'letter'; did you mean 'letters'"),
        ("original=folder:flowers,restricted=folder:animals,image_size=8", "image_size"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("here")
def test_what_cannot_be_a_pair_is_refused_in_one_line(parameters: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as raised:
        build(*find_scenarios([f"pair[{parameters}]"], None), None)
    assert len(str(raised.value).splitlines()) == 1


def test_a_name_has_one_kind_of_quotes_at_most(here: Path) -> None:
    names = ("a'b\"", "b", "greek", "shapes")
    with pytest.raises(ScenarioError, match="has both kinds of quotes; give it another with names"):
        Pair(original="folder:flowers", restricted="folder:animals", names=names).build()


def test_a_domain_at_least_is_benign() -> None:
    with pytest.raises(SelectorError, match=r"pair\[benign=\[\]\]: benign "):
        construct(registry.scenarios.get("pair"), {"benign": ()})


def invoke(*words: str) -> Any:
    return CliRunner().invoke(main, [*words], catch_exceptions=False)


def test_a_run_on_two_folders(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    shown = invoke("show", selector(""), "--store", str(tmp_path / "store"))
    assert "animals: 2 classes; test 16, selection 6" in shown.output
    result = invoke(
        "run", "--scenario", selector(""), "--attack", "finetune", "--steps", "2", "--seeds", "0",
        "--store", str(tmp_path / "store"), "--json", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "folder:flowers" in out.read_text()
    assert str(here) not in out.read_text()
