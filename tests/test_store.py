from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import MakeCell
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sophon_bench.leaderboard.tables import document, report
from sophon_bench.results import files
from sophon_bench.results.files import write_atomic
from sophon_bench.results.records import (
    Cell,
    Ratios,
    Reader,
    content_key,
    digest,
    dump,
    misnamed,
)
from sophon_bench.results.store import Store, StoreError, checked, read_cells
from sophon_bench.seeding import derive_seed


def test_a_cell_comes_back_as_it_was(tmp_path: Path, make_cell: MakeCell) -> None:
    store = Store(tmp_path)
    cell = make_cell(key="a" * 64)
    assert not store.has_cell(cell.key)
    store.put_cell(cell)
    assert store.has_cell(cell.key)
    assert Store(tmp_path).cell(cell.key) == cell
    assert list(store.cells()) == [cell]


def test_weights_come_back_and_a_changed_byte_is_noticed(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    store = Store(tmp_path)
    weights = {"w": torch.randn(3, 4).t(), "n": torch.tensor(3)}
    digest = store.put_weights(weights)
    record = msgspec.structs.replace(make_cell().pretrained, weights=digest)
    back = store.weights(record)
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    file = tmp_path / "stages" / f"{digest}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="SHA-256 differs"):
        store.weights(record)
    file.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        store.weights(record)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"schema": 999}))
    with pytest.raises(StoreError, match=r"schema version 999.*--store DIR"):
        Store(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        Store(tmp_path)


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file" / "store")


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": "k"}', b"\xff\xfe"])
def test_a_damaged_record_is_named(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path)
    (tmp_path / "cells" / "bad.json").write_bytes(damage)
    with pytest.raises(StoreError, match=r"bad\.json.*damaged"):
        store.cell("bad")


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


def test_what_run_json_wrote_reads_back(tmp_path: Path, make_cell: MakeCell) -> None:
    file = tmp_path / "out.json"
    cells = [make_cell(), make_cell(seed=1)]
    file.write_text(document(cells, report(cells)))
    assert read_cells(file) == cells
    content = json.loads(file.read_text())
    assert set(content) == {"schema", "cells", "hashes", "summary"}
    assert content["hashes"] == {cell.key: digest(cell) for cell in cells}
    for damaged, words in (
        ({**content, "schema": 0}, "schema version 0"),
        ([], "not a file of"),
        ({**content, "cells": 1}, "not a file of"),
        ({**content, "hashes": []}, "not a file of"),
    ):
        file.write_text(json.dumps(damaged))
        with pytest.raises(StoreError, match=words):
            read_cells(file)


def test_a_digest_is_of_the_canonical_json_of_all_fields() -> None:
    ratios = Ratios(smallest=0.5, smallest_at="é", largest=None, largest_at="b")
    text = '{"largest":null,"largest_at":"b","smallest":0.5,"smallest_at":"\\u00e9"}'
    assert digest(ratios) == hashlib.sha256(text.encode()).hexdigest()
    assert digest(replace(ratios, smallest=0.25)) != digest(ratios)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["cells"][1]["curve"][0].update(test=0.4), "it was edited"),
        (lambda d: d["cells"][1].update(surprise=1), "unknown field `surprise`"),
        (lambda d: d["cells"][1]["curve"][0].update(test="much"), r"Expected `float`.*curve"),
        (lambda d: d["cells"][1].update(schema_version=1), "schema version 1"),
        (lambda d: d["cells"][1]["curve"][0].update(test=math.nan), "not JSON compliant"),
        (lambda d: d["cells"].append(d["cells"][1]), "there twice"),
        (lambda d: d["hashes"].popitem(), "hash is missing"),
    ],
)
def test_an_altered_record_is_named(
    tmp_path: Path, make_cell: MakeCell, change: Change, words: str
) -> None:
    cells = [make_cell(), make_cell(seed=1, attack="finetune[lr=0.1]")]
    content = json.loads(document(cells, report(cells)))
    change(content)
    file = tmp_path / "out.json"
    file.write_text(json.dumps(content))
    title = rf"\(finetune\[lr=0.1\] against none, n=200, seed=1, key {cells[1].key}\)"
    with pytest.raises(StoreError, match=f"record [23] {title} is damaged: .*{words}"):
        read_cells(file)


