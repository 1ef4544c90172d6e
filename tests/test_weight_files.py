"""Weights from strangers: whatever wraps their names, the same tensors or one line of why not."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from test_audit import BACKBONE, CLASSES, as_timm, fresh, own_names
from torch import Tensor

from sophon_bench.models import weight_files, weight_names
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.weight_files import CheckpointError, Content
from sophon_bench.models.weight_names import Fitted

Weights = dict[str, Tensor]

TIMM = fresh()
OWN = own_names(TIMM)
COUNTERS = [name for name in TIMM if name.endswith("num_batches_tracked")]
COUNTER = COUNTERS[0]
WRAPPERS = ["module", "_orig_mod", "model", "backbone", "state_dict", "net", "student", "body"]


def fitted(weights: Weights, prefix: str | None = None, backbone: Backbone = BACKBONE) -> Fitted:
    content = Content(file=Path("x.safetensors"), sha256="0" * 64, tensors=weights)
    return weight_names.fitted(content, backbone, CLASSES, prefix=prefix)


def refusal(weights: Weights, prefix: str | None = None, backbone: Backbone = BACKBONE) -> str:
    with pytest.raises(CheckpointError) as refused:
        fitted(weights, prefix, backbone)
    words = str(refused.value)
    assert words.isprintable()
    assert words.startswith("'x.safetensors'")
    return words


def same(found: Fitted, expected: Weights = OWN) -> bool:
    return found.weights.keys() == expected.keys() and all(
        torch.equal(found.weights[name], tensor) and found.weights[name].dtype == tensor.dtype
        for name, tensor in expected.items()
    )


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


chains = st.lists(
    st.sampled_from(WRAPPERS) | st.from_regex("[a-z_][a-z0-9_]{0,8}", fullmatch=True),
    min_size=1,
    max_size=4,
).map(lambda words: "".join(f"{word}." for word in words))


@given(chains, st.sampled_from([TIMM, OWN]))
@settings(max_examples=40)
def test_any_chain_of_wrappers_on_every_name_is_read_and_told(chain: str, weights: Weights) -> None:
    found = fitted(under(chain, weights))
    assert same(found)
    assert found.notes == [f"names are read without their prefix {chain!r}"]


@given(chains, st.sampled_from(["", "model."]), st.booleans())
@settings(max_examples=40)
def test_any_chain_of_wrappers_on_the_body_alone_is_read_and_told(
    chain: str, prefix: str, own: bool
) -> None:
    assume(own or chain != "body.")
    body, head = ("body.", "head.") if own else ("", "fc.")
    wrapped = {
        prefix + (name if name.startswith(head) else body + chain + name.removeprefix(body)): tensor
        for name, tensor in (OWN if own else TIMM).items()
    }
    found = fitted(wrapped)
    assert same(found)
    told = [f"names are read without their prefix {prefix!r}"] if prefix else []
    assert found.notes == [*told, f"names of the body are read without {chain!r} in them"]


def test_a_body_beside_a_head_of_timms_name_is_read() -> None:
    own_body = {n: t for n, t in OWN.items() if n.startswith("body.")}
    own_head = {n: t for n, t in OWN.items() if n.startswith("head.")}
    timm_head = {n: t for n, t in TIMM.items() if n.startswith("fc.")}
    assert same(fitted(own_body | timm_head))
    assert same(fitted(under("encoder.", as_timm(own_body)) | own_head))


@pytest.mark.parametrize("weights", [TIMM, OWN])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_of_single_modules_are_left_out(weights: Weights, prefix: str) -> None:
    wrapped = {
        prefix + name.replace("conv1.0.", "conv1._orig_mod.0.module."): tensor
        for name, tensor in weights.items()
    }
    found = fitted(wrapped)
    assert same(found)
    assert any(words.endswith("without '_orig_mod' in them") for words in found.notes) == (
        prefix == "module."
    )
    assert any("'_orig_mod'" in words for words in found.notes)


def test_names_that_are_as_expected_are_read_without_a_note() -> None:
    assert fitted(TIMM).notes == fitted(OWN).notes == []


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "deit_tiny_distilled_patch16_224"])
def test_other_architectures_are_read_behind_wrappers_too(name: str) -> None:
    backbone = Backbone.of(name)
    own = dict(backbone.build(CLASSES, torch.Generator(), fresh=True).state_dict())
    assert same(fitted(under("_orig_mod.module.", own), backbone=backbone), own)
    compiled = {n.replace("body.", "body._orig_mod.", 1): t for n, t in own.items()}
    assert same(fitted(compiled, backbone=backbone), own)
    plain = fitted(fresh(name=name), backbone=backbone)
    assert same(fitted(under("a.b.", fresh(name=name)), backbone=backbone), plain.weights)


def test_a_name_that_is_there_twice_is_refused() -> None:
    twice = {**TIMM, "fc._orig_mod.bias": TIMM["fc.bias"]}
    assert "1 there more than once (fc.bias as fc._orig_mod.bias and fc.bias)" in refusal(twice)


TWO = under("state_dict.", TIMM) | under("state_dict_ema.module.", fresh(seed=1))
"""What timm's training script keeps: the model and the mean of its weights."""


