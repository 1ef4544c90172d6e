"""Released models of published entries: listed, found by hash, loaded, fetched."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from msgspec.structs import replace
from safetensors.torch import save

import sophon_bench
from sophon_bench.cli import main
from sophon_bench.leaderboard import entries, zoo
from sophon_bench.leaderboard.entries import Entry
from sophon_bench.results.records import Records, dump
from sophon_bench.results.store import Store, StoreError

DEFENSE = "naive-ascent[iterations=2,max_drop=1.0]"
NAME = f"{DEFENSE}@tiny"
SHORT = "naive-ascent@tiny"
HEAD = {
    "name": "acme", "title": "Acme", "authors": ["A. Author"], "link": "https://example.org",
    "submitted": "2026-01-31",
}  # fmt: skip
FAST: dict[str, Any] = {"scenario": "tiny", "steps": 2, "samples": [20], "threads": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a released model of `DEFENSE`, and its controls."""
    store = tmp_path_factory.mktemp("made")
    sophon_bench.run(defense=DEFENSE, attack="finetune[lr=0.03]", store=store, **FAST)
    return store


@pytest.fixture
def publish(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Records]:
    """Publish the records of that store as the only entries, under these names."""
    empty = tmp_path / "empty"
    Store(empty)
    monkeypatch.setattr(zoo, "ZOO", empty)
    folder = tmp_path / "results"
    monkeypatch.setattr(entries, "PUBLISHED", folder)

    def publish(*names: str, weights: str | None = None) -> Records:
        records = Store(made, reading=True).records()
        if weights is not None:
            models = {k: replace(m, weights=weights) for k, m in records.models.items()}
            records = Records(models, records.cells, records.asked)
        for name in names:
            entries.write(Entry.of({**HEAD, "name": name}, records), folder)
        return records

    return publish


@pytest.fixture
def published(publish: Callable[..., Records]) -> Records:
    return publish("acme")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A store like that one, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def call(*words: object) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, words)])


def released(records: Records) -> str:
    """The key of the model that `DEFENSE` released."""
    (key,) = (k for k, m in records.models.items() if m.defense and m.defense.label == DEFENSE)
    return key


def file_of(store: Path, key: str) -> Path:
    record = Store(store, reading=True).model(key)
    return store / "models" / f"{record.weights}.safetensors"


def as_zoo(store: Path, where: str) -> str:
    """The store at a path, or copied behind a URL."""
    if where == "path":
        return str(store)
    import fsspec

    url = f"memory://zoo-{hashlib.sha256(str(store).encode()).hexdigest()[:8]}"
    for file in (f for f in store.rglob("*") if f.is_file()):
        fsspec.filesystem("memory").pipe_file(f"{url}/{file.relative_to(store)}", file.read_bytes())
    return url


