"""overhead: what protecting and attacking cost, from records or measured here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from sophon_bench.cli.common import (
    DEFAULT_BACKBONE,
    Refused,
    check_picture,
    check_writable,
    compile_option,
    complete,
    device_option,
    image_size_option,
    load_plugins,
    no_collector,
    one_scenario_option,
    plugin_option,
    precision_option,
    read_records,
    source_option,
    store_option,
    threads_option,
    write_json,
)

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


@click.command()
@click.option("--roofline", is_flag=True, help="Measure the loop against bare passes and a matmul.")
@click.option("--growth", is_flag=True, help="Measure how protecting grows with the backbone.")
@source_option
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["console", "md", "latex", "csv", "json"]),
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
    metavar="SELECTOR",
    shell_complete=complete("defense"),
    help="Defense whose growth is measured; with few inner steps it is quick. Repeatable.",
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
    default=["@smoke"],
    show_default=True,
    metavar="SELECTOR",
    shell_complete=complete("attack"),
    help="Attack or @suite whose loops are measured. Repeatable.",
)
@click.option(
    "--backbone",
    multiple=True,
    metavar="SELECTOR",
    help="timm model, or unet, with keyword arguments in brackets. Repeatable. By default "
    f"{DEFAULT_BACKBONE}, for denoising unet; for growth {', '.join(GROWN)}.",
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
      sophon-bench overhead --growth --defense 'sophon-ice[inner_steps=5]' --plot growth.png
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


def _overhead(*, source: Path | None, form: str, plot_file: Path | None, store: str | None) -> None:
    from sophon_bench.leaderboard import bars, overhead, vega
    from sophon_bench.leaderboard.frozen import published

    if plot_file is not None:
        check_picture("--plot", plot_file)
    with no_collector():
        found = overhead.overhead(read_records(source, store), published())
    if plot_file is not None:
        figure = bars.overhead(found.protection, found.half_costs)
        if figure is None:
            raise Refused("no record of a defense to draw; 'sophon-bench run --defense' makes some")
        vega.write(figure, plot_file)
    click.echo(overhead.show(form, found), nl=False)


def _advance(progress: Any, task: Any, fraction: float) -> None:
    progress.update(task, completed=fraction)


def _machine(device: str, threads: int | None) -> tuple[Any, str]:
    """The device, and what is measured on in words; sets the threads that torch uses."""
    import torch

    from sophon_bench.execution.runs import find_device
    from sophon_bench.results.provenance import device_name

    place = find_device(device)
    torch.set_num_threads(threads or torch.get_num_threads())
    words = f"{device_name(place)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return place, words


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
    store: str | None,
    json_file: Path | None,
) -> None:
    from rich.progress import Progress

    from sophon_bench.execution.plan import default_samples
    from sophon_bench.execution.runs import find_settings
    from sophon_bench.harness.bench import Bench
    from sophon_bench.harness.speed import roofline
    from sophon_bench.plugins.registry import attacks
    from sophon_bench.plugins.selectors import construct
    from sophon_bench.plugins.suites import trials
    from sophon_bench.results.store import Store, default_root

    load_plugins(plugin)
    place, where = _machine(device, threads)
    if json_file is not None:
        check_writable("--json", json_file)
    chosen = []
    for trial in trials(attacks, attack):
        takes = "batch_size" in trial.parameters
        values = {**trial.parameters, **({"batch_size": batch_size} if takes else {})}
        chosen.append((trial.label, construct(trial.entry, values)))
    cache = Store(store or default_root()).data
    settings = find_settings(
        [scenario],
        backbone,
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
        write_json(json_file, found)


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
    store: str | None,
    plot_file: Path | None,
    json_file: Path | None,
) -> None:
    from rich.progress import Progress

    from sophon_bench.api import Incompatible
    from sophon_bench.execution.runs import find_settings
    from sophon_bench.harness import speed
    from sophon_bench.harness.bench import Bench
    from sophon_bench.leaderboard import figures, overhead, vega
    from sophon_bench.leaderboard.columns import frame
    from sophon_bench.plugins.registry import defenses
    from sophon_bench.plugins.selectors import names_of
    from sophon_bench.plugins.suites import trials
    from sophon_bench.results.store import Store, default_root

    load_plugins(plugin)
    if not defense:
        known = ", ".join(defenses.names())
        raise Refused(f"--growth times updates of a defense; name it with --defense, of: {known}")
    place, where = _machine(device, threads)
    if json_file is not None:
        check_writable("--json", json_file)
    if plot_file is not None:
        check_picture("--plot", plot_file)
    protecting = trials(defenses, defense)
    chosen = [(trial.label, trial.plugin) for trial in protecting]
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
    heading = f"{title}; {where}; {updates} updates"
    click.echo(overhead.growth(heading, rows, fits, names_of(protecting)), nl=False)
    if plot_file is not None:
        vega.write(figures.growth(frame(rows), frame(fits), title), plot_file)
    if json_file is not None:
        content = {"setting": title, "machine": where, "updates": updates}
        write_json(json_file, {**content, "measured": rows, "exponents": fits})
