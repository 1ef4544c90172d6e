"""Generation: losses and images in tables, pictures in files, and what no record may hold."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import Attempt, MakeCell, drawn, gather, put, read_cells
from msgspec.structs import replace
from toy import SKILL, drawing, generated, generation

from sophon_bench.analysis.agreement import agreements
from sophon_bench.analysis.images import images, makers
from sophon_bench.analysis.score import scores
from sophon_bench.analysis.series import curves, sweeps
from sophon_bench.analysis.trials import trials
from sophon_bench.cli import main
from sophon_bench.harness import generation as making
from sophon_bench.leaderboard import entries, figures, gallery, tables, vega
from sophon_bench.leaderboard.columns import frame, loss, records
from sophon_bench.leaderboard.entries import Entry, EntryError
from sophon_bench.leaderboard.layout import plural
from sophon_bench.leaderboard.render import flat_rows
from sophon_bench.results import Results, pictures
from sophon_bench.results.pictures import PictureError
from sophon_bench.results.store import Store, StoreError

T1 = 12.706204736


def the_tables(cells: Sequence[Attempt]) -> dict[str, Any]:
    """Tables of one place by the first words of their titles."""
    (place,) = tables.places(tables.report(gather(cells)))
    return {table.title.split(",")[0].split(":")[0]: drawn(table) for table in place.tables}


def line(table: Any, name: str) -> Any:
    (found,) = (x for x in [*table.quiet, *table.body, *table.loud] if x[0] == name)
    return found[1:]


# Losses, where utility is 1 - loss / trivial.


def test_the_loss_is_what_utility_lacks_of_the_trivial_one(make_cell: MakeCell) -> None:
    # original: (1 - .9) * .2 = .02 before, (1 - .8) * .2 = .04 after; restricted after the
    # attack: (1 - .6) * .1 = .04 and (1 - .5) * .1 = .05, so .045 ± t(1) * .005
    results = Results.of(gather(generation(make_cell)))
    found = {(r["defense"], r["attack"]): r for r in records(trials(results))}
    row = found["dos", "finetune[lr=0.1]"]
    assert row["utility"] == SKILL
    assert row["original_loss_before"] == pytest.approx(0.02)
    assert row["original_loss"] == pytest.approx(0.04)
    assert row["restricted_loss"] == pytest.approx(0.045)
    assert row["restricted_loss_half_width"] == pytest.approx(T1 * 0.005)
    # the envelope has the other trial, picked on the selection split: (1 - .7) * .1
    assert found["dos", "envelope"]["restricted_loss"] == pytest.approx(0.03)
    (score,) = (r for r in records(scores(results)) if r["defense"] == "dos")
    assert score["utility"] == SKILL
    assert score["restricted_loss"] == pytest.approx(0.03)
    assert score["original_loss"] == pytest.approx(0.04)


def test_the_table_of_losses_is_arranged_as_that_of_utilities(make_cell: MakeCell) -> None:
    found = the_tables(generation(make_cell))
    table, utilities = found["Noise MSE (lower is better)"], found["n = 200"]
    assert table.columns == utilities.columns == ["", "none", "dos"]
    assert [x[0] for x in table.body] == [x[0] for x in utilities.body]
    assert [x[0] for x in table.loud] == ["tuned envelope"]
    assert line(table, "original, unprotected") == [".0200", ".0200"]
    assert line(table, "original") == [".0200", ".0400"]
    assert line(table, "finetune[lr=0.1]") == [".0150 ± .0635", ".0450 ± .0635"]
    assert line(table, "scratch") == [".0600 ± .0000", "·"]
    assert line(table, "tuned envelope") == [".0100 ± .0000", ".0300 ± .0000"]
    assert "2 seeds" in table.title
    assert table.notes[0].startswith("denoising skill: 1 - MSE / MSE₀")


def test_a_loss_has_four_decimals_and_no_zero_before_them() -> None:
    assert [loss(v) for v in (0.0372, 0.0, 1.5, 10.25, None)] == [
        ".0372", ".0000", "1.5000", "10.2500", "·",
    ]  # fmt: skip
    assert loss(0.0372, 0.0011) == ".0372 ± .0011"
    assert loss(10.0, 0.5) == "10.0000 ± .5000"


def test_every_table_and_plot_says_the_name_of_the_utility(make_cell: MakeCell) -> None:
    cells = generation(make_cell)
    report = tables.report(gather(cells))
    shown = tables.show("md", report) + tables.meaning(report)
    assert "accurac" not in shown
    for words in (
        "trainability; denoising skills in % after the tuned attack",
        "Who won: restricted denoising skill in %",
        "restricted denoising skill after the attack, in %",
        "original denoising skill ",
        "while the original denoising skill stays",
    ):
        assert words in shown
    found = figures.pictures(curves(Results.of(gather(cells))), sweeps(Results.of(gather(cells))))
    drawn = {name.split("_")[3]: figure for name, figure in found}
    for panel in (drawn["envelopes"], *drawn["lr-sweep"]["concat"]):
        assert panel["encoding"]["y"]["axis"]["title"] == "restricted denoising skill (%)"
    assert "Restricted denoising skill" in drawn["lr-sweep"]["title"]["text"]


def test_plurals() -> None:
    assert plural("accuracy") == "accuracies"
    assert plural(SKILL) == "denoising skills"


def test_classification_has_none_of_it(make_cell: MakeCell) -> None:
    cells = [
        make_cell(defense=defense, attack=attack)
        for defense, attack in (("none", "scratch"), ("none", "finetune"), ("ice", "finetune"))
    ]
    report = tables.report(gather(cells))
    assert report.images.empty
    for row in flat_rows(report.flat):
        assert row["utility"] == "accuracy"
        assert row["restricted_loss"] is row["original_loss"] is None
    shown = tables.show("md", report)
    assert "accuracy" in shown
    for words in ("skill", "MSE", "lower is better", "Images"):
        assert words not in shown


# How good images are.


def test_images_are_of_released_models_and_of_the_picked_trials(make_cell: MakeCell) -> None:
    rows = records(images(Results.of(gather(generation(make_cell)))))
    told = [(r["maker"], r["defense"], r["samples"], r["frechet"], r["attacks"]) for r in rows]
    best = "finetune[lr=0.2]"
    assert told == [
        ("released", "none", None, 10.5, []),
        ("released", "dos", None, 20.5, []),
        ("attacked", "none", 200, 30.5, [(best, 2)]),
        ("attacked", "dos", 200, 40.5, [(best, 2)]),
        ("scratch", "none", 200, 50.5, [("scratch", 2)]),
    ]
    assert rows[0]["frechet_half_width"] == pytest.approx(T1 * 0.5)
    assert rows[0]["frechet_real"] == 1.5
    assert rows[0]["classifier_score"] == 4.0
    assert {row["seeds"] for row in rows} == {2}


def test_a_longer_trial_and_one_on_a_benign_domain_have_no_images_here(
    make_cell: MakeCell,
) -> None:
    cells = generation(make_cell)
    better = [replace(c, curve=[replace(c.curve[0], selection=1.0)]) for c in cells]
    more = [replace(c, stretch=10, key=f"{c.key}x", generated=generated(99)) for c in better]
    more += [replace(c, role="benign", key=f"{c.key}y", generated=generated(99)) for c in better]
    found = images(Results.of(gather([*cells, *more])))
    assert set(found["frechet"]) == {10.5, 20.5, 30.5, 40.5, 50.5}


def test_only_some_attacks_may_be_picked(make_cell: MakeCell) -> None:
    cells = generation(make_cell)
    other = [c.key for c in cells if c.attack.label == "finetune[lr=0.1]"]
    found = makers(Results.of(gather([replace(c, generated=generated(1)) for c in cells])), other)
    attacks = {"released": None, "attacked": "finetune[lr=0.1]", "scratch": "scratch"}
    assert {(made.maker, made.attack) for made in found} == set(attacks.items())
    assert {made.maker for made in makers(Results.of(gather(cells)), [])} == {"released", "scratch"}


def test_a_crash_at_once_shows_what_the_undefended_models_trial_made(make_cell: MakeCell) -> None:
    cells = [
        replace(c, status="diverged", curve=[], nonfinite_step=1, generated=None)
        if c.defense.label == "dos"
        else c
        for c in generation(make_cell)
    ]
    attacked = [made for made in makers(Results.of(gather(cells))) if made.maker == "attacked"]
    assert [(m.defense, m.attack, m.generated.frechet) for m in attacked] == [
        (defense, "finetune[lr=0.2]", frechet)
        for defense in ("none", "dos")
        for frechet in (30.0, 31.0)
    ]


def test_models_that_make_no_images_have_none(make_cell: MakeCell) -> None:
    for cells in ([], [make_cell(), make_cell(defense="d")]):
        assert makers(Results.of(gather(cells))) == []
        assert images(Results.of(gather(cells))).empty


def test_the_table_of_images(make_cell: MakeCell) -> None:
    cells = [cell for cell in generation(make_cell) if cell.seed == 0]
    table = the_tables(cells)["Images made from noise"]
    assert table.columns[1:] == ["domain", "n", "attack", "Fréchet distance", "classifier score"]
    assert table.body == [
        ["none", "original", "·", "·", "10.0 (1.5)", "4.00"],
        ["dos", "original", "·", "·", "20.0 (1.5)", "4.00"],
        ["none, attacked", "restricted", "200", "finetune lr=0.2", "30.0 (1.5)", "4.00"],
        ["dos, attacked", "restricted", "200", "finetune lr=0.2", "40.0 (1.5)", "4.00"],
        ["scratch", "restricted", "200", "scratch", "50.0 (1.5)", "4.00"],
    ]


def test_reports_of_images_are_united_and_renamed(make_cell: MakeCell) -> None:
    report = tables.report(gather(generation(make_cell)))
    both = tables.united([report, tables.renamed(report, {"dos": "dos (other)"})])
    assert [row["defense"] for row in records(both.images)] == [
        "none", "dos", "none", "dos", "none", "dos (other)", "dos (other)",
    ]  # fmt: skip


def test_work_done_again_may_differ_a_little(make_cell: MakeCell) -> None:
    cell = make_cell(curve=[(10, 0.5, -0.3)], utility=SKILL)
    for test, verdict in ((-0.3, "identical"), (-0.29, "agrees"), (-0.2, "differs")):
        again = replace(cell, curve=[replace(cell.curve[0], test=test)])
        pair = [Results.of(gather([each])) for each in (cell, again)]
        examples = dict.fromkeys(("test", "selection", "original"), 500)
        (row,) = records(agreements(*pair, {cell.key: examples}))
        assert row["agreement"] == verdict
        assert row["reported_low"] is None
        named = {**row, "attack_name": "a", "defense_name": "d"}
        title = tables.agreements("x", frame([named])).title
        assert title == "x: test denoising skill in %"


# Pictures in records.


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (4, 4)) -> str:
    """A PNG in base64 of any chunks between its header and its end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*p) for p in parts)).decode()


