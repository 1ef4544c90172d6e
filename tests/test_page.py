"""The page: what is in it, what strangers cannot put into it, and how it behaves in a browser."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import msgspec
import pytest
from click.testing import CliRunner, Result
from conftest import Attempt, MakeCell, drawn, gather
from msgspec.structs import replace
from test_scores import BUDGET, controls, defended, run
from toy import generated, generation

from sophon_bench.analysis.envelope import ENVELOPE
from sophon_bench.cli import main
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import bars, cards, entries, figures, page, provenance, tables, vega
from sophon_bench.leaderboard.columns import frame, records
from sophon_bench.leaderboard.page import Submission, view
from sophon_bench.results import Results
from sophon_bench.results.pictures import PictureError, data_uri

HOSTILE = "<script>alert(1)</script>\"><img src=x onerror=alert(1)>'"
LINK = "javascript:alert(1)"
FALLING = [0.3, 0.3, 0.4, 0.5, 0.6]


class Document(HTMLParser):
    """Elements with their attributes and text, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.elements[-1][0] if self.elements else "", data.strip()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        """What a reader sees."""
        seen = [text for tag, text in self.texts if tag not in ("script", "style")]
        return " ".join(" ".join(seen).split())


@pytest.fixture
def cells(make_cell: MakeCell) -> list[Attempt]:
    """Two defenses of two seeds beside their controls; a trial was skipped, another failed."""
    kept = {"seeds": (0, 1)}
    return [
        *controls(make_cell, **kept),
        *defended(make_cell, FALLING, name="ice", left=0.55, **kept),
        *defended(make_cell, 0.35, name="klu[alpha=0.1]", **kept),
        *(
            run(make_cell, defense, 0.3 + lr, attack=f"finetune[lr={lr}]", seed=seed)
            for defense in ("none", "ice", "klu[alpha=0.1]")
            for lr in (0.1, 0.2)
            for seed in (0, 1)
        ),
        *(
            make_cell(
                defense="ice", attack=attack, curve=[], budget=BUDGET, status=status, reason=reason
            )
            for attack, status, reason in (
                ("lora", "skipped", "no layer fits"),
                ("probe", "failed", "it broke"),
            )
        ),
    ]


def submission(cells: Sequence[Attempt], **changes: Any) -> Submission:
    made = {
        "name": "one", "title": "One", "authors": ["A. Author"], "link": "https://example.org/one",
        "label": "self-reported", "submitted": "2026-01-31",
    }  # fmt: skip
    return Submission(cells=gather(cells), **{**made, **changes})


def html(*submissions: Submission, **more: Any) -> str:
    return page.site(submissions, **more)["index.html"].decode()


def document(*submissions: Submission, **more: Any) -> Document:
    return Document(html(*submissions, **more))


def test_everything_that_the_page_asks_for_is_beside_it(cells: list[Attempt]) -> None:
    files = page.site([submission(cells)], sheets={"s": b"png"})
    found = Document(files["index.html"].decode())
    asked = [a["src"] for tag in ("script", "img") for a in found.of(tag) if "src" in a]
    asked += [a["href"] for a in found.of("link") if a["href"] != "data:,"]
    assert sorted(map(str, asked)) == sorted(set(files) - {"index.html"})
    assert files["scenario-1.png"] == b"png"
    assert b"window.vegaEmbed=" in files[page.LIBRARY].replace(b" ", b"")
    assert "unsafe-eval" not in files["index.html"].decode()
    assert "http" not in files["style.css"].decode() + files["page.js"].decode()


def test_scores_are_the_texts_of_the_tables(cells: list[Attempt]) -> None:
    text = document(submission(cells)).text()
    (place,) = tables.places(tables.report(gather(cells)))
    scores, *_ = map(drawn, place.tables)
    for line in [*scores.quiet, *scores.body]:
        assert " ".join(line[1:]) in text
    for note in scores.notes:
        assert note in text
    assert place.title in text


