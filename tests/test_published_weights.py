"""timm's pre-trained weights: found in a cache, downloaded, or refused in a line. No network."""

import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import save, save_file
from torch import Tensor

from sophon_bench import testing
from sophon_bench.cli import main
from sophon_bench.models.architecture import BackboneError
from sophon_bench.models.backbones import Backbone

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASKED = Backbone.of("test_resnet", {"pretrained": True})
TINY = Path(__file__).with_name("tiny_scenario.py")
SELECTOR = "test_resnet[pretrained=true]"
State = dict[str, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def published(name: str) -> State:
    """What stands for the weights that timm publishes."""
    torch.manual_seed(7)
    state = timm.create_model(name).state_dict()
    return {k: torch.rand_like(t) if t.is_floating_point() else t for k, t in state.items()}


def pickled(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def put(cache: Path, repository: str, name: str, content: bytes, revision: str = "main") -> Path:
    """A file as huggingface_hub keeps it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    pointer = folder / "snapshots" / COMMIT / name
    for parent in (blob.parent, pointer.parent, folder / "refs"):
        parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    (folder / "refs" / revision).write_text(COMMIT)
    return pointer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, which is told to stay offline, and one of torch's."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays offline of its own accord, and whoever connects fails the test."""

    def connect(*_: object) -> None:
        pytest.fail("asks the network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@dataclass
class Server:
    """An HTTP server's files and answers by path, and what it was asked."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 404
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """It stands for the hub, and for any other server."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            state.asked.append(f"{self.command} {self.path}")
            content = state.files.get(self.path, b"")
            self.send_response(200 if content else state.status)
            headers = dict(state.headers)
            if content:
                digest = hashlib.sha256(content).hexdigest()
                headers |= {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if self.path in state.files:
                self.wfile.write(state.files[self.path])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}")
        point_at(monkeypatch, state.address)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()
        close_session()


def point_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


Configure = Callable[..., None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Change what timm says of where weights are."""

    def change(name: str, **changes: object) -> None:
        changed = replace(timm.get_pretrained_cfg(name), **changes)
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: changed)

    return change


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )


# --- what a cache holds ---------------------------------------------------------------------------

CACHED = [
    ("test_resnet", "timm/test_resnet.r160_in1k", "model.safetensors"),
    ("test_resnet", "timm/test_resnet.r160_in1k", "pytorch_model.bin"),
    ("test_resnet.r160_in1k", "timm/test_resnet.r160_in1k", "model.safetensors"),
    ("test_vit", "timm/test_vit.r160_in1k", "model.safetensors"),
    ("test_convnext2", "timm/test_convnext2.r160_in1k", "model.safetensors"),
]


@pytest.mark.parametrize(("name", "repository", "file"), CACHED)
@pytest.mark.parametrize("outputs", [7, 1000])
def test_a_cached_file_is_read_as_timm_reads_it(
    name: str,
    repository: str,
    file: str,
    outputs: int,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    state = published(name)
    content = save(state) if file.endswith(".safetensors") else pickled(state)
    put(cache, repository, file, content)
    torch.manual_seed(0)
    expected = timm.create_model(name, pretrained=True, num_classes=outputs)  # by the hub's cache
    request.getfixturevalue("unplugged")
    backbone = Backbone.of(name, {"pretrained": True})
    backbone.check(64, outputs)
    model = backbone.build(outputs, generator())
    ours, theirs = model.body.state_dict(), expected.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert all(torch.equal(ours[n], state[n]) for n in ours)
    if outputs == 1000:  # the classifier of the file fits as well
        inputs = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(inputs), expected.eval()(inputs))


def test_safetensors_are_preferred_as_in_timm(cache: Path, unplugged: None) -> None:
    put(cache, "timm/test_resnet.r160_in1k", "pytorch_model.bin", b"not read")
    put(cache, "timm/test_resnet.r160_in1k", "model.safetensors", save(published("test_resnet")))
    ASKED.check(64, 7)


def test_a_revision_is_kept_to(cache: Path, configure: Configure) -> None:
    put(cache, "some/one", "model.safetensors", save(published("test_resnet")), revision="v2")
    configure("test_resnet", hf_hub_id="some/one@v2")
    ASKED.check(64, 7)
    configure("test_resnet", hf_hub_id="some/one")
    with pytest.raises(BackboneError, match=r"no model\.safetensors or .* of some/one in "):
        ASKED.check(64, 7)


def test_a_file_of_another_name_on_the_hub(cache: Path, configure: Configure) -> None:
    configure("test_resnet", hf_hub_id="some/one", hf_hub_filename="weights.pth")
    with pytest.raises(BackboneError, match=r"there is no weights\.pth of some/one in "):
        ASKED.check(64, 7)
    put(cache, "some/one", "weights.pth", pickled(published("test_resnet")))
    ASKED.check(64, 7)


def test_weights_that_do_not_fit_the_parameters_are_refused(cache: Path) -> None:
    put(cache, "timm/test_vit.r160_in1k", "model.safetensors", save(published("test_vit")))
    Backbone.of("test_vit", {"depth": 2, "pretrained": True}).check(64, 7)
    with pytest.raises(BackboneError, match=r"cannot be built: Error.*: size mismatch for "):
        Backbone.of("test_vit", {"embed_dim": 32, "pretrained": True}).check(64, 7)


def test_looking_moves_no_global_generator(cache: Path) -> None:
    put(cache, "timm/test_resnet.r160_in1k", "model.safetensors", save(published("test_resnet")))
    before = torch.get_rng_state()
    ASKED.check(64, 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_from_random_weights_needs_none(unplugged: None) -> None:
    ASKED.build(7, generator(), fresh=True)
    Backbone.of("test_resnet", {"pretrained": False}).check(64, 7)
    Backbone.of("convnext_atto_rms").check_weights()


def test_the_identity_says_that_weights_were_asked_for_and_not_where_they_are() -> None:
    assert ASKED.label == SELECTOR
    assert ASKED.identity() == {"name": "test_resnet", "parameters": {"pretrained": True}}


# --- what is refused ------------------------------------------------------------------------------


class Reached:
    """A pickle that makes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.file,))


def without(state: State, name: str) -> State:
    return {k: t for k, t in state.items() if k != name}


WHOLE = save(published("test_resnet"))
BROKEN = [
    ("model.safetensors", lambda: b"", "HeaderTooSmall|header too small"),
    ("model.safetensors", lambda: WHOLE[:4], "header"),
    ("model.safetensors", lambda: WHOLE[:-8], "not fully covered"),
    ("model.safetensors", lambda: b"<html>log in</html>", "header"),
    ("model.safetensors", lambda: save(published("test_vit")), "Missing key"),
    (
        "model.safetensors",
        lambda: save(without(published("test_resnet"), "conv1.0.weight")),
        'Missing key.*"conv1.0.weight"',
    ),
    ("pytorch_model.bin", lambda: b"", "EOFError|Ran out of input"),
    (
        "pytorch_model.bin",
        lambda: pickled(published("test_resnet"))[:-100],
        "central directory",
    ),
    ("pytorch_model.bin", lambda: pickled({"a": torch.zeros(1)}), "Missing key"),
    ("pytorch_model.bin", lambda: b"<html>", "damaged, or holds more than tensors"),
    ("pytorch_model.bin", lambda: pickled(torch.zeros(1)), "'Tensor' object has no attribute"),
]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(BROKEN)],
)
def test_a_file_that_is_not_the_weights_is_named(
    name: str, content: Callable[[], bytes], reason: str, cache: Path
) -> None:
    file = put(cache, "timm/test_resnet.r160_in1k", name, content())
    with pytest.raises(BackboneError) as caught:
        ASKED.check(64, 7)
    line = str(caught.value)
    assert line.startswith(f"backbone {SELECTOR!r}: {str(file)!r} ")
    assert re.search(reason, line)
    assert f"delete {cache / 'models--timm--test_resnet.r160_in1k'}, and" in line
    assert "\n" not in line


