"""Commands for those who rely on results: compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from sophon_bench.cli.common import Refused, no_collector, read_records


@click.command()
@click.argument("base", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--fail-on",
    "limits",
    multiple=True,
    required=True,
    metavar="METRIC:±N",
    help="What fails: a rise (+) or fall (-) by more than N, in pt for utilities and scores "
    "(points of 1/100) or % for costs; with @same-machine only between equal devices, threads and "
    "versions of torch. Repeatable.",
)
@click.option(
    "--accept",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="YAML or JSON list of regressions that are known and wanted, each with its reason.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "md", "github", "json"]),
    default="text",
    show_default=True,
    help="How to print; json is flat rows with stable keys, github also writes the job's summary.",
)
@click.pass_context
def compare(
    context: click.Context,
    /,
    base: Path,
    new: Path,
    limits: Sequence[str],
    accept: Path | None,
    form: str,
) -> None:
    """Fail if the records of NEW are worse than those of BASE, both files of 'run --json'.

    Compares every trial with every defense, and the tuned envelope, on the seeds that both have. A
    threshold fails where the mean change is beyond it and the seed-paired 95 % interval excludes
    zero; with one seed the threshold decides alone, marked ~. A cell that vanished or newly fails
    is a regression; a plugin whose source changed is compared with what it was.

    Metrics: restricted, seconds and peak_memory per trial; original, protect_cost,
    protect_seconds, protect_peak_memory, resistance, trainability and score per defense.

    \b
    Examples:
      sophon-bench compare base.json new.json --fail-on 'restricted:+2pt' --fail-on 'original:-1pt'
      sophon-bench compare base.json new.json --fail-on 'seconds:+20%@same-machine' --format md
      sophon-bench compare base.json new.json --fail-on 'score:-5pt' --accept accepted.yaml

    \b
    A file of --accept:
      accepted:
        - defense: sophon-ice
          metric: original
          reason: a stronger defense costs that
        - attack: finetune[optimizer=sgd]
          metric: status
          reason: taken out of the suite

    Exit codes: 0 fine, 1 a regression, 2 bad input, or records that cannot be compared: protocol,
    data, suite, precision or budget differ, a record is damaged, nothing is in common.
    """
    from sophon_bench.analysis.comparison import Incomparable
    from sophon_bench.analysis.thresholds import threshold
    from sophon_bench.leaderboard import answers as analysis
    from sophon_bench.leaderboard.compare import FORMATS, comparison, load_accepted, markdown
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.results import Results

    try:
        thresholds = [threshold(limit) for limit in limits]
    except ValueError as error:
        raise Refused(f"--fail-on: {error}") from error
    accepted = [] if accept is None else load_accepted(accept)
    with no_collector():
        sides = [Results.of(read_records(file, None)) for file in (base, new)]
        try:
            changes = analysis.compare(sides[0], sides[1], thresholds, published())
        except Incomparable as error:
            raise Refused(f"{str(base)!r} and {str(new)!r} cannot be compared: {error}") from error
    found = comparison(changes, accepted)
    for each in found.unused:
        click.echo(f"warning: --accept: nothing to accept in {each.label}", err=True)
    click.echo(FORMATS[form](found), nl=False)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if form == "github" and summary:
        _append(Path(summary), markdown(found))
    context.exit(1 if found.failed else 0)


def _append(file: Path, content: str) -> None:
    try:
        with file.open("a", encoding="utf-8") as summary:
            summary.write(content)
    except OSError as error:
        raise Refused(f"$GITHUB_STEP_SUMMARY cannot be written: {error.strerror}") from error