PIXELS = (b"IDAT", zlib.compress(bytes(4 * 13)))
HOSTILE = {
    "markup": '"><script>alert(1)</script>',
    "nothing": "",
    "not a PNG": base64.b64encode(b"<svg onload=alert(1)>").decode(),
    "white space": f" {png(PIXELS)}",
    "cut short": png(PIXELS)[:40],
    "no pixels": png(),
    "too few pixels": png(PIXELS, size=(400, 400)),
    "too wide": png(PIXELS, size=(pictures.WIDEST + 1, 4)),
    "too high": png(PIXELS, size=(4, pictures.HIGHEST + 1)),
    "no width": png(PIXELS, size=(0, 4)),
    "a bomb of pixels": png((b"IDAT", zlib.compress(bytes(10**7))), size=(60000, 60000)),
    "a bomb of text": png((b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))), PIXELS),
    "too long": "A" * (pictures.LONGEST + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_refused(name: str) -> None:
    with pytest.raises(PictureError, match=r"^its picture "):
        pictures.pixels_of(HOSTILE[name])


def test_a_picture_is_read_back_and_only_its_pixels_go_on() -> None:
    pixels = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    text = making.picture(pixels)
    row = np.concatenate([*pixels.permute(0, 2, 3, 1).numpy()], axis=1)
    assert (pictures.pixels_of(text) == row).all()
    told = png((b"tEXt", b"Comment\0<script>"), PIXELS)
    uri = pictures.data_uri(told)
    assert b"script" in base64.b64decode(told)
    assert b"script" not in base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert pictures.pixels_of(told).shape == (4, 4, 3)


def test_broken_files_raise_nothing_else() -> None:
    rng = random.Random(0)
    whole = base64.b64decode(drawing(1))
    read = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(8, len(content))] = rng.randrange(256)
        try:
            pictures.pixels_of(base64.b64encode(content[: rng.choice([None, 60])]).decode())
            read += 1
        except PictureError:
            pass
    assert read < 400


