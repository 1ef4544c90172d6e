"""audit: somebody's released checkpoint through a suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sophon_bench.cli.common import (
    DEFAULT_BACKBONE,
    Refused,
    check_writable,
    complete,
    load_plugins,
    numbers,
    one_backbone_option,
    one_scenario_option,
    running,
)
from sophon_bench.cli.running import command_of, conclude, print_plan

CAVEATS = (
    "The undefended model is this benchmark's own, pre-trained by the scenario's recipe. If the "
    "file was pre-trained otherwise, resistance tells the two pre-trainings apart as well: for "
    "less, and it looks protected; for more, and it looks the less so. What protecting cost is not "
    "known, whatever the column says.",
    "Every seed attacks the same file, with other samples and draws, beside other undefended "
    "models: intervals are about this file, not about the recipe that made it.",
)


@click.command()
@click.argument("file", metavar="FILE.safetensors", type=click.Path(path_type=Path))
@one_backbone_option
@one_scenario_option
@click.option(
    "--attack",
    multiple=True,
    default=["@standard"],
    show_default=True,
    metavar="SELECTOR",
    shell_complete=complete("attack"),
    help="Attack or @suite, as in run. Repeatable. The control is always run too.",
)
@click.option(
    "--seeds",
    callback=numbers,
    default="0-4",
    show_default=True,
    metavar="A-B",
    help="Seeds of the attacks and of the controls; the file is the same on each.",
)
@click.option("--sha256", metavar="HEX", help="What the file has to be; another one is refused.")
@click.option(
    "--prefix",
    metavar="TEXT",
    help="What names of the model begin with, in a file with other tensors besides, which are "
    "ignored then; '' takes names as they stand.",
)
@click.option(
    "--require",
    type=click.FloatRange(0, 1),
    metavar="R",
    help="Exit with 1 if resistance may be lower: by the lower end of its interval, or for one "
    "seed by its value.",
)
@running
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the audit's records and summary there.",
)
def audit(**options: Any) -> None:
    """Put a released model through a suite: does it keep its word?

    The file holds the state dict of a timm model with its head for the scenario's original domain,
    under timm's names or this benchmark's own, behind any wrappers (module., _orig_mod., …).
    Pickles are never opened. It is attacked beside the scenario's own undefended model and fresh
    weights; what the store has is not done again.

    \b
    Examples:
      sophon-bench audit model.safetensors --backbone resnet18 --scenario glyphs-digits --dry-run
      sophon-bench audit model.safetensors --attack @smoke --seeds 0
      sophon-bench audit model.safetensors --workers 2 --json audit.json
      sophon-bench audit model.safetensors --sha256 HEX --require 0.9
      sophon-bench audit training.safetensors --prefix state_dict_ema

    Exit codes: 0 fine, 1 some cells failed or --require is not met, 2 bad input.
    """
    click.get_current_context().exit(_audit(**options))


def _audit(
    *,
    file: Path,
    scenario: str,
    backbone: str | None,
    attack: Sequence[str],
    sha256: str | None,
    prefix: str | None,
    require: float | None,
    json_file: Path | None,
    dry_run: bool,
    **options: Any,
) -> int:
    from sophon_bench.execution import checkpoints, runs
    from sophon_bench.execution.plan import setting_of
    from sophon_bench.leaderboard import audits, tables
    from sophon_bench.leaderboard.columns import records
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.models import weight_files, weight_names
    from sophon_bench.models.backbones import Backbone
    from sophon_bench.plugins.registry import attacks
    from sophon_bench.plugins.selectors import names_of
    from sophon_bench.plugins.suites import arsenal
    from sophon_bench.results.files import write_atomic

    load_plugins(options["plugin"])
    if json_file is not None:
        check_writable("--json", json_file)
    count = len(runs.find_scenarios([scenario], options["image_size"]))
    if count > 1:
        raise Refused(f"an audit is of one scenario, and {scenario!r} stands for {count}")
    against = arsenal(attacks, attack)
    if all(trial.entry.control for trial in against.trials):
        raise Refused(
            f"--attack {' '.join(attack)} is a control, which attacks no released model; name an "
            f"attack, or a suite such as @standard"
        )
    content = weight_files.read(file, sha256=sha256)
    backbone = backbone or DEFAULT_BACKBONE
    architecture = runs.find_backbone(backbone)
    if not isinstance(architecture, Backbone):
        raise Refused(f"an audit is of a timm model, and --backbone {backbone} is none")
    trial = checkpoints.trial(content, architecture, prefix=prefix)
    job = runs.prepare(
        runs.Options(
            scenario=[scenario],
            backbone=[backbone],
            command=command_of(click.get_current_context(), str(file)),
            **options,
        ),
        defenses=[trial],
        attacks=against,
    )
    setting = setting_of(job.plan.models[0])
    found = checkpoints.inspect(content, setting, job.device, prefix=prefix)
    told = [f"{file}: {words}" for words in found]
    for words in told:
        click.echo(f"warning: {words}", err=True)
    if dry_run:
        return print_plan(job)
    cells = job.run()
    report = tables.report(cells, published(), names_of(against.trials))
    click.echo(tables.show("console", report))
    click.echo(tables.meaning(report))
    (row,) = (row for row in records(report.scores) if not row["control"])
    part = "" if prefix is None else f", prefix {weight_names.dotted(prefix)!r}"
    click.echo(f"\nAudit of {file}{part}, SHA-256 {content.sha256}, above as {trial.label}.")
    for words in (*CAVEATS, *told, audits.verdict(row)):
        click.echo(words)
    if json_file is not None:
        write_atomic(json_file.absolute(), tables.document(cells, report).encode())
        click.echo(f"Records and summary: {json_file}")
    code = conclude(job, cells)
    if require is not None and not audits.meets(row, require):
        click.echo(f"failed: resistance is not shown to be at least {require:g}", err=True)
        code = 1
    return code
