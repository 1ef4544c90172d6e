"""The command line: words -> objects. Heavy imports wait until a command needs them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sophon_bench import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sophon_bench.records import Cell
    from sophon_bench.registry import Registry
    from sophon_bench.runs import Job
    from sophon_bench.store import Store

C = TypeVar("C", bound=Callable[..., Any])

KINDS = ("attacks", "defenses", "scenarios", "backbones", "suites", "studies")
DEFAULT_SCENARIO = "glyphs-digits"
DEFAULT_BACKBONE = "test_resnet"
DEFAULT_SUITE = "@smoke"
TUNING_SUITE = "@tuning"


class Refused(click.ClickException):
    """Bad input, seen before any work starts: one line, exit code 2."""

    exit_code = 2


class Group(click.Group):
    """Says what is wrong with the input in one line instead of a traceback."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            raise _refused(error) from error

    def invoke(self, context: click.Context) -> Any:
        warnings.showwarning = _warn
        try:
            return super().invoke(context)
        except click.UsageError as error:
            raise _refused(error) from error
        except Exception as error:
            if isinstance(error, _input_errors()):
                raise Refused(str(error)) from error
            if type(error).__name__ == "WorkerDied":
                raise click.ClickException(str(error)) from error
            raise


def _refused(error: click.UsageError) -> click.ClickException:
    """A usage error of click's in one line; no arguments at all still show the help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    path = error.ctx.command_path if error.ctx else "sophon-bench"
    message = " ".join(error.format_message().split())
    return Refused(message if "Did you mean" in message else f"{message} (see '{path} --help')")


def _input_errors() -> tuple[type[Exception], ...]:
    from sophon_bench.registry import BrokenPlugin, DuplicateName, UnknownName

    found: list[type[Exception]] = [BrokenPlugin, DuplicateName, UnknownName]
    for module, name in (
        ("selectors", "SelectorError"),
        ("store", "StoreError"),
        ("backbones", "BackboneError"),
        ("plan", "PlanError"),
        ("leaderboard.tuning", "Occupied"),
    ):
        loaded = sys.modules.get(f"sophon_bench.{module}")
        found += [getattr(loaded, name)] if loaded else []
    return tuple(found)


def _warn(message: Warning | str, *_rest: Any, **_named: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _complete(kind: str) -> Callable[..., list[CompletionItem]]:
    """Complete plugin names by reading source, without importing torch."""

    def complete(_c: click.Context, _p: click.Parameter, start: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from sophon_bench.registry import declared_names

        return [CompletionItem(n) for n in declared_names(kind) if n.startswith(start)]

    return complete


def _numbers(_context: click.Context, parameter: click.Parameter, text: str | None) -> list[int]:
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


def _config(context: click.Context, _parameter: click.Parameter, file: str | None) -> None:
    """Let a YAML or TOML file's keys stand for flags that are not given."""
    if file is None:
        return
    from sophon_bench.registry import unknown

    options = [o for o in context.command.params if o.expose_value]
    known = {o.opts[0].lstrip("-"): o for o in options}
    defaults: dict[str, Any] = {}
    for key, value in _read_config(Path(file)).items():
        option = known.get(str(key).replace("_", "-"))
        if option is None or option.name is None:
            raise Refused(f"{file}: {unknown('key', str(key), known)}")
        if value is None:
            raise Refused(f"{file}: {key} has no value; leave the key out or give one")
        several = isinstance(value, list)
        if option.multiple:
            defaults[option.name] = [str(v) for v in value] if several else [str(value)]
        else:
            defaults[option.name] = ",".join(map(str, value)) if several else value
    context.default_map = defaults


