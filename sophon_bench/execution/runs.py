"""One path from words to records, for every command that makes some."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from sophon_bench import protocol
from sophon_bench.api import Generative
from sophon_bench.data import checking
from sophon_bench.data.scenario import ScenarioData, ScenarioError
from sophon_bench.execution.engine import LocalEngine
from sophon_bench.execution.executors import AUTO, Limits, executors
from sophon_bench.execution.loggers import opened
from sophon_bench.execution.plan import (
    Plan,
    PlanError,
    Request,
    Setting,
    make_plan,
    plan_again,
)
from sophon_bench.execution.progress import reporter
from sophon_bench.models import inception, unets
from sophon_bench.models.architecture import Architecture, BackboneError, Compile, Precision
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.backbones import list_backbones as timm_names
from sophon_bench.plugins.declared import Declared
from sophon_bench.plugins.failures import first_line, sentence
from sophon_bench.plugins.registry import Registry, unknown
from sophon_bench.plugins.registry import attacks as all_attacks
from sophon_bench.plugins.registry import defenses as all_defenses
from sophon_bench.plugins.registry import scenarios as all_scenarios
from sophon_bench.plugins.selectors import (
    Trial,
    construct,
    format_selector,
    parse,
    scalar,
    vary,
)
from sophon_bench.plugins.suites import Arsenal, trials
from sophon_bench.results.files import WriteError
from sophon_bench.results.records import Cell, DataId, ModelRecord, PluginId, Records
from sophon_bench.results.store import Store, default_root

DEFAULT_BACKBONES = {"classification": "test_resnet", "denoising": "unet"}
"""What is taken where no backbone is named, by task."""

AT_ONCE = 32
"""Trials at most that train at once on a GPU, unless said otherwise; on the CPU it does not pay."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where and how to run, in the words of the command line.

    Attributes:
        scenario: Selectors.
        backbone: Selectors; empty: the one of `DEFAULT_BACKBONES`.
        weights: What models start from: ``timm``, ``random`` or a file; None: what the backbone
            says, which is random weights unless it has ``pretrained=true``.
        samples: The attacker's n; empty: the middle one of the scenario's.
        seeds: Of data, pre-training, defense and attack.
        steps: Longest budget in updates of 64 examples; None: the scenario's.
        image_size: In pixels; None: the scenario's.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``.
        precision: Of forward and backward passes.
        compiled: How models are compiled.
        executor: Where stages are done, one of `executors.executors`, or ``auto``: in this process
            for one worker, else in several.
        address: Of a Ray cluster; None: one is started on this machine.
        workers: Stages that are under way at once; None: one, and on Ray as many as fit there.
        threads: CPU threads of each; None: all of them, shared out; on Ray, one.
        together: Trials at most that train at once; None: as many as pay on the device, and one
            with a limit.
        cell_timeout: Seconds that a cell or the making of a model may take; None: any.
        cell_memory: GiB of memory that its process may hold; None: any.
        plugin: Files that were loaded, for the processes to load too.
        store: Where finished work is and goes, a directory or a URL; None: in the user's cache.
        retry_failed: Whether to do failed cells and models again.
        log: Names of loggers that are told of every record.
        quiet: Show no progress.
        verbose: Name stages that the store had as well.
        command: What gives the same numbers again, for the run's manifest.
    """

    scenario: Sequence[str] = ()
    backbone: Sequence[str] = ()
    weights: str | Path | None = None
    samples: Sequence[int] = ()
    seeds: Sequence[int] = ()
    steps: int | None = None
    image_size: int | None = None
    device: str = "auto"
    precision: Precision = "fp32"
    compiled: Compile = "off"
    executor: str = AUTO
    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    together: int | None = None
    cell_timeout: float | None = None
    cell_memory: float | None = None
    plugin: Sequence[Path] = ()
    store: str | Path | None = None
    retry_failed: bool = False
    log: Sequence[str] = ()
    quiet: bool = False
    verbose: bool = False
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A plan, and what it will run on."""

    plan: Plan
    store: Store
    device: torch.device
    threads: int
    options: Options

    @contextlib.contextmanager
    def engine(self) -> Iterator[LocalEngine]:
        """An engine for the plan, with progress shown while the context is open."""
        quiet, verbose = self.options.quiet, self.options.verbose
        limits = Limits(seconds=self.options.cell_timeout, gib=self.options.cell_memory)
        by_default = AT_ONCE if self.device.type == "cuda" and not limits else 1
        with reporter(self.plan.stages, quiet=quiet, verbose=verbose) as progress:
            yield LocalEngine(
                self.store,
                self.device,
                progress,
                retry_failed=self.options.retry_failed,
                executor=self.options.executor,
                address=self.options.address,
                workers=self.options.workers,
                threads=self.threads,
                plugins=self.options.plugin,
                compiled=self.options.compiled,
                together=self.options.together or by_default,
                limits=limits,
                command=self.options.command,
            )

    def run(self) -> Records:
        """Do what the store does not have; all cells of the plan."""
        name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
        with self.engine() as engine, opened(self.options.log, name) as engine.loggers:
            return engine.run(self.plan)


