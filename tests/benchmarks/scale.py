"""Measure how a run grows with its cells where a stage does nothing: docs/scale.md.

    python tests/benchmarks/scale.py --cells 1000 10000 100000 --json FILE --markdown docs/scale.md

A grid is every defense against `@standard`, search and benign domains included, over as many seeds
as make the cells; `idle.py` takes the work out of its stages. Every measure has a process of its
own. `--trained STEPS SEEDS` measures cells that do train instead, `@standard` against the
undefended model at so many steps and seeds: by one process, by two, and by two of Ray, one thread
each.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import psutil
import torch
from tabulate import tabulate

from sophon_bench.execution.plan import Plan
from sophon_bench.execution.runs import Job
from sophon_bench.harness.speed import exponent
from sophon_bench.library import planned
from sophon_bench.plugins.registry import discover, load_file
from sophon_bench.results.provenance import capture

IDLE = Path(__file__).with_name("idle.py")
EXECUTORS = {"in-process": 1, "processes": 2, "ray": 2}
"""Ways of doing stages, and how many are under way at once."""

BEGIN, END = "<!-- made by tests/benchmarks/scale.py -->\n", "<!-- end of what it made -->"

Found = dict[str, Any]


def grid(seeds: int, store: str, **options: Any) -> Job:
    """A plan over so many seeds, of stages that do nothing."""
    load_file(IDLE)
    return planned(
        ["@all"],
        ["@standard"],
        **{
            "scenario": ["idle"],
            "seeds": range(seeds),
            "plugin": [IDLE],
            "device": "cpu",
            "store": store,
            "threads": 1,
            **options,
        },
    )


def seeds_for(cells: int) -> int:
    """How many seeds make a plan of so many cells, at least."""
    with tempfile.TemporaryDirectory() as store:
        return -(-cells // len(grid(1, store).plan.cells))


def alone(measure: Callable[..., Found], *arguments: Any) -> Found:
    """What a measure finds in a process of its own, and that process's peak of memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_told, measure, arguments).result()


def _told(measure: Callable[..., Found], arguments: Sequence[Any]) -> Found:
    discover()
    before = _memory("VmRSS")
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        found = measure(*arguments)
    return {**found, "peak_bytes": _memory("VmHWM"), "bytes_before": before}


def _memory(name: str) -> int:
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    )
    return int(line.split()[1]) * 1024


def planning(seeds: int) -> Found:
    """From selectors to all keys."""
    with tempfile.TemporaryDirectory() as store:
        begin, cpu = time.perf_counter(), time.process_time()
        count = len(grid(seeds, store).plan.cells)
        spent, worked = time.perf_counter() - begin, time.process_time() - cpu
        return {"seconds": spent, "cpu_seconds": worked, "cells": count}


def run(seeds: int, store: str, executor: str) -> Found:
    """Plan and do all that the store does not have."""
    begin, cpu = time.perf_counter(), time.process_time()
    job = grid(seeds, store, executor=executor, workers=EXECUTORS[executor])
    cells = job.run().cells
    now = time.perf_counter()
    return {
        "seconds": now - begin,
        "cpu_seconds": time.process_time() - cpu,
        "cells": len(cells),
    }


def resume(seeds: int, store: str, forgotten: int) -> Found:
    """The same over a store that has finished all, or lacks every so manieth cell."""
    if forgotten:
        for file in sorted(Path(store, "cells").iterdir())[::forgotten]:
            file.unlink()
    return run(seeds, store, "in-process")


def command(seeds: int, store: str) -> Found:
    """`sophon-bench run` over a finished grid: start, imports and tables included."""
    words = [
        sys.executable, "-m", "sophon_bench", "run", "--plugin", str(IDLE), "--scenario", "idle",
        "--defense", "@all", "--attack", "@standard", "--seeds", f"0-{seeds - 1}",
        "--threads", "1", "--device", "cpu", "--store", store,
    ]  # fmt: skip
    begin = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return {"seconds": time.perf_counter() - begin}