def _read_config(path: Path) -> Mapping[str, Any]:
    import tomllib

    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise Refused(f"config file {str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"config file {str(path)!r} is malformed: {reason}") from error
    if not isinstance(content, dict):
        raise Refused(f"config file {str(path)!r} must map flags to values, as in 'seeds: 0-2'")
    return content


store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    envvar="SOPHON_BENCH_STORE",
    help="Directory of finished work; by default in the user's cache directory.",
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
    shell_complete=_complete("scenario"),
    help="Scenario.",
)
one_backbone_option = click.option(
    "--backbone",
    default=DEFAULT_BACKBONE,
    show_default=True,
    metavar="SELECTOR",
    help="timm model, with keyword arguments in brackets.",
)
backbone_option = click.option(
    "--backbone",
    multiple=True,
    default=[DEFAULT_BACKBONE],
    show_default=True,
    metavar="SELECTOR",
    help="timm model, with keyword arguments in brackets. Repeatable.",
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
    callback=_numbers,
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


def _running(command: C) -> C:
    """What commands that make records have in common, but for what they cross."""
    options = (
        samples_option, steps_option, image_size_option, device_option, precision_option,
        compile_option, workers_option, threads_option, together_option, plugin_option,
        store_option, retry_option, dry_run_option,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sophon-bench")
def main() -> None:
    """Does a model that claims to be non-fine-tunable keep its word?

    \b
    Examples:
      sophon-bench run --defense sophon-klu --attack @smoke
      sophon-bench list attacks
      sophon-bench show finetune
      sophon-bench table --format md

    Exit codes: 0 fine, 1 some cells failed, 2 bad input.
    """


@main.command()
@click.option(
    "--config",
    callback=_config,
    is_eager=True,
    expose_value=False,
    metavar="FILE",
    help="YAML or TOML whose keys are these flags; flags that are given win.",
)
@click.option(
    "--defense",
    multiple=True,
    metavar="SELECTOR",
    shell_complete=_complete("defense"),
    help="Defense, with parameters in brackets, or @all. Repeatable. The control is always run "
    "too.",
)
@click.option(
    "--attack",
    multiple=True,
    default=[DEFAULT_SUITE],
    show_default=True,
    metavar="SELECTOR",
    shell_complete=_complete("attack"),
    help="Attack or @suite; a list of values is a grid. Repeatable. The control is always run too.",
)
@click.option(
    "--scenario",
    multiple=True,
    default=[DEFAULT_SCENARIO],
    show_default=True,
    metavar="SELECTOR",
    shell_complete=_complete("scenario"),
    help="Scenario. Repeatable.",
)
@backbone_option
@click.option(
    "--seeds", callback=_numbers, default="0", show_default=True, metavar="A-B", help="Seeds."
)
@_running
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the run's records and summary there.",
)
@click.pass_context
def run(context: click.Context, /, **options: Any) -> None:
    """Cross defenses with attacks, and print who won.

    What the store has is not done again: interrupt at any moment and give the same command.

    \b
    Examples:
      sophon-bench run --defense sophon-ice --attack @smoke
      sophon-bench run --defense 'sophon-klu[preset=paper]' --attack 'finetune[lr=[1e-3,1e-2]]'
      sophon-bench run --defense @all --attack @standard --seeds 0-2 --workers 2
      sophon-bench run --defense none --attack @paper --samples 50,200 --seeds 0-2 --json out.json
      sophon-bench run --backbone 'vit_tiny_patch16_224[img_size=32,patch_size=4]' --dry-run
      sophon-bench run --plugin my_attack.py --attack my-attack --defense sophon-ice
      sophon-bench run --config run.yaml
    """
    context.exit(_run(**options))


def _run(
    *,
    defense: Sequence[str],
    attack: Sequence[str],
    json_file: Path | None,
    dry_run: bool,
    **options: Any,
) -> int:
    from sophon_bench import runs
    from sophon_bench.files import write_atomic
    from sophon_bench.leaderboard import tables
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.registry import attacks, defenses
    from sophon_bench.selectors import arsenal, trials

    _load_plugins(options["plugin"])
    if json_file is not None:
        _check_writable("--json", json_file)
    job = runs.prepare(
        runs.Options(**options),
        defenses=trials(defenses, defense),
        attacks=arsenal(attacks, attack),
    )
    if dry_run:
        return _print_plan(job)
    cells = job.run()
    report = tables.report(cells, published())
    click.echo(tables.console(report))
    click.echo(tables.meaning(report))
    if json_file is not None:
        write_atomic(json_file.absolute(), tables.document(cells, report).encode())
        click.echo(f"Records and summary: {json_file}")
    return _conclude(job, cells)


def _conclude(job: Job, cells: Sequence[Cell]) -> int:
    """Say where the records are and what failed; the exit code."""
    from sophon_bench.engines.local import unfinished

    click.echo(f"Records: {job.store.root / 'cells'} ({len(cells)} of this run)")
    failed = unfinished(cells)
    for cell in failed:
        click.echo(
            f"failed: {cell.attack.label} against {cell.defense.label}, n={cell.samples}, "
            f"seed={cell.seed}: {cell.reason}",
            err=True,
        )
    return 1 if failed else 0


ASIDE = {
    "store", "out", "workers", "threads", "together", "retry_failed", "dry_run", "force",
}  # fmt: skip
"""Options that say where things go and how fast, not what is done."""


def _command(context: click.Context, *arguments: str) -> str:
    """What to give a shell for the same numbers: the arguments, and options that were given."""
    from click.core import ParameterSource

    words = ["sophon-bench", str(context.info_name), *arguments]
    for option in context.command.params:
        name = str(option.name)
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if isinstance(option, click.Option) and given and name not in ASIDE:
            value = context.params[name]
            for each in value if option.multiple else [value]:
                words += [
                    option.opts[0],
                    ",".join(map(str, each)) if isinstance(each, list) else str(each),
                ]
    return shlex.join(words)


@main.command()
@click.argument("name")
@click.option(
    "--attack",
    multiple=True,
    metavar="SELECTOR",
    shell_complete=_complete("attack"),
    help="Attack or @suite in place of the study's. Repeatable.",
)
@one_scenario_option
@one_backbone_option
@click.option("--seeds", callback=_numbers, metavar="A-B", help="Seeds; by default the study's.")
@_running
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where table, rows and picture go; made if need be.",
)
@click.pass_context
def study(context: click.Context, /, **options: Any) -> None:
    """Run a named experiment: how one hyperparameter of a defense changes what it is worth.

    NAME is one of 'sophon-bench list studies', or a YAML file like them. Writes NAME.md, NAME.json
    and NAME.png. What the store has is not done again: interrupt at any moment and give the same
    command.

    \b
    Examples:
      sophon-bench list studies
      sophon-bench study horizon --out studies
      sophon-bench study horizon --attack @standard --seeds 0-4 --workers 2 --out studies
      sophon-bench study my_study.yaml --out studies --dry-run
    """
    context.exit(_study(context, **options))