@pytest.mark.parametrize(
    ("prefix", "seed"),
    [("state_dict", 0), ("state_dict.", 0), ("state_dict_ema", 1), ("state_dict_ema.module", 1)],
)
def test_one_of_two_models_is_chosen(prefix: str, seed: int) -> None:
    assert same(fitted({**TWO, "epoch": torch.zeros(1)}, prefix), own_names(fresh(seed=seed)))


def test_a_choice_names_every_model_that_fits() -> None:
    words = "holds 2 models that can be a test_resnet of 6 classes: choose --prefix 'state_dict.' "
    assert words + "or --prefix 'state_dict_ema.module.'" in refusal(TWO)
    three = under("a.x.", TIMM) | under("a.y.", TIMM) | TIMM
    assert "choose --prefix '' or --prefix 'a.x.' or --prefix 'a.y.'" in refusal(three)
    assert "choose --prefix 'a.x.' or --prefix 'a.y.'" in refusal(three, "a")
    assert same(fitted(three, ""))


HEAD = {name: tensor for name, tensor in TIMM.items() if name.startswith("fc.")}
WITHOUT_HEAD = {name: tensor for name, tensor in TIMM.items() if name not in HEAD}


@pytest.mark.parametrize(
    ("weights", "prefix", "words"),
    [
        (TWO, "state_dic", "begins with 'state_dic.'; there is --prefix 'state_dict.' or --prefix"),
        (TWO, "", "names of 92 missing"),
        (TWO, "", "; --prefix 'state_dict.' or --prefix 'state_dict_ema.module.' fits"),
        (under("student.", WITHOUT_HEAD), "studnet", "'studnet.'; there is 'student.'"),
        ({"weight": torch.ones(1)}, "a", "no name begins with 'a.'; there is none"),
        (under("module.", TIMM), "", "; --prefix 'module.' fits"),
        (OWN, "body", "2 names of 92 missing (body.fc.weight, body.fc.bias); --prefix '' fits"),
        (
            {**under("a.", TIMM), "b.c": torch.ones(1)},
            None,
            "holds more than a test_resnet of 6 classes: 1 unexpected (b.c); --prefix 'a.' takes",
        ),
        (
            {**under("a.", TIMM), "a.layer1.0.se.weight": torch.ones(1)},
            "a",
            "is no test_resnet of 6 classes: 1 unexpected (a.layer1.0.se.weight)",
        ),
        (
            {**TIMM, "layer1.0.se.weight": torch.ones(1)},
            "",
            "is no test_resnet of 6 classes: 1 unexpected (layer1.0.se.weight)",
        ),
        (
            under("ema.", WITHOUT_HEAD) | TIMM,
            None,
            "90 unexpected (ema.bn1",
        ),
        (
            under("a.", WITHOUT_HEAD) | under("b.", WITHOUT_HEAD) | HEAD,
            None,
            "2 names of 92 missing (a.fc.weight, a.fc.bias)",
        ),
        ({}, None, "77 names of 92 missing"),
        ({}, "", "names of 92 missing"),
        ({"": torch.ones(1), ".": torch.ones(1)}, None, "2 unexpected (, .)"),
    ],
)  # fmt: skip
def test_a_choice_that_takes_no_model_is_refused_with_what_there_is(
    weights: Weights, prefix: str | None, words: str
) -> None:
    assert words in refusal(weights, prefix)


