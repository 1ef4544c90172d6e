"""What a report of a problem needs to say: versions, devices, data, caches and plugins."""

from __future__ import annotations

import os
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from sophon_bench.data.preparing import rows
from sophon_bench.data.published import ROOT
from sophon_bench.plugins.registry import attacks, defenses, scenarios
from sophon_bench.results.provenance import capture, device_name
from sophon_bench.results.store import default_root, is_store

PACKAGES = (
    "torch", "torchvision", "timm", "peft", "numpy", "scipy", "pandas", "scikit-learn",
    "diffusers", "torchmetrics", "vl-convert-python",
)  # fmt: skip
"""Whose versions may matter; the last three come with extras."""


def facts(store: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Values by topic and name, as `json.dumps` takes them; nothing is trained or downloaded.

    Args:
        store: A directory or a URL; None: in the user's cache directory.
    """
    place = store or default_root()
    made = capture(torch.device("cpu"))
    return {
        "versions": {
            "sophon-bench": made.version,
            "commit": made.commit,
            "python": made.python,
            "platform": platform.platform(),
            **{name: _version(name) for name in PACKAGES},
        },
        "devices": {
            "cpu": made.device,
            "cores": os.cpu_count(),
            "threads": made.threads,
            "cuda": torch.version.cuda,
            **{f"cuda:{index}": _gpu(index) for index in range(torch.cuda.device_count())},
        },
        "data": {ROOT: os.environ.get(ROOT), "sets": [r.name for r in rows() if r.state == "here"]},
        "caches": {
            "store": str(place),
            "store exists": is_store(place),
            "timm weights": HF_HUB_CACHE,
            "torch weights": torch.hub.get_dir(),
        },
        "plugins": {
            f"{registry.kind}s": dict(
                Counter(registry.get(name).distribution for name in registry.names())
            )
            for registry in (attacks, defenses, scenarios)
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu(index: int) -> str:
    device = torch.device("cuda", index)
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{device_name(device)}, {memory / 2**30:.0f} GiB"
