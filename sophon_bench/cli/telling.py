"""Commands that say what records mean: table, plot, pictures, cards, freeze."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sophon_bench.results.records import PluginId, Records

from sophon_bench.cli.common import (
    Refused,
    check_picture,
    check_writable,
    complete,
    load_plugins,
    make_directory,
    need_extra,
    no_collector,
    open_store,
    plugin_option,
    read_records,
    source_option,
    store_option,
    subject_of,
)


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["console", "md", "latex", "csv", "json"]),
    default="console",
    show_default=True,
    help="How to print; csv and json are flat rows with stable keys.",
)
@source_option
@click.option("--published", is_flag=True, help="Of the entries that come with the package.")
@click.option(
    "--against",
    metavar="SELECTOR",
    shell_complete=complete("defense"),
    help="Print how much more every defense has than this one, paired by seed, and nothing else.",
)
@store_option
def table(
    form: str, source: Path | None, published: bool, against: str | None, store: str | None
) -> None:
    """Print the tables of all records in the store, or of a run's JSON file, or what is published.

    \b
    Examples:
      sophon-bench table
      sophon-bench table --format md --from out.json
      sophon-bench table --format csv > rows.csv
      sophon-bench table --published --format latex
      sophon-bench table --from out.json --against sophon-ice
    """
    from sophon_bench.leaderboard import answers as analysis
    from sophon_bench.leaderboard import entries, frozen, tables
    from sophon_bench.leaderboard.columns import DIFFERENCES
    from sophon_bench.leaderboard.render import Flat, printed
    from sophon_bench.plugins.registry import unknown
    from sophon_bench.results import Results

    if published and (source or store):
        raise Refused("--published is of entries that come with the package; give no other records")
    if published and against is not None:
        raise Refused("--against pairs seeds of one run's records; give --from FILE or --store DIR")
    with no_collector():
        if against is not None:
            cells = read_records(source, store)
            found = analysis.differences(Results.of(cells), against, frozen.published())
            if against not in (known := {cells.defense(cell).label for cell in cells.cells}):
                raise Refused(unknown("defense", against, known))
            if found.empty:
                raise Refused(f"no other defense was attacked beside {against!r}")
            flat = Flat(frames=[found], columns=DIFFERENCES)
            click.echo(printed(form, lambda: tables.differences(found), flat), nl=False)
            return
        if published:
            report = entries.report(entries.published(), frozen.published())
        else:
            names = {} if source is not None else open_store(store).names()
            report = tables.report(read_records(source, store), frozen.published(), names)
        click.echo(tables.show(form, report), nl=False)


def _formats(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """``png,svg``: distinct, in order."""
    known = ("png", "svg")
    found = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for form in found:
        if form not in known:
            raise Refused(f"--format takes {' and '.join(known)}, or one of them; got {text!r}")
    return found


@click.command()
@source_option
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
def plot(source: Path | None, store: str | None, out: Path, formats: list[str]) -> None:
    """Draw envelopes and resistance by budget, and utility by learning rate.

    Three pictures per scenario, backbone, budget and n, of all records in the store or of a run's
    JSON file. Prints the files that it writes.

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
    for file in files:
        click.echo(file)


@click.command()
@source_option
@store_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE.png",
    help="The picture to write, PNG or SVG by its name.",
)
@click.option(
    "--seed", type=int, metavar="N", help="Models of this seed; by default the lowest one."
)
@click.option(
    "--attack",
    metavar="SELECTOR",
    shell_complete=complete("attack"),
    help="After this attack, or the best of those that it fits; by default the best of all.",
)
def pictures(
    source: Path | None, store: str | None, out: Path, seed: int | None, attack: str | None
) -> None:
    """Draw the images that models made from noise, where they make images.

    A line each for the undefended model and every defense's, before any attack (of the original
    domain) and after the attack that selection picks (of the restricted one), and for fresh
    weights.

    \b
    Examples:
      sophon-bench pictures --from out.json --out images.png
      sophon-bench pictures --from out.json --out images.png --seed 1 --attack 'finetune[lr=1e-3]'
    """
    from sophon_bench.analysis.images import makers
    from sophon_bench.leaderboard import gallery, vega
    from sophon_bench.results import Results

    check_picture("--out", out)
    cells = read_records(source, store)
    found = makers(Results.of(cells), None if attack is None else _fitting(attack, cells))
    if not found:
        raise Refused("no record has images; models of generation scenarios make some")
    if seed not in (seeds := sorted({made.seed for made in found})) and seed is not None:
        raise Refused(f"--seed {seed} has no images; those that have are {seeds}")
    vega.write(gallery.images(gallery.of_one_seed(found, seed)), out)
    click.echo(out)


