"""A store in a dataset of the Hugging Face Hub: it is read, and not written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import MakeCell, gather
from hub import REPOSITORY, hub
from huggingface_hub import HfFileSystem, constants
from msgspec.structs import replace

from sophon_bench.cli import main
from sophon_bench.results.records import Asked, Run
from sophon_bench.results.store import Store, StoreError

URL = f"hf://datasets/{REPOSITORY}/board"
TOKEN = "hf_token_for_tests"


@pytest.fixture
def published(
    tmp_path: Path, make_cell: MakeCell, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The directory of a store with two cells that is in a dataset, for who has the token."""
    store = Store(tmp_path / "dataset" / "board")
    records = gather([make_cell(seed=seed) for seed in (0, 1)])
    digest = store.put_weights({"w": torch.arange(5.0)})
    for model in records.models.values():
        store.put_model(replace(model, weights=digest))
    for cell in records.cells:
        store.put_cell(cell)
    run = Run(command="c", provenance=make_cell().provenance)
    store.begin(run, [Asked(key=cell.key) for cell in records.cells])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SOPHON_BENCH_PATIENCE", "0")
    with hub(tmp_path / "dataset", TOKEN) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)  # HF_ENDPOINT is read at import
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        HfFileSystem.clear_instance_cache()
        yield Path(store.root)
    HfFileSystem.clear_instance_cache()


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def test_records_and_weights_are_read(published: Path) -> None:
    local, remote = Store(published, reading=True), Store(URL, reading=True)
    assert remote.records() == local.records()
    assert len(remote.records().cells) == 2
    (digest,) = {model.weights for model in remote.records().models.values()}
    model = next(iter(remote.records().models.values()))
    assert model.weights == digest
    assert torch.equal(remote.weights(model)["w"], torch.arange(5.0))
    assert call("table", "--store", URL).stdout == call("table", "--store", published).stdout
    verified = call("store", "verify", "--store", URL)
    assert verified.exit_code == 0, verified.output


def test_weights_that_were_exchanged_are_refused(published: Path) -> None:
    (file,) = published.glob("models/*.safetensors")
    file.write_bytes(bytes(100))
    store = Store(URL, reading=True)
    with pytest.raises(StoreError, match="SHA-256 differs"):
        store.weights(next(iter(store.records().models.values())))


def test_it_is_copied_and_not_written(published: Path, tmp_path: Path) -> None:
    words = f"can only be read; 'sophon-bench store pull {URL}' copies it"
    for command in (("run", "--scenario", "tiny", "--store", URL),
                    ("store", "push", URL, "--store", published)):  # fmt: skip
        refused = call(*command)
        assert refused.exit_code == 2
        assert words in refused.stderr
    pulled = call("store", "pull", URL, "--store", tmp_path / "mine")
    assert pulled.exit_code == 0, pulled.output
    assert Store(tmp_path / "mine").records() == Store(published).records()


def test_a_token_that_is_refused_is_not_shown_and_not_waited_for(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOPHON_BENCH_PATIENCE", "600")
    monkeypatch.setenv("HF_TOKEN", "hf_another_token")
    HfFileSystem.clear_instance_cache()
    refused = call("table", "--store", URL)
    assert refused.exit_code == 2
    assert "hf_another_token" not in refused.output
