"""Commands that make records: run, study, tune."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sophon_bench.execution.runs import Job
    from sophon_bench.results.records import Records
from sophon_bench.cli.common import (
    DEFAULT_SCENARIO,
    DEFAULT_SUITE,
    TUNING_SUITE,
    Refused,
    backbone_option,
    check_writable,
    complete,
    load_plugins,
    make_directory,
    need_extra,
    numbers,
    one_backbone_option,
    one_scenario_option,
    running,
)


def _config(context: click.Context, _parameter: click.Parameter, file: str | None) -> None:
    """Let a YAML or TOML file's keys stand for flags that are not given."""
    if file is None:
        return
    from sophon_bench.plugins.registry import unknown

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


@click.command()
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
    shell_complete=complete("defense"),
    help="Defense, with parameters in brackets, or @all; MY-NAME=SELECTOR is what tables call it. "
    "Repeatable. The control is always run too.",
)
@click.option(
    "--attack",
    multiple=True,
    default=[DEFAULT_SUITE],
    show_default=True,
    metavar="SELECTOR",
    shell_complete=complete("attack"),
    help="Attack or @suite; a list of values is a grid; MY-NAME=SELECTOR is what tables call it. "
    "Repeatable. The control is always run too.",
)
@click.option(
    "--scenario",
    multiple=True,
    default=[DEFAULT_SCENARIO],
    show_default=True,
    metavar="SELECTOR",
    shell_complete=complete("scenario"),
    help="Scenario. Repeatable.",
)
@backbone_option
@click.option(
    "--seeds", callback=numbers, default="0", show_default=True, metavar="A-B", help="Seeds."
)
@running
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
    from sophon_bench import library
    from sophon_bench.execution import runs
    from sophon_bench.leaderboard import tables
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.results.files import write_atomic

    load_plugins(options["plugin"])
    if json_file is not None:
        check_writable("--json", json_file)
    command = command_of(click.get_current_context())
    job = library.planned(runs.Options(command=command, **options), defense, attack)
    if dry_run:
        return print_plan(job)
    cells = job.run()
    report = tables.report(cells, published(), job.plan.names)
    click.echo(tables.show("console", report))
    click.echo(tables.meaning(report))
    if json_file is not None:
        write_atomic(json_file.absolute(), tables.document(cells, report).encode())
        click.echo(f"Records and summary: {json_file}")
    return conclude(job, cells)


def conclude(job: Job, records: Records) -> int:
    """Say where the records are, what plugins did besides, and what failed; the exit code."""
    click.echo(f"Records: {job.store.root}/cells ({len(records.cells)} of this run)")
    for words in _contained(records):
        click.echo(f"warning: {words}", err=True)
    failed = [cell for cell in records.cells if cell.status == "failed"]
    for cell in failed:
        click.echo(
            f"failed: {cell.attack.label} against {records.defense(cell).label}, "
            f"n={cell.samples}, seed={records.model(cell).seed}: {cell.reason}",
            err=True,
        )
    return 1 if failed else 0


def _contained(records: Records) -> Iterator[str]:
    """What plugins did to the process around them: a sentence for each plugin and kind."""
    from sophon_bench.plugins.side_effects import kind_of, subject_of

    models = [(m.defense.name, m.contained) for m in records.models.values() if m.defense]
    for plugin, unit, found in (
        ("defense", "models", models),
        ("attack", "cells", [(cell.attack.name, cell.contained) for cell in records.cells]),
    ):
        said: dict[tuple[str, str], list[str]] = {}
        for name, sentences in found:
            for subject, words in {subject_of(words): words for words in sentences}.items():
                said.setdefault((name, subject), []).append(words)
        for (name, _), told in said.items():
            count = sum(other == name for other, _ in found)
            yield (
                f"{plugin} {name}: {told[0]} (in {len(told)} of {count} {unit}); "
                f"{kind_of(told[0]).after}"
            )


ASIDE = {
    "store", "out", "json_file", "workers", "threads", "together", "retry_failed", "dry_run",
    "force",
}  # fmt: skip
"""Options that say where things go and how fast, not what is done."""