@pytest.mark.parametrize("where", ["cell", "pretrained", "released"])
def test_a_hostile_picture_is_refused_with_its_record(
    make_cell: MakeCell, tmp_path: Path, where: str
) -> None:
    cells = generation(make_cell)
    first, *others = cells
    bad = {"generated": replace(generated(1), picture=HOSTILE["a bomb of pixels"])}
    if where == "cell":
        first = replace(first, **bad)
    else:
        first = replace(first, **{where: replace(getattr(first, where), **bad)})
    file = tmp_path / "out.json"
    file.write_text(
        tables.document(gather([first, *others]), tables.report(gather([first, *others])))
    )
    with pytest.raises(StoreError, match="its picture has 60000 x 60000 pixels"):
        read_cells(file)
    head = {
        "name": "x", "title": "X", "authors": ["A"], "link": "https://example.org",
        "submitted": "2026-01-31",
    }  # fmt: skip
    bad_file = entries.write(Entry.of(head, gather([first, *others])), tmp_path / "bad")
    with pytest.raises(EntryError, match="its picture has 60000 x 60000 pixels"):
        entries.read(bad_file)
    assert entries.read(entries.write(Entry.of(head, gather(cells)), tmp_path)).records.cells


# The command.


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["pictures", *map(str, arguments)])