def test_no_pickle_of_more_than_tensors_is_opened(cache: Path, tmp_path: Path) -> None:
    content = pickled({"state_dict": published("test_resnet"), "more": Reached(tmp_path / "ran")})
    file = put(cache, "timm/test_resnet.r160_in1k", "pytorch_model.bin", content)
    with pytest.raises(BackboneError, match="damaged, or holds more than tensors") as caught:
        ASKED.check(64, 7)
    assert repr(str(file)) in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [1, 0, "maybe", "none", None, 0.5, [True, False]])
@pytest.mark.parametrize("fresh", [True, False])
def test_pretrained_is_true_or_false(value: object, fresh: bool) -> None:
    backbone = Backbone.of("test_resnet", {"pretrained": value})
    with pytest.raises(BackboneError) as caught:
        backbone.build(7, generator(), fresh=fresh)
    assert str(caught.value) == (
        f"pretrained of backbone {backbone.label!r} is true or false; got {value!r}"
    )


@pytest.mark.parametrize("key", ["pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_no_parameter_takes_weights_from_elsewhere(key: str) -> None:
    with pytest.raises(BackboneError, match=f"takes no parameter '{key}': "):
        Backbone.of("test_resnet", {key: "x"}).check(64, 7)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("convnext_atto_rms", "it has some for 'convnext_atto_ols', "),
        ("convnext_atto_rms.untrained", "it has some for 'convnext_atto_ols', "),
        ("seresnext101_32x4d.untrained", "it has some for 'seresnext101_32x4d.gluon_in1k'; "),
        ("convnext_tiny_in22ft1k", "timm calls it 'convnext_tiny.fb_in22k_ft_in1k' now"),
    ],
)
def test_weights_that_there_are_not(name: str, hint: str, unplugged: None) -> None:
    with pytest.raises(BackboneError) as caught:
        Backbone.of(name, {"pretrained": True}).check_weights()
    assert f"timm has no pre-trained weights for {name!r}; {hint}" in str(caught.value)


