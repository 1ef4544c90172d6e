from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import MakeCell, gather
from fsspec.core import url_to_fs
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sophon_bench.execution.executors import Work, start
from sophon_bench.leaderboard.tables import document, report
from sophon_bench.plugins.failures import BadInput
from sophon_bench.results import files
from sophon_bench.results.documents import Line, checked, json_lines, lines, read, read_file
from sophon_bench.results.files import WriteError, folder, write_atomic
from sophon_bench.results.records import (
    Asked,
    Cell,
    Curve,
    DataId,
    ModelRecord,
    PluginId,
    Point,
    Provenance,
    Ratios,
    Records,
    Run,
    attack_key,
    content_key,
    dump,
    misnamed,
    protect_key,
)
from sophon_bench.results.store import Store, StoreError, is_store
from sophon_bench.results.untrusted import printable
from sophon_bench.seeding import derive_seed


def content(root: str, name: str) -> bytes:
    return folder(root).read(name)


def write(root: str, name: str, text: bytes) -> None:
    folder(root).write(name, text)


def test_records_come_back_as_they_were(root: str, make_cell: MakeCell) -> None:
    store = Store(root)
    records = gather([make_cell(), make_cell(seed=1, defense="d")])
    assert store.records() == Records({}, [], {})
    for model in records.models.values():
        assert not store.has_model(model.key)
        assert store.put_model(model) == model
        assert Store(root).model(model.key) == model
    for cell in records.cells:
        assert not store.has_cell(cell.key)
        store.put_cell(cell)
        assert store.has_cell(cell.key)
        assert Store(root, reading=True).cell(cell.key) == cell
    asked = list(records.asked.values())
    store.begin(Run(command="c", provenance=make_cell().provenance), asked)
    found = Store(root, reading=True).records()
    assert found.models == records.models
    assert found.asked == records.asked
    assert found.cells == sorted(records.cells, key=lambda cell: cell.key)


def test_only_what_failed_is_written_over(root: str, make_cell: MakeCell) -> None:
    store = Store(root)
    for status, kept in (("failed", "failed"), ("ok", "ok"), ("diverged", "ok")):
        store.put_cell(make_cell(key="k", status=status).cell)
        model = store.put_model(replace(make_cell().released, status=status))
        assert (store.cell("k").status, model.status) == (kept, kept)


@pytest.mark.parametrize("status", ["failed", "ok"])
def test_of_many_writers_one_record_stands_and_no_reader_sees_less(
    root: str, make_cell: MakeCell, status: str
) -> None:
    """What failed is written over again and again; what is ok stands as the first wrote it."""
    store = Store(root)
    cells = [make_cell(key="k", status=status, reason=str(n) * 5000).cell for n in range(8)]
    written = threading.Event()

    def seen() -> list[Cell]:
        found = []
        while not written.is_set():
            found += list(Store(root, reading=True).cells())
        return [*found, store.cell("k")]

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(seen)
        list(pool.map(lambda cell: [Store(root).put_cell(cell) for _ in range(5)], cells))
        written.set()
        found = reader.result()
    assert all(cell in cells for cell in found)
    assert len(folder(root).names("cells", "")) == 1
    if status == "ok":
        assert len({cell.reason for cell in found}) == 1


def test_of_two_that_make_one_record_both_go_on_with_the_first(
    root: str, make_cell: MakeCell
) -> None:
    models = [replace(make_cell().released, note=str(n)) for n in range(8)]
    cells = [replace(make_cell().cell, reason=str(n)) for n in range(8)]
    Store(root)
    with ThreadPoolExecutor(8) as pool:
        standing = list(pool.map(lambda model: Store(root).put_model(model), models))
        stands = list(pool.map(lambda cell: Store(root).put_cell(cell), cells))
    assert standing == [Store(root).model(models[0].key)] * 8
    assert stands == [Store(root).cell(cells[0].key)] * 8


def test_a_manifest_grows(root: str, make_cell: MakeCell) -> None:
    run = Run(command="c", provenance=make_cell().provenance, names={"l": "n"})
    manifest = Store(root).begin(run, [Asked(key="a")])
    added = Asked(key="b", suites=("@s v1",), derived=True)
    for _ in range(2):
        manifest.add([added])
        assert list(manifest.lines()) == [Asked(key="a"), added]
    assert Store(root).asked() == {"a": Asked(key="a"), "b": added}
    assert Store(root).names() == {"l": "n"}


def test_weights_come_back_and_a_changed_byte_is_noticed(root: str, make_cell: MakeCell) -> None:
    store = Store(root)
    weights = {"w": torch.randn(3, 4).t(), "n": torch.tensor(3)}
    digest = store.put_weights(weights)
    record = replace(make_cell().pretrained, weights=digest)
    back = store.weights(record)
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    name = f"models/{digest}.safetensors"
    changed = bytearray(content(root, name))
    changed[-1] ^= 1
    write(root, name, bytes(changed))
    with pytest.raises(StoreError, match="SHA-256 differs"):
        store.weights(record)
    with pytest.raises(StoreError, match="cannot be read"):
        store.weights(replace(record, weights="0" * 64))