def _study(
    context: click.Context,
    *,
    name: str,
    attack: Sequence[str],
    scenario: str,
    backbone: str,
    seeds: list[int],
    out: Path,
    dry_run: bool,
    **options: Any,
) -> int:
    from sophon_bench import runs
    from sophon_bench.leaderboard import studies, tables
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.registry import attacks, defenses
    from sophon_bench.selectors import arsenal

    _load_plugins(options["plugin"])
    chosen = studies.load_study(name)
    against = list(attack) or chosen.attacks
    job = runs.prepare(
        runs.Options(
            scenario=[scenario], backbone=[backbone], seeds=seeds or chosen.seeds, **options
        ),
        defenses=studies.varied(chosen, defenses),
        attacks=arsenal(attacks, against),
    )
    if dry_run:
        return _print_plan(job)
    _make_directory(out)
    cells = job.run()
    command = _command(context, name)
    rows, places = studies.findings(chosen, cells, published(), command=command, attacks=against)
    click.echo(tables.to_console(places))
    for file in studies.write(chosen, rows, places, out, command=command):
        click.echo(file)
    return _conclude(job, cells)


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--out {str(out)!r} cannot be written: {error.strerror}") from error


@main.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="DEFENSE...", shell_complete=_complete("defense")
)
@click.option(
    "--configurations",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    metavar="N",
    help="How many are tried: the defaults, and others drawn from the defense's grid.",
)
@one_scenario_option
@one_backbone_option
@click.option(
    "--seeds",
    callback=_numbers,
    default="100-101",
    show_default=True,
    metavar="A-B",
    help="Seeds; others than those that defenses are judged on.",
)
@_running
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where DEFENSE.json goes; in the repository, leaderboard/tuning.",
)
@click.option("--force", is_flag=True, help="Replace the document of another search.")
@click.pass_context
def tune(context: click.Context, /, **options: Any) -> None:
    """Choose a defense's hyperparameters: the same search and budget for every defense.

    Tries configurations of the grid that the defense declares ('sophon-bench show DEFENSE') under
    @tuning, and chooses by resistance and intactness on validation data alone. What the store has
    is not done again: interrupt at any moment and give the same command.

    \b
    Examples:
      sophon-bench tune sophon-ice --out leaderboard/tuning
      sophon-bench tune sophon-ice sophon-klu --configurations 20 --workers 2 --out tuning
      sophon-bench tune sophon-ice --out tuning --dry-run
    """
    context.exit(_tune(context, **options))


def _tune(
    context: click.Context,
    *,
    names: Sequence[str],
    configurations: int,
    scenario: str,
    backbone: str,
    out: Path,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    from sophon_bench import grids, metrics, runs
    from sophon_bench.leaderboard import tables, tuning
    from sophon_bench.registry import attacks, defenses
    from sophon_bench.selectors import arsenal

    _load_plugins(options["plugin"])
    drawn = {
        name: grids.configurations(defenses.get(name), configurations)
        for name in dict.fromkeys(names)
    }
    job = runs.prepare(
        runs.Options(scenario=[scenario], backbone=[backbone], **options),
        defenses=[trial for trials in drawn.values() for trial in trials],
        attacks=arsenal(attacks, [TUNING_SUITE]),
    )
    if dry_run:
        return _print_plan(job)
    _make_directory(out)
    files = {name: out / f"{name}.json" for name in drawn}
    commands = {name: _command(context, name) for name in drawn}
    if not force:
        for name, file in files.items():
            tuning.check(file, commands[name])
    cells = job.run()
    code = 0
    for name, trials in drawn.items():
        rows = tuning.rows_of(cells, [trial.label for trial in trials])
        click.echo(tables.to_console([tables.tuning(rows, [f"command: {commands[name]}"])]))
        content = tuning.document(
            cells,
            rows,
            defense=name,
            grid=defenses.get(name).tuning,
            drawn_with=grids.DRAWN_WITH,
            command=commands[name],
        )
        tuning.write(content, files[name], force=force)
        click.echo(files[name])
        if metrics.chosen(rows) is None:
            click.echo(f"failed: no configuration of {name} can be chosen", err=True)
            code = 1
    return max(_conclude(job, cells), code)


def _check_writable(option: str, file: Path) -> None:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=file.absolute().parent):
            pass
    except OSError as error:
        raise Refused(f"{option} {str(file)!r} cannot be written: {error.strerror}") from error


def _load_plugins(files: Iterable[Path]) -> None:
    from sophon_bench.registry import load_file

    for file in files:
        load_file(file)


def _print_plan(job: Job) -> int:
    plan = job.plan
    with job.engine() as engine:
        pending = engine.pending(plan)
        flops, seconds = engine.estimate(pending)
    missing = {stage.key for stage in pending}
    for stage in plan.stages:
        mark = "to do" if stage.key in missing else "done "
        units = "? units" if stage.units is None else f"{stage.units:.0f} units"
        click.echo(f"{mark}  {stage.label}  ({units})")
    known = sum(stage.units or 0 for stage in pending)
    unknown = sum(stage.units is None for stage in pending)
    plural = "s" if unknown > 1 else ""
    click.echo(
        f"{len(plan.stages)} stages, {len(plan.cells)} of them cells; {len(pending)} to do: "
        f"{known:.0f} units = {flops / 1e12:.3g} TFLOP, about {seconds / 60:.1f} minutes here"
        + (f", and {unknown} stage{plural} of unknown cost" if unknown else "")
    )
    longer = sum(search.forecast[1] for search in plan.searches)
    refined = sum(search.rules.refine > 0 for search in plan.searches)
    if longer or refined:
        more = sum(search.forecast[0] for search in plan.searches)
        click.echo(
            f"then, going by their results: up to {longer} trials with a longer budget "
            f"({more:.0f} units), and finer lr grids in {refined} searches"
        )
    click.echo("(1 unit = forward and backward of the undefended backbone on one example)")
    return 0