def measured(cells: int, options: argparse.Namespace) -> Iterator[Found]:
    """All measures of one size."""
    seeds, rounds = seeds_for(cells), options.rounds
    with tempfile.TemporaryDirectory() as folder:

        def typical(name: str, of: Callable[[int], Found]) -> Found:
            all_ = [of(number) for number in range(rounds)]
            middle = statistics.median_low(found["seconds"] for found in all_)
            found = next(found for found in all_ if found["seconds"] == middle)
            each = [found["seconds"] for found in all_]
            return {"measure": name, "size": cells, **found, "each_seconds": each}

        def fresh(number: int, executor: str) -> Found:
            store = f"{folder}/{executor}-{number}"
            found = alone(run, seeds, store, executor)
            if number or executor != first:
                shutil.rmtree(store)
            return found

        first, *others = options.executor
        if first == "in-process":
            yield typical("planning", lambda _: alone(planning, seeds))
        yield typical(first, lambda number: fresh(number, first))
        store = f"{folder}/{first}-0"
        files = [file.stat().st_size for file in Path(store, "cells").iterdir()]
        yield {"measure": "record", "size": cells, "bytes": statistics.fmean(files)}
        if first == "in-process":
            yield typical("resume, all finished", lambda _: alone(resume, seeds, store, 0))
            yield typical("resume, 99 % finished", lambda _: alone(resume, seeds, store, 100))
            yield typical("command, all finished", lambda _: alone(command, seeds, store))
        shutil.rmtree(store)
        for executor in others:
            yield typical(executor, lambda number, executor=executor: fresh(number, executor))


WORKERS = (("processes", 1), ("processes", 2), ("ray", 2))
"""What is compared where stages do train: ways, and processes of one thread each."""


def trained(store: str, steps: int, seeds: int, executor: str, workers: int) -> Found:
    """Do `@standard` against the undefended model, whose weights the store has.

    ``steady`` is cells per second from the first record to the last: the start is not in it.
    """
    job = _training(store, steps, seeds, executor=executor, workers=workers)
    begin = time.perf_counter()
    cells = job.run().cells
    spent = time.perf_counter() - begin
    written = sorted(file.stat().st_mtime for file in Path(store, "cells").iterdir())
    steady = (len(written) - 1) / (written[-1] - written[0])
    return {"seconds": spent, "cells": len(cells), "steady": steady, "workers": workers}


def make_models(store: str, steps: int, seeds: int) -> Found:
    """The undefended models alone."""
    job = _training(store, steps, seeds)
    dataclasses.replace(job, plan=Plan(job.plan.models)).run()
    return {}


def _training(store: str, steps: int, seeds: int, **options: Any) -> Job:
    return planned(
        ["none"],
        ["@standard"],
        scenario=["glyphs-digits"],
        seeds=range(seeds),
        steps=steps,
        device="cpu",
        threads=1,
        store=store,
        **options,
    )


def compared(steps: int, seeds: int) -> Iterator[Found]:
    """The same grid by each of `WORKERS`."""
    with tempfile.TemporaryDirectory() as folder:
        alone(make_models, f"{folder}/models", steps, seeds)
        for executor, workers in WORKERS:
            store = shutil.copytree(f"{folder}/models", f"{folder}/{executor}-{workers}")
            found = alone(trained, store, steps, seeds, executor, workers)
            yield {"measure": f"{executor}, {workers}", "steps": steps, "seeds": seeds, **found}