def test_another_schema_version_is_refused(root: str) -> None:
    Store(root)
    write(root, "store.json", b'{"schema": 2}')
    for reading in (True, False):
        with pytest.raises(StoreError, match=r"schema version 2, this .* version 3;.*--store DIR"):
            Store(root, reading=reading)
    write(root, "store.json", b"{")
    with pytest.raises(StoreError, match="damaged"):
        Store(root)


def test_a_store_that_is_only_read_has_to_be_there(root: str) -> None:
    assert not is_store(root)
    with pytest.raises(StoreError, match="cannot be read"):
        Store(root, reading=True)
    Store(root)
    assert is_store(root)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": "k"}', b"\xff\xfe"])
def test_a_damaged_record_is_named(root: str, damage: bytes) -> None:
    store = Store(root)
    write(root, "cells/bad.json", damage)
    for look in (lambda: store.cell("bad"), store.records):
        with pytest.raises(StoreError, match=r"bad\.json.*damaged"):
            look()


def test_what_is_missing_is_named(root: str, make_cell: MakeCell) -> None:
    store = Store(root)
    store.put_cell(make_cell().cell)
    for look in (lambda: store.cell("gone"), lambda: store.model("gone"), store.records):
        with pytest.raises(StoreError, match=r"\.json' cannot be read"):
            look()


