"""Commands that make records: run, study, tune, audit."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sophon_bench.cli import options
from sophon_bench.cli.common import Refused, make_directory, need_extra

if TYPE_CHECKING:
    from sophon_bench.execution.runs import Job
    from sophon_bench.leaderboard.studies import Study
    from sophon_bench.leaderboard.tables import Report
    from sophon_bench.results.records import Records

Words = Sequence[str]
DEFENSES = options.complete("defense")
NAMED = "MY-NAME=SELECTOR sets its name in tables. The control is always run too."


def _config(context: click.Context, _parameter: click.Parameter, file: str | None) -> None:
    """Take options that are not given from the keys of a YAML or TOML file."""
    if file is None:
        return
    from sophon_bench.plugins.registry import unknown

    known = {o.opts[0].lstrip("-"): o for o in context.command.params if o.name != "config"}
    defaults: dict[str, Any] = {}
    for key, value in _read_config(Path(file)).items():
        option = known.get(str(key).replace("_", "-"))
        if option is None or option.name is None:
            every = f"there are: {', '.join(sorted(known))}"
            raise Refused(f"{file}: {unknown('key', str(key), known, otherwise=every)}")
        if value is None:
            raise Refused(f"{file}: {key} has no value; leave the key out or give one")
        values = [str(each) for each in (value if isinstance(value, list) else [value])]
        defaults[option.name] = values if option.multiple else ",".join(values)
    context.default_map = defaults


def _read_config(path: Path) -> Mapping[str, Any]:
    import tomllib

    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise Refused(f"config file {str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"config file {str(path)!r} is malformed: {reason}") from error
    if not isinstance(content, dict):
        raise Refused(f"config file {str(path)!r} must map flags to values, as in 'seeds: 0-2'")
    return content


@click.command()
@options.option(
    "--config",
    "YAML or TOML file of options; those on the command line win.",
    callback=_config,
    expose_value=False,
)
@options.selectors("--defense", f"Defense, with parameters in brackets, or @all; {NAMED}")
@options.selectors("--attack", f"Attack or @suite; a list of values is a grid; {NAMED}", "@smoke")
@options.selectors("--scenario", "Scenario.", "glyphs-digits")
@options.backbone(f"Repeatable. {options.BY_DEFAULT}", multiple=True)
@options.numbers("--seeds", "Seeds.", default="0")
@options.job
@options.json_file("Write the run's records and summary there.")
def run(
    defense: Words, attack: Words, json_file: Path | None, dry_run: bool, **options: Any
) -> int:
    """Cross defenses with attacks, and print who won.

    Finished work is in the store and is not repeated: interrupt at any moment, and give the same
    command again.

    \b
    Examples:
      sophon-bench run --defense sophon-ice --attack @smoke
      sophon-bench run --defense 'sophon-klu[preset=paper]' --attack 'finetune[lr=[1e-3,1e-2]]'
      sophon-bench run --defense @all --attack @standard --seeds 0-2 --workers 2
      sophon-bench run --defense @all --attack @full --executor ray --address auto --store DIR
      sophon-bench run --defense none --attack @paper --samples 50,200 --seeds 0-2 --json out.json
      sophon-bench run --plugin my_attack.py --attack my-attack --defense sophon-ice
      sophon-bench run --config run.yaml
    """
    from sophon_bench import library

    job = library.planned(defense, attack, command=command_of(), **options)
    if dry_run:
        return print_plan(job)
    cells = job.run()
    return conclude(job, cells, print_report(job, cells), json_file)


def print_plan(job: Job) -> int:
    """Print what is to be done, and what it costs; the exit code."""
    from sophon_bench.execution.description import forecast

    click.echo("\n".join(forecast(job)))
    return 0


def print_report(job: Job, cells: Records) -> Report:
    """Print the tables of a job's records, and what they mean."""
    from sophon_bench.leaderboard import tables
    from sophon_bench.leaderboard.frozen import published

    report = tables.report(cells, published(), job.plan.names)
    click.echo(tables.show("console", report))
    click.echo(tables.meaning(report))
    return report


