"""Samples kept as pixels: the same batches whichever way a set is kept, and no wait for them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sophon_bench.api import AttackView, Batch, Incompatible, Samples
from sophon_bench.data import samples
from sophon_bench.data.samples import Pixels, Streamed
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.loop import Made
from sophon_bench.harness.meter import CountedSamples, Meter, WatchedTask
from sophon_bench.models.backbones import Backbone
from sophon_bench.plugins import registry

CPU = torch.device("cpu")
BACKBONE = Backbone.of("test_resnet")
COUNT = 23

Kept = Callable[..., Samples]


@pytest.fixture
def pixels(tmp_path: Path) -> Tensor:
    """Images in a file that is mapped into memory, as of a set that has no room elsewhere."""
    array = np.lib.format.open_memmap(
        tmp_path / "pixels.npy", mode="w+", dtype=np.uint8, shape=(COUNT, 3, 8, 8)
    )
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape)
    return torch.from_numpy(array)


def scaled(pixels: Tensor) -> Samples:
    return Samples(BACKBONE.normalize(pixels), torch.arange(len(pixels)))


def held(kind: type[Pixels], pixels: Tensor) -> Pixels:
    return kind(pixels, torch.arange(len(pixels)), BACKBONE.normalize, device=CPU)


def first(found: Iterator[Batch], count: int) -> list[Batch]:
    return [next(found) for _ in range(count)]


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("kind", [Pixels, Streamed])
@pytest.mark.parametrize("size", [1, 5, COUNT])
def test_batches_and_draws_are_those_of_scaled_images(
    kind: type[Pixels], size: int, small: int, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SMALL", small)
    rngs = [torch.Generator().manual_seed(3) for _ in range(2)]
    kept = (scaled(pixels), held(kind, pixels))
    runs = [s.batches(size, rng) for s, rng in zip(kept, rngs, strict=True)]
    for _ in range(3 * COUNT // size + 2):
        assert same(*(next(run) for run in runs))
        # an attack may draw from the same generator between two batches
        assert torch.equal(*(torch.rand(2, generator=rng) for rng in rngs))


@pytest.mark.parametrize("kind", [Pixels, Streamed])
def test_examples_by_slice_or_indices(kind: type[Pixels], pixels: Tensor) -> None:
    plain, kept = scaled(pixels), held(kind, pixels)
    for index in (slice(3, 9), slice(20, 99), torch.tensor([4, 4, 0])):
        assert same(plain[index], kept[index])
    assert torch.equal(plain.inputs, kept.inputs)
    assert kept.inputs.is_contiguous(memory_format=torch.channels_last)
    assert len(kept) == COUNT


def test_a_copy_may_be_written_over(pixels: Tensor) -> None:
    kept = held(Pixels, pixels)
    copy = kept.copy()
    copy.inputs.zero_()
    copy.targets.zero_()
    assert same(kept[:5], scaled(pixels)[:5])


def test_a_stream_ends_with_its_reader(pixels: Tensor) -> None:
    import threading

    before = threading.active_count()
    stream = held(Streamed, pixels).batches(4, torch.Generator())
    next(stream)
    assert threading.active_count() > before
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(("room", "kind"), [(None, Pixels), (0, Streamed)])
def test_what_has_no_room_on_the_device_is_streamed(
    room: int | None, kind: type[Pixels], bench: Bench
) -> None:
    data = bench.data
    other = Bench(data, bench.backbone, device=CPU, precision="fp32", room=room)
    assert type(other.samples(data.original, "train")) is kind
    ways = [b.attacker(data.restricted, 20, 0)[0] for b in (bench, other)]
    runs = [first(way.batches(8, torch.Generator()), 5) for way in ways]
    assert all(same(*pair) for pair in zip(*runs, strict=True))


HOST = {"seeded_from", "_get_value"}
"""Functions that look at numbers which are the host's whatever the device: seeds, Adam's steps."""


class _NoWait(TorchDispatchMode):
    """Refuses what a GPU would have to be waited for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        waits = "local_scalar_dense" in name or "nonzero" in name or "aten.equal" in name
        if waits and not HOST & {frame.name for frame in traceback.extract_stack()}:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def no_wait() -> TorchDispatchMode:
    return _NoWait()


def test_the_refusal_refuses() -> None:
    with no_wait(), pytest.raises(AssertionError, match="waits for the device"):
        float(torch.ones(()))


def waits(bench: Bench, made: Made, name: str) -> str | None:
    """What of three updates, after two to begin with, waits for the device."""
    entry = registry.attacks.get(name)
    train, validation = bench.attacker(bench.data.restricted, 40, 0)
    view = AttackView(
        task=WatchedTask(bench.data.restricted.task),
        train=CountedSamples(train),
        validation=validation,
        auxiliary=bench.auxiliary(),
        new_model=lambda: bench.new_model(torch.Generator()),
        device=bench.device,
        rng=torch.Generator(),
    )
    meter = Meter(bench.profile, bench.device)
    run = meter.drive(entry.cls().run(meter.watch(bench.load(made.weights)), view))
    next(run), next(run)
    try:
        with no_wait():
            for _ in range(3):
                next(run)
    except AssertionError as error:
        return str(error)
    return None


PEFT_WAITS = {"adalora", "loha", "lokr"}
"""peft looks at numbers of its own in every forward pass or update of these."""

GRADIENT = [
    pytest.param(name, marks=[pytest.mark.xfail(strict=True)] if name in PEFT_WAITS else [])
    for name in registry.attacks.names()
    if registry.attacks.get(name).mechanism == "gradient"
]


@pytest.mark.parametrize("name", GRADIENT)
def test_no_update_waits_for_the_device(name: str, bench: Bench, pretrained: Made) -> None:
    try:
        assert waits(bench, pretrained, name) is None
    except Incompatible as error:
        pytest.skip(str(error))
