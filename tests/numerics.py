"""The lock on modules that move numbers: a change raises their version, or is shown to move none.

``make numerics`` writes `numerics.json` after ``NUMERICS`` in `sophon_bench.protocol` was raised.
``make numerics NEUTRAL='evidence' FILES='path …'`` declares that the uncommitted
change of these files moves no number, and why that is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sophon_bench import protocol
from sophon_bench.plugins.identity import LOCK, file_hash, neutral_changes, syntax_hash

ROOT = Path(__file__).parent.parent
LOCKED = (
    "training.py", "fused_sgd.py", "seeding.py", "harness/*.py", "models/*.py", "data/**/*.py",
)  # fmt: skip
"""Modules of the core that move numbers."""


def modules() -> dict[str, Path]:
    """The locked files by their path in the repository."""
    found = [file for form in LOCKED for file in sorted((ROOT / "sophon_bench").glob(form))]
    return {file.relative_to(ROOT).as_posix(): file for file in found}


def problems(lock: dict[str, Any]) -> list[str]:
    """What has to be done before the lock holds, in words; nothing if it does."""
    if lock["version"] != protocol.NUMERICS:
        return [f"NUMERICS is {protocol.NUMERICS}, the lock's {lock['version']}: make numerics"]
    now = {name: file_hash(file) for name, file in modules().items()}
    changed = sorted(name for name in now.keys() & lock["modules"].keys()
                     if now[name] != lock["modules"][name])  # fmt: skip
    moved = sorted(now.keys() ^ lock["modules"].keys())
    found = [
        f"{name} computes something else than it did: raise NUMERICS in sophon_bench/protocol.py "
        f"and 'make numerics', or 'make numerics NEUTRAL=evidence FILES={name}'"
        for name in changed
    ]
    return found + [f"{name} is new or gone: make numerics" for name in moved]


def updated(lock: dict[str, Any], evidence: str, files: Sequence[str]) -> dict[str, Any]:
    """The lock after a raised version, new or moved modules, or a declaration."""
    declared = [
        {"file": name, "was": _committed(name), "now": syntax_hash((ROOT / name).read_bytes()),
         "evidence": evidence}
        for name in files
    ]  # fmt: skip
    neutral = [*lock["neutral"], *(change for change in declared if change["was"] != change["now"])]
    raised = lock["version"] != protocol.NUMERICS
    old = {} if raised else lock["modules"]
    kept = {name: old.get(name) or file_hash(file) for name, file in modules().items()}
    return {"version": protocol.NUMERICS, "modules": kept, "neutral": neutral}


def _committed(name: str) -> str:
    shown = subprocess.run(
        ["git", "-C", str(ROOT), "show", f"HEAD:{name}"], capture_output=True, check=True
    )
    return syntax_hash(shown.stdout)


def main(evidence: str = "", *files: str) -> str | None:
    """Write the lock; what is still wrong with it."""
    if bool(evidence) != bool(files):
        return "a neutral change needs both NEUTRAL='evidence' and FILES='path …'"
    lock = updated(json.loads(LOCK.read_text()), evidence, files)
    LOCK.write_text(json.dumps(lock, indent=1) + "\n")
    neutral_changes.cache_clear()
    return "\n".join(problems(lock)) or None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