@pytest.mark.parametrize("where", ["path", "url"])
@pytest.mark.parametrize(
    "form", [NAME, f"{NAME}:seed=0", f"acme/{NAME}", SHORT, f"acme/{SHORT}:seed=0"]
)
def test_a_published_model_is_loaded_by_its_hash(
    published: Records, made: Path, where: str, form: str
) -> None:
    model = sophon_bench.load_model(f"published/{form}", store=as_zoo(made, where))
    store = Store(made, reading=True)
    weights = store.weights(store.model(released(published)))
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 6)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("naive-ascend[iterations=2,max_drop=1.0]@tiny", {}, rf"did you mean '{DEFENSE[:5]}"),
        ("zzz", {}, "there are: naive-ascent"),
        (NAME, {"seed": 7}, "is not published with seed 7; seeds are 0"),
        (f"{NAME}:seed=7", {}, "is not published with seed 7; seeds are 0"),
        (f"{NAME}:seed=1", {"seed": 0}, "is of another seed than 0"),
        (NAME, {"backbone": "test_resnett"}, "did you mean 'test_resnet'"),
        ("../../x@tiny", {}, "unknown published model"),
    ],
)
def test_what_is_not_published_is_named(
    published: Records, made: Path, name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(StoreError, match=words):
        sophon_bench.load_model(f"published/{name}", store=made, **options)


def test_only_published_models_have_names() -> None:
    with pytest.raises(StoreError, match="takes results, or the name of a published model"):
        sophon_bench.load_model("sophon-ice@glyphs-digits")


def test_two_entries_of_one_model_are_one_and_of_several_are_told_apart(
    publish: Callable[..., Records], made: Path
) -> None:
    publish("acme", "other")
    assert sophon_bench.load_model(f"published/{NAME}", store=made)
    publish("third", weights="0" * 64)
    with pytest.raises(StoreError, match=r"published 2 times with seed 0 .*as in acme/naive"):
        sophon_bench.load_model(f"published/{NAME}", store=made)
    assert sophon_bench.load_model(f"published/other/{NAME}", store=made)


def test_a_name_without_parameters_has_to_mean_one_published_name(published: Records) -> None:
    plain, wide, narrow = (
        zoo.Released(
            record=replace(record, defense=replace(record.defense, label=label)),
            pretrained=published.models[str(record.pretrained)],
            entries=("acme",),
        )
        for record in [published.models[released(published)]]
        if record.defense is not None
        for label in ("naive-ascent", "naive-ascent[lr=1.0]", "naive-ascent[lr=2.0]")
    )
    assert zoo.named(SHORT, [narrow]) is narrow
    assert zoo.named(SHORT, [plain, wide, narrow]) is plain
    with pytest.raises(
        StoreError, match=r"can be any of naive-ascent\[lr=1.0\]@tiny, naive-ascent\[lr=2.0\]@tiny"
    ):
        zoo.named(SHORT, [wide, narrow])


def test_weights_that_lie_nowhere_come_with_the_command_that_makes_them(
    published: Records, tmp_path: Path
) -> None:
    Store(tmp_path / "none")
    key = published.models[released(published)].weights
    with pytest.raises(StoreError, match=f"in acme, but its weights .SHA-256 {key}") as raised:
        sophon_bench.load_model(f"published/{NAME}", store=tmp_path / "none")
    assert str(raised.value).endswith(
        f"sophon-bench run --defense '{DEFENSE}' --scenario tiny --backbone test_resnet "
        f"--precision fp32 --seeds 0"
    )
    with pytest.raises(StoreError, match="are in none of"):
        sophon_bench.load_model(f"published/{NAME}")
    with pytest.raises(StoreError, match="cannot be read"):
        sophon_bench.load_model(f"published/{NAME}", store=tmp_path / "nowhere")


def test_weights_that_were_made_again_say_so(publish: Callable[..., Records], made: Path) -> None:
    publish("acme", weights="0" * 64)
    with pytest.warns(UserWarning, match=r"made again.*not those of the published records"):
        model = sophon_bench.load_model(f"published/{NAME}", store=made)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 6)
    listed = call("list", "--store", made)
    assert "made again" in listed.stdout


def test_a_record_of_another_model_does_not_pass_for_one_made_again(
    publish: Callable[..., Records], copy: Path
) -> None:
    key = released(publish("acme", weights="0" * 64))
    file = copy / "models" / f"{key}.json"
    file.write_bytes(dump(replace(Store(copy, reading=True).model(key), seed=3)))
    with pytest.raises(StoreError, match="are in none of"):
        sophon_bench.load_model(f"published/{NAME}", store=copy)


@pytest.mark.parametrize("damage", ["a bit", "cut", "another"])
def test_a_damaged_file_is_never_loaded(published: Records, copy: Path, damage: str) -> None:
    file = file_of(copy, released(published))
    content = bytearray(file.read_bytes())
    if damage == "a bit":
        content[-1] ^= 1
    file.write_bytes({"a bit": content, "cut": content[:-8], "another": save({})}[damage])
    with pytest.raises(StoreError, match=r"SHA-256 differs"):
        sophon_bench.load_model(f"published/{NAME}", store=copy)
    fetched = call("fetch", NAME, "--store", copy, "--out", copy.parent / "out")
    assert fetched.exit_code == 2
    assert "SHA-256 differs" in fetched.stderr