def test_a_file_from_before_there_were_hashes_is_refused(
    tmp_path: Path, make_cell: MakeCell
) -> None:
    content = json.loads(document([make_cell()], report([make_cell()])))
    del content["hashes"]
    file = tmp_path / "out.json"
    file.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="hash is missing; have 'sophon-bench run --json' write"):
        read_cells(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(samples=600), "its attack, n, budget and domain"),
        (lambda c: c.update(budget=64), "its attack, n, budget and domain"),
        (lambda c: c.update(stretch=10), "its attack, n, budget and domain"),
        (lambda c: c.update(domain="shapes"), "its attack, n, budget and domain"),
        (lambda c: c["attack"]["parameters"].update(lr=0.2), "its attack, n, budget and domain"),
        (lambda c: c["defense"].update(source="other"), "does not follow from its defense"),
        (lambda c: c["released"].update(key="k"), "does not follow from its defense"),
    ],
)
def test_a_hash_made_again_does_not_hide_an_edit(
    make_cell: MakeCell, change: Change, words: str
) -> None:
    plain = msgspec.to_builtins(make_cell(attack="finetune[lr=0.1]"))
    assert checked([plain], {plain["key"]: content_key(plain)})
    change(plain)
    with pytest.raises(ValueError, match=words):
        checked([plain], {plain["key"]: content_key(plain)})


def test_a_label_is_no_part_of_a_key(make_cell: MakeCell) -> None:
    cell = make_cell()
    assert misnamed(replace(cell, attack=replace(cell.attack, label="other"))) is None


def test_what_is_gone_is_named_and_what_is_wrong_is_counted(make_cell: MakeCell) -> None:
    plain = msgspec.to_builtins(make_cell())
    with pytest.raises(ValueError, match=r"record 1 \(finetune .*missing.* \(and 2 more\)"):
        checked([plain, {}], {"gone": "h"})
    with pytest.raises(ValueError, match=r"^record gone is missing"):
        checked([plain], {plain["key"]: content_key(plain), "gone": "h"})
    with pytest.raises(ValueError, match=r"record 1 \(\? against \?.*Expected `object`"):
        checked([7], {})


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_says_where(
    tmp_path: Path, make_cell: MakeCell, part: float
) -> None:
    text = document([make_cell()], report([make_cell()]))
    file = tmp_path / "out.json"
    file.write_text(text[: int(part * len(text))])
    with pytest.raises(StoreError, match=r"cut short at line \d+, column \d+"):
        read_cells(file)
    file.write_text("{,}")
    with pytest.raises(StoreError, match=r"is not JSON: .* at line 1, column 2"):
        read_cells(file)


def test_records_refuse_unknown_fields_and_nan(make_cell: MakeCell) -> None:
    with pytest.raises(msgspec.ValidationError, match="surprise"):
        make_cell(surprise=1)
    with pytest.raises(msgspec.ValidationError, match="samples"):
        make_cell(samples="many")
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump(make_cell(curve=[(1.0, float("nan"), 0.5)]))


def test_parts_that_records_share_are_held_once(make_cell: MakeCell) -> None:
    one, other = make_cell(samples=50), make_cell(samples=200, suite="@s v1")
    reader = Reader(Cell, held=("pretrained", "defense", "attack"))
    read = [reader.read(dump(cell)) for cell in (one, other)]
    assert read == [one, other]
    assert read[0].pretrained is read[1].pretrained
    assert read[0].attack is read[1].attack
    for part in ("pretrained", "defense"):
        content = dump(one).replace(f'"{part}": {{'.encode(), f'"{part}": {{"x": 1,'.encode())
        with pytest.raises(msgspec.ValidationError, match="x"):
            reader.read(content)


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
