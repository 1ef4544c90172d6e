"""What commands have in common: options, errors, and where records come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sophon_bench.results.records import Records
    from sophon_bench.results.store import Store


C = TypeVar("C", bound=Callable[..., Any])

KINDS = ("attacks", "defenses", "scenarios", "backbones", "suites", "studies")
DEFAULT_SCENARIO = "glyphs-digits"
DEFAULT_BACKBONE = "test_resnet"
DEFAULT_SUITE = "@smoke"
TUNING_SUITE = "@tuning"
SCORING_SUITE = "@standard"


class Refused(click.ClickException):
    """Bad input, seen before any work starts: one line, exit code 2."""

    exit_code = 2


def complete(kind: str) -> Callable[..., list[CompletionItem]]:
    """Complete plugin names by reading source, without importing torch."""

    def names(_c: click.Context, _p: click.Parameter, start: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from sophon_bench.plugins.registry import declared_names

        return [CompletionItem(n) for n in declared_names(kind) if n.startswith(start)]

    return names


def numbers(_context: click.Context, parameter: click.Parameter, text: str | None) -> list[int]:
    """``50,200`` or ``0-2`` or both: distinct, in order."""
    if text is None:
        return []
    name = f"--{parameter.name}"
    form = f"{name} takes numbers and ranges such as '0-2' or '50,200'; got {text!r}"
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise Refused(form)
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise Refused(
                f"{name}: the range {part.strip()!r} is empty; did you mean {high}-{low}?"
            )
        found += [n for n in range(low, high + 1) if n not in found]
    return found


store_option = click.option(
    "--store",
    metavar="DIR",
    envvar="SOPHON_BENCH_STORE",
    help="Directory or URL of finished work; by default in the user's cache directory.",
)
source_option = click.option(
    "--from", "source", type=click.Path(path_type=Path), help="A file of 'run --json'."
)
plugin_option = click.option(
    "--plugin",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="Load an attack, a defense or a scenario from a file. Repeatable.",
)
one_scenario_option = click.option(
    "--scenario",
    default=DEFAULT_SCENARIO,
    show_default=True,
    metavar="SELECTOR",
    shell_complete=complete("scenario"),
    help="Scenario.",
)
one_backbone_option = click.option(
    "--backbone",
    metavar="SELECTOR",
    help=f"timm model, or unet, with keyword arguments in brackets. By default {DEFAULT_BACKBONE}; "
    "for denoising, unet.",
)
backbone_option = click.option(
    "--backbone",
    multiple=True,
    metavar="SELECTOR",
    help="timm model, or unet, with keyword arguments in brackets. Repeatable. By default "
    f"{DEFAULT_BACKBONE}; for denoising, unet.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="Where to run."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="bf16 runs models under autocast.",
)
compile_option = click.option(
    "--compile",
    "compiled",
    type=click.Choice(["off", "default", "reduce-overhead", "max-autotune"]),
    default="off",
    show_default=True,
    help="Compile models, in one of torch.compile's modes; the last two use CUDA graphs.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU threads of torch in each process; by default all of them, shared out.",
)
image_size_option = click.option(
    "--image-size", type=int, metavar="PIXELS", help="Size of the scenario's images."
)


samples_option = click.option(
    "--samples",
    callback=numbers,
    metavar="N,N",
    help="The attacker's sample counts; by default the scenario's middle one.",
)
steps_option = click.option(
    "--steps",
    type=int,
    metavar="N",
    help="Budget of an attack, in updates of 64 examples; by default the scenario's.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that work side by side; finished work is the same with any number.",
)
together_option = click.option(
    "--together",
    type=click.IntRange(min=1),
    metavar="N",
    help="Trials at most that train at once, where they are measured to take less time than one "
    "after the other; by default 32 on a GPU, and 1 on the CPU, where they do not.",
)
retry_option = click.option("--retry-failed", is_flag=True, help="Do cells again that failed.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the plan and its cost, and stop."
)


def running(command: C) -> C:
    """What commands that make records have in common, but for what they cross."""
    options = (
        samples_option, steps_option, image_size_option, device_option, precision_option,
        compile_option, workers_option, threads_option, together_option, plugin_option,
        store_option, retry_option, dry_run_option,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def make_directory(out: Path) -> None:
    """Make the directory of ``--out``, if need be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--out {str(out)!r} cannot be written: {error.strerror}") from error


def check_writable(option: str, file: Path) -> None:
    """Refuse a file that an option names and that could not be written in the end."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=file.absolute().parent):
            pass
    except OSError as error:
        raise Refused(f"{option} {str(file)!r} cannot be written: {error.strerror}") from error


def need_extra(what: str, *modules: str) -> None:
    """Refuse what needs modules that only the extra ``page`` brings, where one is missing."""
    from importlib.util import find_spec

    for name in modules:
        if find_spec(name) is None:
            raise Refused(
                f"{what} needs {name}, which is not installed: pip install 'sophon-bench[page]'"
            )


def check_picture(option: str, file: Path) -> None:
    """Refuse a picture that an option names and that could not be drawn or written in the end."""
    from sophon_bench.leaderboard.vega import FORMATS

    if file.suffix.removeprefix(".") not in FORMATS:
        known = " or ".join(f".{form}" for form in FORMATS)
        raise Refused(f"{option} draws a file that ends in {known}; got {str(file)!r}")
    need_extra("a picture", "vl_convert")
    check_writable(option, file)


def load_plugins(files: Iterable[Path]) -> None:
    """Register what is in the files of ``--plugin``."""
    from sophon_bench.plugins.registry import load_file

    for file in files:
        load_file(file)


def write_json(file: Path, content: Any) -> None:
    """Write a document, indented."""
    import json

    from sophon_bench.results.files import write_atomic

    write_atomic(file.absolute(), (json.dumps(content, indent=1) + "\n").encode())


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Records have no cycles: among 100 000 of them the collector looks for nothing, and long."""
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def read_records(source: Path | None, store: str | None) -> Records:
    """All records of a run's JSON file, or of the store; at least one."""
    from sophon_bench.results.documents import read_file

    if source is None:
        return open_store(store).records()
    _, records = read_file(source)
    if not records.cells:
        raise Refused(f"no records in {str(source)!r}; 'sophon-bench run' makes some")
    return records


def open_store(store: str | None) -> Store:
    """The store, with at least one record in it."""
    from sophon_bench.results.store import Store, default_root, is_store

    root = store or default_root()
    if not is_store(root):
        raise Refused(f"there is no store at {str(root)!r}; 'sophon-bench run' makes one")
    opened = Store(root, reading=True)
    if not opened.count():
        raise Refused(f"no records in {str(root)!r}; 'sophon-bench run' makes some")
    return opened


def presets_of(entry: Any) -> dict[str, str]:
    """A plugin's presets in words, by name."""
    return {
        name: ", ".join(f"{k}={v}" for k, v in values.items()) or "the defaults"
        for name, values in entry.declared.presets.items()
    }


def subject_of(entry: Any) -> Any:
    """What the registry knows of a defense, as plain words."""
    import dataclasses
    import inspect

    from sophon_bench.leaderboard.cards import Subject

    return Subject(
        name=entry.name,
        description=inspect.cleandoc(entry.cls.__doc__ or ""),
        reference=entry.reference,
        claim=entry.declared.claim,
        source=entry.source,
        hyperparameters={f.name: repr(f.default) for f in dataclasses.fields(entry.cls)},
        presets=presets_of(entry),
    )
