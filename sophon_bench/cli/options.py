"""Options of commands: how they are made, and those that several commands have."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sophon_bench.cli.common import Refused, need_extra, unwritable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Decorator = Callable[[Any], Any]

DEFAULT_BACKBONE = "test_resnet"
BY_DEFAULT = f"By default {DEFAULT_BACKBONE}; for denoising, unet."

LONGEST = 10_000
"""Numbers at most that a range has."""

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
READABLE = click.Path(path_type=Path, dir_okay=False, exists=True)


class Output(click.Path):
    """A file to write in the end; one that cannot be written is refused before any work."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path, once something else could be written beside it."""
        file = Path(str(super().convert(value, param, ctx)))
        try:
            with tempfile.TemporaryFile(dir=file.absolute().parent):
                return file
        except OSError as error:
            raise unwritable(param.opts[0], file, error) from error


class Picture(Output):
    """A picture to draw in the end, PNG or SVG by its name."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path, once a picture of its kind could be drawn."""
        from sophon_bench.leaderboard.vega import FORMATS

        if Path(value).suffix.removeprefix(".") not in FORMATS:
            known = " or ".join(f".{form}" for form in FORMATS)
            raise Refused(f"{param.opts[0]} draws a file that ends in {known}; got {str(value)!r}")
        need_extra("a picture", "vl_convert")
        return super().convert(value, param, ctx)