def _fitting(selector: str, cells: Records) -> set[str]:
    """Keys of the records whose attack a selector fits; refused if no record has one."""
    from sophon_bench.plugins.registry import unknown
    from sophon_bench.plugins.selectors import parse

    wanted = parse(selector)

    def fits(attack: PluginId) -> bool:
        has = attack.parameters
        return attack.name == wanted.name and all(
            key in has and _equal(has[key], value) for key, value in wanted.parameters.items()
        )

    tried = [cell for cell in cells.cells if not cell.attack.control]
    found = {cell.key for cell in tried if fits(cell.attack)}
    if not found:
        raise Refused(unknown("attack", selector, {cell.attack.label for cell in tried}))
    return found


def _equal(value: Any, text: Any) -> bool:
    """Whether a hyperparameter is what a selector says; numbers may be written in any way."""
    from sophon_bench.plugins.selectors import scalar

    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return bool(value == scalar(text))


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete("defense"))
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file of 'run --json'. Repeatable: one of @paper and one of @standard, for instance.",
)
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
    sources: Sequence[Path],
    store: str | None,
    plugin: Sequence[Path],
    out: Path | None,
) -> None:
    """Make a fidelity card of each defense, or of those named, in Markdown.

    What a defense minimises, where it comes from, what is different from the original, and what
    its paper claims, as its source says; and what was measured under the recipe of @paper and
    under the tuned envelope, of runs' JSON files or of the records in the store, if there is one.

    \b
    Examples:
      sophon-bench cards
      sophon-bench cards sophon-ice ntl --from out.json
      sophon-bench cards --from standard.json --from paper.json --out docs/defenses.md
    """
    from sophon_bench.leaderboard.cards import Recipe, cards
    from sophon_bench.leaderboard.frozen import published
    from sophon_bench.plugins.registry import attacks, defenses
    from sophon_bench.plugins.suites import load_suite, trials
    from sophon_bench.results.files import write_atomic
    from sophon_bench.results.records import Records
    from sophon_bench.results.store import default_root, is_store

    load_plugins(plugin)
    entries = [defenses.get(name) for name in names or defenses.names()]
    for entry in entries:
        if names and entry.control:
            raise Refused(f"{entry.name!r} is a control, and stands in the card of every defense")
    if out is not None:
        check_writable("--out", out)
    recipe = Recipe(
        name=load_suite("paper").label,
        trials=[trial.label for trial in trials(attacks, ["@paper"])],
        controls=[trial.label for trial in trials(attacks, attacks.controls())],
    )
    some = store is not None or is_store(default_root())
    with no_collector():
        files: list[Path | None] = [*sources] or [None] * some
        records = [read_records(file, store) for file in files]
        text = cards(
            [subject_of(entry) for entry in entries if not entry.control],
            Records.joined(records),
            recipe=recipe,
            command=_cards_command(names, sources),
            frozen=published(),
        )
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomic(out.absolute(), text.encode())
        click.echo(out)


def _cards_command(names: Sequence[str], sources: Sequence[Path]) -> str:
    """What makes the page, wherever the records are."""
    records = [word for source in sources for word in ("--from", source.name)]
    return shlex.join(["sophon-bench", "cards", *names, *records])


@click.command()
@source_option
@store_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Where the document goes; in the repository, leaderboard/frozen.",
)
def freeze(source: Path | None, store: str | None, out: Path) -> None:
    """Write down which budgets and n count for a score, from controls of at least five seeds.

    \b
    Example:
      sophon-bench run --attack @standard --samples 50,200,600 --seeds 0-4 --json controls.json
      sophon-bench freeze --from controls.json --out leaderboard/frozen
    """
    from sophon_bench.analysis.frozen import freeze as frozen_gaps
    from sophon_bench.leaderboard.frozen import write
    from sophon_bench.protocol import FLOOR
    from sophon_bench.results import Results

    try:
        document = frozen_gaps(Results.of(read_records(source, store)))
    except ValueError as error:
        raise Refused(str(error)) from error
    make_directory(out)
    file = write(document, out)
    counted = sum(gap.role == "restricted" and gap.gap >= FLOOR for gap in document.gaps)
    click.echo(f"{file}: {counted} cells of budget and n count, over seeds {document.seeds}")