def test_a_folder_that_cannot_be_listed_is_named(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(root)

    def denied(*_arguments: object, **_named: object) -> None:
        raise PermissionError(13, "Access denied")

    if "://" in root:
        monkeypatch.setattr(url_to_fs(root)[0], "ls", denied)  # the one that all share
    monkeypatch.setattr(files.os, "listdir", denied)
    for look in (store.finished, store.manifests, store.records):
        with pytest.raises(StoreError, match=r"/(models|cells|runs)' cannot be read: Access"):
            look()
    with pytest.raises(OSError, match="Access denied") as raised:
        folder(root).names("cells", "")
    if "://" in root:
        assert raised.value.filename == f"{root}/cells"


def test_a_read_that_brings_less_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("file").write_bytes(b"x" * 1000)
    read = files.os.read
    monkeypatch.setattr(files.os, "read", lambda file, count: read(file, min(count, 300)))
    assert content(str(tmp_path), "file") == b"x" * 1000


def test_text_that_is_no_utf_8_is_written_and_read_without_harm(
    root: str, make_cell: MakeCell
) -> None:
    store = Store(root)
    cell = replace(make_cell().cell, status="failed", reason="no file \udcff.png")
    store.put_cell(cell)
    assert store.cell(cell.key).reason == r"no file \udcff.png"


def test_a_write_that_fails_leaves_what_was_there_and_is_named(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(root).make("inside")
    write(root, "inside/x.json", b"old")

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    if "://" in root:
        monkeypatch.setattr(url_to_fs(root)[0], "pipe_file", full)  # the one that all share
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WriteError, match="No space") as raised:
        write(root, "inside/x.json", b"new")
    assert str(raised.value.filename) == f"{root}/inside/x.json"
    monkeypatch.undo()
    assert content(root, "inside/x.json") == b"old"
    assert folder(root).names("inside", "") == ["x.json"]


def test_other_processes_do_not_see_a_store_in_memory(root: str, tmp_path: Path) -> None:
    work = Work(
        store=root, device=torch.device("cpu"), settings=(), plugins=(), workers=2, threads=1,
        compiled="off", tick=lambda *_: None,
    )  # fmt: skip
    if Store(root).shared:
        start("processes", work).close()
    else:
        with pytest.raises(StoreError, match=r"is in the memory of one process; .* --workers 1"):
            start("processes", work)


@pytest.mark.parametrize("look", [Store, is_store])
def test_a_url_that_nothing_knows_is_refused(look: Callable[[str], object]) -> None:
    with pytest.raises(BadInput, match="'nowhere://store' cannot be opened: Protocol not known"):
        look("nowhere://store")


def test_the_record_of_another_key_is_named(root: str, make_cell: MakeCell) -> None:
    store = Store(root)
    cell, other = make_cell().cell, make_cell(attack="finetune[lr=0.1]").cell
    write(root, f"cells/{cell.key}.json", dump(other))
    for look in (lambda: store.cell(cell.key), lambda: list(store.cells())):
        with pytest.raises(StoreError, match=f"damaged .it is the record of {other.key}"):
            look()


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file" / "store")


def test_a_store_may_be_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = Store("~/below")
    assert is_store(tmp_path / "below")
    assert store.data == tmp_path / "below" / "data"


def test_who_may_read_a_file_is_the_users_choice(tmp_path: Path) -> None:
    write_atomic(tmp_path / "atomic", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x.json"
    write_atomic(target, b"old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def written(records: Records, tmp_path: Path) -> Path:
    file = tmp_path / "out.json"
    file.write_text(document(records, report(records)))
    return file


def test_what_run_json_wrote_reads_back(tmp_path: Path, make_cell: MakeCell) -> None:
    records = gather([make_cell(), make_cell(seed=1, defense="d", suite="@s v1", derived=True)])
    file = written(records, tmp_path)
    head, found = read_file(file)
    assert head is None
    assert (found.models, found.asked) == (records.models, records.asked)
    assert found.cells == sorted(records.cells, key=lambda cell: cell.key)
    content = json.loads(file.read_text())
    assert set(content) == {"schema", "models", "cells", "asked", "hashes", "summary"}
    for part, own in content["hashes"].items():
        assert own == {plain["key"]: content_key(plain) for plain in content[part]}
    for damaged, words in (
        ({**content, "schema": 2}, "has schema version 2, this program reads 3"),
        ([], "not a file of"),
        ({**content, "cells": 1}, "not a file of"),
        ({**content, "hashes": []}, "not a file of"),
        ({key: content[key] for key in ("schema", "cells", "hashes")}, "not a file of"),
    ):
        file.write_text(json.dumps(damaged))
        with pytest.raises(StoreError, match=words):
            read_file(file)


def test_a_digest_is_of_the_canonical_json_of_all_fields() -> None:
    ratios = Ratios(smallest=0.5, smallest_at="é", largest=None, largest_at="b")
    text = '{"largest":null,"largest_at":"b","smallest":0.5,"smallest_at":"\\u00e9"}'
    plain = msgspec.to_builtins(ratios)
    assert content_key(plain) == hashlib.sha256(text.encode()).hexdigest()


Change = Callable[[dict[str, Any]], object]


def second(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["cells"][1]
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: second(d)["curve"]["test"].__setitem__(0, 0.9), "it was edited"),
        (lambda d: second(d).pop("budget"), "budget"),
        (lambda d: second(d).update(status=7), "status"),
        (lambda d: second(d).update(samples=-1.5), "samples"),
        (lambda d: second(d)["curve"]["test"].__setitem__(0, math.nan), "Expected `float`"),
        (lambda d: d["cells"].append(second(d)), "there twice"),
        (lambda d: d["hashes"]["cells"].pop(second(d)["key"]), "hash is missing"),
    ],
)
def test_an_altered_record_is_named(
    tmp_path: Path, make_cell: MakeCell, change: Change, words: str
) -> None:
    cells = [make_cell(attack=f"finetune[lr={lr}]", seed=1) for lr in (0.1, 0.2)]
    file = written(gather(cells), tmp_path)
    content = json.loads(file.read_text())
    label, key = second(content)["attack"]["label"], second(content)["key"]
    change(content)
    file.write_text(json.dumps(content))
    samples = second(content)["samples"]
    title = re.escape(f"({label} against none, n={samples}, seed=1, cell {key})")
    with pytest.raises(StoreError, match=f"cell [23] {title} is damaged: .*{words}"):
        read_file(file)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("cell", {"samples": 600}, "its attack, n, budget and domain"),
        ("cell", {"budget": 64}, "its attack, n, budget and domain"),
        ("cell", {"stretch": 10}, "its attack, n, budget and domain"),
        ("cell", {"domain": "shapes"}, "its attack, n, budget and domain"),
        ("cell", {"model": "0" * 64}, "its attack, n, budget and domain"),
        ("model", {"key": "0" * 64}, "does not follow from its defense"),
        ("model", {"pretrained": "0" * 64}, "does not follow from its defense"),
        ("model", {"defense": None}, "not both"),
    ],
)
def test_a_hash_made_again_does_not_hide_an_edit(
    make_cell: MakeCell, kind: str, change: dict[str, Any], words: str
) -> None:
    whole = list(lines(gather([make_cell(attack="finetune[lr=0.1]")])))
    assert checked(whole)
    *_, line = (line for line in whole
                if line.kind == kind and line.plain.get("defense", 1) is not None)  # fmt: skip
    edited = {**line.plain, **change}
    others = [other for other in whole if other is not line]
    with pytest.raises(ValueError, match=words):
        checked([*others, Line(kind, edited, content_key(edited))])


def test_a_label_is_no_part_of_a_key(make_cell: MakeCell) -> None:
    cell = make_cell().cell
    assert misnamed(replace(cell, attack=replace(cell.attack, label="other"))) is None


