"""Commands that read records: table, plot, pictures, cards, freeze, compare, page."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from sophon_bench.cli import options
from sophon_bench.cli.common import (
    Refused,
    given,
    make_directory,
    need_extra,
    open_store,
    read_records,
    read_results,
    without_collector,
)


@click.command()
@options.form
@options.flag("--published", "Tables of the entries that come with the package.")
@options.selector("--against", "Show how each defense differs from this one.", kind="defense")
@options.records
def table(
    form: str, source: Path | None, published: bool, against: str | None, store: str | None
) -> None:
    """Print tables of a store, of a run's file, or of what is published.

    \b
    Examples:
      sophon-bench table
      sophon-bench table --format md --from out.json
      sophon-bench table --format csv > rows.csv
      sophon-bench table --published --format latex
      sophon-bench table --from out.json --against sophon-ice
    """
    from sophon_bench.leaderboard import frozen, tables

    if published and (source or given("store")):
        raise Refused("--published is of entries that come with the package; give no other records")
    if published and against is not None:
        raise Refused("--against pairs seeds of one run's records; give --from FILE or --store DIR")
    if against is not None:
        records = read_records(source, store)
        text = tables.show_differences(form, records, against, frozen.published())
    elif published:
        from sophon_bench.leaderboard import entries

        without_collector()
        text = tables.show(form, entries.report(entries.published(), frozen.published()))
    else:
        names = {} if source is not None else open_store(store).names()
        results = read_results(source, store)
        text = tables.show(form, tables.Report.of(results, frozen.published(), names))
    click.echo(text, nl=False)


def _formats(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """``png,svg``: distinct, in order."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if not {*found} <= {"png", "svg"}:
        raise Refused(f"--format takes png and svg, or one of them; got {text!r}")
    return found


@click.command()
@options.records
@options.directory("Folder for the pictures; made if need be.")
@options.option("--format formats", "png, svg or both.", callback=_formats, default="png,svg")
def plot(source: Path | None, store: str | None, out: Path, formats: list[str]) -> None:
    """Draw the finding, envelopes, resistance and sweeps of step sizes.

    The finding (what the paper's recipe and a tuned attacker reach) per scenario, backbone and
    budget, and the others per n too; of all records in the store or of a run's JSON file. Prints
    the files that it writes.

    \b
    Examples:
      sophon-bench plot --out pictures
      sophon-bench plot --from out.json --out pictures --format svg
    """
    need_extra("a picture", "vl_convert")
    from sophon_bench.leaderboard import figures
    from sophon_bench.leaderboard.frozen import published

    cells = read_records(source, store)
    make_directory(out)
    files = figures.write(cells, out, formats, published())
    if not files:
        raise Refused("no record has a score to draw; 'sophon-bench table' shows why")
    click.echo("\n".join(map(str, files)))


@click.command()
@options.records
@options.output("--out", "PNG or SVG file, by its suffix.", type=options.Picture(), required=True)
@options.option("--seed", "Seed of the models; by default the lowest one.", type=int)
@options.selector("--attack", "After the best of these attacks; by default of all.")
def pictures(
    source: Path | None, store: str | None, out: Path, seed: int | None, attack: str | None
) -> None:
    """Draw the images that denoisers make from noise.

    One row each for the undefended model and every protected one, before any attack and after the
    attack that the selection split picks, and for random initialisation.

    \b
    Examples:
      sophon-bench pictures --from out.json --out images.png
      sophon-bench pictures --from out.json --out images.png --seed 1 --attack 'finetune[lr=1e-3]'
    """
    from sophon_bench.analysis.images import makers
    from sophon_bench.leaderboard import gallery, vega
    from sophon_bench.results import Results

    cells = read_records(source, store)
    found = makers(Results.of(cells), None if attack is None else gallery.fitting(attack, cells))
    if not found:
        raise Refused("no record has images; models of generation scenarios make some")
    if seed not in (seeds := sorted({made.seed for made in found})) and seed is not None:
        raise Refused(f"--seed {seed} has no images; those that have are {seeds}")
    vega.write(gallery.images(gallery.of_one_seed(found, seed)), out)
    click.echo(out)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=options.complete("defense"))
@options.path("--from sources", "A file of 'run --json'. Repeatable.", multiple=True)
@options.store
@options.plugins()
@options.output("--out", "Write the cards there instead of printing them.", metavar="FILE.md")
def cards(
    names: Sequence[str], sources: Sequence[Path], store: str | None, out: Path | None
) -> None:
    """Write a card of each defense: source, claim, measurements.

    What its source says, and what was measured under @paper and under the tuned envelope, from
    runs' JSON files, or from the records in the store if there is one.

    \b
    Examples:
      sophon-bench cards
      sophon-bench cards sophon-ice ntl --from out.json
      sophon-bench cards --from standard.json --from paper.json --out docs/defenses.md
    """
    from sophon_bench.leaderboard.cards import cards
    from sophon_bench.leaderboard.catalogue import subject_of
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.leaderboard.recipe import paper_recipe
    from sophon_bench.plugins.registry import defenses
    from sophon_bench.results.files import write_atomic
    from sophon_bench.results.records import Records
    from sophon_bench.results.store import default_root, is_store

    entries = [defenses.get(name) for name in names or defenses.names()]
    for entry in entries:
        if names and entry.control:
            raise Refused(f"{entry.name!r} is a control, and stands in the card of every defense")
    if sources or given("store"):
        files: list[Path | None] = [*sources] or [None]
        records = Records.joined(read_records(file, store) for file in files)
    else:  # there may be none, and then cards say what sources do
        records = open_store(store).records() if is_store(store or default_root()) else Records()
    command = ["sophon-bench", "cards", *names]  # wherever the records are
    command += [word for source in sources for word in ("--from", source.name)]
    text = cards(
        [subject_of(entry) for entry in entries if not entry.control],
        records,
        recipe=paper_recipe(),
        command=shlex.join(command),
        frozen=published(),
    )
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomic(out.absolute(), text.encode())
        click.echo(out)


