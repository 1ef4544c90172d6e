"""overhead: what protecting and attacking cost, from records or measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sophon_bench.cli import options
from sophon_bench.cli.common import Refused, read_records, write_json

GROWN = ("test_resnet", "lcnet_050", "resnet10t", "resnet18", "resnet50")
"""Backbones of `overhead --growth`: 0.4 to 24 M parameters, made for images of any size."""

MEASURED = {
    "backbone", "scenario", "image_size", "device", "precision", "compiled", "threads", "plugin",
    "store", "json_file",
}  # fmt: skip
TAKEN = {
    "records": {"source", "form", "plot_file", "store"},
    "roofline": {"attack", "batch_size", "rounds", *MEASURED},
    "growth": {"defense", "updates", "plot_file", *MEASURED},
}
"""Options by the view of `overhead` that takes them."""


@click.command()
@options.flag("--roofline", "Measure the loop against bare passes and a matmul.")
@options.flag("--growth", "Measure how protecting grows with the backbone.")
@options.records
@options.form
@options.output("--plot plot_file", "Draw records, or growth; PNG or SVG.", type=options.Picture())
@options.selectors("--defense", "Defense whose growth is measured; few inner steps are quick.")
@options.count("--updates", "Updates to time; best, whole cycles of the defense.", default=15)
@options.selectors("--attack", "Attack or @suite whose loops are measured.", "@smoke")
@options.backbone(f"{options.BY_DEFAULT} For growth, {', '.join(GROWN)}.", multiple=True)
@options.scenario
@options.count("--batch-size", "Examples per pass, of attacks too.", default=64)
@options.count("--rounds", "Turns of bare passes and loops.", least=2, default=60)
@options.image_size
@options.passes
@options.threads
@options.plugins()
@options.json_file("Write the numbers of a measurement there.")
def overhead(roofline: bool, growth: bool, **options: Any) -> None:
    """Report what protecting and attacking cost, or measure it here.

    Of the records in the store, or of a run's JSON file: what each defense took, as multiples of
    pre-training; and the cost at which each attack, and the tuned envelope, gets half of what the
    undefended model gives over scratch, as multiples of the undefended model's and of scratch's.

    With --growth: updates of a defense and of pre-training, in turns, on backbones of several
    sizes, and the exponents with which they grow. With --roofline: passes on resident batches,
    alone and inside an attack's loop, in turns; MFU is the share of the fastest matmul's FLOP/s.

    \b
    Examples:
      sophon-bench overhead
      sophon-bench overhead --from out.json --format md --plot overhead.svg
      sophon-bench overhead --growth --defense 'sophon-ice[inner_steps=5]' --plot growth.png
      sophon-bench overhead --roofline --backbone resnet18 --image-size 64 --rounds 20
    """
    if roofline and growth:
        raise Refused("--roofline and --growth are two measurements; give one")
    view = "roofline" if roofline else "growth" if growth else "records"
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        views = [other for other, names in TAKEN.items() if name in names]
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and views and view not in views:
            raise Refused(_misplaced(parameter.opts[0], view, views))
    show: Callable[..., None] = _roofline if roofline else _growth if growth else _records
    show(**{name: value for name, value in options.items() if name in TAKEN[view]})


def _misplaced(option: str, view: str, views: Sequence[str]) -> str:
    """What to say about an option of other views than this one."""
    measured = " or ".join(f"--{other}" for other in views if other != "records")
    if view == "records":
        return f"{option} goes with {measured}"
    if not measured:
        return f"{option} is for records, and --{view} measures; leave one of them out"
    return f"{option} goes with {measured}, not with --{view}"


def _records(*, source: Path | None, form: str, plot_file: Path | None, store: str | None) -> None:
    from sophon_bench.leaderboard import bars, overhead, vega
    from sophon_bench.leaderboard.frozen import published

    found = overhead.overhead(read_records(source, store), published())
    if plot_file is not None:
        figure = bars.overhead(found.protection, found.half_costs)
        if figure is None:
            raise Refused("no record of a defense to draw; 'sophon-bench run --defense' makes some")
        vega.write(figure, plot_file)
    click.echo(overhead.show(form, found), nl=False)


def _roofline(
    *, attack: Sequence[str], batch_size: int, rounds: int, json_file: Path | None, **options: Any
) -> None:
    from sophon_bench.execution.measuring import place, rooflines
    from sophon_bench.execution.runs import Options
    from sophon_bench.plugins.registry import attacks
    from sophon_bench.plugins.suites import trials

    chosen = trials(attacks, attack)
    where = place(Options(**options))
    found = []
    for title, measured in rooflines(where, chosen, batch_size=batch_size, rounds=rounds):
        click.echo(f"{title}; {where.machine}; {rounds} rounds\n{measured}")
        found.append({"setting": title, "machine": where.machine, **dataclasses.asdict(measured)})
    write_json(json_file, found)


def _growth(
    *,
    defense: Sequence[str],
    updates: int,
    backbone: Sequence[str],
    plot_file: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    from sophon_bench.execution import measuring
    from sophon_bench.execution.runs import Options
    from sophon_bench.leaderboard import figures, overhead, vega
    from sophon_bench.leaderboard.columns import frame
    from sophon_bench.plugins.registry import defenses
    from sophon_bench.plugins.selectors import names_of
    from sophon_bench.plugins.suites import trials

    if not defense:
        known = ", ".join(defenses.names())
        raise Refused(f"--growth times updates of a defense; name it with --defense, of: {known}")
    chosen = trials(defenses, defense)
    where = measuring.place(Options(backbone=backbone or GROWN, **options))
    rows, fits = measuring.growth(where, chosen, updates=updates)
    size = where.benches[0].data.image_size
    title = f"{where.scenario}, {size}x{size}, {where.passes}"
    heading = f"{title}; {where.machine}; {updates} updates"
    click.echo(overhead.growth(heading, rows, fits, names_of(chosen)), nl=False)
    if plot_file is not None:
        vega.write(figures.growth(frame(rows), frame(fits), title), plot_file)
    content = {"setting": title, "machine": where.machine, "updates": updates}
    write_json(json_file, {**content, "measured": rows, "exponents": fits})