@pytest.mark.parametrize("name", ["resnet81", "resnet18.nope"])
def test_a_name_that_there_is_not_is_said_first(name: str) -> None:
    with pytest.raises(BackboneError, match=f"unknown backbone '{name}'; did you mean 'resnet18'"):
        Backbone.of(name, {"pretrained": True}).check_weights()


# --- the hub --------------------------------------------------------------------------------------

HUB = "/timm/test_resnet.r160_in1k/resolve/main/"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_no_cache_holds_is_downloaded_once(name: str, server: Server, cache: Path) -> None:
    state = published("test_resnet")
    server.headers = {"X-Error-Code": "EntryNotFound"}
    server.files[HUB + name] = save(state) if "safe" in name else pickled(state)
    ASKED.check(64, 7)
    assert (cache / "models--timm--test_resnet.r160_in1k/snapshots" / COMMIT / name).is_file()
    assert sum(line.startswith("GET") for line in server.asked) == 1
    count = len(server.asked)
    model = ASKED.build(7, generator())
    ASKED.check(64, 7)
    assert len(server.asked) == count
    assert torch.equal(model.body.get_parameter("conv1.0.weight"), state["conv1.0.weight"])


@pytest.mark.parametrize(
    ("status", "code", "words", "attempts"),
    [
        (401, "", "answers 401 (there is no such repository, or it asks for a login)", 1),
        (401, "RepoNotFound", "answers 401 (there is no such repository, or it asks for a log", 1),
        (403, "GatedRepo", "answers 403 (it is gated: accept its terms on the hub, then 'hf au", 1),
        (401, "GatedRepo", "answers 401 (it is gated: accept its terms on the hub, then 'hf au", 1),
        (403, "", "answers 403 (access is denied)", 1),
        (404, "EntryNotFound", "answers 404 (there is no such file)", 2),
        (404, "RevisionNotFound", "answers 404 (there is no such file)", 1),
        (429, "", "answers 429 (it cannot serve the file now)", 1),
        (503, "", "answers 503 (it cannot serve the file now)", 1),
    ],
)
def test_an_answer_of_the_hub_is_told_after_one_attempt(
    status: int, code: str, words: str, attempts: int, server: Server
) -> None:
    server.status = status
    server.headers = {"X-Error-Code": code} if code else {}
    with pytest.raises(BackboneError) as caught:
        ASKED.check_weights()
    assert f"and {server.address} {words}" in str(caught.value)
    assert len(server.asked) == attempts


