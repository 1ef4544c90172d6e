from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sophon_bench.api import Declared
from sophon_bench.cli import main
from sophon_bench.plugins import registry
from sophon_bench.plugins.registry import (
    BrokenPlugin,
    DuplicateName,
    Registry,
    UnknownName,
    unknown,
)

ROOT = Path(__file__).parent.parent

GOOD = """
from dataclasses import dataclass
from sophon_bench.api import attacks

@attacks.register("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine:
    '''Mine.'''
"""


@dataclass(frozen=True)
class Empty:
    """Nothing."""


def test_a_name_is_taken_once() -> None:
    things = Registry("thing")
    things.register("a")(Empty)
    with pytest.raises(DuplicateName, match="thing 'a' is registered twice"):
        things.register("a")(Empty)


def test_optional_attributes_have_defaults_and_may_be_variables_fields_or_properties() -> None:
    @dataclass(frozen=True)
    class Telling:
        steps: int = 3
        presets: ClassVar[dict[str, dict[str, int]]] = {"long": {"steps": 9}}

        @property
        def planned_units(self) -> float:
            return 2.0 * self.steps

    things = Registry("thing")
    things.register("telling")(Telling)
    assert Declared.of(Empty()) == Declared.of(Empty) == Declared()
    assert Declared.of(Telling(9)) == Declared(steps=9, planned_units=18.0, presets=Telling.presets)
    assert things.get("telling").declared == Declared(steps=3, presets=Telling.presets)


NAMES: list[tuple[object, str | None]] = [
    ("a", None),
    ("3d", None),
    ("my-attack-2", None),
    ("a" * 60, None),
    ("a" * 61, ""),
    ("", ""),
    ("=1+1", ""),
    ("@standard v2", ""),
    ("−1", ""),
    ("attaque-é", ""),
    ("a\n", ""),
    ("a/b", ""),
    ("a[b]", ""),
    ("_", ""),
    (None, ""),
    (Empty, ""),
    ("my_attack", "; try 'my-attack'"),
    ("My Attack 2.0", "; try 'my-attack-2-0'"),
    ("two--hyphens-", "; try 'two-hyphens'"),
    ("-x", "; try 'x'"),
]


@pytest.mark.parametrize(("name", "hint"), NAMES, ids=str)
def test_a_name_is_lower_case_words_joined_by_hyphens(name: object, hint: str | None) -> None:
    things = Registry("thing")
    if hint is None:
        assert things.register(name)(Empty) is Empty  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match=r"^thing name ") as raised:
        things.register(name)  # type: ignore[arg-type]
    assert str(raised.value) == (
        f"thing name {name!r} should be lower-case letters and digits joined by hyphens, at most "
        f"60 characters{hint}"
    )


@given(st.text() | st.text("ab-_A .1", max_size=70))
def test_what_is_proposed_for_a_name_is_one(name: str) -> None:
    problem = registry.name_problem(name)
    if problem is None:
        assert 0 < len(name) <= 60
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert all(name.split("-"))
    else:
        assert problem.isprintable()
        _, hint, better = problem.removeprefix(repr(name)).partition("; try ")
        assert not hint or registry.name_problem(better[1:-1]) is None


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("command", [("run", "--plugin"), ("check",)])
def test_a_file_with_a_bad_name_is_refused_in_one_line(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GOOD.format(name="my_attack"))
    result = CliRunner().invoke(main, [*command, str(file)])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "attack name 'my_attack' should be" in line
    assert line.endswith("; try 'my-attack'")


def test_only_dataclasses_are_plugins() -> None:
    class Bare:
        pass

    with pytest.raises(TypeError, match="must be a dataclass"):
        Registry("thing").register("a")(Bare)


def test_controls_are_known_by_their_role() -> None:
    things = Registry("thing")
    things.register("b", control=True)(Empty)
    things.register("a")(Empty)
    things.register("c", control=True, optional=True)(Empty)
    assert things.controls() == ["b"]
    assert things.get("c").control
    assert things.names() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("adm", ["adam", "sgd"], "did you mean 'adam'?"),
        ("zzz", ["adam", "sgd"], "there are: adam, sgd"),
        ("zzz", [f"name{i}" for i in range(20)], "'sophon-bench list things' shows all 20"),
    ],
)
def test_an_unknown_name_gets_the_help_that_fits(name: str, known: list[str], hint: str) -> None:
    assert unknown("thing", name, known) == f"unknown thing {name!r}; {hint}"
    with pytest.raises(UnknownName):
        Registry("thing").get(name)


@pytest.mark.usefixtures("forget")
def test_a_file_is_loaded_once_and_its_source_is_its_identity(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GOOD.format(name="mine"))
    registry.load_file(file)
    registry.load_file(file)
    entry = registry.attacks.get("mine")
    assert entry.distribution == "mine.py"
    other = tmp_path / "other.py"
    other.write_text(GOOD.format(name="other") + "# a comment\n")
    registry.load_file(other)
    assert registry.attacks.get("other").source != entry.source


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def f(:", "SyntaxError at line 1"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_like_this", "No module named 'nothing_like_this'"),
        ("", "registers nothing"),
    ],
)
def test_a_broken_file_says_why(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(content)
    with pytest.raises(BrokenPlugin, match=message):
        registry.load_file(file)


@pytest.mark.usefixtures("forget")
def test_a_file_that_takes_a_built_in_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "again.py"
    file.write_text(GOOD.format(name="finetune"))
    with pytest.raises(DuplicateName, match=r"'finetune' is registered twice.*again\.py"):
        registry.load_file(file)


@pytest.mark.usefixtures("forget")
def test_a_package_is_walked_and_a_broken_module_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_plugins"
    (package / "deeper").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "one.py").write_text(GOOD.format(name="walked-one"))
    (package / "broken.py").write_text("raise RuntimeError('not today')")
    (package / "deeper" / "__init__.py").touch()
    (package / "deeper" / "two.py").write_text(GOOD.format(name="walked-two"))
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("mine", "my_plugins", registry.GROUP)
    monkeypatch.setattr(registry, "_points", lambda: [point])
    monkeypatch.setattr(registry, "_discovered", False)
    assert registry.declared_names("attack") == ["walked-one", "walked-two"]
    with pytest.warns(UserWarning, match=r"my_plugins\.broken is skipped: RuntimeError: not today"):
        registry.discover()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {"walked-one", "walked-two", "finetune"} <= set(registry.attacks.names())


def test_a_short_import_is_refused_rather_than_registered_twice() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import attacks.finetune"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "import sophon_bench.attacks.finetune instead" in done.stderr


def test_a_missing_package_behind_an_entry_point_only_warns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = EntryPoint("gone", "no_such_package.plugins", registry.GROUP)
    monkeypatch.setattr(registry, "_points", lambda: [point])
    monkeypatch.setattr(registry, "_discovered", False)
    assert registry.declared_names("attack") == []
    with pytest.warns(UserWarning, match=r"no_such_package\.plugins is skipped"):
        registry.discover()


def test_an_edited_file_of_a_sub_package_changes_the_source_of_all_its_plugins() -> None:
    ice, klu = (registry.defenses.get(name) for name in ("sophon-ice", "sophon-klu"))
    assert ice.source == klu.source
    assert ice.source != registry.defenses.get("none").source