def provenance() -> Found:
    """What ran, where and when."""
    here = msgspec.to_builtins(capture(torch.device("cpu")))
    return {
        **{name: here[name] for name in ("commit", "dirty", "python", "torch", "device")},
        "command": shlex.join(["python", *sys.argv]),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "ray": version("ray") if importlib.util.find_spec("ray") else None,
        "date": here["finished"],
        "load_before": os.getloadavg()[0],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Tables of what was measured, the last time where several did, with where and when."""
    points = [point for run in found["runs"] for point in run["points"]]
    idle = {(p["measure"], p["size"]): p for p in points if "size" in p}
    sizes = sorted({size for _, size in idle})
    rows = []
    for name in dict.fromkeys(name for name, _ in idle):
        own = {size: idle[name, size] for size in sizes if (name, size) in idle}
        rows += list(_rows(name, own, sizes))
    head = ["", *(f"{size:,} cells".replace(",", " ") for size in sizes), "growth"]
    table = tabulate(
        rows,
        head,
        "github",
        colalign=("left", *["right"] * (len(sizes) + 1)),
        disable_numparse=True,
    )
    origins = "\n".join(f"- {_origin(run['provenance'])}" for run in found["runs"])
    busy = {p["measure"]: p for p in points if "workers" in p}
    return "\n\n".join([table, *([_compared(busy)] if busy else []), origins]) + "\n"


def _compared(points: Mapping[str, Found]) -> str:
    """Ways of doing the same cells, each beside the one process."""
    one = points["processes, 1"]
    rows = [
        (
            name,
            point["cells"],
            f"{point['seconds']:.0f}",
            f"{one['seconds'] / point['seconds']:.2f}",
            f"{60 * point['steady']:.1f}",
            f"{point['steady'] / one['steady']:.2f}",
        )
        for name, point in points.items()
    ]
    title = f"cells that train, {one['steps']} steps, seeds: {one['seeds']}"
    head = (title, "cells", "seconds", "speed", "cells per minute, start left out", "speed")
    return tabulate(rows, head, "github", colalign=("left", *["right"] * 5), disable_numparse=True)


def _rows(name: str, own: Mapping[int, Found], sizes: Sequence[int]) -> Iterator[list[str]]:
    def row(words: str, of: Callable[[Found], float], form: str, *, grows: bool) -> list[str]:
        values = {size: of(point) for size, point in own.items()}
        growth = f"{exponent([*values.items()]):.2f}" if grows and len(values) > 1 else ""
        texts = [format(values[size], form) if size in values else "" for size in sizes]
        return [f"{name}: {words}", *texts, growth]

    if name == "record":
        yield row("bytes", lambda p: p["bytes"], ".0f", grows=False)
        return
    yield row("seconds", lambda p: p["seconds"], ".3g", grows=True)
    if all("cpu_seconds" in point for point in own.values()):
        yield row("CPU seconds here", lambda p: p["cpu_seconds"], ".3g", grows=True)
    if name in EXECUTORS:
        yield row("ms per cell", lambda p: 1e3 * p["seconds"] / p["cells"], ".2f", grows=False)
    if name != "command, all finished":
        yield row("peak memory in MB", lambda p: p["peak_bytes"] / 1e6, ".0f", grows=False)


def _origin(told: Mapping[str, Any]) -> str:
    commit = f"{str(told['commit'])[:12]}{' with changes' if told['dirty'] else ''}"
    return (
        f"`{told['command']}` at commit {commit}, {told['date'][:10]}: {told['cores']} cores of "
        f"{told['device']}, {told['memory_bytes'] / 2**30:.0f} GiB, {told['system']}, Python "
        f"{told['python']}, torch {told['torch']}, Ray {told['ray']}; load when it began "
        f"{told['load_before']:.1f}."
    )


def write_markdown(file: Path, text: str) -> None:
    """Put the table between its marks in a page, or make a file of it alone."""
    whole = f"{BEGIN}{text}{END}"
    if file.exists() and BEGIN in (page := file.read_text(encoding="utf-8")):
        before, _, rest = page.partition(BEGIN)
        whole = f"{before}{whole}{rest.partition(END)[2]}"
    file.write_text(whole, encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--executor", nargs="+", choices=EXECUTORS, default=[*EXECUTORS])
    parser.add_argument("--trained", type=int, nargs=2, metavar=("STEPS", "SEEDS"))
    parser.add_argument("--rounds", type=int, default=1, help="a measure is their median")
    parser.add_argument("--json", type=Path, help="what was measured is added to it")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(words)
    found: Found = {"runs": []}
    if options.json and options.json.exists():
        found = json.loads(options.json.read_text(encoding="utf-8"))
    points: list[Found] = []
    found["runs"].append({"provenance": provenance(), "points": points})
    if options.trained:
        measures = compared(*options.trained)
    else:
        measures = (point for cells in options.cells for point in measured(cells, options))
    for point in measures:
        points.append(point)
        print(json.dumps(point), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    text = markdown(found)
    print(text)
    if options.markdown:
        write_markdown(options.markdown, text)


if __name__ == "__main__":
    main()