def test_what_is_beside_the_chosen_model_is_ignored() -> None:
    beside = {"epoch": torch.ones(1), "ema.conv1.0.weight": torch.ones(1)}
    assert same(fitted(TIMM | beside, ""))
    assert same(fitted(under("a.", TIMM) | beside, "a"))


def test_blocks_of_a_deeper_architecture_are_not_beside_the_model() -> None:
    words = refusal(fresh(name="resnet34"), "", Backbone.of("resnet18"))
    assert "96 unexpected (layer1.2.bn1.bias, " in words
    assert "it looks like --backbone resnet34" in words


def test_another_architecture_is_told_behind_wrappers_too() -> None:
    words = refusal(under("module.", fresh(name="resnet18")))
    assert "it looks like --backbone resnet18" in words


def test_a_model_with_another_head_is_told_behind_wrappers_too() -> None:
    words = refusal(dict(reversed(under("module.", fresh(10)).items())))
    assert "2 of another shape (module.fc.weight is (10, 96) where (6, 96) is expected, " in words
    assert "its head is for 10 classes" in words
    assert "it has no head" in refusal(under("module.", WITHOUT_HEAD))


@pytest.mark.parametrize(
    "change",
    [
        lambda counter: counter.float(),
        lambda counter: counter.to(torch.bfloat16),
        lambda counter: counter.to(torch.int32),
        lambda counter: counter.to(torch.uint8),
        lambda counter: counter.reshape(1),
        lambda counter: counter.double().reshape(1, 1),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_counters_of_another_type_are_the_same_counts(
    change: Callable[[Tensor], Tensor], prefix: str
) -> None:
    counted = {**TIMM, **{name: torch.tensor(7) for name in COUNTERS}}
    changed = {**counted, **{name: change(counted[name]) for name in COUNTERS}}
    assert same(fitted(under(prefix, changed)), own_names(counted))


@given(st.sets(st.sampled_from(COUNTERS), min_size=1), st.sampled_from(["", "net."]))
@settings(max_examples=10)
def test_counters_that_are_missing_are_zero(missing: set[str], prefix: str) -> None:
    counted = {**TIMM, **{name: torch.tensor(7) for name in COUNTERS}}
    kept = {name: tensor for name, tensor in counted.items() if name not in missing}
    zeros = {name: torch.tensor(0) for name in missing}
    assert same(fitted(under(prefix, kept)), own_names({**counted, **zeros}))


@pytest.mark.parametrize(
    ("counter", "words"),
    [
        (torch.tensor(3.5), "holds 3.5 where a whole number is expected"),
        (torch.tensor([0.25]), "holds 0.25 where a whole number is expected"),
        (torch.tensor(torch.nan), "holds nan where a whole number is expected"),
        (torch.tensor(-torch.inf), "holds -inf where a whole number is expected"),
        (torch.tensor(2.0**63), f"holds {2.0**63} where a whole number"),
        (torch.tensor(1j), "holds complex64 where int64 is expected"),
        (torch.zeros(2), "is (2,) where () is expected"),
        (torch.zeros(0), "is (0,) where () is expected"),
    ],
)
def test_counters_that_count_nothing_are_refused(counter: Tensor, words: str) -> None:
    assert f"{COUNTER} {words}" in refusal({**TIMM, COUNTER: counter})


def test_other_tensors_are_neither_made_up_nor_reshaped() -> None:
    name = COUNTER.replace("num_batches_tracked", "running_mean")
    fewer = {n: t for n, t in TIMM.items() if n != name}
    assert f"1 names of 92 missing ({name})" in refusal(fewer)
    assert "of another shape" in refusal({**TIMM, name: TIMM[name][None]})
    assert "holds complex64 where float32" in refusal({**TIMM, name: TIMM[name] * (1 + 0j)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(dtype: torch.dtype) -> None:
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in fresh().items()}
    again = {name: tensor.to(TIMM[name].dtype) for name, tensor in weights.items()}
    assert same(fitted(weights), own_names(again))


def renamed(*pairs: tuple[str, str], weights: Weights = TIMM, norms: bool = False) -> Weights:
    """A state dict whose names have other components; those of normalisation layers, if asked."""
    words = dict(pairs)
    layers = {name.rpartition(".")[0] for name in COUNTERS}
    return {
        ".".join(words.get(word, word) for word in name.split("."))
        if not norms or name.rpartition(".")[0] in layers
        else name: tensor
        for name, tensor in weights.items()
    }


GAMMA = renamed(("weight", "gamma"), ("bias", "beta"), norms=True)
KERAS = renamed(
    ("weight", "gamma"), ("bias", "beta"), ("running_mean", "moving_mean"),
    ("running_var", "moving_variance"), norms=True,
)  # fmt: skip
PARTS = len(COUNTERS)
STAGES = renamed(*((f"layer{n}", f"stage{n}") for n in range(1, 5)))
STAGED = sum(name.startswith("stage") for name in STAGES)
FIRST = sum(name.startswith("layer1.") for name in TIMM)


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        (GAMMA, f"'.gamma' for '.weight', '.beta' for '.bias' ({2 * PARTS} names)"),
        (
            renamed(("weight", "scale"), ("bias", "shift"), norms=True),
            f"'.scale' for '.weight', '.shift' for '.bias' ({2 * PARTS} names)",
        ),
        (
            renamed(("weight", "w"), ("bias", "b"), norms=True),
            f"'.w' for '.weight', '.b' for '.bias' ({2 * PARTS} names)",
        ),
        (KERAS, "'.moving_mean' for '.running_mean'"),
        (KERAS, "'.moving_variance' for '.running_var'"),
        (renamed(("layer1", "stage1")), f"'stage1' for 'layer1' ({FIRST} names)"),
        (STAGES, f"'stage*' for 'layer*' ({STAGED} names)"),
        (renamed(("fc", "classifier")), "'classifier' for 'fc' (2 names)"),
        (renamed(("head", "classifier"), weights=OWN), "'classifier' for 'head' (2 names)"),
        (under("module.", renamed(("fc", "head_1"))), "'head_1' for 'fc' (2 names)"),
        (
            under("backbone.", WITHOUT_HEAD)
            | {f"classifier.{n}": TIMM[f"fc.{n}"] for n in ("weight", "bias")},
            "'classifier' for 'fc' (2 names)",
        ),
        (
            {n: t for n, t in STAGES.items() if n not in COUNTERS and "num_batches" not in n},
            f"'stage*' for 'layer*' ({STAGED - sum('layer' in n for n in COUNTERS)} names)",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "student."])
def test_a_renaming_that_explains_everything_is_told(
    weights: Weights, rule: str, prefix: str
) -> None:
    words = refusal(under(prefix, weights))
    assert rule in words
    assert "its names differ from those expected by one rule: " in words
    assert rule in refusal(under("ema.", weights) | TIMM, "ema")


def test_a_renaming_that_leaves_something_is_not_told() -> None:
    assert "by one rule" not in refusal({**GAMMA, "conv1.extra": torch.ones(1)})
    assert "by one rule" not in refusal({n: t for n, t in GAMMA.items() if n != "fc.weight"})


def test_names_that_are_not_printable_stay_in_their_line() -> None:
    words = refusal({**TIMM, "\x1b[31mred\n": torch.ones(1), "y" * 10_000: torch.ones(1)})
    assert r"2 unexpected ('\x1b[31mred\n', yyy" in words
    assert len(words) < 1000
    refusal({"\n.a": torch.ones(1)}, "b")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.safetensors", save(TIMM))
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return buffer.getvalue()


def pickled(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, **options)
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 44000000\n"
HTML = "<html><head><title>404 Not Found</title></head><body>nginx</body></html>"
DENIED = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>No</Message>'
    "</Error>"
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; expected a safetensors file"),
        (LFS.encode(), "no safetensors file but a Git LFS pointer to it: 'git lfs pull' fetches"),
        (b"\xef\xbb\xbf" + LFS.replace("\n", "\r\n").encode(), "a Git LFS pointer"),
        (HTML.encode(), "but an HTML page, probably a server's answer in place of it: '404"),
        (f"\n \t<!DOCTYPE html>\n{HTML}".encode(), "an HTML page"),
        (f"<!-- moved --><!doctype HTML>{HTML}".encode(), "an HTML page"),
        (HTML.encode("utf-16"), "an HTML page"),
        (b"<HTML></HTML>", "an HTML page, probably a server's answer in place of it: '<HTML>"),
        (DENIED.encode(), "an XML document, probably a server's answer in place of it: 'AccessD"),
        (DENIED.split("\n")[1].encode(), "an XML document"),
        (b'{"error":"Invalid username."}', "a JSON document, perhaps a server's answer in place"),
        (b'{"a12": {"b": 1}}', "a JSON document"),
        (b'[\n  {"error": 1}]', "a JSON document"),
        (b"Not Found", "plain text that begins 'Not Found'"),
        ("Zugriff verweigert: für immer\n".encode(), "plain text that begins 'Zugriff verw"),
        (b"a" * 5000, f"plain text that begins '{'a' * 100}…'"),
        ("é".encode() * 4000 + b"x", f"plain text that begins '{'é' * 100}…'"),
        (b"x" + "é".encode() * 4000, f"plain text that begins 'x{'é' * 99}…'"),
        (gzip.compress(save(TIMM)), "compressed with gzip: unpack it first"),
        (bz2.compress(b"x"), "compressed with bzip2"),
        (lzma.compress(b"x"), "compressed with xz"),
        (zipped(), "a zip archive: unpack it"),
        (b"PK\x05\x06" + bytes(18), "a zip archive"),
        (tarred(), "a tar archive"),
        (array(), "an array of numpy"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
        (b"GGUF\x03\0\0\0" + bytes(50), "a GGUF file"),
        (bytes(1000), "zeros, as a download that was not finished leaves them"),
        (pickled(), "one of torch.save, a pickle"),
        (pickled()[:80], "one of torch.save, a pickle"),
        (pickled(_use_new_zipfile_serialization=False), "one of torch.save, a pickle"),
        (b"PK\x03\x04" + bytes(26) + b"m/data/0FB", "a TorchScript archive"),
        (b"\x00\x01\x02", "is no whole safetensors file: it does not begin with the length"),
        (b"\n", "is no whole safetensors file: it does not begin with the length"),
        (b"\x1b[31mred\n", "it does not begin with the length"),
        (b"\xff\xfe\x00", "it does not begin with the length"),
        (b"\xff" * 8 + b"{", f"it is cut off in its header, which takes {2**64 + 7} bytes"),
    ],
)  # fmt: skip
def test_what_a_file_really_is_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in unreadable(tmp_path, content)


def unreadable(folder: Path, content: bytes) -> str:
    file = folder / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        weight_files.read(file)
    assert str(refused.value).isprintable()
    return str(refused.value)


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}})
    content = (0x280).to_bytes(8, "little") + header.ljust(0x280).encode() + bytes(4)
    assert content.startswith(b"\x80\x02")
    (tmp_path / "x.safetensors").write_bytes(content)
    assert weight_files.read(tmp_path / "x.safetensors").tensors == {"a": torch.tensor(0.0)}