def conclude(
    job: Job, cells: Records, report: Report | None = None, json_file: Path | None = None
) -> int:
    """Write the records; print where they are, side effects and failures; the exit code."""
    from sophon_bench.execution.description import side_effects
    from sophon_bench.leaderboard.tables import document
    from sophon_bench.results.files import write_atomic

    if report is not None and json_file is not None:
        write_atomic(json_file.absolute(), document(cells, report).encode())
        click.echo(f"Records and summary: {json_file}")
    click.echo(f"Records: {job.store.root}/cells ({len(cells.cells)} of this run)")
    for words in side_effects(cells):
        click.echo(f"warning: {words}", err=True)
    failed = [cell for cell in cells.cells if cell.status == "failed"]
    for cell in failed:
        click.echo(
            f"failed: {cell.attack.label} against {cells.defense(cell).label}, "
            f"n={cell.samples}, seed={cells.model(cell).seed}: {cell.reason}",
            err=True,
        )
    return 1 if failed else 0


ASIDE = {
    "store", "out", "json_file", "executor", "address", "workers", "threads", "together",
    "cell_timeout", "cell_memory", "retry_failed", "dry_run", "force", "log", "quiet", "verbose",
}  # fmt: skip
"""Options of where results go and how fast, which change no number."""


def command_of(*arguments: str) -> str:
    """The shell command for the same numbers: ``arguments``, and options that were given."""
    context = click.get_current_context()
    words = ["sophon-bench", str(context.info_name), *arguments]
    for option in context.command.params:
        name = str(option.name)
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if isinstance(option, click.Option) and option.expose_value and given and name not in ASIDE:
            value = context.params[name]
            for each in value if option.multiple else [value]:
                several = isinstance(each, list)
                words += [option.opts[0], ",".join(map(str, each)) if several else str(each)]
    return shlex.join(words)


DECLARED = ("defense", "attack", "scenario", "backbone", "samples", "seeds", "steps", "image_size")
"""Options that stand in place of what a study declares, or shorten it."""


@click.command()
@click.argument("name")
@options.selectors("--defense", "Defense in place of the study's.")
@options.selectors("--attack", "Attack or @suite in place of the study's.")
@options.selectors("--scenario", "Scenario in place of the study's.")
@options.backbone("In place of the study's. Repeatable.", multiple=True)
@options.numbers("--seeds", "Seeds; by default the study's.")
@options.job
@options.directory("Folder for table, rows and picture; made if need be.")
def study(
    name: str,
    defense: Words,
    attack: Words,
    scenario: Words,
    backbone: Words,
    seeds: list[int],
    samples: list[int],
    out: Path,
    dry_run: bool,
    **options: Any,
) -> int:
    """Run a named experiment, as the paper's or over a parameter.

    NAME is one of 'sophon-bench list studies', or a YAML file like them. Writes NAME.md, NAME.json
    and NAME.png. Finished work is not repeated.

    \b
    Examples:
      sophon-bench list studies
      sophon-bench study horizon --out studies
      sophon-bench study horizon --attack @standard --seeds 0-4 --workers 2 --out studies
      sophon-bench study related-tasks --steps 20 --seeds 0 --out studies
    """
    from sophon_bench import library
    from sophon_bench.execution.relatedness import similarities
    from sophon_bench.leaderboard import studies
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.leaderboard.render import to_console
    from sophon_bench.plugins.registry import defenses

    chosen, command = studies.load_study(name), command_of(name)
    if chosen.view == "sizes":
        return _sizes(chosen, backbone, out, command, dry_run=dry_run, **options)
    attacks = list(attack) or chosen.attacks
    job = library.planned(
        studies.varied(chosen, defenses, defense),
        attacks,
        benign=chosen.benign,
        scenario=scenario or chosen.scenarios,
        backbone=backbone or chosen.backbones,
        samples=samples or chosen.samples,
        seeds=seeds or chosen.seeds,
        command=command,
        **options,
    )
    if dry_run:
        return print_plan(job)
    need_extra("the picture of a study", "vl_convert")
    make_directory(out)
    cells = job.run()
    outcome = studies.Outcome(
        study=chosen,
        cells=cells,
        frozen=published(),
        command=command,
        attacks=attacks,
        replaced=_replaced(),
        similarities=similarities(job) if chosen.view == "domains" else (),
    )
    found = studies.findings(outcome)
    click.echo(to_console(found.places))
    for file in studies.write(chosen, found, out, command=command):
        click.echo(file)
    return conclude(job, cells)


