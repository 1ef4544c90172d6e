"""What a source file does, as a hash: of its syntax tree, without what changes no number.

Comments, docstrings, annotations, layout and the order of imports count for nothing; nor does which
module of this package a name is imported from. So a reworded docstring leaves every record valid,
and a changed update rule does not.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "sophon_bench"

LOCK = Path(__file__).with_name("numerics.json")
"""Hashes of the modules that move numbers, and changes that were shown to move none."""


def source_hash(file: Path) -> str:
    """SHA-256 of what a file and all files that it imports relatively do, they in turn too."""
    parts = [(one.name, file_hash(one)) for one in source_files(file)]
    return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()


def source_files(file: Path, *, beside: bool = False) -> list[Path]:
    """A file and all files that it imports relatively, and they in turn.

    Args:
        file: A module's.
        beside: Also those that lie beside the importing file and are imported by their name.
    """
    found: list[Path] = []
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.append(one)
            waiting += _imported(one, beside=beside)
    return found


def file_hash(file: Path) -> str:
    """As `syntax_hash`; a change that was declared neutral keeps the hash of before."""
    found, neutral = syntax_hash(file.read_bytes()), neutral_changes()
    while found in neutral:
        found = neutral[found]
    return found


@functools.cache
def neutral_changes() -> dict[str, str]:
    """By the hash after a change that moves no number, the hash before it."""
    return {change["now"]: change["was"] for change in json.loads(LOCK.read_text())["neutral"]}


@functools.cache
def syntax_hash(content: bytes) -> str:
    """SHA-256 of a module's syntax tree, the same under every supported version of Python.

    Raises:
        SyntaxError: If it is no Python.
    """
    tree = _Plain().visit(ast.parse(content))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imports = sorted({line for line in _imports(tree) if line[-1] in used})
    canonical = json.dumps([imports, _canonical(tree)])
    return hashlib.sha256(canonical.encode()).hexdigest()


class _Plain(ast.NodeTransformer):
    """Takes away docstrings and annotations."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Versions of Python cut the text of an f-string into other pieces."""
        parts: list[ast.expr] = []
        for part in node.values:
            before = parts[-1] if parts else None
            if isinstance(before, ast.Constant) and isinstance(part, ast.Constant):
                parts[-1] = ast.Constant(str(before.value) + str(part.value))
            elif not (isinstance(part, ast.Constant) and part.value == ""):
                parts.append(part)
        node.values = parts
        return super().generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[1:] if documented else node.body
        for field in ("annotation", "returns", "type_params"):
            if hasattr(node, field):
                setattr(node, field, None)
        return super().generic_visit(node)


def _imports(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Module, name in it, and local name of every import; modules of this package are one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                own = module.split(".")[0] == PACKAGE
                yield PACKAGE if own else module, alias.name, alias.asname or alias.name


OMITTED = ("ctx", "kind", "type_comment", "type_ignores", "type_params")
"""Fields of nodes that say nothing, or that some versions of Python do not have."""


def _canonical(node: Any) -> Any:
    """A syntax tree as lists; what is empty is left out, as are imports."""
    if isinstance(node, list):
        return [_canonical(n) for n in node if not isinstance(n, ast.Import | ast.ImportFrom)]
    if not isinstance(node, ast.AST):
        return [type(node).__name__, repr(node)]
    fields = [
        [name, _canonical(value)]
        for name, value in ast.iter_fields(node)
        if name not in OMITTED and value is not None and value != []
    ]
    return [type(node).__name__, fields]


def _imported(file: Path, *, beside: bool) -> Iterator[Path]:
    for level, module, names in _statements(file.read_bytes()):
        if level is not None and (level or beside):
            folder, names = file.parents[max(level - 1, 0)], [f"{module}.{n}" for n in names]
            names.insert(0, module)
        elif level is None and beside:
            folder = file.parent
        else:
            continue
        for parts in (name.strip(".").split(".") for name in names):
            path = folder.joinpath(*parts)
            if parts[0] != PACKAGE:
                yield from filter(Path.is_file, (path.with_suffix(".py"), path / "__init__.py"))


@functools.cache
def _statements(content: bytes) -> list[tuple[int | None, str, list[str]]]:
    """Level (None of a plain ``import``), module and names of every import statement of a file."""
    found: list[tuple[int | None, str, list[str]]] = []
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found.append((None, "", [alias.name for alias in node.names]))
    return found