def command_of(context: click.Context, *arguments: str) -> str:
    """What to give a shell for the same numbers: the arguments, and options that were given."""
    from click.core import ParameterSource

    words = ["sophon-bench", str(context.info_name), *arguments]
    for option in context.command.params:
        name = str(option.name)
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        shown = isinstance(option, click.Option) and option.expose_value
        if shown and given and name not in ASIDE:
            value = context.params[name]
            for each in value if option.multiple else [value]:
                words += [
                    option.opts[0],
                    ",".join(map(str, each)) if isinstance(each, list) else str(each),
                ]
    return shlex.join(words)


@click.command()
@click.argument("name")
@click.option(
    "--attack",
    multiple=True,
    metavar="SELECTOR",
    shell_complete=complete("attack"),
    help="Attack or @suite in place of the study's. Repeatable.",
)
@one_scenario_option
@one_backbone_option
@click.option("--seeds", callback=numbers, metavar="A-B", help="Seeds; by default the study's.")
@running
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
    backbone: str | None,
    seeds: list[int],
    out: Path,
    dry_run: bool,
    **options: Any,
) -> int:
    from sophon_bench.execution import runs
    from sophon_bench.leaderboard import studies
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.leaderboard.render import to_console
    from sophon_bench.plugins.registry import attacks, defenses
    from sophon_bench.plugins.suites import arsenal

    load_plugins(options["plugin"])
    command = command_of(context, name)
    chosen = studies.load_study(name)
    against = list(attack) or chosen.attacks
    job = runs.prepare(
        runs.Options(
            scenario=[scenario],
            backbone=[backbone] if backbone else [],
            seeds=seeds or chosen.seeds,
            command=command,
            **options,
        ),
        defenses=studies.varied(chosen, defenses),
        attacks=arsenal(attacks, against),
    )
    if dry_run:
        return print_plan(job)
    need_extra("the picture of a study", "vl_convert")
    make_directory(out)
    cells = job.run()
    found, places = studies.findings(chosen, cells, published(), command=command, attacks=against)
    click.echo(to_console(places))
    for file in studies.write(chosen, found, places, out, command=command):
        click.echo(file)
    return conclude(job, cells)


@click.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="DEFENSE...", shell_complete=complete("defense")
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
    callback=numbers,
    default="100-101",
    show_default=True,
    metavar="A-B",
    help="Seeds; others than those that defenses are judged on.",
)
@running
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
    backbone: str | None,
    out: Path,
    force: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    from sophon_bench.execution import runs
    from sophon_bench.leaderboard import tuning
    from sophon_bench.leaderboard.render import to_console
    from sophon_bench.plugins import grids
    from sophon_bench.plugins.registry import attacks, defenses
    from sophon_bench.plugins.suites import arsenal

    load_plugins(options["plugin"])
    drawn = {
        name: grids.configurations(defenses.get(name), configurations)
        for name in dict.fromkeys(names)
    }
    job = runs.prepare(
        runs.Options(
            scenario=[scenario],
            backbone=[backbone] if backbone else [],
            command=command_of(context, *names),
            **options,
        ),
        defenses=[trial for trials in drawn.values() for trial in trials],
        attacks=arsenal(attacks, [TUNING_SUITE]),
    )
    if dry_run:
        return print_plan(job)
    make_directory(out)
    files = {name: out / f"{name}.json" for name in drawn}
    commands = {name: command_of(context, name) for name in drawn}
    if not force:
        for name, file in files.items():
            tuning.check(file, commands[name])
    cells = job.run()
    code = 0
    for name, trials in drawn.items():
        found = tuning.rows_of(cells, [trial.label for trial in trials])
        click.echo(to_console([tuning.table(found, [f"command: {commands[name]}"])]))
        content = tuning.document(
            cells,
            found,
            defense=name,
            grid=defenses.get(name).declared.tuning,
            drawn_with=grids.DRAWN_WITH,
            command=commands[name],
        )
        tuning.write(content, files[name], force=force)
        click.echo(files[name])
        if tuning.chosen(found) is None:
            click.echo(f"failed: no configuration of {name} can be chosen", err=True)
            code = 1
    return max(conclude(job, cells), code)


def print_plan(job: Job) -> int:
    """Say what is to be done, and what it costs; the exit code."""
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