def complete(kind: str) -> Callable[..., list[CompletionItem]]:
    """Complete plugin names by reading source, without importing torch."""

    def names(_c: click.Context, _p: click.Parameter, start: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from sophon_bench.plugins.registry import declared_names

        return [CompletionItem(n) for n in declared_names(kind) if n.startswith(start)]

    return names


def _numbers(_context: click.Context, parameter: click.Parameter, text: str | None) -> list[int]:
    """``50,200`` or ``0-2`` or both: distinct, in order."""
    name = f"--{parameter.name}"
    found: list[int] = []
    for part in [] if text is None else map(str.strip, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if match is None:
            form = "numbers and ranges such as '0-2' or '50,200'"
            raise Refused(f"{name} takes {form}; got {text!r}")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise Refused(f"{name}: the range {part!r} is empty; did you mean {high}-{low}?")
        if high - low >= LONGEST:
            raise Refused(f"{name}: the range {part!r} has more than {LONGEST} numbers")
        found += range(low, high + 1)
    return list(dict.fromkeys(found))


def _one(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[str]:
    return [] if text is None else [text]


def _load(context: click.Context, _parameter: click.Parameter, files: Iterable[Path]) -> Any:
    """Register what is in the files of ``--plugin``."""
    from sophon_bench.plugins.registry import load_file

    for file in () if context.resilient_parsing else files:
        load_file(file)
    return files


def _name_sets(context: click.Context, _parameter: click.Parameter, folder: str | None) -> None:
    """Read published sets from the folder until the command ends."""
    if folder is not None and not context.resilient_parsing:
        from sophon_bench.data.published import sets_in

        context.with_resource(sets_in(folder))


def together(*each: Decorator) -> Decorator:
    """Several options as one, in this order."""
    return lambda command: functools.reduce(lambda f, option: option(f), reversed(each), command)


def option(names: str, help: str, **more: Any) -> Decorator:
    """An option; ``names`` is its flag, and the parameter's name where that is another."""
    return click.option(*names.split(), help=help, **more)


def flag(name: str, help: str) -> Decorator:
    """An option without a value."""
    return option(name, help, is_flag=True)


def choice(names: str, help: str, *values: str) -> Decorator:
    """An option that takes one of ``values``, by default the first."""
    return option(names, help, type=click.Choice(values), default=values[0])


def numbers(name: str, help: str, **more: Any) -> Decorator:
    """An option that takes numbers and ranges."""
    return option(name, help, **{"callback": _numbers, "metavar": "A-B", **more})


def count(name: str, help: str, *, least: int = 1, **more: Any) -> Decorator:
    """An option that takes a number, at least ``least``."""
    return option(name, help, **{"type": click.IntRange(min=least), "metavar": "N", **more})


def selector(name: str, help: str, *, kind: str = "", **more: Any) -> Decorator:
    """An option that takes the selector of an attack, a defense or a scenario."""
    known = complete(kind or name.removeprefix("--"))
    return option(name, help, metavar="SELECTOR", shell_complete=known, **more)


def selectors(name: str, help: str, *default: str) -> Decorator:
    """An option that takes a selector each time it is given."""
    return selector(name, f"{help} Repeatable.", multiple=True, default=default)


def suites(help: str, *default: str) -> Decorator:
    """``--suite``, as often as there are suites that were run together."""
    return option(
        "--suite", f"{help} Repeatable.", metavar="@SUITE", multiple=True, default=default
    )


def backbone(help: str = BY_DEFAULT, **more: Any) -> Decorator:
    """``--backbone``; ``help`` says what the default is."""
    known = f"timm model, or unet, with keyword arguments in brackets. {help}"
    return option("--backbone", known, metavar="SELECTOR", **more)


def path(names: str, help: str, **more: Any) -> Decorator:
    """An option that names a file or a directory to read."""
    return option(names, help, **{"type": PATH, **more})


def output(names: str, help: str, **more: Any) -> Decorator:
    """An option that names a file to write."""
    return option(names, help, **{"type": Output(), "metavar": "FILE", **more})


def json_file(help: str) -> Decorator:
    """``--json``."""
    return output("--json json_file", help)


def directory(help: str) -> Decorator:
    """``--out``, a directory that has to be given."""
    folder = click.Path(path_type=Path, file_okay=False)
    return option("--out", help, type=folder, required=True, metavar="DIR")


def plugins(*, expose: bool = False) -> Decorator:
    """``--plugin``, which loads the files; a command that hands them on gets the paths as well."""
    words = "Load an attack, a defense or a scenario from a file; its code is executed. Repeatable."
    more = {"multiple": True, "metavar": "FILE.py", "callback": _load, "expose_value": expose}
    return path("--plugin", words, **more)


store = option(
    "--store",
    "Directory or URL of finished work; by default in the user's cache directory.",
    metavar="DIR",
    envvar="SOPHON_BENCH_STORE",
)
data_folder = option(
    "--data",
    "Folder with published sets of images; SOPHON_BENCH_DATA sets it too.",
    metavar="DIR",
    callback=_name_sets,
    expose_value=False,
)
records = together(path("--from source", "A file of 'run --json'."), store)
formats = "How to print; csv and json are flat rows with stable keys."
form = choice("--format form", formats, "console", "md", "latex", "csv", "json")
scenario = selector("--scenario", "Scenario.", default="glyphs-digits", callback=_one)
setting = together(scenario, backbone(callback=_one))
weights = option(
    "--weights",
    "What models start from: timm's pre-trained weights, random ones, or a file of safetensors or "
    "torch.save; by default what the backbone says (pretrained=true or random).",
    metavar="timm|random|FILE",
)
image_size = option("--image-size", "Size of the scenario's images.", type=int, metavar="PIXELS")
device = option("--device", "Device to run on.", default="auto", metavar="auto|cpu|cuda[:i]")
workers = together(
    option(
        "--executor",
        "Where stages run: auto (in this process, or in several), or ray (on a Ray cluster).",
        default="auto",
        metavar="NAME",
    ),
    option(
        "--address",
        "Address of a running Ray cluster; by default one is started on this machine.",
        metavar="auto|ray://HOST:PORT",
    ),
    count("--workers", "Stages to run in parallel; by default 1, on Ray as many as fit."),
)
threads = count("--threads", "CPU threads per stage; by default all, shared equally.")
modes = ("off", "default", "reduce-overhead", "max-autotune")
passes = together(
    device,
    choice("--precision", "bf16 runs models under autocast.", "fp32", "bf16"),
    choice("--compile compiled", "torch.compile's mode; the last two use CUDA graphs.", *modes),
)
loudness = together(
    flag("--quiet -q", "Show no progress, only results, warnings and errors."),
    flag("--verbose -v", "Also name stages that were in the store."),
)
job = together(
    weights,
    numbers("--samples", "The attacker's n; by default the scenario's middle one.", metavar="N,N"),
    option("--steps", "Budget in updates of 64 examples; by default the scenario's.", type=int),
    image_size,
    data_folder,
    passes,
    workers,
    threads,
    option(
        "--cell-timeout",
        "Seconds that a cell, or making a model, may take; after that its process is ended and "
        "the cell recorded as failed.",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
    ),
    option(
        "--cell-memory",
        "GiB of memory that the process of a cell may hold; with more, the same.",
        type=click.FloatRange(min=0, min_open=True),
        metavar="GIB",
    ),
    count("--together", "Most trials to train at once; by default 32 on a GPU, 1 on a CPU."),
    plugins(expose=True),
    store,
    flag("--retry-failed", "Repeat failed cells."),
    option("--log", "Log records to tensorboard, mlflow or wandb. Repeatable.", multiple=True),
    flag("--dry-run", "Print the plan and its cost, and stop."),
    loudness,
)
"""Options of all commands that make records."""