def test_a_bar_is_the_interval_within_the_scale(make_cell: MakeCell) -> None:
    # as in test_scores: one seed, 100 * .4 * .5 * .6 = 12, no interval
    single = [
        *controls(make_cell),
        *defended(make_cell, FALLING, left=0.55, original=(0.98, 0.94)),
    ]
    assert '<path class="span" d="M12.0 6H12.0"/>' in html(submission(single))
    # two seeds: R is 0.4 and 0 (clipped to 0.2 in the mean), far beyond both ends with t = 12.7
    double = [
        *controls(make_cell, seeds=(0, 1)),
        *defended(make_cell, FALLING, seeds=(0,)),
        *defended(make_cell, 0.8, seeds=(1,)),
    ]
    scores = records(analysis.scores(Results.of(gather(double))))
    row = next(row for row in scores if row["defense"] == "d")
    assert row["score_half_width"] > 100
    assert '<path class="span" d="M0.0 6H100.0"/>' in html(submission(double))


def test_a_card_tells_where_its_numbers_come_from(cells: list[Attempt]) -> None:
    subject = cards.Subject(
        name="ice",
        description="Minimise it.\n\nDifferent from the original: nothing.\n\nArgs:\n    x: y",
        reference="A paper",
        claim="It holds.",
        source="t",
        hyperparameters={},
        presets={},
    )
    text = document(submission(cells), subjects=[subject]).text()
    for words in (
        "One, by A. Author, 2026-01-31",
        "What it does Minimise it.",
        "Reference A paper",
        "Different from the original nothing.",
        "What its paper claims It holds.",
        "Made with sophon-bench 0 at an unknown commit, torch 2, cpu, 1 thread",
        "Seeds 0, 1",
        "Records 1 failed, 10 ok, 1 skipped",
        "Source ice s of d, another version than the description is of",
        "lora, n = 200: skipped, no layer fits",
        "probe, n = 200: failed, it broke",
        "Cost of protection seconds 2",
        "Who won: restricted accuracy",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({}, "provisional"),
        ({"released": {"note": "rolled back after 3"}}, "rolled back"),
        ({"status": "diverged"}, "diverged"),
    ],
)
def test_what_weakens_a_row_is_marked(
    make_cell: MakeCell, changes: dict[str, Any], mark: str
) -> None:
    found = [*controls(make_cell), *defended(make_cell, FALLING, **changes)]
    assert f">{mark}</span>" in html(submission(found))


def test_skipped_and_failed_attacks_are_in_the_heat_map(cells: list[Attempt]) -> None:
    found = html(submission(cells))
    assert '<th scope="row" data-sort="lora">lora</th><td>·</td><td>·</td><td>skipped</td>' in found
    assert '<th scope="row" data-sort="probe">probe</th>' in found
    assert '<td class="heat" style="--v:0.35" data-sort="0.35">' in found


def test_a_control_is_shown_once_and_is_the_one_with_most_seeds(make_cell: MakeCell) -> None:
    few = [*controls(make_cell), *defended(make_cell, 0.5)]
    many = [*controls(make_cell, seeds=(0, 1)), *defended(make_cell, 0.4, seeds=(0, 1))]
    (section,) = sections(submission(few, name="few"), submission(many, name="many"))
    assert [card.name for card in section.controls] == ["none"]
    assert section.controls[0].row["seeds"] == 2
    assert [card.name for card in section.defenses] == ["d (many)", "d (few)"]
    assert [card.submission.name for card in section.defenses] == ["many", "few"]
    (map_,) = section.heat_maps
    _, *defenses = map_.columns
    assert [column.title for column in defenses] == ["none", "d (many)", "d (few)"]
    (envelope,) = map_.loud
    assert [column.sort_value(envelope) for column in defenses] == [0.8, 0.4, 0.5]


def sections(*submissions: Submission) -> list[SimpleNamespace]:
    return [view.section(key, parts, {}, {}) for key, parts in view.by_place(submissions, None)]


@pytest.mark.parametrize("names", [("x", "x"), ("", ""), ("x", "y")])
def test_names_are_unique_whatever_submissions_are_called(
    make_cell: MakeCell, names: tuple[str, str]
) -> None:
    found = [*controls(make_cell), *defended(make_cell, 0.5)]
    (section,) = sections(*(submission(found, name=name) for name in names))
    assert len({card.name for card in section.cards}) == len(section.cards) == 3


