"""Files of strangers are data: limits, names that climb, text that would do something, code."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import Attempt, MakeCell, gather
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from sophon_bench.analysis import comparison
from sophon_bench.cli import main
from sophon_bench.execution.runs import find_backbone
from sophon_bench.leaderboard import cards, compare, entries, tables, zoo
from sophon_bench.leaderboard.columns import Column
from sophon_bench.leaderboard.entries import Entry, EntryError
from sophon_bench.leaderboard.recipe import Recipe
from sophon_bench.leaderboard.render import Place, Table, markdown_text, to_latex
from sophon_bench.leaderboard.tables import Report
from sophon_bench.models.architecture import BackboneError
from sophon_bench.models.weight_files import CheckpointError, read
from sophon_bench.plugins.registry import NAME_LENGTH
from sophon_bench.results import Results, documents
from sophon_bench.results.documents import json_lines, read_file
from sophon_bench.results.pictures import HIGHEST, WIDEST
from sophon_bench.results.records import Asked, Records, compact, content_key
from sophon_bench.results.store import Store, StoreError
from sophon_bench.results.untrusted import LARGEST, UNSEEN, harmless, parsed, printable

HEAD = {
    "name": "acme", "title": "Acme", "authors": ["A. Author"], "link": "https://example.org",
    "submitted": "2026-01-31",
}  # fmt: skip
HOSTILE = (
    '<script>alert(1)</script>"><img src=x onerror=alert(1)>[a](javascript:alert(1))![b](//t)'
    "[c]: javascript:x|`c`\\input{/etc/passwd}\x1b[2J\x1b]0;x\x07\x9b31m\nreproduced\r\u202e\u2028"
    "\ue000\ud800"
)
UNSEEN_ONES = re.compile(f"[{UNSEEN}]")


@pytest.fixture
def entry(make_cell: MakeCell) -> Entry:
    cells = [make_cell(defense=d, seed=s) for d in ("none", "d") for s in (0, 1)]
    return Entry.of(HEAD, gather(cells))


def written(folder: Path, *lines: str) -> Path:
    file = folder / "acme.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def whole(entry: Entry) -> list[str]:
    return json_lines(entry.head, entry.records).decode().splitlines()


Change = Callable[[list[str]], object]


def edit(kind: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Edit the last record of a kind, and make its hash again."""

    def edited(lines: list[str]) -> None:
        number = max(n for n, line in enumerate(lines) if line.startswith(f'{{"{kind}"'))
        plain = json.loads(lines[number])[kind]
        change(plain)
        lines[number] = compact({kind: plain, "sha256": content_key(plain)})

    return edited


def swap(old: str, new: str) -> Change:
    """Replace text of the last line as it stands."""

    def swapped(lines: list[str]) -> None:
        assert old in lines[-1]
        lines[-1] = lines[-1].replace(old, new, 1)

    return swapped


def head(**changes: Any) -> Change:
    def headed(lines: list[str]) -> None:
        lines[0] = compact({"entry": {**json.loads(lines[0])["entry"], **changes}})

    return headed


def weights(text: str) -> Change:
    return edit("model", lambda model: model.update(weights=text))


