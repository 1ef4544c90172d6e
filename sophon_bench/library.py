"""What the command line does, as functions: names, selectors and semantics are its own.

Bad input raises `BadInput`, before any work starts; the command line prints its message in one line
and ends with exit code 2. What is finished is in the store, and a second call goes on.
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sophon_bench import testing
from sophon_bench.api import Model
from sophon_bench.data.published import sets_in
from sophon_bench.execution import runs
from sophon_bench.execution.checkpoints import audited, inspect
from sophon_bench.execution.plan import PlanError, setting_of
from sophon_bench.leaderboard import answers, audits, entries, zoo
from sophon_bench.leaderboard.columns import records
from sophon_bench.leaderboard.frozen import published
from sophon_bench.models import weight_files
from sophon_bench.models.architecture import BackboneError
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.weight_names import dotted
from sophon_bench.plugins.registry import attacks, defenses, load_file, unknown
from sophon_bench.plugins.selectors import Trial, names_of
from sophon_bench.plugins.suites import Arsenal, arsenal, trials
from sophon_bench.results import Results
from sophon_bench.results.documents import read_file
from sophon_bench.results.files import is_url, local_path
from sophon_bench.results.records import Records
from sophon_bench.results.store import Store, StoreError, default_root
from sophon_bench.testing import Finding

__all__ = ["Report", "Results", "Verdict", "audit", "check", "load_model", "load_results", "run"]

PUBLISHED = "published/"
"""Begins the names of entries and models that are published."""

BACKBONE = runs.DEFAULT_BACKBONES["classification"]

Several = str | Sequence[str]
"""One selector, or several."""


def run(
    *,
    defense: Several = (),
    attack: Several = "@smoke",
    scenario: Several = "glyphs-digits",
    backbone: Several = (),
    weights: str | Path | None = None,
    data: str | Path | None = None,
    seeds: int | Sequence[int] = 0,
    samples: int | Sequence[int] = (),
    plugin: Sequence[str | Path] = (),
    store: str | Path | None = None,
    **options: Any,
) -> Results:
    """Cross defenses with attacks, as ``sophon-bench run``; finished work is not repeated.

    Args:
        defense: Selectors of defenses; the undefended model is always run too.
        attack: Selectors of attacks and suites; random initialisation is always run too.
        scenario: Selectors of scenarios.
        backbone: Selectors of backbones; none: the scenario's own.
        weights: What models start from: ``timm``, ``random``, or a file of safetensors or
            torch.save; None: what the backbone says.
        data: Folder with published sets of images; None: the environment variable
            ``SOPHON_BENCH_DATA`` names it.
        seeds: A seed, or several.
        samples: The attacker's n, or several; none: the middle one of the scenario's.
        plugin: Python files with plugins of one's own; they are executed.
        store: Directory or URL of finished work; None: in the user's cache directory.
        options: Others of `runs.Options`: ``steps``, ``image_size``, ``device``, ``precision``,
            ``compiled``, ``workers``, ``threads``, ``together``, ``cell_timeout``,
            ``cell_memory``, ``retry_failed``.

    Returns:
        The records of this run; a cell that failed has the status ``failed`` and its ``reason``.
    """
    chosen = {**_options(plugin, scenario, backbone, seeds, samples, store), "weights": weights}
    with sets_in(data), _same_threads():
        job = planned(_several(defense), _several(attack), **chosen, **options)
        return Results.of(job.run(), store=job.store.root)


@contextmanager
def _same_threads() -> Iterator[None]:
    """Torch's threads are as many afterwards as before: a run shares them out to its workers."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _options(
    plugin: Sequence[str | Path],
    scenario: Several,
    backbone: Several,
    seeds: int | Sequence[int],
    samples: int | Sequence[int],
    store: str | Path | None,
) -> dict[str, Any]:
    """Options in the types of `runs.Options`; files of plugins are loaded."""
    files = [Path(file) for file in plugin]
    for file in files:
        load_file(file)
    return {
        "scenario": _several(scenario),
        "backbone": _several(backbone),
        "seeds": _numbers(seeds),
        "samples": _numbers(samples),
        "plugin": files,
        "store": store,
    }


