"""Copies on this machine of files that are far away, by their content, up to some size."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sophon_bench.results.files import write_atomic
from sophon_bench.results.servers import number_in

SIZE = "SOPHON_BENCH_COPIES_GB"
"""Environment variable: how many gigabytes copies may take; 0: none are kept."""


@dataclass(frozen=True)
class Copies:
    """Files by their SHA-256; those that were not read for longest make room for others.

    Several processes may use one folder. What the disk refuses is not kept.

    Attributes:
        root: Their folder; made when it is needed.
        limit: Bytes that they take together.
    """

    root: Path
    limit: int

    @classmethod
    def of(cls, root: Path) -> Copies:
        """Copies in a folder, of the size that the environment allows, by default 10 GB.

        Raises:
            BadInput: If the environment says something else than a number.
        """
        return cls(root, int(number_in(SIZE, 10.0) * 1e9))

    def read(self, digest: str) -> bytes | None:
        """The file of that digest, if there is a copy; one that is damaged is deleted."""
        path = self.root / digest
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() == digest:
            return content
        _delete(path)
        return None

    def keep(self, digest: str, content: bytes) -> None:
        """Keep a copy, if there is room for it."""
        if len(content) > self.limit:
            return
        with contextlib.suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomic(self.root / digest, content)
            self._make_room()

    def _make_room(self) -> None:
        facts = {path: path.stat() for path in self.root.iterdir()}
        taken = sum(each.st_size for each in facts.values())
        for path in sorted(facts, key=lambda path: facts[path].st_mtime_ns):
            if taken <= self.limit:
                break
            taken -= facts[path].st_size
            _delete(path)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