BUDGET = '"budget":12800'
HOSTILE_ENTRIES: dict[str, tuple[Change, str]] = {
    "a name twice": (swap('"status":"ok"', '"status":"failed","status":"ok"'), "there twice"),
    "NaN": (swap(BUDGET, '"budget":NaN'), "damaged"),
    "Infinity": (swap(BUDGET, '"budget":Infinity'), "damaged"),
    "1e999": (swap(BUDGET, '"budget":1e999'), "damaged"),
    "digits": (swap(BUDGET, f'"budget":1{"0" * 5000}'), "20 digits"),
    "a number": (swap('"test":[0.5]', '"test":[1e41]'), "test"),
    "an amount": (edit("model", lambda model: model["cost"].update(flops=1e41)), "flops"),
    "deep": (swap(BUDGET, f'"budget":{"[" * 10**5}{"]" * 10**5}'), "damaged"),
    "a seed": (edit("model", lambda model: model.update(seed=2**63)), "seed"),
    "weights that climb": (weights("../../x"), "weights"),
    "weights with a root": (weights("/etc/passwd"), "weights"),
    "weights with NUL": (weights("a\0" + "b" * 62), "weights"),
    "weights with a backslash": (weights("0" * 63 + "\\"), "weights"),
    "weights with a line": (weights("0" * 64 + "\n"), "weights"),
    "a model": (edit("model", lambda model: model.update(pretrained="../x")), "pretrained"),
    "a cell": (edit("cell", lambda cell: cell.update(model="../x")), "model"),
    "a label": (edit("cell", lambda cell: cell["attack"].update(label="x" * 10_001)), "label"),
    "a title with a line": (head(title="a\n"), "title"),
    "a title with an escape": (head(title="a\x9b31m"), "title"),
    "an author backwards": (head(authors=["a\u202eb"]), "authors"),
    "a link with a line": (head(link="https://x\n"), "link"),
    "a link of data": (head(link="data:text/html,x"), "link"),
    "a day with a line": (head(submitted="2026-01-31\n"), "submitted"),
    "a day in wide digits": (head(submitted="２０２６-01-31"), "submitted"),
    **{
        f"name {name!r}": (head(name=name), "name")
        for name in ("../up", "/etc/x", "a\0b", "a\\b", "..", "a\n", "con.txt", "A")
    },
}


@pytest.mark.parametrize("how", HOSTILE_ENTRIES)
def test_a_hostile_entry_is_refused_in_one_line_that_does_nothing(
    entry: Entry, tmp_path: Path, how: str
) -> None:
    change, words = HOSTILE_ENTRIES[how]
    lines = whole(entry)
    change(lines)
    with pytest.raises(EntryError, match=words) as raised:
        entries.read(written(tmp_path, *lines))
    assert not UNSEEN_ONES.search(str(raised.value))
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("where", ["path", "url"])
def test_no_more_is_read_than_the_limits(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file = written(tmp_path, *whole(entry))
    size = file.stat().st_size
    place: Any = file
    if where == "url":
        place = f"memory://strangers{tmp_path.name}/acme.jsonl"
        fsspec.filesystem("memory").pipe_file(place, file.read_bytes())
    assert read_file(place, size)[0] is not None
    with pytest.raises(StoreError, match=f"more than {size - 1} bytes"):
        read_file(place, size - 1)
    monkeypatch.setattr(entries, "LARGEST_ENTRY", size - 1)
    with pytest.raises(EntryError, match=f"more than {size - 1} bytes"):
        entries.read(file)
    monkeypatch.setattr(documents, "LONGEST_LINE", 100)
    with pytest.raises(StoreError, match="line 1 has more than 100 bytes"):
        read_file(file)


def test_a_file_without_an_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="more than 1000 bytes"):
        read_file("/dev/zero", 1000)


plain_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=3),
    max_leaves=8,
)