@main.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("pattern", required=False)
@plugin_option
def list_(kind: str, pattern: str | None, plugin: Sequence[Path]) -> None:
    """List what can be run; PATTERN keeps names that contain it.

    \b
    Examples:
      sophon-bench list attacks
      sophon-bench list backbones resnet
    """
    _load_plugins(plugin)
    lines = [(n, s) for n, s in _listing(kind) if pattern is None or pattern in n]
    if not lines:
        raise Refused(f"no {kind} with {pattern!r} in the name; try 'sophon-bench list {kind}'")
    width = max(len(name) for name, _ in lines)
    for name, summary in lines:
        click.echo(f"{name:{width}}  {summary}".rstrip())


def _listing(kind: str) -> list[tuple[str, str]]:
    if kind == "backbones":
        from sophon_bench.backbones import list_backbones

        return [(name, "") for name in list_backbones()]
    if kind == "suites":
        from sophon_bench.selectors import load_suite, suite_files

        suites = [load_suite(name) for name in sorted(suite_files())]
        return [(f"@{s.name}", f"v{s.version}: {s.description}") for s in suites]
    if kind == "studies":
        from sophon_bench.leaderboard.studies import load_study, study_files

        studies = [load_study(name) for name in study_files()]
        return [(study.name, f"v{study.version}: {study.question}") for study in studies]
    registry = _registries()[kind]
    entries = [registry.get(name) for name in registry.names()]
    return [
        (e.name, e.summary.replace("``", "") + (" (control)" if e.control else "")) for e in entries
    ]


def _registries() -> dict[str, Registry]:
    from sophon_bench.registry import attacks, defenses, scenarios

    return {"attacks": attacks, "defenses": defenses, "scenarios": scenarios}


@main.command()
@click.argument("name")
@click.option(
    "--images",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw samples of a scenario's domains.",
)
@image_size_option
@plugin_option
@store_option
def show(
    name: str,
    images: Path | None,
    image_size: int | None,
    plugin: Sequence[Path],
    store: Path | None,
) -> None:
    """Show an attack, a defense, a scenario, a @suite or a backbone.

    \b
    Examples:
      sophon-bench show sophon-ice
      sophon-bench show @paper
      sophon-bench show glyphs-digits --images glyphs.png
      sophon-bench show resnet18
    """
    from sophon_bench import registry
    from sophon_bench.selectors import load_suite, parse, suite_files

    _load_plugins(plugin)
    if name.startswith("@"):
        suite = load_suite(name[1:])
        click.echo(f"@{suite.name}, version {suite.version}: {suite.description}")
        click.echo("\n".join(f"  {trial}" for trial in suite.trials))
        return
    bare = parse(name).name
    holders = {kind: r for kind, r in _registries().items() if bare in r.names()}
    if images is not None and "scenarios" not in holders:
        raise Refused(f"--images draws scenarios; {name!r} is none (see 'list scenarios')")
    for kind, holder in holders.items():
        _show_plugin(holder.get(bare))
        if kind == "scenarios":
            _show_scenario(name, image_size, images, store)
    if not holders:
        from sophon_bench.backbones import list_backbones

        known = {*list_backbones(), *(n for r in _registries().values() for n in r.names())}
        if bare.split(".")[0] not in known:
            suites = [f"@{suite}" for suite in suite_files()]
            hint = "'sophon-bench list KIND' shows what there is"
            raise Refused(registry.unknown("name", bare, {*known, *suites}, otherwise=hint))
        _show_backbone(name)


def _show_plugin(entry: Any) -> None:
    import inspect

    from sophon_bench.selectors import accepted

    click.echo(f"{entry.kind} {entry.name}" + (" (control)" if entry.control else ""))
    click.echo(f"from {entry.distribution}, source {entry.source[:12]}\n")
    for cls in entry.cls.__mro__:
        if dataclasses.is_dataclass(cls):
            click.echo(inspect.cleandoc(cls.__doc__ or "") + "\n")
    for field in dataclasses.fields(entry.cls):
        click.echo(f"  {field.name} = {field.default!r}  ({accepted(entry.cls, field.name)})")
    for preset, text in _presets(entry).items():
        click.echo(f"  preset={preset}: {text}")
    for field, grid in entry.tuning.items():
        click.echo(f"  tuning {field}: {', '.join(map(str, grid))}")


def _presets(entry: Any) -> dict[str, str]:
    return {
        name: ", ".join(f"{k}={v}" for k, v in values.items()) or "the defaults"
        for name, values in entry.presets.items()
    }


def _show_scenario(
    name: str, image_size: int | None, images: Path | None, store: Path | None
) -> None:
    from sophon_bench.runs import find_scenarios
    from sophon_bench.store import Store, default_root

    (trial,) = find_scenarios([name], image_size)
    data = trial.plugin.build(Store(store or default_root()).data)
    click.echo(f"\ndata revision {data.revision}, {data.image_size}x{data.image_size} pixels")
    for domain in data.domains:
        splits = ", ".join(f"{split} {len(i)}" for split, i in domain.splits.items())
        click.echo(f"  {domain.name}: {len(domain.classes)} classes; {splits}")
    if images is not None:
        from sophon_bench.scenarios.sheet import contact_sheet

        try:
            contact_sheet(data, images)
        except (OSError, ValueError) as error:
            raise Refused(f"--images {str(images)!r} cannot be written: {error}") from error
        click.echo(f"samples drawn to {images}")


