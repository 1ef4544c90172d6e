"""What commands share: bad input, and where records come from."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sophon_bench.results import Results
    from sophon_bench.results.records import Records
    from sophon_bench.results.store import Store


class Refused(click.ClickException):
    """Bad input, seen before any work starts: one line, exit code 2."""

    exit_code = 2


def given(parameter: str) -> bool:
    """Whether the command line itself names a parameter, and not the environment."""
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.COMMANDLINE


def unwritable(option: str, path: Path, error: OSError) -> Refused:
    """The error for a path that an option names."""
    return Refused(f"{option} {str(path)!r} cannot be written: {error.strerror}")


def make_directory(out: Path) -> None:
    """Make the directory of ``--out``, if need be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable("--out", out, error) from error


def need_extra(what: str, *modules: str) -> None:
    """Refuse what needs modules that only the extra ``page`` brings, where one is missing."""
    from importlib.util import find_spec

    for name in modules:
        if find_spec(name) is None:
            raise Refused(
                f"{what} needs {name}, which is not installed: in a clone of the repository, "
                "pip install '.[page]'"
            )


def write_json(file: Path | None, content: Any) -> None:
    """Write a document, indented, if a file is named."""
    import json

    from sophon_bench.results.files import write_atomic

    if file is not None:
        write_atomic(file.absolute(), (json.dumps(content, indent=1) + "\n").encode())


def without_collector() -> None:
    """Leave the garbage collector off until the command has ended (`no_collector`)."""
    from sophon_bench.results.files import no_collector

    click.get_current_context().with_resource(no_collector())


def read_records(source: Path | None, store: str | None = None) -> Records:
    """All records of a run's JSON file, or of the store; at least one."""
    from sophon_bench.results.documents import read_file

    without_collector()
    records = open_store(store).records() if source is None else read_file(source)[1]
    _need_some(records.cells, source or store)
    return records


def read_results(source: Path | None, store: str | None = None) -> Results:
    """The same as frames; of a store, records are never in memory all at once."""
    from sophon_bench.results import Results

    if source is not None:
        return Results.of(read_records(source))
    without_collector()
    results = Results.stored(open_store(store))
    _need_some(results.cells, store)
    return results


def _need_some(cells: Sized, place: str | Path | None) -> None:
    from sophon_bench.results.store import default_root

    if not len(cells):
        name = str(place or default_root())
        raise Refused(f"no records in {name!r}; 'sophon-bench run' makes some")


def open_store(store: str | None) -> Store:
    """The store, which has to be there."""
    from sophon_bench.results.store import Store, default_root, is_store

    root = store or default_root()
    if not is_store(root):
        raise Refused(f"there is no store at {str(root)!r}; 'sophon-bench run' makes one")
    return Store(root, reading=True)