def prepare(options: Options, *, defenses: Sequence[Trial], attacks: Arsenal) -> Job:
    """Cross defenses with attacks. Nothing is trained yet; torch's threads are set.

    Raises:
        PlanError: For a device that is not there, or what `make_plan` refuses.
        SelectorError: For a scenario's malformed selector, or a value that it does not take.
        UnknownName: For a scenario that is not registered.
        ScenarioError: If `build` refuses a scenario, or Inception's weights are not what they
            should be.
        BackboneError: For a backbone that there is not, or that does not take the images or the
            weights.
        StoreError: If the store cannot be used, or the file of weights.
    """
    place, threads, store = _where(options)
    settings = find_settings(
        options.scenario,
        options.backbone,
        weights=options.weights,
        image_size=options.image_size,
        precision=options.precision,
        cache=store.data,
    )
    request = Request(
        defenses=defenses,
        attacks=attacks,
        seeds=options.seeds,
        samples=options.samples,
        steps=options.steps,
    )
    plan = make_plan(request, settings)
    return Job(plan=plan, store=store, device=place, threads=threads, options=options)


def _where(options: Options) -> tuple[torch.device, int, Store]:
    """Device, CPU threads of each process, and store; sets this process's threads."""
    for what, name, known in (
        ("executor", options.executor, (AUTO, *executors())),
        ("precision", options.precision, get_args(Precision)),
        ("mode of torch.compile", options.compiled, get_args(Compile)),
    ):
        if name not in known:
            raise PlanError(unknown(what, name, known))
    if options.address is not None and options.executor != "ray":
        raise PlanError("--address names a Ray cluster; add --executor ray")
    if (options.cell_timeout or options.cell_memory) and (options.together or 1) > 1:
        raise PlanError(
            "--cell-timeout and --cell-memory limit one cell at a time; leave --together out"
        )
    place = find_device(options.device)
    sharing = options.workers or (torch.get_num_threads() if options.executor == "ray" else 1)
    threads = options.threads or max(1, torch.get_num_threads() // sharing)
    torch.set_num_threads(threads)
    return place, threads, Store(options.store or default_root())


def again(records: Records, options: Options) -> Job:
    """Exactly these cells once more, of the plugins and data that are installed.

    What decides a cell (scenario, backbone, precision, n, seed, budget) is read from it; those
    ``options`` are not looked at, but for a file of weights where the record has its hash.
    Nothing is trained yet; torch's threads are set.

    Raises:
        PlanError: For a device that is not there, or a cell that the installed version would not
            make: a plugin, the data or the protocol is another one. Says which.
        SelectorError: For hyperparameters that a plugin does not take.
        UnknownName: For a plugin that is not registered.
        BackboneError: For a backbone that there is not.
        StoreError: If the store cannot be used.
    """
    place, threads, store = _where(options)
    find = functools.cache(
        functools.partial(find_setting, weights=options.weights, cache=store.data)
    )
    parts = []
    for cell in records.cells:
        model = records.model(cell)
        setting = find(_selector(model.scenario), model.backbone, model.precision)
        defense = _trial(all_defenses, records.defense(cell))
        parts.append((cell, model, setting, defense, _trial(all_attacks, cell.attack)))
    plan = plan_again(parts)
    for part, stage in zip(parts, plan.cells, strict=True):
        if part[0].key != stage.key:
            raise PlanError(_changed(*part))
    return Job(plan=plan, store=store, device=place, threads=threads, options=options)


def _selector(scenario: DataId) -> str:
    return format_selector(scenario.name, scenario.parameters)


def find_setting(
    scenario: str,
    backbone: str,
    precision: str,
    *,
    weights: str | Path | None = None,
    cache: Path,
) -> Setting:
    """One scenario under one backbone of a record; raises as `find_settings`.

    Args:
        weights: The file that the backbone starts from, where its label says that it is one.
    """
    bits: Precision = "bf16" if precision == "bf16" else "fp32"
    architecture = find_backbone(backbone)
    from_file = isinstance(architecture, Backbone) and architecture.weights is not None
    (found,) = find_settings(
        [scenario],
        [backbone],
        weights=weights if from_file else None,
        image_size=None,
        precision=bits,
        cache=cache,
    )
    return found


def _trial(registry: Registry, plugin: PluginId) -> Trial:
    entry = registry.get(plugin.name)
    return Trial(entry, construct(entry, plugin.parameters))


def _changed(
    cell: Cell, model: ModelRecord, setting: Setting, defense: Trial, attack: Trial
) -> str:
    """In words, why the installed version would not make a cell."""
    was = model.defense
    assert was is not None
    pairs = [
        ("data revision", model.scenario.revision[:12], setting.data_id.revision[:12]),
        (
            "protocol",
            f"{cell.protocol} ({cell.protocol_digest})",
            f"{protocol.VERSION} ({protocol.digest()})",
        ),
        *(
            (f"{kind} {was.label}, source", was.source[:12], now.entry.source[:12])
            for kind, was, now in (("defense", was, defense), ("attack", cell.attack, attack))
        ),
        ("parameters of the defense", was.parameters, defense.parameters),
        ("parameters of the attack", cell.attack.parameters, attack.parameters),
        ("defense from", was.distribution, defense.entry.distribution),
        ("attack from", cell.attack.distribution, attack.entry.distribution),
    ]
    found = [f"{what} is {now}, the record has {was}" for what, was, now in pairs if was != now]
    return f"not comparable: {cell.attack.label} against {was.label}, seed {model.seed}: " + (
        "; ".join(found) or "the scenario, the backbone or pre-training is another version"
    )


def find_device(text: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        PlanError: If there is no such device.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"(cpu|cuda)(?::(0|[1-9][0-9]*))?", text)
    if match is None:
        raise PlanError(f"--device takes auto, cpu, cuda or cuda:INDEX; got {text!r}")
    kind, index = match.groups()
    if kind == "cpu" and index is not None:
        raise PlanError(f"--device takes no index for the CPU; got {text!r}, try --device cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise PlanError(f"--device {text}: torch finds {count} CUDA devices; try --device cpu")
    return torch.device(text)


def find_settings(
    scenarios: Sequence[str],
    backbones: Sequence[str],
    *,
    weights: str | Path | None = None,
    image_size: int | None,
    precision: Precision,
    cache: Path,
) -> list[Setting]:
    """Every scenario under every backbone, its data built or found in ``cache``.

    Raises:
        SelectorError: For a malformed selector, or a value that the scenario does not take.
        UnknownName: For a scenario that is not registered.
        ScenarioError: If `build` refuses a scenario, or Inception's weights are not what they
            should be.
        BackboneError: For a backbone that there is not, that is for another task, or does not take
            the images or the weights.
        CheckpointError: For a file of weights that is none of the backbone's.
        WriteError: If ``cache`` cannot be written.
    """
    found = []
    for scenario in find_scenarios(scenarios, image_size):
        chosen = [find_backbone(text, weights) for text in backbones]
        data = build(scenario, cache)
        task = data.original.task.name
        if isinstance(data.restricted.task, Generative):
            inception.weights()
        recorded = vary(scenario, Declared.of(scenario.plugin).recorded)
        identity = DataId(
            name=scenario.name,
            label=recorded.label,
            parameters=recorded.parameters,
            revision=data.revision,
        )
        for backbone in chosen or [find_backbone(DEFAULT_BACKBONES[task], weights)]:
            if backbone.task != task:
                raise BackboneError(
                    f"backbone {backbone.label!r} is for {backbone.task}, and scenario "
                    f"{scenario.label!r} is a task of {task}; leave --backbone out, or try "
                    f"{DEFAULT_BACKBONES[task]!r}"
                )
            backbone.check(data.image_size, data.original.task.num_outputs)
            found.append(Setting(scenario, data, identity, backbone, precision))
    return found


def build(scenario: Trial, cache: Path | None) -> ScenarioData:
    """What a scenario builds, or has kept in ``cache``, after a look at all of it.

    Raises:
        ScenarioError: If its data is not here, if building it fails, or if what it builds is not
            what the harness needs; one line.
        WriteError: If ``cache`` cannot be written.
    """
    name = f"scenario {scenario.label}"
    try:
        data: ScenarioData = scenario.plugin.build(cache)
        found = [words for _, words in checking.problems(data)]
    except ScenarioError as error:
        raise ScenarioError(first_line(error)) from error
    # sys.exit in a plugin is no reason to leave without a word
    except (Exception, SystemExit) as error:
        if isinstance(error, WriteError) or getattr(error, "errno", None) in UNWRITABLE:
            raise
        file = Path(str(getattr(sys.modules.get(scenario.entry.cls.__module__), "__file__", "")))
        words = sentence(error, lambda other: other.resolve() == file.resolve())
        raise ScenarioError(f"{name} cannot be built: {words}") from error
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ScenarioError(f"{name}: {found[0]}{more}")
    return data


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says where no more can be written, whoever writes."""


def find_scenarios(selectors: Sequence[str], image_size: int | None) -> list[Trial]:
    """The scenarios that ``selectors`` stand for, at another size of images if one is given.

    Raises:
        SelectorError: For a malformed selector, or a value that the scenario does not take.
        UnknownName: For a name that is not registered.
    """
    found = trials(all_scenarios, selectors)
    if image_size is None:
        return found
    return [dataclasses.replace(trial, plugin=_sized(trial, image_size)) for trial in found]


def _sized(trial: Trial, image_size: int) -> Any:
    return construct(trial.entry, {**trial.parameters, "image_size": image_size})


def list_backbones() -> list[str]:
    """All names of timm, and the denoising U-Net's."""
    return [*timm_names(), unets.NAME]


def find_backbone(text: str, weights: str | Path | None = None) -> Architecture:
    """The backbone that a selector stands for.

    Args:
        weights: What it starts from: ``timm``, ``random`` or a file; None: what the selector says.

    Raises:
        SelectorError: For a malformed selector.
        BackboneError: If there is none of that name, or weights are not for it.
        CheckpointError: If weights are a file that is not there, or holds none.
    """
    selector = parse(text)
    parameters = {k: scalar(v) for k, v in selector.parameters.items()}
    if selector.name != unets.NAME:
        backbone = Backbone.of(selector.name, parameters)
        return backbone if weights is None else backbone.starting_from(weights)
    if weights not in (None, "random"):
        raise BackboneError(
            f"--weights {weights}: backbone {text!r} starts from random weights alone; leave "
            f"--weights out"
        )
    return unets.UNet.of(parameters)