def headed(header: str, size: int = 4) -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + bytes(size)


ONE = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (headed(f"{{{ONE}, {ONE}}}"), "its header has 1 names more than once (a)"),
        (headed(f'{{"__metadata__": {{"format": 1}}, {ONE}}}'), "expected a string"),
        (headed(f'{{"__metadata__": "x", {ONE}}}'), "expected a map"),
        (headed(f'{{"__metadata__": {{}}, "__metadata__": {{}}, {ONE}}}'), "more than once"),
        (headed('{"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}'), "of type 'F4'"),
        (headed(f"{{{ONE.replace('[1]', '[1099511627776, 1099511627776]')}}}"), "overflow"),
        (headed(f"{{{ONE.replace('[1]', '[-1]')}}}"), "-1"),
        (headed(f"{{{ONE.replace('[1]', '[0]')}}}"), "is no whole safetensors file: "),
        (headed(f"{{{ONE.replace('F32', 'x' * 5000)}}}"), "is no whole safetensors file: "),
        (headed("{" + ONE.replace("F32", r"\u001b[2J") + "}"), "is no whole safetensors file: "),
        (headed('{"a": 5}'), "is no whole safetensors file: "),
        (headed('{"a": []}'), "is no whole safetensors file: "),
        (headed("{" * 50_000), "is no whole safetensors file: "),
        (headed(f"{{{ONE.replace('4]', '1e999]')}}}"), "it is cut off"),
        (headed("{}"), "is no whole safetensors file: "),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    message = unreadable(tmp_path, content)
    assert words in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}}',
        '{"__metadata__": null}',
        "{}",
    ],
)
def test_a_file_without_values_is_read_and_then_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(headed(header, 0))
    content = weight_files.read(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="names of 92 missing"):
        weight_names.fitted(content, BACKBONE, CLASSES)


