"""Measure how a run grows with its cells, where a stage does nothing: docs/scale.md.

    python tests/benchmarks/scale.py --cells 1000 10000 100000 --json FILE --markdown docs/scale.md

A grid is every defense against `@standard`, search and benign domains included, over as many seeds
as make the cells; `idle.py` takes the work out of its stages. Every measure has a process of its
own. `--trained` adds a grid that does train: one process, two, and Ray, one thread each.
"""

from __future__ import annotations

import argparse
import contextlib
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

from sophon_bench.execution.runs import Job
from sophon_bench.harness.speed import exponent
from sophon_bench.library import planned
from sophon_bench.plugins.registry import load_file
from sophon_bench.results.provenance import capture

IDLE = Path(__file__).with_name("idle.py")
EXECUTORS = {"in-process": 1, "processes": 2, "ray": 2}
"""Ways of doing stages, and how many are under way at once."""

REPEATED = 10_000
"""Cells up to which a measure is the median of three."""

BEGIN, END = "<!-- made by tests/benchmarks/scale.py -->\n", "<!-- end of what it made -->"

Found = dict[str, Any]


def grid(seeds: int, store: str, **options: Any) -> Job:
    """A plan over so many seeds."""
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
    load_file(IDLE)
    with tempfile.TemporaryDirectory() as store:
        return -(-cells // len(grid(1, store).plan.cells))


def alone(measure: Callable[..., Found], *arguments: Any) -> Found:
    """What a measure finds in a process of its own, and that process's peak of memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_told, measure, arguments).result()


def _told(measure: Callable[..., Found], arguments: Sequence[Any]) -> Found:
    load_file(IDLE)
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
        begin = time.perf_counter()
        plan = grid(seeds, store).plan
        count = len(plan.cells)
        return {"seconds": time.perf_counter() - begin, "cells": count}


def run(seeds: int, store: str, executor: str) -> Found:
    """Plan and do all that the store does not have."""
    begin = time.perf_counter()
    job = grid(seeds, store, executor=executor, workers=EXECUTORS[executor])
    begun = time.perf_counter()
    cells = job.run().cells
    now = time.perf_counter()
    return {"seconds": now - begun, "whole_seconds": now - begin, "cells": len(cells)}


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


def measured(cells: int, executors: Sequence[str]) -> Iterator[Found]:
    """All measures of one size."""
    seeds, rounds = seeds_for(cells), 3 if cells <= REPEATED else 1
    with tempfile.TemporaryDirectory() as folder:

        def typical(name: str, of: Callable[[int], Found], rounds: int = rounds) -> Found:
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

        first, *others = executors
        yield typical("planning", lambda _: alone(planning, seeds))
        yield typical(first, lambda number: fresh(number, first))
        store = f"{folder}/{first}-0"
        files = [file.stat().st_size for file in Path(store, "cells").iterdir()]
        yield {"measure": "record", "size": cells, "bytes": statistics.fmean(files)}
        yield typical("resume, all finished", lambda _: alone(resume, seeds, store, 0))
        yield typical("resume, 99 % finished", lambda _: alone(resume, seeds, store, 100))
        yield typical("command, all finished", lambda _: alone(command, seeds, store))
        shutil.rmtree(store)
        for executor in others:
            yield typical(executor, lambda number, executor=executor: fresh(number, executor))


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
    """A table of what was measured, with where and when."""
    sizes = sorted({point["size"] for point in found["points"]})
    rows = []
    for name in dict.fromkeys(point["measure"] for point in found["points"]):
        own = {p["size"]: p for p in found["points"] if p["measure"] == name}
        rows += list(_rows(name, own, sizes))
    head = ["", *(f"{size:,} cells".replace(",", " ") for size in sizes), "growth"]
    table = tabulate(rows, head, "github", colalign=("left", *["right"] * (len(sizes) + 1)))
    return f"{table}\n\n{_origin(found['provenance'])}\n"


def _rows(name: str, own: Mapping[int, Found], sizes: Sequence[int]) -> Iterator[list[str]]:
    def row(words: str, of: Callable[[Found], float], form: str, *, grows: bool) -> list[str]:
        values = [of(own[size]) for size in sizes]
        growth = f"{exponent([*zip(sizes, values, strict=True)]):.2f}" if grows else ""
        return [f"{name}: {words}", *(format(value, form) for value in values), growth]

    several = len(sizes) > 1
    if name == "record":
        yield row("bytes", lambda p: p["bytes"], ".0f", grows=False)
        return
    yield row("seconds", lambda p: p["seconds"], ".3g", grows=several)
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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(words)
    found: Found = {"provenance": provenance(), "points": []}
    for cells in options.cells:
        for point in measured(cells, options.executor):
            found["points"].append(point)
            print(json.dumps(point), flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    text = markdown(found)
    print(text)
    if options.markdown:
        write_markdown(options.markdown, text)


if __name__ == "__main__":
    main()
