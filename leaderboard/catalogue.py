"""What can be run, in words for people: plugins, suites, studies, backbones."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

from sophon_bench.leaderboard.cards import Subject
from sophon_bench.leaderboard.studies import load_study, study_files
from sophon_bench.plugins.failures import BadInput
from sophon_bench.plugins.registry import Entry, Registry, attacks, defenses, scenarios, unknown
from sophon_bench.plugins.selectors import accepted, parse
from sophon_bench.plugins.suites import load_suite, suite_files

REGISTRIES: dict[str, Registry] = {
    "attacks": attacks,
    "defenses": defenses,
    "scenarios": scenarios,
}


def listing(kind: str) -> list[tuple[str, str]]:
    """Names of a kind, each with what it is in a line."""
    if kind == "backbones":
        from sophon_bench.execution.runs import list_backbones

        return [(name, "") for name in list_backbones()]
    if kind == "suites":
        suites = [load_suite(name) for name in sorted(suite_files())]
        return [(f"@{s.name}", f"v{s.version}: {s.description}") for s in suites]
    if kind == "studies":
        studies = [load_study(name) for name in study_files()]
        return [(study.name, f"v{study.version}: {study.question}") for study in studies]
    registry = REGISTRIES[kind]
    entries = [registry.get(name) for name in registry.names()]
    return [(e.name, e.summary.replace("``", "") + " (control)" * e.control) for e in entries]


def explained(
    name: str, image_size: int | None, images: Path | None, store: str | None
) -> Iterator[str]:
    """Lines about an attack, a defense, a scenario, a suite or a backbone.

    Args:
        name: A name or selector.
        image_size: Of a scenario; None: its own.
        images: Where to draw samples of a scenario, as PNG; None: nowhere.
        store: Where built scenarios are kept; None: in the user's cache directory.

    Raises:
        BadInput: If nothing has that name, or ``images`` cannot be drawn.
    """
    if name.startswith("@"):
        suite = load_suite(name[1:])
        yield f"@{suite.name}, version {suite.version}: {suite.description}"
        yield from (f"  {trial}" for trial in suite.trials)
        return
    bare = parse(name).name
    holders = {kind: r for kind, r in REGISTRIES.items() if bare in r.names()}
    if images is not None and "scenarios" not in holders:
        raise BadInput(f"--images draws scenarios; {name!r} is none (see 'list scenarios')")
    for kind, holder in holders.items():
        yield from _plugin(holder.get(bare))
        if kind == "scenarios":
            yield from _scenario(name, image_size, images, store)
    if not holders:
        yield from _backbone(name)


def _plugin(entry: Entry) -> Iterator[str]:
    yield f"{entry.kind} {entry.name}" + " (control)" * entry.control
    yield f"from {entry.distribution}, source {entry.source[:12]}\n"
    for cls in entry.cls.__mro__:
        if dataclasses.is_dataclass(cls):
            yield inspect.cleandoc(cls.__doc__ or "") + "\n"
    for field in dataclasses.fields(entry.cls):
        yield f"  {field.name} = {field.default!r}  ({accepted(entry.cls, field.name)})"
    for preset, text in presets_of(entry).items():
        yield f"  preset={preset}: {text}"
    for name, grid in entry.declared.tuning.items():
        yield f"  tuning {name}: {', '.join(map(str, grid))}"


def _scenario(
    name: str, image_size: int | None, images: Path | None, store: str | None
) -> Iterator[str]:
    from sophon_bench.data.sheet import contact_sheet
    from sophon_bench.execution.runs import build, find_scenarios
    from sophon_bench.results.store import Store, default_root

    (trial,) = find_scenarios([name], image_size)
    data = build(trial, Store(store or default_root()).data)
    yield f"\ndata revision {data.revision}, {data.image_size}x{data.image_size} pixels"
    for domain in data.domains:
        splits = ", ".join(f"{split} {len(i)}" for split, i in domain.splits.items())
        yield f"  {domain.name}: {len(domain.classes)} classes; {splits}"
    if images is not None:
        try:
            contact_sheet(data, images)
        except (OSError, ValueError) as error:
            raise BadInput(f"--images {str(images)!r} cannot be written: {error}") from error
        yield f"samples drawn to {images}"


def _backbone(name: str) -> Iterator[str]:
    import torch

    from sophon_bench.execution.runs import find_backbone, list_backbones

    bare = parse(name).name
    known = {*list_backbones(), *(n for r in REGISTRIES.values() for n in r.names())}
    if bare.split(".")[0] not in known:
        suites = [f"@{suite}" for suite in suite_files()]
        hint = "'sophon-bench list KIND' shows what there is"
        raise BadInput(unknown("name", bare, {*known, *suites}, otherwise=hint))
    backbone = find_backbone(name)
    outputs = 10 if backbone.task == "classification" else 3
    model = backbone.build(outputs, torch.Generator(), fresh=True)
    count = sum(p.numel() for p in model.parameters())
    yield (
        f"backbone {name}, for {backbone.task}: {count / 1e6:.2f} M parameters with {outputs} "
        f"outputs"
    )
    for path, block in model.blocks():
        size = sum(p.numel() for p in block.parameters())
        yield f"  {path}: {type(block).__name__}, {size / 1e6:.3f} M"


def subject_of(entry: Entry) -> Subject:
    """A defense, as its card and the page show it."""
    return Subject(
        name=entry.name,
        description=inspect.cleandoc(entry.cls.__doc__ or ""),
        reference=entry.reference,
        claim=entry.declared.claim,
        source=entry.source,
        hyperparameters={f.name: repr(f.default) for f in dataclasses.fields(entry.cls)},
        presets=presets_of(entry),
    )


def subjects() -> list[Subject]:
    """Every defense that can be run."""
    return [subject_of(defenses.get(name)) for name in defenses.names()]


def presets_of(entry: Entry) -> dict[str, str]:
    """A plugin's presets in words, by name."""
    return {
        name: ", ".join(f"{k}={v}" for k, v in values.items()) or "the defaults"
        for name, values in entry.declared.presets.items()
    }