def _replaced() -> list[str]:
    """Options of `DECLARED` that were given."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in DECLARED if source(name) is not ParameterSource.DEFAULT]
    return [f"--{name.replace('_', '-')}" for name in given]


def _sizes(
    chosen: Study,
    backbone: Words,
    out: Path,
    command: str,
    *,
    dry_run: bool,
    image_size: int | None,
    device: str,
    threads: int | None,
    **_options: Any,
) -> int:
    """The study of what backbones take: it has no records, and no store."""
    import torch

    from sophon_bench.data.samples import free_bytes
    from sophon_bench.execution import runs, sizing
    from sophon_bench.leaderboard import sizes, studies
    from sophon_bench.leaderboard.render import to_console
    from sophon_bench.models.backbones import Backbone
    from sophon_bench.results.provenance import device_name

    given = _replaced()
    if other := [name for name in given if name not in ("--backbone", "--image-size")]:
        raise Refused(f"study {chosen.name} measures backbones and takes no {other[0]}")
    found = [runs.find_backbone(text) for text in backbone or chosen.backbones]
    backbones = [each for each in found if isinstance(each, Backbone)]
    if len(backbones) < len(found):
        raise Refused(f"study {chosen.name} is of timm's models, and unet is none")
    size = image_size or chosen.image_size or 224
    if dry_run:
        click.echo("\n".join(f"to do  {each.label}, {size}x{size}" for each in backbones))
        return 0
    need_extra("the picture of a study", "vl_convert")
    make_directory(out)
    place = runs.find_device(device)
    torch.set_num_threads(threads or torch.get_num_threads())
    rows = sizing.sizes(
        backbones,
        size,
        place,
        free=free_bytes(place),
        tick=lambda words: click.echo(words, err=True),
    )
    machine = f"{device_name(place)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    notes = studies.measured_notes(chosen, given, command, machine)
    told = sizes.findings(rows, notes)
    click.echo(to_console(told.places))
    for file in studies.write(chosen, told, out, command=command):
        click.echo(file)
    return 0


@click.command()
@click.argument("selectors", nargs=-1, required=True, metavar="DEFENSE...", shell_complete=DEFENSES)
@options.count(
    "--configurations", "How many to try: the defaults, and a draw from the grid.", default=12
)
@options.setting
@options.numbers("--seeds", "Seeds; none that published scores use.", default="100-101")
@options.job
@options.directory("Where DEFENSE.json goes; in the repository, leaderboard/tuning.")
@options.flag("--force", "Replace the document of another search.")
def tune(
    selectors: Words, configurations: int, out: Path, force: bool, dry_run: bool, **options: Any
) -> int:
    """Choose a defense's hyperparameters, by one search for all.

    Tries configurations of the grid that the defense declares ('sophon-bench show DEFENSE'), or of
    the lists in a selector; a single value in a selector stays fixed. Each is attacked by @tuning,
    and resistance and intactness on validation data choose. Finished work is not repeated.

    \b
    Examples:
      sophon-bench tune sophon-ice --out leaderboard/tuning
      sophon-bench tune sophon-ice sophon-klu --configurations 20 --workers 2 --out tuning
      sophon-bench tune 'sophon-ice[alpha=[1e-3,4e-3],iterations=60]' --out tuning
    """
    from sophon_bench import library
    from sophon_bench.leaderboard import tuning
    from sophon_bench.leaderboard.render import to_console
    from sophon_bench.plugins import grids
    from sophon_bench.plugins.registry import defenses

    searches = {text: grids.search(defenses, text, configurations) for text in selectors}
    names = Counter(search.name for search in searches.values())
    if twice := [name for name, count in names.items() if count > 1]:
        raise Refused(f"{twice[0]} is searched twice; give it one selector")
    tried = [trial for search in searches.values() for trial in search.trials]
    job = library.planned(tried, ["@tuning"], command=command_of(*searches), **options)
    if dry_run:
        return print_plan(job)
    make_directory(out)
    wanted = [
        (search, command_of(text), out / f"{search.name}.json") for text, search in searches.items()
    ]
    for _, command, file in () if force else wanted:
        tuning.check(file, command)
    cells = job.run()
    code = 0
    for search, command, file in wanted:
        found = tuning.rows_of(cells, [trial.label for trial in search.trials])
        click.echo(to_console([tuning.table(found, [f"command: {command}"])]))
        content = tuning.document(cells, found, search=search, command=command)
        tuning.write(content, file, force=force)
        click.echo(file)
        if tuning.chosen(found) is None:
            click.echo(f"failed: no configuration of {search.name} can be chosen", err=True)
            code = 1
    return max(conclude(job, cells), code)


def _lines(file: Path) -> list[str]:
    """The lines of a file, without white space around them and without empty ones at the end."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"--classes {str(file)!r} cannot be read: {error}") from error
    return [line.strip() for line in text.rstrip().splitlines()]