def _show_backbone(name: str) -> None:
    import torch

    from sophon_bench.runs import find_backbone

    model = find_backbone(name).build(10, torch.Generator(), fresh=True)
    count = sum(p.numel() for p in model.parameters())
    click.echo(f"backbone {name}: {count / 1e6:.2f} M parameters with 10 outputs")
    for path, block in model.blocks():
        size = sum(p.numel() for p in block.parameters())
        click.echo(f"  {path}: {type(block).__name__}, {size / 1e6:.3f} M")


@main.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["console", "md", "csv", "json"]),
    default="console",
    show_default=True,
    help="How to print; csv and json are flat rows with stable keys.",
)
@click.option("--from", "source", type=click.Path(path_type=Path), help="A file of 'run --json'.")
@store_option
def table(form: str, source: Path | None, store: Path | None) -> None:
    """Print the tables of all records in the store, or of a run's JSON file.

    \b
    Examples:
      sophon-bench table
      sophon-bench table --format md --from out.json
      sophon-bench table --format csv > rows.csv
    """
    from sophon_bench.leaderboard import tables
    from sophon_bench.leaderboard.frozen import published

    with _no_collector():
        if source is not None:
            report = tables.report(_records(source, store), published())
        else:
            report = tables.report_of(_store(store), published(), processes=os.cpu_count() or 1)
        click.echo(tables.FORMATS[form](report), nl=False)


def _formats(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """``png,svg``: distinct, in order."""
    known = ("png", "svg")
    found = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for form in found:
        if form not in known:
            raise Refused(f"--format takes {' and '.join(known)}, or one of them; got {text!r}")
    return found


@main.command()
@click.option("--from", "source", type=click.Path(path_type=Path), help="A file of 'run --json'.")
@store_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where the pictures go; made if need be.",
)
@click.option(
    "--format",
    "formats",
    callback=_formats,
    default="png,svg",
    show_default=True,
    help="png, svg or both.",
)
def plot(source: Path | None, store: Path | None, out: Path, formats: list[str]) -> None:
    """Draw envelopes and resistance by budget, and accuracy by learning rate.

    Three pictures per scenario, backbone, budget and n, of all records in the store or of a run's
    JSON file. Prints the files that it writes.

    \b
    Examples:
      sophon-bench plot --out pictures
      sophon-bench plot --from out.json --out pictures --format svg
    """
    from sophon_bench.leaderboard import plots
    from sophon_bench.leaderboard.frozen import published

    cells = _records(source, store)
    try:
        files = plots.write(cells, out, formats, published())
    except OSError as error:
        raise Refused(f"--out {str(out)!r} cannot be written: {error.strerror}") from error
    if not files:
        raise Refused("no record has a score to draw; 'sophon-bench table' shows why")
    for file in files:
        click.echo(file)


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_complete("defense"))
@click.option("--from", "source", type=click.Path(path_type=Path), help="A file of 'run --json'.")
@store_option
@plugin_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.md",
    help="Write the cards there instead of printing them.",
)
def cards(
    names: Sequence[str],
    source: Path | None,
    store: Path | None,
    plugin: Sequence[Path],
    out: Path | None,
) -> None:
    """Make a fidelity card of each defense, or of those named, in Markdown.

    What a defense minimises, where it comes from, what is different from the original, and what
    its paper claims, as its source says; and what was measured under the recipe of @paper and
    under the tuned envelope, of a run's JSON file or of the records in the store, if there is one.

    \b
    Examples:
      sophon-bench cards
      sophon-bench cards sophon-ice ntl --from out.json
      sophon-bench cards --from out.json --out docs/defenses.md
    """
    from sophon_bench.files import write_atomic
    from sophon_bench.leaderboard.cards import Recipe, cards
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.registry import attacks, defenses
    from sophon_bench.selectors import load_suite, trials
    from sophon_bench.store import default_root

    _load_plugins(plugin)
    entries = [defenses.get(name) for name in names or defenses.names()]
    for entry in entries:
        if names and entry.control:
            raise Refused(f"{entry.name!r} is a control, and stands in the card of every defense")
    if out is not None:
        _check_writable("--out", out)
    recipe = Recipe(
        name=load_suite("paper").label,
        trials=[trial.label for trial in trials(attacks, ["@paper"])],
        controls=[trial.label for trial in trials(attacks, attacks.controls())],
    )
    some = source is not None or store is not None or (default_root() / "store.json").exists()
    with _no_collector():
        text = cards(
            [_subject(entry) for entry in entries if not entry.control],
            _records(source, store) if some else [],
            recipe=recipe,
            command=_cards_command(names, source),
            frozen=published(),
        )
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomic(out.absolute(), text.encode())
        click.echo(out)


def _subject(entry: Any) -> Any:
    """What the registry knows of a defense, as plain words."""
    import inspect

    from sophon_bench.leaderboard.cards import Subject

    return Subject(
        name=entry.name,
        description=inspect.cleandoc(entry.cls.__doc__ or ""),
        reference=entry.reference,
        claim=entry.claim,
        source=entry.source,
        hyperparameters={f.name: repr(f.default) for f in dataclasses.fields(entry.cls)},
        presets=_presets(entry),
    )


