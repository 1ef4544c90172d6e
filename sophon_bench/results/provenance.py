"""What ran: versions, commit, device. Part of every record."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from sophon_bench import __version__
from sophon_bench.results.records import Provenance

SOURCE = "SOPHON_BENCH_SOURCE"
"""Environment variable that says which commit this package was copied from, as `source` writes it;
for workers on other machines."""


def capture(device: torch.device, compiled: str = "off") -> Provenance:
    """The provenance of something that has just finished on ``device``."""
    commit, dirty = _git()
    return Provenance(
        version=__version__,
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        torch=str(torch.__version__),
        timm=_version("timm"),
        cuda=torch.version.cuda if device.type == "cuda" else None,
        device=device_name(device),
        threads=torch.get_num_threads(),
        compiled=compiled,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


_version = functools.cache(version)  # which reads a file of the package


@functools.cache
def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def source() -> str:
    """Commit of the checkout that this package runs from, and whether it has changes, as JSON."""
    return json.dumps(_git())


@functools.cache
def _git() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from, and whether it has changes."""
    if SOURCE in os.environ:
        commit, dirty = json.loads(os.environ[SOURCE])
        return commit, dirty
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None, None
    status = git("status", "--porcelain")
    return git("rev-parse", "HEAD"), None if status is None else bool(status)