def _numbers(several: int | Sequence[int]) -> list[int]:
    """Whole numbers of any library as Python's."""
    return [*map(index, several if isinstance(several, Iterable) else [several])]


def planned(
    defense: Sequence[str | Trial], attack: Sequence[str], *, benign: bool = False, **options: Any
) -> runs.Job:
    """What a run would do, its selectors read and its data built; nothing is trained yet.

    Args:
        defense: Selectors, or what they stand for.
        attack: Selectors of attacks and suites.
        benign: Whether all listed trials are run on the benign domains too.
        options: Of `runs.Options`.
    """
    protecting = [t for t in defense if isinstance(t, Trial)]
    protecting += trials(defenses, [text for text in defense if isinstance(text, str)])
    attacking: Arsenal = arsenal(attacks, attack)
    if benign:
        attacking = dataclasses.replace(attacking, trainability=attacking.trials)
    names_of([*protecting, *attacking.trials])  # says so if a name is given twice
    return runs.prepare(runs.Options(**options), defenses=protecting, attacks=attacking)


def load_results(source: str | Path) -> Results:
    """Records as frames.

    Args:
        source: A file of ``run --json`` or of an entry of the leaderboard; a store's directory; a
            URL of either, of any kind that fsspec knows; ``published/NAME`` of an entry that comes
            with the package; or ``published`` for all of them together, of which each is scored by
            its own controls on the leaderboard.

    Raises:
        StoreError: If there is none, or it is damaged.
        EntryError: For an entry that is not whole.
        UnknownName: If no entry has that name.
    """
    text, path = str(source), Path(local_path(source))
    if text == PUBLISHED.rstrip("/"):
        return Results.of(Records.joined(entry.records for entry in entries.published()))
    if text.startswith(PUBLISHED):
        known = {entry.name: entry for entry in entries.published()}
        name = text.removeprefix(PUBLISHED)
        if name not in known:
            raise StoreError(unknown("published entry", name, known))
        return Results.of(known[name].records)
    if path.suffix in (".json", ".jsonl") if is_url(source) else not path.is_dir():
        return Results.of(read_file(source)[1])
    return Results.stored(Store(source, reading=True))