def test_places_have_sections_of_their_own_pre_trained_models_first(make_cell: MakeCell) -> None:
    found = [
        cell
        for backbone in ("b", "c[pretrained=true]", "a")
        for cell in [
            *controls(make_cell, backbone=backbone),
            *defended(make_cell, 0.5, backbone=backbone),
        ]
    ]
    order = [section.backbone for section in sections(submission(found))]
    assert order == ["c[pretrained=true]", "a", "b"]


def test_no_controls_is_no_score_and_still_a_page(make_cell: MakeCell) -> None:
    text = document(submission(defended(make_cell, 0.5))).text()
    assert "no controls: the undefended model was not attacked here" in text


def test_fresh_weights_alone_are_no_score_and_still_a_page(make_cell: MakeCell) -> None:
    fresh = [cell for cell in controls(make_cell) if cell.attack.control]
    text = document(submission(fresh)).text()
    assert "no scores: only random initialisations were trained here" in text


def test_a_long_name_is_whole_on_its_card_and_in_a_legend_below_matrices(
    make_cell: MakeCell,
) -> None:
    name = f"d[{','.join(f'alpha{i}=0.1' for i in range(9))}]"
    found = [*controls(make_cell), *defended(make_cell, 0.35, name=name)]
    (section,) = sections(submission(found))
    assert [card.name for card in section.defenses] == [name]
    (map_,) = section.heat_maps
    assert map_.headers("page") == ["", "none", "d #1"]
    assert map_.notes == [f"d #1: {name}"]
    assert f'<p class="note">d #1: {name}</p>' in html(submission(found))


def test_a_record_that_is_there_twice_counts_once(cells: list[Attempt]) -> None:
    assert page.site([submission([*cells, *cells])]) == page.site([submission(cells)])


def test_the_same_records_give_the_same_bytes(cells: list[Attempt]) -> None:
    first = page.site([submission(cells)])
    assert first == page.site([submission(list(reversed(cells)))])


def test_a_link_is_followed_only_into_the_web(cells: list[Attempt]) -> None:
    links = {a.get("href") for a in document(submission(cells)).of("a")}
    assert "https://example.org/one" in links
    for link in (LINK, "JavaScript:alert(1)", "data:text/html,x", " https://x", "//x"):
        found = document(submission(cells, link=link))
        assert link.strip() in found.text()
        assert all(str(a["href"]).startswith("#") for a in found.of("a"))


def hostile(cells: Sequence[Attempt]) -> Submission:
    """Everything that a stranger writes is hostile."""
    changed = []
    for cell in cells:
        plain = msgspec.to_builtins(cell)
        plain["scenario"]["label"] = plain["backbone"] = HOSTILE
        plain["attack"]["label"] += HOSTILE
        plain["reason"] = plain["released"]["note"] = HOSTILE
        plain["provenance"]["device"] = plain["suite"] = HOSTILE
        if not cell.defense.control:
            plain["defense"]["label"] = plain["defense"]["name"] = HOSTILE + cell.defense.label
        changed.append(msgspec.convert(plain, Attempt))
    return submission(
        changed, name=HOSTILE, title=HOSTILE, authors=[HOSTILE], link=LINK, submitted=HOSTILE
    )


def test_what_strangers_write_is_text(cells: list[Attempt]) -> None:
    found = document(hostile(cells))
    assert [a for a in found.of("script") if a.get("type") != "application/json"] == [
        {"src": "page.js"},
        {"src": "vega.min.js", "defer": None},
    ]
    assert len(found.of("script")) == 3
    assert not found.of("img")
    assert not [name for _, attributes in found.elements for name in attributes if name[:2] == "on"]
    assert HOSTILE.split("'")[0] in found.text()
    (text,) = (text for tag, text in found.texts if tag == "script" and text)
    assert json.loads(text).keys() == vega.THEMES.keys()
    drawings = [a for a in found.of("div") if a.get("class") == "figure"]
    assert drawings
    for drawing in drawings:
        assert json.loads(str(drawing["data-figure"]))["$schema"] == vega.SCHEMA