@click.command()
@options.records
@options.directory("Folder for the document; in the repository, leaderboard/frozen.")
def freeze(source: Path | None, store: str | None, out: Path) -> None:
    """Record which budgets and n count for a score, from five seeds.

    \b
    Example:
      sophon-bench run --attack @standard --samples 50,200,600 --seeds 0-4 --json controls.json
      sophon-bench freeze --from controls.json --out leaderboard/frozen
    """
    from sophon_bench.analysis.frozen import freeze as frozen_gaps
    from sophon_bench.leaderboard.frozen import write
    from sophon_bench.protocol import FLOOR

    try:
        document = frozen_gaps(read_results(source, store))
    except ValueError as error:
        raise Refused(str(error)) from error
    make_directory(out)
    file = write(document, out)
    counted = sum(gap.role == "restricted" and gap.gap >= FLOOR for gap in document.gaps)
    click.echo(f"{file}: {counted} cells of budget and n count, over seeds {document.seeds}")


@click.command()
@click.argument("base", type=options.FILE)
@click.argument("new", type=options.FILE)
@options.option(
    "--fail-on limits",
    "A rise (+) or fall (-) that fails, in pt (1/100) for utilities and scores or % for costs; "
    "@same-machine: only between equal devices, threads and versions of torch. Repeatable.",
    multiple=True,
    required=True,
    metavar="METRIC:±N",
)
@options.path("--accept", "YAML or JSON file of accepted regressions.", type=options.READABLE)
@options.choice(
    "--format form",
    "Output format; github writes the job summary too.",
    "text",
    "md",
    "github",
    "json",
)
def compare(base: Path, new: Path, limits: Sequence[str], accept: Path | None, form: str) -> int:
    """Fail if a run is worse than an earlier one.

    BASE and NEW are files of 'run --json'. Compares every trial with every defense, and the tuned
    envelope, on the seeds that both have. A threshold fails where the mean change is beyond it and
    the seed-paired 95 % interval excludes zero; with one seed it decides alone, marked ~. A cell
    that vanished or newly fails is a regression; a plugin whose source changed is compared with
    what it was.

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
        - {defense: sophon-ice, metric: original, reason: a stronger defense costs that}
        - {attack: 'finetune[optimizer=sgd]', metric: status, reason: taken out of the suite}

    Exit codes: 0 fine, 1 a regression, 2 bad input, or records that cannot be compared: protocol,
    data, suite, precision or budget differ, a record is damaged, nothing is in common.
    """
    from sophon_bench.analysis.comparison import Incomparable
    from sophon_bench.analysis.thresholds import threshold
    from sophon_bench.leaderboard import answers
    from sophon_bench.leaderboard.compare import FORMATS, comparison, load_accepted, markdown
    from sophon_bench.leaderboard.frozen import published

    try:
        thresholds = [threshold(limit) for limit in limits]
    except ValueError as error:
        raise Refused(f"--fail-on: {error}") from error
    accepted = [] if accept is None else load_accepted(accept)
    before, after = (read_results(file) for file in (base, new))
    try:
        changes = answers.compare(before, after, thresholds, published())
    except Incomparable as error:
        raise Refused(f"{str(base)!r} and {str(new)!r} cannot be compared: {error}") from error
    found = comparison(changes, accepted)
    for each in found.unused:
        click.echo(f"warning: --accept: nothing to accept in {each.label}", err=True)
    click.echo(FORMATS[form](found), nl=False)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if form == "github" and summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(markdown(found))
        except OSError as error:
            raise Refused(f"$GITHUB_STEP_SUMMARY cannot be written: {error.strerror}") from error
    return 1 if found.failed else 0


@click.command()
@options.path("--from sources", "A file of 'run --json'. Repeatable.", multiple=True)
@options.option("--store", "Store to make the page from.", metavar="DIR")
@options.plugins()
@options.directory("Folder for the site; made if need be.")
def page(sources: Sequence[Path], store: str | None, out: Path) -> None:
    """Write a leaderboard as a static site that needs no network.

    From the published entries, from files of runs (each is scored against its own controls), or
    from the records in a store. DIR/index.html opens in any browser, from the disk.

    \b
    Examples:
      sophon-bench page --out site
      sophon-bench page --from out.json --out site
      sophon-bench page --store ~/.cache/sophon-bench --out site
    """
    need_extra("a page", "jinja2", "vl_convert")
    from sophon_bench.leaderboard import entries, page
    from sophon_bench.leaderboard.catalogue import subjects
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.leaderboard.page.sheets import sheets

    found = [page.Submission(cells=read_records(source)) for source in sources]
    if store is not None:
        found.append(page.Submission(cells=read_records(None, store)))
    if not found:
        without_collector()
        published_entries = entries.published()
        found = [page.Submission(cells=each.records, **each.head) for each in published_entries]
    if not found:
        raise Refused("nothing is published; say what the page is of: --from FILE or --store DIR")
    make_directory(out)
    models = (model for each in found for model in each.cells.models.values())
    pictures = sheets(models, functools.partial(click.echo, err=True))
    click.echo(page.write(found, out, subjects=subjects(), sheets=pictures, frozen=published()))