def test_what_is_gone_is_named_and_what_is_wrong_is_counted(make_cell: MakeCell) -> None:
    whole = list(lines(gather([make_cell()])))
    for number, line in enumerate(whole):
        kind, key = line.kind, line.plain["key"]
        others = [*whole[:number], *whole[number + 1 :]]
        with pytest.raises(ValueError, match=f"^{kind} {key} is missing"):
            checked(others)
    broken = [Line("cell", {}, None), Line("cell", 7, None)]
    with pytest.raises(
        ValueError, match=r"^record \(cell None\) is damaged.*missing.* \(and 1 more\)"
    ):
        checked([*whole, *broken])


def test_records_fit_those_that_they_refer_to(make_cell: MakeCell) -> None:
    attempt = make_cell()
    records = gather([attempt])
    released = records.model(records.cells[0])
    moved = {**records.models, released.key: replace(released, seed=7)}
    with pytest.raises(ValueError, match=r"model .* does not fit the pre-trained one"):
        checked(list(lines(dataclasses.replace(records, models=moved))))
    (cell,) = records.cells
    place = {name: getattr(cell, name) for name in ("samples", "budget", "domain", "stretch")}
    before = str(released.pretrained)
    other = replace(cell, model=before, key=attack_key(before, cell.attack, **place))
    with pytest.raises(ValueError, match="does not refer to a released model"):
        checked(list(lines(Records(records.models, [other]))))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_says_where(
    tmp_path: Path, make_cell: MakeCell, part: float
) -> None:
    file = written(gather([make_cell()]), tmp_path)
    text = file.read_text()
    file.write_text(text[: int(part * len(text))])
    with pytest.raises(StoreError, match=r"cut short at line \d+, column \d+"):
        read_file(file)
    file.write_text("{,}")
    with pytest.raises(StoreError, match=r"is not JSON: .* at line 1, column 2"):
        read_file(file)


def test_records_refuse_unknown_fields_and_nan(make_cell: MakeCell) -> None:
    plain = msgspec.to_builtins(make_cell().cell)
    for change, words in (({"surprise": 1}, "surprise"), ({"samples": "many"}, "samples")):
        with pytest.raises(msgspec.ValidationError, match=words):
            msgspec.convert({**plain, **change}, Cell)
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump(make_cell(curve=[(1.0, float("nan"), 0.5)]).cell)


accuracy, amount = st.floats(0, 1), st.floats(-1e40, 1e40)
curves = st.lists(
    st.builds(
        Point,
        steps=st.integers(0, 10**6),
        **dict.fromkeys(("units", "seconds"), amount),
        **dict.fromkeys(("fit", "validation", "selection", "test", "second_test"), accuracy),
    ),
    max_size=4,
)


seen = st.text().map(printable)


@given(curves, seen, st.lists(seen, max_size=2), st.booleans())
def test_any_records_survive_both_forms_of_a_file(
    curve: list[Point], reason: str, suites: list[str], derived: bool
) -> None:
    plugin = PluginId(
        name="a", label="a", parameters={}, source="s", distribution="d", control=False
    )
    run = Provenance(
        version="0", commit=None, dirty=None, python="3", torch="2", timm="1", cuda=None,
        device="cpu", threads=1, finished="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    place: dict[str, Any] = {
        "scenario": DataId(name="s", label="s", parameters={}, revision="r"), "backbone": "b",
        "precision": "fp32", "seed": 0, "status": "ok", "provenance": run,
    }  # fmt: skip
    before = "0" * 64
    key = protect_key(before, plugin)
    models = [
        ModelRecord(key=before, **place),
        ModelRecord(key=key, pretrained=before, defense=plugin, **place),
    ]
    own = {"samples": 9, "budget": 64, "domain": "d", "stretch": 1}
    cell = Cell(
        key=attack_key(key, plugin, **own), model=key, attack=plugin, status="ok", reason=reason,
        test_examples=1, curve=Curve.of(curve), provenance=run, **own,
    )  # fmt: skip
    asked = Asked(key=cell.key, suites=tuple(suites), derived=derived)
    records = Records({model.key: model for model in models}, [cell], {cell.key: asked})
    for text in (document(records, report(Records())).encode(), json_lines({"a": 1}, records)):
        head, found = read(text, "x")
        assert head in (None, {"a": 1})
        assert found == records


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_keys_depend_on_content_not_on_order(content: dict[str, object]) -> None:
    turned = dict(reversed(content.items()))
    assert content_key(content) == content_key(turned)
    assert content_key({"more": 1, "content": content}) != content_key({"content": content})


@given(st.lists(st.text() | st.integers(), min_size=1, max_size=3))
def test_derived_seeds_fit_a_generator_and_differ_by_axis(parts: list[str | int]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)
    assert derive_seed("other", *parts) != seed