def test_images_that_models_made_are_shown_side_by_side(make_cell: MakeCell) -> None:
    found = document(submission(generation(make_cell)))
    said = "Images that a model made from noise: "
    after = "after finetune[lr=0.2], n = 200: restricted domain, seed 0"
    assert [(img["alt"], img["src"]) for img in found.of("img")] == [
        (f"{said}{words}", data_uri(generated(number).picture))
        for words, number in (
            ("undefended: original domain, seed 0", 10),
            (f"undefended, {after}", 30),
            ("dos: original domain, seed 0", 20),
            (f"dos, {after}", 40),
            ("from scratch, n = 200: restricted domain, seed 0", 50),
        )
    ]
    text = found.text()
    assert "accurac" not in text
    for words in (
        "1 if the original denoising skill is kept",
        "Test denoising skills in %",
        "denoising skill 1 - MSE / MSE₀",
        "Restricted denoising skill in % after each attack",
        "restricted denoising skill of the envelopes in %",
        "Noise MSE (lower is better), n = 200, 2 seeds",
        "dos, attacked restricted 200 finetune lr=0.2 40.5",
    ):
        assert words in text


def test_classification_has_no_such_images(cells: list[Attempt]) -> None:
    found = document(submission(cells))
    assert not found.of("img")
    for words in ("skill", "MSE", "made from noise", "Fréchet"):
        assert words not in found.text()
    assert "1 if the original accuracy is kept" in found.text()
    assert "Test accuracies in %" in found.text()


def test_a_page_of_both_says_both(make_cell: MakeCell, cells: list[Attempt]) -> None:
    both = [*cells, *generation(make_cell, backbone="unet")]
    text = document(submission(both)).text()
    assert "1 if the original accuracy or denoising skill is kept" in text
    assert "Test accuracies or denoising skills in %" in text
    assert "Restricted accuracy in % after each attack" in text


@pytest.mark.parametrize("text", ['"><script>alert(1)</script>', "", "PHN2Zz4="])
def test_a_picture_that_is_none_never_gets_into_a_page(make_cell: MakeCell, text: str) -> None:
    bad = replace(generated(1), picture=text)
    cells = [
        replace(cell, released=replace(cell.released, generated=bad))
        for cell in generation(make_cell)
    ]
    with pytest.raises(PictureError, match="its picture is not a PNG"):
        page.site([submission(cells)])


def shown(submission: Submission) -> dict[str, list[vega.Figure]]:
    """Figures of a page by their captions."""
    found: dict[str, list[vega.Figure]] = {}
    for drawing in document(submission).of("div"):
        if "data-figure" in drawing:
            figure = json.loads(str(drawing["data-figure"]))
            found.setdefault(str(drawing["aria-label"]), []).append(figure)
    return found


def test_figures_are_the_rows_under_the_pages_own_captions(cells: list[Attempt]) -> None:
    found = shown(submission(cells))
    none, _, ice = found["What a tuned attacker reaches"]
    assert list(lines_of(none)) == ["undefended", "scratch"]
    lines = lines_of(ice)
    assert list(lines) == ["protected", "undefended", "scratch"]
    steps = [BUDGET / 64 * at for at in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)]
    assert lines["undefended"] == (steps, pytest.approx([80] * 5))
    assert lines["protected"][1] == pytest.approx([50, 50, 50, 50, 60])
    (regular,) = (layer for layer in ice["layer"] if layer["mark"]["type"] == "rule")
    assert regular["data"]["values"] == [{"x": 25}]
    colour = ice["encoding"]["color"]["scale"]
    assert dict(zip(colour["domain"], colour["range"], strict=True)) == {
        "protected": "#0072B2", "undefended": "#D55E00", "scratch": "#808080"
    }  # fmt: skip
    _, resistance = found["Resistance by budget"]
    assert lines_of(resistance)["protected"][1] == pytest.approx([0.6, 0.6, 0.6, 0.6, 0.4])
    for figure in itertools.chain.from_iterable(found.values()):
        assert "title" not in figure
        assert figure["width"] == "container"