def load_model(
    source: Results | str,
    defense: str | None = None,
    seed: int | None = None,
    *,
    scenario: str | None = None,
    backbone: str | None = None,
    store: str | Path | None = None,
) -> Model:
    """A released model, in train mode on the CPU: of results, or a published one.

    A published one is found by the SHA-256 that its record has. Where weights of the same recipe
    and seed were made again on another processor, and the very ones are nowhere, these are
    returned with a warning that says how they differ.

    Args:
        source: Results of `run`, or of a store's directory: models are in no other file. Or
            ``published/DEFENSE@SCENARIO``, with ``:seed=K`` behind it or without, as
            ``sophon-bench models list`` shows them.
        defense: Of results, the selector of the defense, as in ``results.models["defense"]``.
        seed: Of the model; None: 0, or what the name says.
        scenario: Which one, where results have several.
        backbone: The same; of a published model too.
        store: Directory or URL of a store that has weights of published models, besides the one
            that comes with the package; None: the user's own.

    Raises:
        StoreError: If there is no such model, there are several, or its weights are nowhere here
            or damaged.
    """
    if isinstance(source, str):
        if not source.startswith(PUBLISHED):
            raise StoreError(
                f"load_model takes results, or the name of a published model such as "
                f"'{PUBLISHED}sophon-ice@glyphs-digits'; got {source!r}"
            )
        name = source.removeprefix(PUBLISHED)
        wanted = zoo.named(name, zoo.published(), seed=seed, backbone=backbone)
        copy = zoo.needed(wanted, zoo.places(store))
        if not copy.as_published:
            warnings.warn(copy.difference, stacklevel=2)
        return zoo.load(copy)
    if source.store is None:
        raise StoreError("these results are of a file, which holds no models; load their store")
    found = source.models[source.models["kind"] == "released"]
    for column, value in (("scenario", scenario), ("backbone", backbone), ("defense", defense)):
        if value is not None:
            if value not in (known := set(found[column])):
                raise StoreError(unknown(column, value, known))
            found = found[found[column] == value]
    found = found[(found["seed"] == (seed or 0)) & found["weights"].notna()]
    if len(found) != 1:
        raise StoreError(
            f"{len(found)} models of {defense} and seed {seed or 0}; say which scenario, backbone "
            f"and defense"
            if len(found)
            else f"no model of {defense} was made with seed {seed or 0}"
        )
    own = Store(source.store, reading=True)
    return zoo.model(found.iloc[0]["backbone"], own.weights(own.model(found.iloc[0]["key"])))


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What an audit says of one model.

    Attributes:
        kept: Whether it is non-fine-tunable; None where that cannot be told.
        words: The verdict in a few sentences.
        resistance: In [0, 1]; None where there is none.
        interval: Its 95 % interval; None for one seed.
        results: The records.
    """

    kept: bool | None
    words: str
    resistance: float | None
    interval: tuple[float, float] | None
    results: Results

    def meets(self, required: float) -> bool:
        """Whether resistance is at least ``required``, by the lower end of its interval.

        For one seed, which has no interval, by the value alone; never without a resistance.
        """
        low = self.resistance if self.interval is None else self.interval[0]
        return low is not None and low >= required


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedAudit:
    """An audit of a file that was looked at; nothing is trained yet.

    Attributes:
        job: Attacks on the file's model, the undefended one and random initialisation.
        title: The file with its SHA-256, and what tables call its model.
        notes: What an auditor has to know of the file.
    """

    job: runs.Job
    title: str
    notes: Sequence[str]

    def verdict(self, cells: Records) -> Verdict:
        """What the records of the job say of the model."""
        results = Results.of(cells, store=self.job.store.root)
        (row,) = (r for r in records(answers.scores(results, published())) if not r["control"])
        return Verdict(
            kept=audits.kept(row),
            words=audits.verdict(row),
            resistance=row["resistance"],
            interval=audits.bounds(row),
            results=results,
        )


def planned_audit(
    file: Path,
    attack: Sequence[str],
    *,
    sha256: str | None = None,
    prefix: str | None = None,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> PlannedAudit:
    """What an audit would do, with its file checked against the scenario and the backbone.

    Args:
        file: A safetensors file of a classifier's state dict, with a head for any classes, but at
            least as many as the original domain has.
        attack: Selectors of attacks and suites.
        sha256: What the file has to be.
        prefix: Of the model's names in the file, where it holds others too.
        classes: What the outputs of its head stand for, in order; None: the original domain's
            classes, or if there are more outputs than those, nothing that is known here.
        options: Of `runs.Options`, with one scenario and at most one backbone.
    """
    (scenario,), (backbone,) = options["scenario"], options["backbone"] or [BACKBONE]
    found, *more = runs.find_scenarios([scenario], options.get("image_size"))
    if more:
        raise PlanError(f"an audit is of one scenario, and {scenario!r} stands for {1 + len(more)}")
    if all(trial.entry.control for trial in arsenal(attacks, attack).trials):
        raise PlanError(
            f"--attack {' '.join(attack)} is a control, which attacks no released model; name an "
            f"attack, or a suite such as @standard"
        )
    content = weight_files.read(file, sha256=sha256)
    architecture = runs.find_backbone(backbone)
    if not isinstance(architecture, Backbone):
        raise BackboneError(f"an audit is of a timm model, and --backbone {backbone} is none")
    original = runs.build(found, Store(options["store"] or default_root()).data).original
    released = audited(content, architecture, original, prefix=prefix, classes=classes)
    if released.plugin.width != len(original.classes):
        backbone = architecture.with_head(released.plugin.width).label
    job = planned([released], attack, **{**options, "backbone": [backbone]})
    notes = inspect(content, released.plugin, setting_of(job.plan.models[0]), job.device)
    part = "" if prefix is None else f", prefix {dotted(prefix)!r}"
    title = f"{file}{part}, SHA-256 {content.sha256}, above as {released.label}"
    return PlannedAudit(job=job, title=title, notes=notes)


def audit(
    model: nn.Module | str | Path,
    *,
    backbone: str = BACKBONE,
    scenario: str = "glyphs-digits",
    attack: Several = "@standard",
    seeds: int | Sequence[int] = (0, 1, 2, 3, 4),
    samples: int | Sequence[int] = (),
    sha256: str | None = None,
    prefix: str | None = None,
    classes: Sequence[str] | None = None,
    plugin: Sequence[str | Path] = (),
    store: str | Path | None = None,
    **options: Any,
) -> Verdict:
    """Put a released model through a suite, as ``sophon-bench audit``.

    What there is to say of the file, such as an original accuracy no better than guessing, is
    warned of.

    Args:
        model: A classifier of the backbone with the head that it comes with, for at least as many
            classes as the original domain has, or a safetensors file of its state dict.
        backbone: A selector of timm's.
        scenario: A selector.
        attack: Selectors of attacks and suites.
        seeds: Of the attacks and controls.
        samples: As of `run`.
        sha256: What the file has to be.
        prefix: Of the model's names in the file, where it holds others too.
        classes: What the outputs of its head stand for, in order, by which those of the original
            domain are found; None: its classes, if there are as many, and otherwise original
            accuracy is not scored.
        plugin: As of `run`.
        store: As of `run`.
        options: As of `run`; ``weights`` are what the undefended model starts from.
    """
    chosen = {**_options(plugin, scenario, backbone, seeds, samples, store), **options}
    with _as_file(model) as file, _same_threads():
        found = planned_audit(
            file, _several(attack), sha256=sha256, prefix=prefix, classes=classes, **chosen
        )
        for words in found.notes:
            warnings.warn(words, stacklevel=2)
        return found.verdict(found.job.run())


@contextmanager
def _as_file(model: nn.Module | str | Path) -> Iterator[Path]:
    """A safetensors file of a module, while it is needed."""
    if not isinstance(model, nn.Module):
        yield Path(model)
        return
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="sophon-bench-") as folder:
        file = Path(folder) / "model.safetensors"
        state = model.state_dict().items()
        save_file({name: t.detach().cpu().clone().contiguous() for name, t in state}, file)
        yield file


@dataclass(frozen=True)
class Report:
    """How the checks of a plugin file went.

    Attributes:
        findings: One per check of each plugin.
    """

    findings: Sequence[Finding]

    @property
    def passed(self) -> bool:
        """Whether no check failed; warnings are none."""
        return not any(finding.outcome == "FAILED" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def check(
    plugin: str | Path,
    *,
    name: str | None = None,
    backbone: str = BACKBONE,
    show: Callable[[Finding], object] | None = None,
) -> Report:
    """Run the plugins of a file through the contract, as ``sophon-bench check``; executes it.

    Args:
        plugin: A Python file.
        name: Only this one of the file's plugins.
        backbone: A selector of the timm model to check with.
        show: Called with each finding as it comes.
    """
    architecture = runs.find_backbone(backbone)
    findings = []
    for finding in testing.check_file(Path(plugin), name=name, backbone=architecture):
        findings.append(finding)
        if show is not None:
            show(finding)
    return Report(findings)


def _several(selectors: Several) -> list[str]:
    return [selectors] if isinstance(selectors, str) else list(selectors)