def _cards_command(names: Sequence[str], source: Path | None) -> str:
    """What makes the page, wherever the records are."""
    import shlex

    records = [] if source is None else ["--from", source.name]
    return shlex.join(["sophon-bench", "cards", *names, *records])


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Records have no cycles: among 100 000 of them the collector looks for nothing, and long."""
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _records(source: Path | None, store: Path | None) -> list[Any]:
    """All records of a run's JSON file, or of the store; at least one."""
    from sophon_bench.store import read_cells

    if source is None:
        return list(_store(store).cells())
    cells = read_cells(source)
    if not cells:
        raise Refused(f"no records in {str(source)!r}; 'sophon-bench run' makes some")
    return cells


def _store(store: Path | None) -> Store:
    """The store, with at least one record in it."""
    from sophon_bench.store import Store, default_root

    root = store or default_root()
    if not (root / "store.json").exists():
        raise Refused(f"there is no store at {str(root)!r}; 'sophon-bench run' makes one")
    opened = Store(root)
    if not opened.count():
        raise Refused(f"no records in {str(root)!r}; 'sophon-bench run' makes some")
    return opened


@main.command()
@click.option("--from", "source", type=click.Path(path_type=Path), help="A file of 'run --json'.")
@store_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where the document goes; in the repository, leaderboard/frozen.",
)
def freeze(source: Path | None, store: Path | None, out: Path) -> None:
    """Write down which budgets and n count for a score, from controls of at least five seeds.

    \b
    Example:
      sophon-bench run --attack @standard --samples 50,200,600 --seeds 0-4 --json controls.json
      sophon-bench freeze --from controls.json --out leaderboard/frozen
    """
    from sophon_bench import metrics
    from sophon_bench.leaderboard.frozen import write

    try:
        document = metrics.freeze(_records(source, store))
        file = write(document, out)
    except ValueError as error:
        raise Refused(str(error)) from error
    except OSError as error:
        raise Refused(f"--out {str(out)!r} cannot be written: {error.strerror}") from error
    counted = sum(gap.role == "restricted" and gap.gap >= metrics.FLOOR for gap in document.gaps)
    click.echo(f"{file}: {counted} cells of budget and n count, over seeds {document.seeds}")


GROWN = ("test_resnet", "lcnet_050", "resnet10t", "resnet18", "resnet50")
"""Backbones of `overhead --growth`: 0.4 to 24 M parameters, made for images of any size."""

TAKEN = {
    **dict.fromkeys(("source", "form"), ("records",)),
    "plot_file": ("records", "growth"),
    "store": ("records", "roofline", "growth"),
    **dict.fromkeys(("attack", "batch_size", "rounds"), ("roofline",)),
    **dict.fromkeys(("defense", "updates"), ("growth",)),
    **dict.fromkeys(
        ("backbone", "scenario", "image_size", "device", "precision", "compiled", "threads",
         "plugin", "json_file"),
        ("roofline", "growth"),
    ),
}  # fmt: skip
"""Which views of `overhead` take which options."""


@main.command()
@click.option("--roofline", is_flag=True, help="Measure the loop against bare passes and a matmul.")
@click.option("--growth", is_flag=True, help="Measure how protecting grows with the backbone.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="A file of 'run --json'.")
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["console", "md", "csv", "json"]),
    default="console",
    show_default=True,
    help="How to print what records say; csv and json are flat rows with stable keys.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png|svg",
    help="Draw what records say, or growth.",
)
@click.option(
    "--defense",
    multiple=True,
    default=["sophon-ice[inner_steps=5]"],
    show_default=True,
    metavar="SELECTOR",
    shell_complete=_complete("defense"),
    help="Defense whose growth is measured, by default with few inner steps, to be quick. "
    "Repeatable.",
)
@click.option(
    "--updates",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    metavar="N",
    help="Updates that growth is timed over, after as many and one to warm up: a whole cycle of "
    "the defense's, or several (SOPHON's has fts_steps + ntr_steps).",
)
@click.option(
    "--attack",
    multiple=True,
    default=["finetune", "finetune[optimizer=adam,lr=1e-3]"],
    show_default=True,
    metavar="SELECTOR",
    shell_complete=_complete("attack"),
    help="Attack whose loop is measured. Repeatable.",
)
@click.option(
    "--backbone",
    multiple=True,
    metavar="SELECTOR",
    help="timm model, with keyword arguments in brackets. Repeatable. By default "
    f"{DEFAULT_BACKBONE}; for growth {', '.join(GROWN)}.",
)
@one_scenario_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Examples per pass; attacks are given the same.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=2),
    default=60,
    show_default=True,
    metavar="N",
    help="Turns that bare passes and loops take.",
)
@image_size_option
@device_option
@precision_option
@compile_option
@threads_option
@plugin_option
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the numbers of a measurement there.",
)
@click.pass_context
def overhead(context: click.Context, /, *, roofline: bool, growth: bool, **options: Any) -> None:
    """Say what protecting and attacking cost, or measure what this machine takes for it.

    Of the records in the store, or of a run's JSON file: what each defense took, as multiples of
    pre-training; and the cost at which each attack, and the tuned envelope, gets half of what the
    undefended model gives over scratch, as multiples of the undefended model's and of scratch's.

    With --growth: updates of a defense and of pre-training, in turns, on backbones of several
    sizes, and the exponents with which they grow.

    With --roofline: forward and backward passes on resident batches, alone and inside the loop of
    an attack, take turns. Speeds are ratios of the same run; MFU is the share of the fastest
    matmul's FLOP/s, measured in the same run too.

    \b
    Examples:
      sophon-bench overhead
      sophon-bench overhead --from out.json --format md --plot overhead.svg
      sophon-bench overhead --growth --plot growth.png
      sophon-bench overhead --growth --defense sophon-klu --backbone resnet18 \\
        --backbone resnet34 --device cuda
      sophon-bench overhead --roofline
      sophon-bench overhead --roofline --backbone resnet18 --image-size 64 --rounds 20
      sophon-bench overhead --roofline --device cuda --precision bf16 --batch-size 256
    """
    if roofline and growth:
        raise Refused("--roofline and --growth are two measurements; give one")
    view = "roofline" if roofline else "growth" if growth else "records"
    for parameter in context.command.params:
        views = TAKEN.get(parameter.name or "", (view,))
        given = context.get_parameter_source(parameter.name or "")
        if view not in views and given is click.core.ParameterSource.COMMANDLINE:
            raise Refused(_misplaced(parameter.opts[0], view, views))
    views_of: dict[str, Callable[..., None]] = {
        "records": _overhead,
        "growth": _growth,
        "roofline": _roofline,
    }
    views_of[view](**{name: options[name] for name, views in TAKEN.items() if view in views})