def test_a_band_is_the_half_width(cells: list[Attempt]) -> None:
    curves = records(analysis.curves(Results.of(gather(cells))))
    curve = next(row for row in curves if row["defense"] == "ice")
    curve["protected"] = [(64.0, 0.5, 0.1), (128.0, 0.6, 0.2)]
    styles = vega.styles(["ice"])
    figure = figures.envelopes(frame([curve]), styles)
    assert figure is not None
    own = [point for point in figure["data"]["values"] if point["name"] == "ice"]
    assert [point["x"] for point in own] == [1, 2]
    assert [point["low"] for point in own] == pytest.approx([40, 40])
    assert [point["high"] for point in own] == pytest.approx([60, 80])
    empty = {**curve, "protected": [], "undefended": [], "scratch": []}
    assert figures.envelopes(frame([empty]), styles) is None


def lines_of(figure: vega.Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Data by name, in the order of the legend."""
    points = figure["data"]["values"]
    return {
        name: tuple([p[axis] for p in points if p["name"] == name] for axis in "xy")
        for name in figure["encoding"]["color"]["scale"]["domain"]
    }


def test_a_sweep_is_drawn_beside_the_undefended_models(cells: list[Attempt]) -> None:
    none, _, ice = shown(submission(cells))["finetune"]
    lines = lines_of(ice)
    assert lines["protected"] == ([0.1, 0.2], pytest.approx([40, 50]))
    assert set(lines) == {"protected", "undefended"}
    assert set(lines_of(none)) == {"undefended"}


def test_skill_below_zero_is_drawn_by_its_error_and_told_as_skill(cells: list[Attempt]) -> None:
    sweeps = records(analysis.sweeps(Results.of(gather(cells))))
    found = {row["defense"]: row for row in sweeps if row["family"] == "finetune"}
    found["ice"]["levels"] = [(0.1, 0.5, 0.2), (0.2, -1.0, 0.4)]
    figure = figures.sweep(frame([found["ice"]]), vega.styles(["ice"]))
    assert figure is not None
    first, second = figure["data"]["values"]
    assert (first["y"], second["y"]) == pytest.approx((50, 200))
    assert first["tip"] == "ice: 50.0 ± 20.0 % at 0.1"
    assert second["tip"] == "ice: -100.0 ± 40.0 % at 0.2"
    assert (first["low"], first["high"]) == pytest.approx((30, 70))
    assert (second["low"], second["high"]) == pytest.approx((160, 240))
    y = figure["encoding"]["y"]
    assert (y["scale"]["type"], y["scale"]["reverse"]) == ("log", True)
    assert 200 in y["axis"]["values"]


def test_costs_are_drawn_with_their_bounds() -> None:
    rows = [
        {"defense": name, "control": False, "attack": ENVELOPE, "samples": 200,
         "times_undefended": times, "times_undefended_bound": bound}
        for name, times, bound in (("<b>x", 16.0, ">"), ("y", 2.0, "="), ("z", None, None))
    ]  # fmt: skip
    figure = bars.half_costs(frame(rows))
    assert figure is not None
    found = figure["data"]["values"]
    assert [bar["defense"] for bar in found] == ["<b>x", "y"]
    assert [bar["times"] for bar in found] == [16, 2]
    assert [bar["text"] for bar in found] == [">16×", "2×"]
    assert [bar["open"] for bar in found] == [True, False]
    assert figure["encoding"]["y"]["scale"]["domain"] == ["<b>x", "y"]
    assert bars.half_costs(frame(rows[2:])) is None
    assert bars.protection(frame([])) is None


def again(cells: Sequence[Attempt]) -> str:
    return provenance.reproduction(Results.of(gather(cells)).cells)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "--attack finetune --samples 200 --seeds 0-2,5"),
        ({"suite": "@standard v1"}, "--attack @standard --samples 200 --seeds 0-2,5"),
    ],
)
def test_the_command_names_what_was_asked(
    make_cell: MakeCell, changes: dict[str, Any], words: str
) -> None:
    cells = [run(make_cell, "ice[lr=0.1]", 0.5, seed=seed, **changes) for seed in (5, 0, 1, 2)]
    cells += [run(make_cell, "ice[lr=0.1]", 0.5, attack="added", derived=True, **changes)]
    assert again(cells) == (
        f"sophon-bench run --scenario s --backbone b --defense 'ice[lr=0.1]' {words} "
        "--steps 25 --precision fp32"
    )


def test_the_command_names_files_of_plugins_and_audits_what_was_audited(
    make_cell: MakeCell,
) -> None:
    cell = run(make_cell, "ice", 0.5)
    loaded = replace(cell.attack, distribution="my attack.py")
    assert again([replace(cell, attack=loaded)]).endswith(" --plugin 'my attack.py'")
    digest = "0123456789abcdef" * 4
    released = replace(cell.defense, label="", name="checkpoint-0123456789ab", source=digest)
    assert again([replace(cell, defense=released)]) == (
        f"sophon-bench audit MODEL.safetensors --scenario s --backbone b --sha256 {digest} "
        "--attack finetune --samples 200 --seeds 0 --steps 25 --precision fp32"
    )
    part = replace(released, parameters={"prefix": "ema."})
    assert f"--sha256 {digest} --prefix ema. --attack" in (again([replace(cell, defense=part)]))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def source(tmp_path: Path, cells: list[Attempt]) -> Path:
    """A run's JSON file."""
    file = tmp_path / "out.json"
    file.write_text(tables.document(gather(cells), tables.report(gather(cells))))
    return file


def test_the_command_writes_the_site_and_says_where(source: Path, tmp_path: Path) -> None:
    result = call("page", "--from", source, "--out", tmp_path / "new" / "site")
    assert result.exit_code == 0, result.output
    index = Path(result.stdout.strip())
    assert index == tmp_path / "new" / "site" / "index.html"
    names = {file.name for file in index.parent.iterdir()}
    assert names == {"index.html", "page.js", "style.css", "vega.min.js"}
    assert result.stderr.startswith("no images: ")
    assert "klu[alpha=0.1]" in index.read_text()


@pytest.mark.slow
def test_following_its_command_finds_every_record_made(tmp_path: Path) -> None:
    store = tmp_path / "store"
    asked = ["--scenario", "tiny", "--steps", "2", "--samples", "20", "--seeds", "0-1"]
    done = call("run", *asked, "--attack", "finetune[lr=[0.01,0.03]]", "--store", store)
    assert done.exit_code == 0, done.output
    made = call("page", "--store", store, "--out", tmp_path / "site")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "site" / "scenario-1.png").read_bytes().startswith(b"\x89PNG")
    found = Document((tmp_path / "site" / "index.html").read_text())
    command = next(t for tag, t in found.texts if tag == "code" and t.startswith("sophon-bench r"))
    again = call(*shlex.split(command)[1:], "--store", store, "--dry-run")
    assert "; 0 to do: " in again.stdout, again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what the page is of: --from FILE or --store DIR"),
        (["--from", "missing.json"], "missing.json"),
        (["--store", "missing"], "there is no store at"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(entries, "PUBLISHED", tmp_path)
    result = call("page", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_a_source_it_is_of_what_is_published(tmp_path: Path) -> None:
    result = call("page", "--out", tmp_path / "site")
    assert result.exit_code == 0, result.output
    assert "sophon-klu" in (tmp_path / "site" / "index.html").read_text()


def test_a_directory_that_cannot_be_made_is_one_line(source: Path, tmp_path: Path) -> None:
    result = call("page", "--from", source, "--out", source / "site")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize("name", ["jinja2", "vl_convert"])
def test_a_missing_library_is_one_line_that_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    result = call("page", "--from", source, "--out", tmp_path / "site")
    assert result.exit_code == 2
    assert f"a page needs {name}" in result.stderr
    assert "pip install '.[page]'" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "site").exists()


# What a browser makes of it.

needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.executable() is None,
        reason="no Chromium on the path; 'make browser' installs Debian's",
    ),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.browser() as running:
        yield running