@pytest.fixture
def source(tmp_path: Path, make_cell: MakeCell) -> Path:
    """A run's JSON file."""
    cells = generation(make_cell)
    file = tmp_path / "out.json"
    file.write_text(tables.document(gather(cells), tables.report(gather(cells))))
    return file


def test_the_gallery_has_every_model_before_and_after(make_cell: MakeCell) -> None:
    cells = generation(make_cell)
    found = gallery.of_one_seed(makers(Results.of(gather(cells))))
    assert [gallery.title(made) for made in found] == [
        "undefended: original domain",
        "undefended, after finetune[lr=0.2], n = 200: restricted domain",
        "dos: original domain",
        "dos, after finetune[lr=0.2], n = 200: restricted domain",
        "from scratch, n = 200: restricted domain",
    ]
    assert {made.seed for made in found} == {0}
    assert {made.seed for made in gallery.of_one_seed(makers(Results.of(gather(cells))), 1)} == {1}
    figure = gallery.images(found)
    assert len(figure["vconcat"]) == 5
    for row, made in zip(figure["vconcat"], found, strict=True):
        (cell,) = row["data"]["values"]
        address = cell["picture"].removeprefix("data:image/png;base64,")
        assert (pictures.pixels_of(address) == pictures.pixels_of(made.generated.picture)).all()
        words = f"{gallery.title(made)} Fréchet distance {made.generated.frechet:.1f}"
        assert cell["words"].replace("\n", " ") == words.replace(",lr", ", lr")
        (image,) = (layer["mark"] for layer in row["layer"] if layer["mark"]["type"] == "image")
        assert image["smooth"] is False
    assert figure["title"] == {
        "text": "Images made from noise, seed 0", "subtitle": ["s, b, fp32"]
    }  # fmt: skip
    drawn = vega.encode(figure, "svg").decode()
    assert drawn.count("<image") == 5
    assert drawn.count("image-rendering: pixelated") == 5


