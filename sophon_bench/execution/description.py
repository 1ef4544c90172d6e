"""What a job will take, and how its cells ended, in lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sophon_bench.execution.runs import Job
from sophon_bench.plugins.side_effects import kind_of, subject_of
from sophon_bench.results.records import Records


def forecast(job: Job) -> Iterator[str]:
    """Every stage of a job and whether it is to do, and what those to do cost."""
    plan = job.plan
    with job.engine() as engine:
        pending = engine.pending(plan)
        flops, seconds = engine.estimate(pending)
    missing = {stage.key for stage in pending}
    for stage in plan.stages:
        mark = "to do" if stage.key in missing else "done "
        cost = "?" if stage.units is None else f"{stage.units:.0f}"
        yield f"{mark}  {stage.label}  ({cost} units)"
    known = sum(stage.units or 0 for stage in pending)
    unknown = sum(stage.units is None for stage in pending)
    yield (
        f"{len(plan.stages)} stages, {len(plan.cells)} of them cells; {len(pending)} to do: "
        f"{known:.0f} units = {flops / 1e12:.3g} TFLOP, about {seconds / 60:.1f} minutes here"
        + (f", and {unknown} stage{'s' * (unknown > 1)} of unknown cost" if unknown else "")
    )
    units = sum(search.forecast[0] for search in plan.searches)
    longer = sum(search.forecast[1] for search in plan.searches)
    refined = sum(search.rules.refine > 0 for search in plan.searches)
    if longer or refined:
        yield (
            f"then, going by their results: up to {longer} trials with a longer budget "
            f"({units:.0f} units), and finer lr grids in {refined} searches"
        )
    yield "(1 unit = forward and backward of the undefended backbone on one example)"


def side_effects(cells: Records) -> Iterator[str]:
    """What plugins did to the process around them: a sentence for each plugin and kind."""
    made = [(model.defense, model.contained) for model in cells.models.values()]
    for plugin, unit, found in (
        ("defense", "models", [(who.name, found) for who, found in made if who is not None]),
        ("attack", "cells", [(cell.attack.name, cell.contained) for cell in cells.cells]),
    ):
        counts = Counter(name for name, _ in found)
        said: dict[tuple[str, str], list[str]] = {}
        for name, sentences in found:
            for subject, words in {subject_of(words): words for words in sentences}.items():
                said.setdefault((name, subject), []).append(words)
        for (name, _), told in said.items():
            yield (
                f"{plugin} {name}: {told[0]} (in {len(told)} of {counts[name]} {unit}); "
                f"{kind_of(told[0]).after}"
            )