def _misplaced(option: str, view: str, views: Sequence[str]) -> str:
    """What to say about an option of other views than this one."""
    measured = " or ".join(f"--{other}" for other in views if other != "records")
    if view == "records":
        return f"{option} goes with {measured}"
    if not measured:
        return f"{option} is for records, and --{view} measures; leave one of them out"
    return f"{option} goes with {measured}, not with --{view}"


def _overhead(
    *, source: Path | None, form: str, plot_file: Path | None, store: Path | None
) -> None:
    from sophon_bench.leaderboard import overhead, plots
    from sophon_bench.leaderboard.frozen import published

    if plot_file is not None:
        _check_picture(plot_file)
    with _no_collector():
        found = overhead.overhead(_records(source, store), published())
    if plot_file is not None and not plots.write_overhead(
        found.protection, found.half_costs, plot_file
    ):
        raise Refused("no record of a defense to draw; 'sophon-bench run --defense' makes some")
    click.echo(overhead.FORMATS[form](found), nl=False)


def _check_picture(file: Path) -> None:
    from sophon_bench.leaderboard import plots

    if file.suffix.removeprefix(".") not in plots.FORMATS:
        known = " or ".join(f".{form}" for form in plots.FORMATS)
        raise Refused(f"--plot draws a file that ends in {known}; got {str(file)!r}")
    _check_writable("--plot", file)


def _advance(progress: Any, task: Any, fraction: float) -> None:
    progress.update(task, completed=fraction)


def _machine(device: str, threads: int | None) -> tuple[Any, str]:
    """The device, and what is measured on in words; sets the threads that torch uses."""
    import torch

    from sophon_bench.provenance import device_name
    from sophon_bench.runs import find_device

    place = find_device(device)
    torch.set_num_threads(threads or torch.get_num_threads())
    words = f"{device_name(place)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return place, words


def _write_json(file: Path, content: Any) -> None:
    import json

    from sophon_bench.files import write_atomic

    write_atomic(file.absolute(), (json.dumps(content, indent=1) + "\n").encode())


def _roofline(
    *,
    attack: Sequence[str],
    backbone: Sequence[str],
    scenario: str,
    batch_size: int,
    rounds: int,
    image_size: int | None,
    device: str,
    precision: Any,
    compiled: Any,
    threads: int | None,
    plugin: Sequence[Path],
    store: Path | None,
    json_file: Path | None,
) -> None:
    from rich.progress import Progress

    from sophon_bench.plan import default_samples
    from sophon_bench.registry import attacks
    from sophon_bench.runs import find_settings
    from sophon_bench.selectors import construct, trials
    from sophon_bench.speed import roofline
    from sophon_bench.stages import Bench
    from sophon_bench.store import Store, default_root

    _load_plugins(plugin)
    place, where = _machine(device, threads)
    if json_file is not None:
        _check_writable("--json", json_file)
    chosen = []
    for trial in trials(attacks, attack):
        takes = "batch_size" in trial.parameters
        values = {**trial.parameters, **({"batch_size": batch_size} if takes else {})}
        chosen.append((trial.label, construct(trial.entry, values)))
    cache = Store(store or default_root()).data
    settings = find_settings(
        [scenario],
        backbone or [DEFAULT_BACKBONE],
        image_size=image_size,
        precision=precision,
        cache=cache,
    )
    found = []
    for setting in settings:
        size = setting.data.image_size
        bench = Bench(
            setting.data, setting.backbone, device=place, precision=precision, compiled=compiled
        )
        samples = max(default_samples(setting.data), round(batch_size / 0.8) + 1)
        samples = min(samples, len(setting.data.restricted.pool))
        title = f"{setting.backbone.label}, {size}x{size}, batch {batch_size}, {precision}"
        title += "" if compiled == "off" else f", compiled ({compiled})"
        with Progress(transient=True) as progress:
            task = progress.add_task(title, total=1.0)
            measured = roofline(
                bench,
                chosen,
                batch_size=batch_size,
                samples=samples,
                rounds=rounds,
                tick=functools.partial(_advance, progress, task),
            )
        click.echo(f"{title}; {where}; {rounds} rounds")
        click.echo(f"  matmul peak {measured.peak / 1e9:.1f} GFLOP/s")
        click.echo(
            f"  {'bare forward + backward':44} {1e3 * measured.bare_seconds:8.2f} ms   "
            f"{'':24} MFU {measured.bare_mfu:.2f}"
        )
        for loop in measured.loops:
            middle, low, high = loop.speed
            click.echo(
                f"  {loop.attack:44} {1e3 * loop.seconds:8.2f} ms   "
                f"{middle:.3f} of it ({low:.3f}–{high:.3f}) MFU {loop.mfu:.2f}"
            )
        found.append({"setting": title, "machine": where, **dataclasses.asdict(measured)})
    if json_file is not None:
        _write_json(json_file, found)


