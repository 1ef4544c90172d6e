"""A file of weights: read, or refused.

Released models are safetensors alone. Weights to start from may also be a file of torch.save, which
is opened as tensors and plain containers and as nothing else. What a stranger's file lacks, or has
too much of, is said in one line.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sophon_bench.plugins.registry import unknown
from sophon_bench.results.store import StoreError

Weights = Mapping[str, Tensor]

NAMED = 3
"""How many names an error shows."""

SHOWN = 100
"""How many characters of a name or a message from a file an error shows."""

DEEPEST = 32
"""How many components of a name can be the model's own; timm's have less than ten."""

COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches, which no function of a timm model depends on."""

LONGEST_HEADER = 2**32
"""Bytes; the length at the beginning of any other kind of file is nearly always larger."""

_PICKLE = rb"\x80[\x02-\x05]|PK\x03\x04.{26}[^\x00]{0,300}?data\.pkl"
"""How a file of torch.save begins."""

_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer to it: 'git lfs pull' fetches the file"),
    (
        rb"<.*?(?<=<)(!doctype html|html|head|body|title)\b",
        "an HTML page, probably a server's answer in place of it: {quote}",
    ),
    (
        rb"<[?!a-z]",
        "an XML document, probably a server's answer in place of it: {quote}",
    ),
    (
        rb"(\{\s*[\"}]|\[\s*[\"{\[\]])",
        "a JSON document, perhaps a server's answer in place of it: {quote}",
    ),
    (rb"PK\x03\x04.{26}[^\x00]{0,300}?/data/0", "a TorchScript archive, a program"),
    (
        _PICKLE,
        "one of torch.save, a pickle: opening that could run anything, so it is never done here; "
        "whoever trusts it can convert it with "
        "safetensors.torch.save_file(torch.load({file}, weights_only=True), {converted})",
    ),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive: unpack it, and name the file that was inside"),
    (rb"\x1f\x8b", "compressed with gzip: unpack it first"),
    (rb"BZh\d", "compressed with bzip2: unpack it first"),
    (rb"\xfd7zXZ\x00", "compressed with xz: unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (rb".{257}ustar", "a tar archive: unpack it, and name the file that was inside"),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes them"),
    (rb"\x93NUMPY", "an array of numpy"),
    (rb"GGUF", "a GGUF file, as llama.cpp reads them"),
    (rb"\x00{64}", "zeros, as a download that was not finished leaves them"),
)
"""What files are that are taken for safetensors, by their beginning, white space aside."""


class CheckpointError(StoreError):
    """A file that holds no weights of the backbone, or is not the one that it was.

    It ends a run like a damaged store, and makes no record: the same command goes on once the file
    is back.
    """


@dataclass(frozen=True, kw_only=True)
class Content:
    """A file of weights.

    Attributes:
        sha256: Of the whole file, in hexadecimal.
        tensors: Under the names of the file, on the CPU.
    """

    file: Path
    sha256: str
    tensors: Weights


def read(file: Path, *, sha256: str | None = None, pickles: bool = False) -> Content:
    """The tensors of a safetensors file.

    Args:
        sha256: What the file has to be, in hexadecimal; None: whatever it is.
        pickles: Whether it may be a file of torch.save too, which is opened with
            ``weights_only=True``. Names in nested dictionaries are joined by dots; what is no
            tensor, and what an optimizer keeps under numbers, is left out.

    Raises:
        CheckpointError: If it cannot be read, is no whole file of weights, or is another one.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise CheckpointError(
            f"a SHA-256 has 64 hexadecimal digits, as 'sha256sum {file}' prints; got {sha256!r}"
        )
    expected = _expected(pickles)
    try:
        if file.exists() and not file.is_file():
            kind = "a directory" if file.is_dir() else "no regular file"
            raise CheckpointError(f"{str(file)!r} is {kind}; expected {expected}")
        content = file.read_bytes()
    except FileNotFoundError as error:
        endings = (".safetensors", ".pth", ".pt") if pickles else (".safetensors",)
        known = [other.name for ending in endings for other in file.parent.glob(f"*{ending}")]
        words = unknown("file", file.name, known)
        raise CheckpointError(f"{words} (in {str(file.absolute().parent)!r})") from error
    except OSError as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise CheckpointError(
            f"{str(file)!r} is not the file that was asked for: its SHA-256 is {digest}, and "
            f"should be {sha256.lower()}"
        )
    return Content(file=file, sha256=digest, tensors=_tensors(file, content, pickles=pickles))


def _expected(pickles: bool) -> str:
    return "a file of safetensors or torch.save" if pickles else "a safetensors file"


def _tensors(file: Path, content: bytes, *, pickles: bool) -> dict[str, Tensor]:
    from safetensors.torch import load

    if not content:
        raise CheckpointError(f"{str(file)!r} is empty; expected {_expected(pickles)}")
    kind = _kind_of_file(file, content)
    if kind and pickles and re.match(_PICKLE, content[:4000], re.DOTALL):
        return _saved_by_torch(file, content)
    if kind:
        what = "file of weights" if pickles else "safetensors file"
        raise CheckpointError(f"{str(file)!r} is no {what} but {kind}")
    problem = _damage(content)
    if problem is None:
        try:
            return load(content)
        except KeyError as error:
            problem = f"numbers of type {error} are unknown to safetensors.torch"
        except Exception as error:  # whatever a file can make the library do
            problem = shown(" ".join(str(error).split()) or type(error).__name__)
    raise CheckpointError(f"{str(file)!r} is no whole safetensors file: {problem}")


def _saved_by_torch(file: Path, content: bytes) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, by names joined by dots."""
    import torch

    try:
        if _grows(content):
            raise CheckpointError(
                f"{str(file)!r} would grow when it is unpacked, as no file of torch.save does; "
                f"save the model's state_dict() anew"
            )
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if isinstance(found, Mapping):
            return dict(_named(found))
    except CheckpointError:
        raise
    except Exception as error:  # whatever a file can make the library do
        # what torch says of such a pickle is how to open it after all
        opaque = isinstance(error, pickle.UnpicklingError | zipfile.BadZipFile)
        words = " ".join(str(error).split()) or type(error).__name__
        reason = "it is damaged, or holds more than tensors" if opaque else shown(words)
        raise CheckpointError(
            f"{str(file)!r} cannot be read as tensors alone ({reason}), and no other pickle is "
            f"ever opened; save the model's state_dict() by itself"
        ) from error
    raise CheckpointError(
        f"{str(file)!r} holds a {type(found).__name__}; expected tensors by name, as in "
        f"torch.save(model.state_dict(), {file.name!r})"
    )