@pytest.mark.parametrize("where", ["path", "url"])
def test_no_more_is_read_than_the_largest_weights_have(
    published: Records, made: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(zoo, "LARGEST", 1000)
    with pytest.raises(StoreError, match="at most 1000 are read"):
        sophon_bench.load_model(f"published/{NAME}", store=as_zoo(made, where))


@pytest.mark.parametrize("where", ["path", "url"])
def test_what_was_fetched_is_attacked_without_being_made_again(
    published: Records, made: Path, tmp_path: Path, where: str
) -> None:
    out = tmp_path / "out"
    fetched = call("fetch", NAME, "--store", as_zoo(made, where), "--out", out)
    assert fetched.exit_code == 0, fetched.output
    key = released(published)
    assert file_of(out, key).read_bytes() == file_of(made, key).read_bytes()
    assert str(file_of(out, key)) in fetched.stdout
    before = {file: file.read_bytes() for file in (out / "models").iterdir()}
    results = sophon_bench.run(defense=DEFENSE, attack="finetune[lr=0.1]", store=out, **FAST)
    assert set(results.cells["status"]) == {"ok"}
    assert {f: f.read_bytes() for f in (out / "models").iterdir() if f in before} == before
    again = call("fetch", NAME, "--store", made, "--out", out)
    assert "is there with SHA-256" in again.stdout


def test_a_fetched_model_takes_the_place_of_one_that_failed(
    published: Records, made: Path, tmp_path: Path
) -> None:
    key, out = released(published), Store(tmp_path / "out")
    out.put_model(replace(published.models[key], status="failed", reason="broken", weights=None))
    fetched = call("fetch", NAME, "--store", made, "--out", tmp_path / "out")
    assert fetched.exit_code == 0, fetched.output
    assert out.model(key) == published.models[key]
    assert file_of(tmp_path / "out", key).is_file()


def test_a_released_model_alone_can_be_loaded_and_not_fetched(
    published: Records, copy: Path, tmp_path: Path
) -> None:
    (before,) = (m for m in published.models.values() if m.defense is None)
    (copy / "models" / f"{before.weights}.safetensors").unlink()
    assert sophon_bench.load_model(f"published/{NAME}", store=copy)
    fetched = call("fetch", NAME, "--store", copy, "--out", tmp_path / "out")
    assert fetched.exit_code == 2
    assert "the pre-trained model" in fetched.stderr


def test_the_list_says_what_is_here(published: Records, made: Path) -> None:
    listed = call("list", "--store", made)
    assert listed.exit_code == 0, listed.output
    header, *rows = [line.split() for line in listed.stdout.splitlines()]
    assert header == ["model", "backbone", "seed", "size", "sha256", "here", "entry"]
    assert {row[0] for row in rows} == {"none@tiny", NAME}
    for row in rows:
        assert row[1:4] == ["test_resnet", "0", "1.5"]
        assert row[-3:] == ["as", "published", "acme"]
    assert "no " in call("list").stdout
    unknown = call("list", "--entry", "acne")
    assert (unknown.exit_code, "did you mean 'acme'" in unknown.stderr) == (2, True)


SHIPPED = ("none", "sophon-ice", "sophon-klu", "sophon-wide")


def test_the_package_comes_with_small_models_that_their_records_describe() -> None:
    store = Store(zoo.ZOO, reading=True)
    files = [file for file in zoo.ZOO.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8e6
    keys = [file.stem for file in files if file.suffix == ".json" and file.name != "store.json"]
    records = [store.model(key) for key in keys]
    assert {str(zoo.ZOO / store.weights_place(record)) for record in records} == {
        str(file) for file in files if file.suffix == ".safetensors"
    }
    told = {each.record.key: each.record for each in zoo.published()}
    for record in records:
        assert store.weights(record)
        assert (record.provenance.dirty, record.seed) == (False, 0)
        if record.defense is not None:
            assert abs(record.original - told[record.key].original) < 0.03


@pytest.mark.parametrize("defense", SHIPPED)
def test_a_shipped_model_is_loaded_offline(defense: str) -> None:
    with pytest.warns(UserWarning, match=f"{defense}@glyphs-digits .*made again"):
        model = sophon_bench.load_model(f"published/{defense}@glyphs-digits")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 26)