def test_the_same_noise_stands_in_one_column_however_long_the_names_are(
    make_cell: MakeCell,
) -> None:
    strip = pictures.picture_of(np.zeros((16, 160, 3), np.uint8))
    longest = "finetune[optimizer=adagrad, lr=0.0001, weight_decay=0.0001, batch_size=200]"
    made = [
        dataclasses.replace(
            one,
            generated=replace(one.generated, picture=strip),
            attack=longest if one.maker == "attacked" else one.attack,
        )
        for one in gallery.of_one_seed(makers(Results.of(gather(generation(make_cell)))))
    ]
    rows = gallery.images(made * 3)["vconcat"]
    lines = [row["data"]["values"][0]["words"].count("\n") + 1 for row in rows]
    assert max(lines) > min(lines) + 1
    assert all(
        row["height"] >= gallery.LINE * count for row, count in zip(rows, lines, strict=True)
    )
    drawn = [layer for row in rows for layer in row["layer"] if layer["mark"]["type"] == "image"]
    assert {(d["mark"]["width"], d["encoding"]["x"]["value"]) for d in drawn} == {
        (gallery.STRIP, gallery.CAPTION)
    }
    assert {row["width"] for row in rows} == {gallery.STRIP + gallery.CAPTION}


def test_several_places_have_titles_of_their_own(make_cell: MakeCell) -> None:
    cells = itertools.chain(*(generation(make_cell, backbone=b) for b in ("b$c$", "a")))
    figure = gallery.images(gallery.of_one_seed(makers(Results.of(gather(cells)))))
    assert vega.encode(figure, "svg")
    titles = [row.get("title") for row in figure["vconcat"]]
    assert titles == [["s, a, fp32"], *[None] * 4, ["s, b$c$, fp32"], *[None] * 4]


def test_the_command_draws_what_is_asked_for(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    result = call("--from", source, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG")
    for more in (["--seed", 1], ["--attack", "finetune[lr=1e-1]"]):
        assert call("--from", source, "--out", out, *more).exit_code == 0
        assert out.read_bytes() != first
    for more in (["--seed", 0], ["--attack", "finetune"], ["--attack", "finetune[lr=2.0e-1]"]):
        assert call("--from", source, "--out", out, *more).exit_code == 0
        assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "a.gif"], "--out draws a file that ends in .png or .svg"),
        (["--out", "nowhere/a.png"], "cannot be written"),
        (["--seed", "7"], "--seed 7 has no images; those that have are [0, 1]"),
        (["--attack", "finetun"], "did you mean"),
        (["--attack", "finetune[lr=3]"], "unknown attack"),
        (["--attack", "finetune["], "finetune["),
        (["--from", "missing.json"], "cannot be read"),
        (["--store", "missing"], "there is no store at"),
    ],
)
def test_bad_input_is_one_line_and_draws_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = [] if "--store" in arguments else ["--from", str(source)]
    result = call("--out", "a.png", *usual, *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.[ps][nv]g"))


def test_records_without_images_are_refused(make_cell: MakeCell, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    put(store, make_cell())
    result = call("--store", store.root, "--out", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "no record has images" in result.stderr


def test_a_broken_picture_in_a_store_is_one_line(make_cell: MakeCell, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    bad = replace(generated(1), picture=HOSTILE["markup"])
    put(store, replace(make_cell(), generated=bad))
    result = call("--store", store.root, "--out", tmp_path / "a.png")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "its picture is not a PNG in base64" in result.stderr