WHOLE = save({"a.weight": torch.ones(3, 2), "b": torch.zeros((), dtype=torch.long)})


@given(
    st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(WHOLE) - 1).map(lambda n: WHOLE[:n]),
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)).map(
            lambda at: WHOLE[: at[0]] + bytes([at[1]]) + WHOLE[at[0] + 1 :]
        ),
        st.binary(max_size=100).map(lambda text: len(text).to_bytes(8, "little") + text),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_a_file_it_is_tensors_or_one_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    try:
        found = weight_files.read(file)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(tensor, Tensor) for tensor in found.tensors.values())


WORDS = ["", "body", "head", "fc", "conv1", "bn1", "0", "layer1", "module", "weight", "bias", "é\n"]
NUMBERS = [
    torch.ones(3, dtype=dtype)
    for dtype in (torch.float8_e4m3fn, torch.bool, torch.complex64, torch.uint64, torch.float32)
]


@given(
    st.dictionaries(
        st.lists(st.sampled_from([*WORDS, "num_batches_tracked"]), min_size=1).map(".".join)
        | st.sampled_from(sorted(TIMM)),
        st.sampled_from([*NUMBERS, *(numbers[0] for numbers in NUMBERS)]),
    ),
    st.none() | st.sampled_from([*WORDS, "body.head", "."]),
    st.sampled_from([{}, TIMM, OWN, under("fc.", TIMM)]),
)
@settings(max_examples=60)
def test_whatever_names_and_numbers_there_are_it_is_a_model_or_one_line(
    strange: Weights, prefix: str | None, weights: Weights
) -> None:
    try:
        found = fitted({**weights, **strange}, prefix)
    except CheckpointError as error:
        assert str(error).isprintable()
    else:
        assert found.weights.keys() == OWN.keys()