def _growth(
    *,
    defense: Sequence[str],
    updates: int,
    backbone: Sequence[str],
    scenario: str,
    image_size: int | None,
    device: str,
    precision: Any,
    compiled: Any,
    threads: int | None,
    plugin: Sequence[Path],
    store: Path | None,
    plot_file: Path | None,
    json_file: Path | None,
) -> None:
    from rich.progress import Progress

    from sophon_bench import speed
    from sophon_bench.api import Incompatible
    from sophon_bench.leaderboard import overhead, plots
    from sophon_bench.registry import defenses
    from sophon_bench.runs import find_settings
    from sophon_bench.selectors import trials
    from sophon_bench.stages import Bench
    from sophon_bench.store import Store, default_root

    _load_plugins(plugin)
    place, where = _machine(device, threads)
    if json_file is not None:
        _check_writable("--json", json_file)
    if plot_file is not None:
        _check_picture(plot_file)
    chosen = [(trial.label, trial.plugin) for trial in trials(defenses, defense)]
    cache = Store(store or default_root()).data
    settings = find_settings(
        [scenario], backbone or GROWN, image_size=image_size, precision=precision, cache=cache
    )
    benches = [
        Bench(setting.data, setting.backbone, device=place, precision=precision, compiled=compiled)
        for setting in settings
    ]
    found: list[speed.Update] = []
    try:
        speed.check(benches, chosen, updates=updates)
        for bench in benches:
            with Progress(transient=True) as progress:
                task = progress.add_task(bench.backbone.label, total=1.0)
                tick = functools.partial(_advance, progress, task)
                found += speed.growth(bench, chosen, updates=updates, tick=tick)
    except (speed.Unmeasurable, Incompatible) as error:
        raise Refused(str(error)) from error
    rows = [dataclasses.asdict(update) for update in found]
    fits = [dataclasses.asdict(fit) for fit in speed.exponents(found)]
    size = settings[0].data.image_size
    title = f"{settings[0].scenario.label}, {size}x{size}, {precision}"
    title += "" if compiled == "off" else f", compiled ({compiled})"
    click.echo(overhead.growth(f"{title}; {where}; {updates} updates", rows, fits), nl=False)
    if plot_file is not None:
        plots.write_growth(rows, fits, title, plot_file)
    if json_file is not None:
        content = {"setting": title, "machine": where, "updates": updates}
        _write_json(json_file, {**content, "measured": rows, "exponents": fits})


@main.command()
@click.argument("file", metavar="PLUGIN.py", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Only this one of the file's plugins.")
@click.option(
    "--backbone",
    default=DEFAULT_BACKBONE,
    show_default=True,
    metavar="SELECTOR",
    help="timm model to check with; one with dropout hides draws from the global generator.",
)
@click.pass_context
def check(context: click.Context, /, file: Path, name: str | None, backbone: str) -> None:
    """Check that the plugins of a file keep the contract, in seconds.

    Runs every attack, defense and scenario of the file with its defaults on a small bench.

    \b
    Examples:
      sophon-bench check my_attack.py
      sophon-bench check my_attack.py --backbone test_vit

    Exit codes: 0 all checks passed, 1 some failed, 2 bad input.
    """
    from sophon_bench import testing
    from sophon_bench.runs import find_backbone

    counts = dict.fromkeys(("passed", "FAILED", "warning", "skipped"), 0)
    plugin = ""
    for finding in testing.check_file(file, name=name, backbone=find_backbone(backbone)):
        if finding.plugin != plugin:
            plugin = finding.plugin
            click.echo(plugin)
        counts[finding.outcome] += 1
        click.echo(f"  {finding.outcome:8} {finding.check:14} {finding.words}".rstrip())
    click.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    context.exit(1 if counts["FAILED"] else 0)


@main.command()
@click.argument("kind", type=click.Choice(["attack", "defense"]))
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where to write; by default here.",
)
def new(kind: Any, name: str, folder: Path) -> None:
    """Write a plugin that works as it is, and a test of it, to start from.

    \b
    Examples:
      sophon-bench new attack my-attack
      sophon-bench new defense my-defense --dir plugins
    """
    from sophon_bench.authoring import AuthoringError, write_plugin

    try:
        file, *tests = write_plugin(kind, name, folder)
    except AuthoringError as error:
        raise Refused(str(error)) from error
    other = f"--defense {name}" if kind == "defense" else f"--attack {name}"
    plugin = f"--plugin {file} " if tests else ""
    click.echo(f"wrote {' and '.join(map(str, [file, *tests]))}; next:")
    click.echo(f"  sophon-bench check {file}")
    click.echo(f"  sophon-bench run {plugin}{other}")
    place = f"move {file.name} into {kind}s/ of the repository" if tests else f"commit {file.name}"
    click.echo(f"  {place} and open a pull request")


if __name__ == "__main__":
    main()