def _grows(content: bytes) -> bool:
    """Whether an archive says that it holds more than its own size.

    Raises:
        zipfile.BadZipFile: It says that it is an archive and is none that can be read.
    """
    if not content.startswith(b"PK"):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return sum(part.file_size for part in archive.infolist()) > len(content)


def _named(found: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries under names, `DEEPEST` levels of them at most."""
    for key, value in found.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield key, value.detach()
        elif isinstance(key, str) and isinstance(value, Mapping) and depth < DEEPEST:
            for name, tensor in _named(value, depth + 1):
                yield f"{key}.{name}", tensor


def _kind_of_file(file: Path, content: bytes) -> str | None:
    """What a file is that does not begin as safetensors do, in words; None if that is unknown."""
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < LONGEST_HEADER:
        return None
    begin = content[:4000]
    text = _text(begin)
    if text is not None:
        begin = text.strip().encode()
    quote = " ".join(re.sub("<[^>]*>", " ", text or "").split()) or (text or "").strip()
    for pattern, words in _KINDS:
        if re.match(pattern, begin, re.IGNORECASE | re.DOTALL):
            return words.format(
                quote=repr(shortened(quote)),
                file=repr(file.name),
                converted=repr(file.with_suffix(".safetensors").name),
            )
    return f"plain text that begins {shortened(quote)!r}" if quote else None


def _text(begin: bytes) -> str | None:
    """The beginning of a file as text, or None if it is none."""
    wide = begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")()
    try:
        text = decoder.decode(begin)  # a character that is cut off at the end is left out
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c.isspace() for c in text) else None


def _damage(content: bytes) -> str | None:
    """What is wrong as far as the header tells; None leaves it to the library."""
    if len(content) < 8 or content[8:9] not in (b"{", b""):
        return "it does not begin with the length of a header and '{'"
    begin = 8 + int.from_bytes(content[:8], "little")
    if begin > len(content):
        return f"it is cut off in its header, which takes {begin} bytes; there are {len(content)}"
    try:
        header = json.loads(content[8:begin], object_pairs_hook=list)
        twice = [name for name, count in Counter(name for name, _ in header).items() if count > 1]
        ends = [dict(entry)["data_offsets"][1] for n, entry in header if n != "__metadata__"]
        end = begin + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    if twice:
        return f"its header has {len(twice)} names more than once ({few(twice)})"
    if end > len(content):
        return f"it is cut off: its header tells of {end} bytes, there are {len(content)}"
    return None


def counts(name: str) -> bool:
    """Whether a name is of a counter."""
    return name.rpartition(".")[2] == COUNTER


def few(words: Iterable[str]) -> str:
    """The first of some names, each in one line."""
    found = [shown(word) for word in words]
    return ", ".join([*found[:NAMED], *(["…"] if len(found) > NAMED else [])])


def shown(text: str) -> str:
    """Text of a file, so that it stays in its line and does nothing to a terminal."""
    return shortened(text if text.isprintable() else repr(text))


def shortened(text: str) -> str:
    """Text of a file, at most `SHOWN` characters of it."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