@given(plain_json, st.booleans())
def test_text_of_json_is_harmless_however_it_is_written(plain: Any, ascii_only: bool) -> None:
    content = json.dumps(plain, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        found = json.loads(harmless(content))
    except UnicodeDecodeError:  # half of a pair as it stands is no UTF-8
        assert not ascii_only
        return
    assert found == printable(plain) == printable(printable(plain))
    assert not UNSEEN_ONES.search(json.dumps(found, ensure_ascii=False))


@pytest.mark.parametrize("text", [*"\x1b\x7f\x9b\n\u202e\u2066\u2028\ud800\ue000"])
def test_what_cannot_be_seen_is_shown_as_its_escape(text: str) -> None:
    shown = printable([{f"a{text}": [text, 1]}, "é ± 漢 👩‍👩‍👧"])
    escape = text.encode("unicode_escape").decode()
    assert shown == [{f"a{escape}": [escape, 1]}, "é ± 漢 👩‍👩‍👧"]


@pytest.fixture
def cells(make_cell: MakeCell) -> Records:
    """Records of a stranger whose every text is hostile, as they are read."""
    changed = []
    curve = [(float(units), 0.5, 0.5) for units in (800, 1600, 3200, 6400, 12800)]
    attempts = [
        make_cell(defense=defense, attack=attack, seed=seed, curve=curve)
        for defense in ("none", "d")
        for attack in ("finetune[lr=0.1]", "finetune[lr=0.2]", "scratch")
        for seed in (0, 1)
        if (defense, attack) != ("d", "scratch")
    ]
    for cell in attempts:
        plain = printable(msgspec.to_builtins(cell))
        hostile = printable(HOSTILE)
        plain["scenario"]["label"] = plain["backbone"] = hostile
        plain["attack"]["label"] += hostile
        plain["reason"] = plain["released"]["note"] = f"rolled back {hostile}"
        plain["provenance"] |= {"device": hostile, "version": hostile, "torch": hostile}
        if not cell.defense.control:
            plain["defense"]["label"] = hostile
        changed.append(msgspec.convert(plain, Attempt))
    return gather(changed)


TAGS = re.compile(r"<\s*(script|img|svg|a|iframe)\b", re.IGNORECASE)
LINKS = re.compile(r"(?<!\\)\]\(|(?m:^\s*\[[^\]]*\]:)|(?<!\\)`")


def report(cells: Records) -> Report:
    return tables.report(cells, ())


@pytest.mark.parametrize("form", ["console", "md", "latex", "csv", "json"])
def test_tables_show_text_of_strangers_as_text(
    cells: Records, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    text = tables.show(form, report(cells))
    assert "alert(1)" in text
    assert not UNSEEN_ONES.search(text.replace("\n", ""))
    if form == "md":
        assert not TAGS.search(text)
        assert not LINKS.search(text)
    if form == "latex":
        assert r"\input" not in text
        assert r"\textbackslash{}input\{/etc/passwd\}" in text
    if form == "csv":
        assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1


def test_cards_and_comparisons_show_it_as_text(cells: Records) -> None:
    recipe = Recipe(name="@paper", trials=("finetune[lr=0.1]",), controls=())
    subject = cards.Subject(
        name="d", description="It.", reference="", claim="", source="s", hyperparameters={},
        presets={},
    )  # fmt: skip
    card = cards.cards([subject], cells, recipe=recipe, command="sophon-bench cards")
    assert "alert(1)" in card
    both = Results.of(cells), Results.of(cells)
    changed = compare.markdown(compare.comparison(comparison.compare(*both, []), []))
    for text in (card, changed):
        assert not TAGS.search(text)
        own = text.replace("`sophon-bench cards`", "")
        assert not re.search(r"(?<!\\)\]\((?!#)", own)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("finetune[lr=0.1]: best [of two]", "finetune[lr=0.1]: best [of two]"),
        ("<b>", "&lt;b>"),
        ("[a](b)", r"[a]\(b)"),
        ("[a][b]", r"[a]\[b]"),
        ("[a]: b", r"\[a]: b"),
        ("```", r"\`\`\`"),
        ("\\<b>", r"\\&lt;b>"),
        (r"\](b)", r"\\]\(b)"),
    ],
)
def test_markdown_of_strangers_is_text(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


def test_a_line_of_latex_does_not_begin_with_a_bracket() -> None:
    table = Table(title="t", columns=[Column(key="a")], body=[{"a": "[x]"}, {"a": "x"}])
    lines = to_latex([Place(title="p", tables=[table])]).split("midrule")[1].splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["{}[x]", "x"]


def test_records_of_a_strangers_store_are_data_too(tmp_path: Path, make_cell: MakeCell) -> None:
    store = Store(tmp_path)
    records = gather([make_cell()])
    (cell,) = records.cells
    for model in records.models.values():
        store.put_model(model)
    store.put_cell(msgspec.structs.replace(cell, reason=HOSTILE.replace("\ud800", "")))
    (found,) = store.cells()
    assert found.reason == printable(HOSTILE.replace("\ud800", ""))
    file = tmp_path / "cells" / f"{cell.key}.json"
    file.write_bytes(file.read_bytes().replace(b'"status":', b'"status":"failed","status":', 1))
    with pytest.raises(StoreError, match="there twice"):
        store.cell(cell.key)
    (tmp_path / "runs" / "x.jsonl").write_text(
        '{"key":"a","key":"\\u001b"}\n{"key":"a","key":"\\u001b"}\n{"key":"b","suites":["\\u001b"]}'
    )
    assert store.asked() == {"b": Asked(key="b", suites=(r"\x1b",))}
    (key, *_) = records.models
    record = tmp_path / "models" / f"{key}.json"
    record.write_bytes(record.read_bytes().replace(b'"weights":null', b'"weights":"../../\\u001b"'))
    with pytest.raises(StoreError, match="weights") as raised:
        store.model(key)
    assert not UNSEEN_ONES.search(str(raised.value))


def test_many_damaged_records_take_no_longer_than_many_sound_ones(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = whole(entry)
    damaged = (compact({"cell": {"key": str(n), "model": "m"}, "sha256": ""}) for n in range(500))
    looked_at = 0
    words = documents._words

    def counted(*arguments: Any) -> str:
        nonlocal looked_at
        looked_at += 1
        return words(*arguments)

    monkeypatch.setattr(documents, "_words", counted)
    with pytest.raises(EntryError, match=r"line 2 \(cell 0\) is damaged: .* \(and \d+ more\)"):
        entries.read(written(tmp_path, first, *damaged))
    assert looked_at == 1


EVIL = "from pathlib import Path\nPath({marker!r}).touch()\nraise SystemExit\n"


def test_verify_runs_no_code_that_it_was_not_told_to(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    plugin = tmp_path / "d.py"
    plugin.write_text(EVIL.format(marker=str(marker)))
    for name in ("s", "d", "finetune"):
        (tmp_path / f"{name}.py").write_text(plugin.read_text())
    lines = [line.replace('"distribution":"d"', '"distribution":"d.py"') for line in whole(entry)]
    lines = [
        compact({kind: plain[kind], "sha256": content_key(plain[kind])})
        if kind != "entry"
        else line
        for line in lines
        for plain in [json.loads(line)]
        for kind in [next(iter(plain))]
    ]
    file = written(tmp_path, *lines)
    monkeypatch.chdir(tmp_path)

    def verify(*words: str) -> Result:
        return CliRunner().invoke(main, ["verify", str(file), *words])

    refused = verify()
    assert (refused.exit_code, marker.exists()) == (2, False), refused.output
    assert "key does not follow" in refused.output or "unknown" in refused.output
    told = verify("--plugin", "d.py")
    assert (told.exit_code, marker.exists()) == (2, True), told.output


@pytest.mark.parametrize("command", ["run", "verify", "check", "submit"])
def test_help_says_what_executes(command: str) -> None:
    words = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    assert "executed" in words or "executes" in words


@pytest.mark.parametrize("name", ["hf-hub:x/y", "local-dir:/tmp/x", "../x", "/etc/passwd"])
def test_a_backbone_of_a_record_is_a_name_of_timm(name: str) -> None:
    with pytest.raises(BackboneError, match="unknown backbone"):
        find_backbone(name).build(2, torch.Generator())


class Payload:
    """What makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


def one(offsets: list[int], shape: list[int]) -> bytes:
    told = {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    return header(json.dumps(told).encode()) + bytes(16)


LIES = {
    "pickle": lambda marker: pickle.dumps(Payload(marker)),
    "torch.save": lambda marker: saved(Payload(marker)),
    "a packed torch.save": lambda _: packed(torch.zeros(10**6)),
    "a header longer than the file": lambda _: header(b"{}", 2**62),
    "a header longer than 100 MB": lambda _: header(b"{" + b" " * 16, 2**27),
    "data beyond the end": lambda _: one([0, 2**40], [2**38]),
    "a shape larger than its data": lambda _: one([0, 16], [2**40]),
    "a shape that overflows": lambda _: one([0, 16], [2**33, 2**33]),
    "data from behind": lambda _: one([16, 0], [4]),
    "nothing": lambda _: b"",
}


def saved(payload: object) -> bytes:
    file = io.BytesIO()
    torch.save({"a": payload}, file)
    return file.getvalue()


def packed(payload: object) -> bytes:
    """A file of torch.save that is a thousandth of what is in it."""
    file = io.BytesIO()
    archive = zipfile.ZipFile(io.BytesIO(saved(payload)))
    with archive, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as into:
        for name in archive.namelist():
            into.writestr(name, archive.read(name))
    assert len(file.getvalue()) < 10_000
    return file.getvalue()


@pytest.mark.parametrize("lie", LIES)
def test_weights_that_lie_are_refused_and_never_unpickled(
    tmp_path: Path, make_cell: MakeCell, lie: str
) -> None:
    marker = tmp_path / "marker"
    content = LIES[lie](marker)
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    for pickles in (False, True):
        with pytest.raises(CheckpointError):
            read(file, pickles=pickles)
    store = Store(tmp_path / "store")
    digest = store.put_weights_file(content)
    assert digest == hashlib.sha256(content).hexdigest()
    record = next(iter(gather([make_cell()]).models.values()))
    with pytest.raises(StoreError, match="is no file of safetensors"):
        store.weights(msgspec.structs.replace(record, weights=digest))
    assert not marker.exists()


def test_weights_that_are_whole_are_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(save({"a": torch.ones(4)}))
    assert read(file).tensors["a"].tolist() == [1.0] * 4


SECRET = "hunter2-hunter2"


def test_no_secret_reaches_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    store, out = tmp_path / SECRET, tmp_path / "out.json"
    words = ["run", "--scenario", "tiny", "--attack", "scratch", "--steps", "1", "--samples", "20"]
    words += ["--threads", "1", "--store", str(store), "--json", str(out)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    files = [out, *(file for file in store.rglob("*") if file.suffix in (".json", ".jsonl"))]
    assert len(files) > 4
    assert not [file.name for file in files if SECRET in file.read_text()]


def test_json_is_strict() -> None:
    assert parsed('{"a": [1, -2.5, 9223372036854775807]}') == {"a": [1, -2.5, 2**63 - 1]}
    with pytest.raises(ValueError, match="there twice"):
        parsed('[{"a": {"b": 1, "b": 1}}]')
    with pytest.raises(ValueError, match="20 digits"):
        parsed("1" * 21)


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("an entry", f"{entries.LARGEST_ENTRY // 2**20} MiB"),
        ("a file of `run --json`", f"{LARGEST // 2**30} GiB"),
        ("a record of an entry, which is a line", f"{documents.LONGEST_LINE // 2**20} MiB"),
        ("a picture", f"{WIDEST} × {HIGHEST} pixels, 8.5 MB of base64"),
        ("weights of a published model", f"{zoo.LARGEST // 2**30} GiB"),
        (
            "name of an entry, a plugin",
            f"{NAME_LENGTH} characters: lower-case letters, digits, hyphens",
        ),
        ("a selector or name in a record", "10,000 characters"),
    ],
)
def test_the_page_says_what_the_limits_are(what: str, number: str) -> None:
    page = (Path(__file__).parent.parent / "docs/safety.md").read_text(encoding="utf-8")
    assert f"| {what} | {number} |" in page
