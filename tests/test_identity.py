"""What changes the identity of a plugin and of the core's numerics, and what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numerics
import pytest

from sophon_bench import protocol
from sophon_bench.plugins import identity
from sophon_bench.plugins.identity import file_hash, source_files, source_hash, syntax_hash

PLUGIN = b'''"""An attack.

Reference: nobody.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sophon_bench.api import Model
from sophon_bench.api import attacks

from ._helper import scaled


@attacks.register("own")
@dataclass(frozen=True, kw_only=True)
class Own:
    """Takes a step."""

    lr: float = 0.01  # a comment
    name: str = f"{1}a" "b"

    def run(self, model: Model, view: Any) -> Iterator[Any]:
        """Yield."""
        yield torch.mul(scaled(model), self.lr)
'''

SAME = {
    "a comment": (b"  # a comment", b""),
    "a docstring": (b'    """Takes a step."""\n\n', b""),
    "the module's docstring": (b"Reference: nobody.", b"Reference: somebody."),
    "a method's docstring": (b'        """Yield."""\n', b""),
    "annotations": (b"(self, model: Model, view: Any) -> Iterator[Any]", b"(self, model, view)"),
    "an annotation of a field": (b"lr: float", b"lr: 'int'"),
    "how a number is written": (b"0.01", b"1e-2"),
    "layout": (b"\n\n\n@", b"\n\n@"),
    "a module of the core that moved": (
        b"sophon_bench.api import attacks",
        b"sophon_bench.moved import attacks",
    ),
    "an import that only annotations use": (b"from typing import Any\n", b""),
    "how text is cut": (b'"{1}a" "b"', b'"{1}ab"'),
}
OTHER = {
    "a number": (b"0.01", b"0.02"),
    "a name": (b'"own"', b'"other"'),
    "a call": (b"torch.mul", b"torch.add"),
    "an order": (b"(scaled(model), self.lr)", b"(self.lr, scaled(model))"),
    "a library": (b"import torch", b"import numpy as torch"),
    "a helper": (b"import scaled", b"import halved as scaled"),
    "a name of the core": (b"import attacks", b"import defenses as attacks"),
    "a decorator": (b"frozen=True, ", b""),
    "a field that becomes none": (b"lr: float = 0.01", b"lr = 0.01"),
    "text": (b'"{1}a"', b'"{1}c"'),
}


@pytest.mark.parametrize("case", SAME)
def test_what_moves_no_number_is_no_part_of_the_identity(case: str) -> None:
    old, new = SAME[case]
    assert PLUGIN.count(old) == 1
    assert syntax_hash(PLUGIN.replace(old, new)) == syntax_hash(PLUGIN)


@pytest.mark.parametrize("case", OTHER)
def test_what_the_code_does_is(case: str) -> None:
    old, new = OTHER[case]
    assert PLUGIN.count(old) == 1
    assert syntax_hash(PLUGIN.replace(old, new)) != syntax_hash(PLUGIN)


def test_helpers_that_are_imported_relatively_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    files = {
        "own.py": PLUGIN,
        "_helper.py": b"from .deep import factor\ndef scaled(x):\n    return factor * x\n",
        "deep/__init__.py": b"factor = 2\n",
        "bystander.py": b"x = 1\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    before = source_hash(tmp_path / "own.py")
    names = {file.relative_to(tmp_path).as_posix() for file in source_files(tmp_path / "own.py")}
    assert names == files.keys() - {"bystander.py"}
    (tmp_path / "bystander.py").write_bytes(b"x = 2\n")
    (tmp_path / "deep/__init__.py").write_bytes(b"factor = 2  # twice\n")
    assert source_hash(tmp_path / "own.py") == before
    (tmp_path / "deep/__init__.py").write_bytes(b"factor = 3\n")
    assert source_hash(tmp_path / "own.py") != before


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_every_version_of_python_finds_the_same(version: str) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(identity.__file__).parent)!r})\n"
        f"import identity, pathlib\n"
        f"for f in sys.argv[1:]: print(identity.syntax_hash(pathlib.Path(f).read_bytes()))\n"
    )
    files = sorted((numerics.ROOT / "defenses").rglob("*.py"))
    call = [f"python{version}", "-c", script, *map(str, files)]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip(f"there is no Python {version} here")
    assert done.stdout.split() == [syntax_hash(file.read_bytes()) for file in files]


def test_a_change_that_was_declared_neutral_keeps_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, newest = (tmp_path / f"{n}.py" for n in range(3))
    for number, file in enumerate((old, new, newest)):
        file.write_text(f"x = {number}\n")
    raw = [syntax_hash(file.read_bytes()) for file in (old, new, newest)]
    changes = {raw[1]: raw[0], raw[2]: raw[1]}
    monkeypatch.setattr(identity, "neutral_changes", lambda: changes)
    assert [file_hash(file) for file in (old, new, newest)] == [raw[0]] * 3
    newest.write_text("x = 3\n")
    assert file_hash(newest) == syntax_hash(b"x = 3\n"), "another change is not covered by it"


def test_the_lock_holds() -> None:
    lock = json.loads(identity.LOCK.read_text())
    assert numerics.problems(lock) == []
    assert all(change["evidence"].strip() for change in lock["neutral"])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one locked module, and its lock."""
    module = tmp_path / "sophon_bench" / "training.py"
    module.parent.mkdir()
    module.write_text("STEP = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    lock = tmp_path / "numerics.json"
    lock.write_text(json.dumps({"version": protocol.NUMERICS, "modules": {}, "neutral": []}))
    monkeypatch.setattr(numerics, "ROOT", tmp_path)
    for holder in (numerics, identity):
        monkeypatch.setattr(holder, "LOCK", lock)
    identity.neutral_changes.cache_clear()
    assert numerics.main() is None
    yield module
    identity.neutral_changes.cache_clear()


def test_a_change_of_the_core_fails_until_it_is_raised_or_declared(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.write_text("STEP = 1  # one\n")
    assert numerics.main() is None
    checkout.write_text("STEP = 2\n")
    words = numerics.main()
    assert words is not None
    assert "sophon_bench/training.py computes something else" in words
    assert numerics.main("only evidence") == (
        "a neutral change needs both NEUTRAL='evidence' and FILES='path …'"
    )
    assert numerics.main("same weights, bit for bit", "sophon_bench/training.py") is None
    checkout.write_text("STEP = 3\n")
    assert numerics.main() is not None
    monkeypatch.setattr(protocol, "NUMERICS", protocol.NUMERICS + 1)
    assert numerics.problems(read_lock()) == [
        f"NUMERICS is {protocol.NUMERICS}, the lock's {protocol.NUMERICS - 1}: make numerics"
    ]
    assert numerics.main() is None


def test_a_new_module_is_entered(checkout: Path) -> None:
    (checkout.parent / "harness").mkdir()
    (checkout.parent / "harness" / "meter.py").write_text("x = 1\n")
    assert numerics.problems(read_lock()) == [
        "sophon_bench/harness/meter.py is new or gone: make numerics"
    ]
    assert numerics.main() is None


def read_lock() -> dict[str, Any]:
    return json.loads(numerics.LOCK.read_text())


def test_every_constant_is_in_the_digest() -> None:
    constants = [name for name in vars(protocol) if name.isupper()]
    assert len(constants) > 20
    script = (
        "from sophon_bench import protocol\n"
        "found = []\n"
        "for name in [None, *[n for n in vars(protocol) if n.isupper()]]:\n"
        "    if name: setattr(protocol, name, repr(getattr(protocol, name)) + 'x')\n"
        "    protocol.digest.cache_clear()\n"
        "    found.append(protocol.digest())\n"
        "assert len(set(found)) == len(found)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