@click.command()
@click.argument("file", metavar="FILE.safetensors", type=options.PATH)
@options.setting
@options.selectors("--attack", "Attack or @suite. The control is always run too.", "@standard")
@options.numbers("--seeds", "Seeds of attacks and controls; the file is the same.", default="0-4")
@options.option("--sha256", "SHA-256 that the file has to have.", metavar="HEX")
@options.option("--prefix", "Prefix of the model's names, where the file has others too.")
@options.path(
    "--classes",
    "File with the class of each output of the head, one a line.",
    type=options.READABLE,
)
@options.option("--require", "Least resistance that has to be shown.", type=click.FloatRange(0, 1))
@options.job
@options.json_file("Write the audit's records and summary there.")
def audit(
    file: Path,
    attack: Sequence[str],
    classes: Path | None,
    require: float | None,
    json_file: Path | None,
    dry_run: bool,
    **options: Any,
) -> int:
    """Put a released model through a suite: is it non-fine-tunable?

    The file holds the state dict of a timm model with its head, under timm's names or this
    benchmark's own, behind any wrappers (module., _orig_mod., …); --prefix '' takes names as they
    are. Pickles are never opened. The head may have more classes than the original domain;
    --classes says which outputs are its own, and without it original accuracy is not scored. The
    scenario's undefended model, with a head of the same width, and random initialisation are
    attacked too. Finished work is not repeated.

    \b
    Examples:
      sophon-bench audit model.safetensors --backbone resnet18 --scenario glyphs-digits --dry-run
      sophon-bench audit model.safetensors --attack @smoke --seeds 0
      sophon-bench audit model.safetensors --workers 2 --json audit.json
      sophon-bench audit model.safetensors --sha256 HEX --require 0.9
      sophon-bench audit training.safetensors --prefix state_dict_ema
      sophon-bench audit resnet50.safetensors --backbone resnet50 --classes imagenet.txt \\
        --scenario 'pair[original=folder:imagenette2-160,restricted=folder:mine]'

    Exit codes: 0 fine, 1 some cells failed, or the lower end of the interval of resistance (for one
    seed its value) is below --require, 2 bad input.
    """
    from sophon_bench import library
    from sophon_bench.leaderboard.audits import CAVEATS

    names = None if classes is None else _lines(classes)
    planned = library.planned_audit(
        file, attack, classes=names, command=command_of(str(file)), **options
    )
    told = [f"{file}: {words}" for words in planned.notes]
    for words in told:
        click.echo(f"warning: {words}", err=True)
    if dry_run:
        return print_plan(planned.job)
    cells = planned.job.run()
    report = print_report(planned.job, cells)
    verdict = planned.verdict(cells)
    click.echo("\n".join([f"\nAudit of {planned.title}.", *CAVEATS, *told, verdict.words]))
    code = conclude(planned.job, cells, report, json_file)
    if require is not None and not verdict.meets(require):
        click.echo(f"failed: resistance is not shown to be at least {require:g}", err=True)
        code = 1
    return code