def test_a_server_that_is_no_hub(server: Server) -> None:
    server.status = 200
    with pytest.raises(BackboneError, match=r"cannot be reached \(.*'X-Repo-Commit' header"):
        ASKED.check_weights()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}"])
def test_a_network_that_cannot_be_reached(
    form: str, closed_port: int, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    address = form.format(closed_port)
    point_at(monkeypatch, address)
    with pytest.raises(BackboneError) as caught:
        ASKED.check(64, 7)
    line = str(caught.value)
    for words in (
        f"backbone {SELECTOR!r}: there is no model.safetensors or pytorch_model.bin of "
        f"timm/test_resnet.r160_in1k in {cache} (set by HF_HUB_CACHE), and the network "
        f"cannot be reached ({address}: ",
        "run python -c \"import timm; timm.create_model('test_resnet.r160_in1k', pretrained=True)\""
        " where there is a network and copy models--timm--test_resnet.r160_in1k from the same "
        f"cache there to {cache}, or leave pretrained out for random weights",
    ):
        assert words in line
    assert "\n" not in line


def test_a_cache_that_cannot_be_written(server: Server, cache: Path) -> None:
    server.files[HUB + "model.safetensors"] = WHOLE
    cache.write_text("a file where the folder should be")
    with pytest.raises(BackboneError, match=f"and {cache}.* cannot be used: "):
        ASKED.check_weights()


# --- addresses of their own -----------------------------------------------------------------------


def elsewhere(server: Server, configure: Configure, name: str, content: bytes) -> None:
    server.files[f"/{name}?download=1"] = content
    configure("test_resnet", hf_hub_id=None, url=f"{server.address}/{name}?download=1")


@pytest.mark.parametrize("name", ["weights-900e.pth.tar", "weights.pth"])
def test_torchs_cache_for_an_address(
    name: str, server: Server, configure: Configure, tmp_path: Path
) -> None:
    state = published("test_resnet")
    elsewhere(server, configure, name, pickled({"state_dict": state, "epoch": 3}))
    ASKED.check(64, 7)
    assert (tmp_path / "torch/hub/checkpoints" / name).is_file()
    count = len(server.asked)
    model = ASKED.build(7, generator())
    assert len(server.asked) == count
    assert torch.equal(model.body.get_parameter("conv1.0.weight"), state["conv1.0.weight"])


def test_an_address_that_does_not_answer(
    server: Server, configure: Configure, tmp_path: Path
) -> None:
    configure("test_resnet", hf_hub_id=None, url=f"{server.address}/gone.pth")
    with pytest.raises(BackboneError) as caught:
        ASKED.check_weights()
    folder = tmp_path / "torch/hub/checkpoints"
    assert f"there is no gone.pth in {folder} (set by TORCH_HOME), and {server.address}" in str(
        caught.value
    )
    assert "gone.pth answers 404 (there is no such file); run" in str(caught.value)
    assert f"copy gone.pth from the same cache there to {folder}, or" in str(caught.value)
    assert not folder.exists()


def test_an_address_that_cannot_be_reached(closed_port: int, configure: Configure) -> None:
    address = f"http://127.0.0.1:{closed_port}/x.pth"
    configure("test_resnet", hf_hub_id=None, url=address)
    with pytest.raises(BackboneError) as caught:
        ASKED.check_weights()
    assert f"and the network cannot be reached ({address}: " in str(caught.value)
    assert "Connection refused" in str(caught.value)


def test_a_broken_file_in_torchs_cache(configure: Configure, tmp_path: Path) -> None:
    file = tmp_path / "torch/hub/checkpoints/own-name.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"<html>")
    configure("test_resnet", hf_hub_id=None, url=("http://127.0.0.1:9/x", "own-name.pth"))
    with pytest.raises(BackboneError, match="cannot be read as tensors alone") as caught:
        ASKED.check(64, 7)
    assert f"delete {file}, and" in str(caught.value)


def archive(state: State) -> dict[str, np.ndarray]:
    """The weights of `test_vit` under the names and in the layout of JAX."""
    plain = {k: t.numpy() for k, t in state.items()}
    width, heads = 64, 2
    found = {
        "cls": plain["cls_token"],
        "embedding/kernel": plain["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": plain["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": plain["pos_embed"],
        "Transformer/encoder_norm/scale": plain["norm.weight"],
        "Transformer/encoder_norm/bias": plain["norm.bias"],
        "head/kernel": plain["head.weight"].T,
        "head/bias": plain["head.bias"],
    }
    for i in range(6):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for norm, layer in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            found[f"{theirs}{layer}/scale"] = plain[f"{ours}{norm}.weight"]
            found[f"{theirs}{layer}/bias"] = plain[f"{ours}{norm}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        kernels = np.split(plain[f"{ours}attn.qkv.weight"], 3)
        biases = np.split(plain[f"{ours}attn.qkv.bias"], 3)
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            found[f"{attention}{part}/kernel"] = kernel.T.reshape(width, heads, width // heads)
            found[f"{attention}{part}/bias"] = bias.reshape(heads, width // heads)
        out = plain[f"{ours}attn.proj.weight"].T.reshape(heads, width // heads, width)
        found[f"{attention}out/kernel"] = out
        found[f"{attention}out/bias"] = plain[f"{ours}attn.proj.bias"]
        for r in (1, 2):
            dense = f"{theirs}MlpBlock_3/Dense_{r - 1}/"
            found[f"{dense}kernel"] = plain[f"{ours}mlp.fc{r}.weight"].T
            found[f"{dense}bias"] = plain[f"{ours}mlp.fc{r}.bias"]
    return found


def test_an_archive_of_jax_is_read_by_the_model_itself(
    configure: Configure, tmp_path: Path, unplugged: None
) -> None:
    configure("test_vit", hf_hub_id=None, url="http://127.0.0.1:9/vit.npz", custom_load=True)
    file = tmp_path / "torch/hub/checkpoints/vit.npz"
    file.parent.mkdir(parents=True)
    state = published("test_vit")
    np.savez(file, **archive(state))
    backbone = Backbone.of("test_vit", {"pretrained": True})
    backbone.check(64, 7)
    body = backbone.build(7, generator()).body.state_dict()
    assert same(body, {k: t for k, t in state.items() if not k.startswith("head.")})


def test_an_archive_that_is_none(configure: Configure, tmp_path: Path) -> None:
    configure("test_vit", hf_hub_id=None, url="http://127.0.0.1:9/vit.npz", custom_load=True)
    file = tmp_path / "torch/hub/checkpoints/vit.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"<html>")
    with pytest.raises(BackboneError, match="does not hold timm's weights of 'test_vit'") as caught:
        Backbone.of("test_vit", {"pretrained": True}).check(64, 7)
    assert str(file) in str(caught.value)


# --- commands -------------------------------------------------------------------------------------


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


FAST = ["--scenario", "tiny", "--steps", "2", "--samples", "20"]
ATTACK = ["--attack", "finetune[lr=0.03]"]
COMMANDS = [
    ["run", *FAST, *ATTACK],
    ["run", *FAST, *ATTACK, "--dry-run"],
    ["run", *FAST, *ATTACK, "--backbone", "test_resnet"],  # besides one that can be had
    ["run", *FAST, *ATTACK, "--workers", "2"],
    ["audit", "FILE", *FAST, *ATTACK],
    ["study", "balance", *FAST, *ATTACK, "--seeds", "0", "--out", "OUT"],
    ["tune", "naive-mse", "--configurations", "2", *FAST, "--out", "OUT"],
    ["overhead", "--roofline", "--rounds", "2", "--scenario", "tiny", *ATTACK],
    ["overhead", "--growth", "--updates", "2", "--scenario", "tiny", "--defense", "naive-mse"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_say_so_before_any_work(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=6).state_dict(), file)
    places = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    store = tmp_path / "store"
    arguments = [places.get(word, word) for word in command]
    result = call(*arguments, "--store", store, "--backbone", SELECTOR)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert "and HF_HUB_OFFLINE is set; run python -c" in result.stderr
    assert not [*store.glob("models/**/*.*"), *store.glob("cells/**/*.*")]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["attack", "scenario"])
def test_check_says_so_before_any_check(kind: str, tmp_path: Path, forget: None) -> None:
    file = tmp_path / "plugin.py"
    if kind == "attack":
        call("new", "attack", "my-own", "--dir", tmp_path)
        file = tmp_path / "my_own.py"
    else:
        text = TINY.read_text()
        file.write_text(text.replace('register("tiny")', 'register("tinier")'))
    result = call("check", file, "--backbone", SELECTOR)
    assert result.exit_code == 2, result.output
    assert "and HF_HUB_OFFLINE is set; run python -c" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_with_cached_weights_needs_no_network(
    workers: int, cache: Path, tmp_path: Path, unplugged: None
) -> None:
    put(cache, "timm/test_resnet.r160_in1k", "model.safetensors", WHOLE)
    arguments = [*FAST, *ATTACK, "--seeds", "0", "--store", tmp_path, "--backbone", SELECTOR]
    result = call("run", *arguments, "--workers", workers, "--plugin", TINY)
    assert result.exit_code == 0, result.output
    assert f"pretrain {SELECTOR} seed=0: original" in result.stderr


def test_a_small_bench_starts_from_the_weights(cache: Path, unplugged: None) -> None:
    put(cache, "timm/test_resnet.r160_in1k", "model.safetensors", WHOLE)
    _, weights = testing.small_bench.__wrapped__(ASKED)
    _, others = testing.small_bench.__wrapped__(Backbone.of("test_resnet"))
    assert not torch.equal(weights["body.conv1.0.weight"], others["body.conv1.0.weight"])


# --- environment variables, which huggingface_hub reads when it is imported -----------------------

LOOK = (
    "from sophon_bench.models.published_weights import *\n"
    "try: print(local_file('test_resnet'))\n"
    "except WeightsError as error: print(error)"
)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "{}/home"},
            "in {}/home/hub (set by HF_HOME), and the network cannot be reached "
            "(http://127.0.0.1:9: ",
        ),
        (
            {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "{}/cache", "HF_HOME": "{}/home"},
            "in {}/cache (set by HF_HUB_CACHE), and HF_HUB_OFFLINE is set; run",
        ),
        (
            {"TRANSFORMERS_OFFLINE": "1", "XDG_CACHE_HOME": "{}"},
            "in {}/huggingface/hub (set by XDG_CACHE_HOME), and TRANSFORMERS_OFFLINE is set; run",
        ),
    ],
)
def test_the_environment_decides_and_is_named(
    environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_CACHE"))}
    ours |= {k: v.format(tmp_path) for k, v in environment.items()}
    found = subprocess.run(
        [sys.executable, "-c", LOOK], env=ours, capture_output=True, text=True, check=True
    )
    assert words.format(tmp_path) in found.stdout
    assert found.stdout.count("\n") == 1
    assert not found.stderr