Show = Callable[..., browser.Opened]


@pytest.fixture
def show(chromium: Any, cells: list[Attempt], tmp_path: Path) -> Iterator[Show]:
    """Open the page of a submission; in the end it must have complained of nothing."""
    shown: list[browser.Opened] = []

    def open_(made: Submission | None = None, **options: Any) -> browser.Opened:
        index = page.write([made or submission(cells)], tmp_path / "site")
        shown.append(browser.opened(chromium, index, **options))
        return shown[-1]

    yield open_
    for found in shown:
        assert found.errors == []
        assert {url.split(":")[0] for url in found.requests} <= {"file", "data", "blob"}
        assert all("/site/" in url for url in found.requests if url.startswith("file:"))
        found.page.context.close()


def names(found: browser.Opened) -> list[str]:
    rows = found.page.locator("table.scores tbody:not(.pinned) tr:not([hidden]) a.open")
    return list(rows.all_inner_texts())


class TestBrowser:
    pytestmark = needs_browser

    def test_it_sorts_by_mouse_and_by_keyboard(self, show: Show) -> None:
        found = show()
        header = found.page.locator("table.scores th", has_text="score")
        assert header.get_attribute("aria-sort") == "descending"
        assert names(found) == ["klu[alpha=0.1]", "ice"]
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == "ascending"
        assert names(found) == ["ice", "klu[alpha=0.1]"]
        found.page.keyboard.press("Enter")
        assert names(found) == ["klu[alpha=0.1]", "ice"]
        found.page.locator("table.scores th", has_text="defense").get_by_role("button").click()
        assert header.get_attribute("aria-sort") is None
        assert names(found) == ["ice", "klu[alpha=0.1]"]
        pinned = found.page.locator("table.scores tbody.pinned th")
        assert pinned.first.inner_text().startswith("none")

    def test_it_filters_rows_and_their_details(self, show: Show) -> None:
        found = show()
        field = found.page.locator(".filter").first
        field.fill("kLu author")
        assert names(found) == ["klu[alpha=0.1]"]
        assert found.page.locator("output").first.inner_text() == "1 of 2"
        assert found.page.locator("details.card:visible .name").all_inner_texts() == [
            "none",
            "klu[alpha=0.1]",
        ]
        field.fill("")
        assert len(names(found)) == 2
        found.page.locator(".filter").nth(1).fill("lr=0.2")
        rows = found.page.locator(".heat-map tbody:not(.pinned) tr:visible th")
        assert rows.all_inner_texts() == ["finetune[lr=0.2]"]

    @pytest.mark.parametrize("way", ["link", "row", "keyboard", "summary", "address"])
    def test_a_row_opens_with_its_curves(self, show: Show, way: str) -> None:
        found = show()
        link = found.page.locator("a.open", has_text="ice")
        card = found.page.locator("details.card", has=found.page.locator("text=ice")).last
        if way == "link":
            link.click()
        elif way == "row":
            found.page.locator("tr[data-card]", has=link).locator("td").last.click()
        elif way == "keyboard":
            link.focus()
            assert link.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
            found.page.keyboard.press("Enter")
        elif way == "summary":
            card.locator("summary").click()
        else:
            found.page.goto(found.page.url + str(link.get_attribute("href")))
        opened = found.page.locator("details.card[open]")
        opened.locator(".figure svg").first.wait_for()
        assert opened.locator(".name").inner_text() == "ice"
        drawn = opened.locator(".figure")
        drawn.last.locator("svg").wait_for()
        assert drawn.count() == opened.locator(".figure svg.marks").count()
        legend = opened.locator(".role-legend-label text").all_text_contents()
        assert legend[:3] == ["protected", "undefended", "scratch"]
        assert opened.locator(".mark-line.role-mark path").count() >= 3

    def test_nothing_is_wider_than_a_phone(self, show: Show) -> None:
        found = show(size=browser.PHONE)
        wide = "[document.documentElement.scrollWidth, innerWidth]"
        for card in found.page.locator("details.card > summary").all():
            card.click()
        found.page.locator("details[open] .figure svg").last.wait_for()
        width, window = found.page.evaluate(wide)
        assert width == window == browser.PHONE[0]
        wider = "e => e.scrollWidth > e.clientWidth"
        assert not found.page.locator(".scroll:has(.scores)").first.evaluate(wider)  # cards
        tables = found.page.locator(".scroll")
        assert any(table.evaluate(wider) for table in tables.all())

    @pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_it_breaks_no_rule_of_accessibility(
        self, show: Show, scheme: str, size: tuple[int, int]
    ) -> None:
        """Contrast, labels, names, order of headings, keyboard, as axe-core knows them (WCAG 2)."""
        from axe_playwright_python.sync_playwright import Axe

        found = show(color_scheme=scheme, size=size)
        for card in found.page.locator("details.card > summary").all():
            card.click()
        found.page.locator("details[open] .figure svg").last.wait_for()
        result = Axe().run(found.page, options={"preload": False})
        assert result.violations_count == 0, result.generate_report()
        checked = {rule["id"] for rule in result.response["passes"]}
        assert {"color-contrast", "label", "heading-order", "link-name"} <= checked

    def test_it_is_dark_where_the_system_is_and_where_one_asks(self, show: Show) -> None:
        def paper(found: browser.Opened) -> str:
            return str(found.page.evaluate("getComputedStyle(document.body).backgroundColor"))

        light, dark = (show(color_scheme=scheme) for scheme in ("light", "dark"))
        colours = paper(light), paper(dark)
        assert colours[0] != colours[1]
        figure = light.page.locator(".figure .role-axis-label text").first
        before = figure.get_attribute("fill")
        light.page.locator("#theme").click()
        assert paper(light) == colours[1]
        light.page.wait_for_function(
            "before => document.querySelector('.figure .role-axis-label text')"
            "?.getAttribute('fill') !== before",
            arg=before,
        )
        light.page.reload()
        assert paper(light) == colours[1]

    def test_what_strangers_write_runs_nowhere(self, show: Show, cells: list[Attempt]) -> None:
        found = show(hostile(cells))
        alerts: list[str] = []
        found.page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        for card in found.page.locator("details.card > summary").all():
            card.click()
        found.page.locator("details[open] .figure svg").last.wait_for()
        assert alerts == []
        assert found.page.locator("script").count() == 3
        assert found.page.locator("img, [onerror], a[href^=java]").count() == 0
        assert found.page.locator("svg a").count() == 0

    def test_images_that_models_made_are_shown(self, show: Show, make_cell: MakeCell) -> None:
        found = show(submission(generation(make_cell)), size=browser.PHONE)
        found.page.locator("details.card > summary").last.click()
        found.page.locator("details[open] a", has_text="Images that it makes").click()
        images = found.page.locator("h3[id$='-images'] ~ .figures img")
        assert images.count() == 5
        sizes = images.evaluate_all("all => all.map(i => [i.naturalWidth, i.naturalHeight])")
        assert sizes == [[40, 4]] * 5
        assert all(image.is_visible() for image in images.all())
        assert found.page.evaluate("document.documentElement.scrollWidth") == browser.PHONE[0]

    def test_it_can_be_read_without_javascript(self, show: Show) -> None:
        found = show(java_script_enabled=False)
        assert names(found) == ["klu[alpha=0.1]", "ice"]
        assert found.page.locator(".toolbar:visible, #theme:visible").count() == 0
        found.page.locator("details.card > summary").last.click()
        assert found.page.locator("details[open] table").first.is_visible()

    def test_a_picture_of_it_is_taken(
        self, chromium: Any, cells: list[Attempt], tmp_path: Path
    ) -> None:
        index = page.write([submission(cells)], tmp_path / "site")
        shot = tmp_path / "shot.png"
        browser.picture(chromium, index, shot, details=True)
        assert shot.read_bytes().startswith(b"\x89PNG")
