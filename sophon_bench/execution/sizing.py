"""What attacking and protecting take on backbones of any size, computed, and measured if it fits.

Both are counted on one update each, written out here, of `BATCH` images per pass: an attack's is a
step of Adam over all weights; a defense's is SOPHON's of first order, a simulated fine-tuning of
`INNER` steps with a judging pass after each, then a reinforcement step, two Adams in all.

Memory is computed by running the update on tensors without numbers and following which of them are
alive; of a simulated fine-tuning one step, since memory does not grow with their number. That takes
torch's fake tensors and dispatch modes, which are not public: they are used in this module alone.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sophon_bench.harness.meter import PeakMemory, flop_counter, synchronize
from sophon_bench.models.architecture import Precision
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.skeleton import skeleton
from sophon_bench.models.timm_models import TimmModel

BATCH = 64
"""Images per pass."""

INNER = 5
"""Steps of a simulated fine-tuning."""

CLASSES = 10

PATIENCE = 60.0
"""Seconds that an update may be expected to take if it is to be measured."""

TIMED = 2
"""Updates that are timed, after one to warm up."""

PASSES = {"attack": 1, "protect": 2 * INNER + 1}
"""Forward and backward passes on `BATCH` images in an update."""

Make = Callable[[], TimmModel]
Update = Callable[[Make, Tensor, Tensor], Iterator[None]]


def _adam(model: TimmModel) -> torch.optim.Adam:
    """Adam with its state allocated: one step without a gradient, which moves nothing."""
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def attack(make: Make, inputs: Tensor, targets: Tensor) -> Iterator[None]:
    """Fine-tuning with Adam; yields once before the first update, and after each."""
    model = make()
    optimizer = _adam(model)
    yield
    while True:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        yield


def protect(make: Make, inputs: Tensor, targets: Tensor, *, inner: int) -> Iterator[None]:
    """SOPHON; yields once before the first update, and after each suppression and reinforcement.

    Args:
        make: Makes the model, and one to simulate with.
        inputs: ``(B, 3, H, W)`` images of every pass.
        targets: ``(B,)`` their classes.
        inner: Steps of a simulated fine-tuning.
    """
    model, learner = make(), make()
    suppression, reinforcement = _adam(model), _adam(model)
    own: list[Tensor] = [*learner.parameters()]
    yield
    while True:
        with torch.no_grad():
            torch._foreach_copy_(own, [*model.parameters()])
        descent = torch.optim.SGD(own, lr=1e-4)
        total = [torch.zeros_like(p) for p in own]
        for _ in range(inner):
            descent.zero_grad()
            cross_entropy(learner(inputs), targets).backward()
            descent.step()
            judged = -cross_entropy(learner(inputs), targets) / inner
            torch._foreach_add_(total, torch.autograd.grad(judged, own, materialize_grads=True))
        for parameter, gradient in zip(model.parameters(), total, strict=True):
            parameter.grad = gradient
        suppression.step()
        reinforcement.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        reinforcement.step()
        yield


def updates(inner: int) -> dict[str, Update]:
    """Both by name, with so many steps of a simulated fine-tuning."""
    return {"attack": attack, "protect": partial(protect, inner=inner)}


VARIANTS: Mapping[str, tuple[Precision, bool]] = {
    "fp32": ("fp32", False),
    "bf16": ("bf16", False),
    "bf16, checkpointed": ("bf16", True),
}
"""Precision, and whether timm's gradient checkpointing is on."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one backbone takes.

    Attributes:
        backbone: Its selector.
        image_size: In pixels.
        parameters: Their number.
        flops: Of one unit, a forward and a backward pass on one image.
        computed: Peak bytes by update and variant; None where timm cannot checkpoint it.
        seconds: Of an update, by its name: measured, or FLOPs by the rate of what was measured.
        resident: Measured peak bytes by update, in fp32, above what the process had before.
        measured: Whether it was; else seconds are computed.
    """

    backbone: str
    image_size: int
    parameters: int
    flops: float
    computed: Mapping[str, Mapping[str, int | None]]
    seconds: Mapping[str, float] = field(default_factory=dict)
    resident: Mapping[str, int | None] = field(default_factory=dict)
    measured: bool = False


def computed(backbone: Backbone, image_size: int) -> Size:
    """The size of a backbone, computed; nothing as large as the model is allocated.

    Raises:
        BackboneError: If it cannot be built.
    """
    model = skeleton(backbone, CLASSES)
    with FakeTensorMode(), flop_counter() as counter:
        _on_cpu(model)(torch.empty(2, 3, image_size, image_size)).sum().backward()
    peaks = {
        name: {how: peak(backbone, image_size, update, *of) for how, of in VARIANTS.items()}
        for name, update in updates(inner=1).items()
    }
    return Size(
        backbone=backbone.label,
        image_size=image_size,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=counter.get_total_flops() / 2,
        computed=peaks,
    )


def peak(
    backbone: Backbone, image_size: int, update: Update, precision: Precision, checkpointed: bool
) -> int | None:
    """Peak bytes of an update, on tensors without numbers."""
    skeletons = [skeleton(backbone, CLASSES, precision=precision) for _ in range(2)]
    if checkpointed and not all(map(_checkpoint, skeletons)):
        return None
    with FakeTensorMode(), Alive() as alive:
        run = update(lambda: _on_cpu(skeletons.pop()), *_batch(image_size, torch.device("cpu")))
        for _ in range(2):  # what an update needs, and the update
            next(run)
    most: int = alive.peak
    return most


def _on_cpu(model: TimmModel) -> TimmModel:
    """The model with tensors of the CPU in place of those of the meta device.

    Autocast does not know the meta device; under fake tensors these are as small.
    """
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return model


def _checkpoint(model: TimmModel) -> bool:
    """Switch timm's gradient checkpointing on; False where the architecture has none."""
    try:
        model.body.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError):
        return False
    return True


def _batch(image_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    inputs = torch.zeros(BATCH, 3, image_size, image_size, device=device)
    return inputs, torch.zeros(BATCH, dtype=torch.long, device=device)


class Alive(TorchDispatchMode):
    """Follows the storages that operations make: how many bytes are alive, and the most that were.

    Attributes:
        peak: In bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._bytes = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once and until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self._bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_iter(made):
            if isinstance(each, Tensor):
                self.add(each)
        return made


def measured(size: Size, backbone: Backbone, device: torch.device) -> Size:
    """The same with what its updates take on a device, in fp32, with random weights."""

    def make() -> TimmModel:
        model = backbone.bare.build(CLASSES, torch.Generator()).to(device)
        moved: TimmModel = model.to(memory_format=torch.channels_last)
        return moved

    seconds, resident = {}, {}
    for name, update in updates(INNER).items():
        before = _held(device)
        with PeakMemory(device) as most:
            run = update(make, *_batch(size.image_size, device))
            for _ in range(2):  # what an update needs, and one to warm up
                next(run)
            synchronize(device)
            begin = time.perf_counter()
            for _ in range(TIMED):
                next(run)
            synchronize(device)
            seconds[name] = (time.perf_counter() - begin) / TIMED
        del run
        resident[name] = None if most.bytes is None else most.bytes - before
    return replace(size, seconds=seconds, resident=resident, measured=True)


def _held(device: torch.device) -> int:
    """Bytes that are held now."""
    with PeakMemory(device) as now:
        pass
    return now.bytes or 0


def sizes(
    backbones: Sequence[Backbone],
    image_size: int,
    device: torch.device,
    *,
    free: int,
    tick: Callable[[str], None],
) -> list[Size]:
    """Sizes of backbones, by FLOPs: measured where they fit, computed elsewhere.

    Smaller ones go first. One is measured while the memory of its protection in fp32 is at most
    half of ``free`` bytes, and its update, by the rate so far, takes at most `PATIENCE` seconds.

    Args:
        backbones: What to look at.
        image_size: In pixels.
        device: Where to measure.
        free: Bytes that the device has free.
        tick: Told in words what begins.

    Raises:
        BackboneError: If one cannot be built.
    """
    found = []
    for backbone in backbones:
        tick(f"computing {backbone.label}")
        found.append((computed(backbone, image_size), backbone))
    found.sort(key=lambda pair: pair[0].flops)
    told: list[Size] = []
    rates: list[float] = []
    for size, backbone in found:
        flops = {name: passes * BATCH * size.flops for name, passes in PASSES.items()}
        rate = statistics.median(rates) if rates else float("inf")
        needed = size.computed["protect"]["fp32"]
        fits = needed is not None and 2 * needed <= free
        if fits and flops["protect"] / rate <= PATIENCE:
            tick(f"measuring {backbone.label}")
            size = measured(size, backbone, device)
            rates += [flops[name] / size.seconds[name] for name in flops]
        told.append(size)
    return [size if size.measured or not rates else _expected(size, rates) for size in told]


def _expected(size: Size, rates: Sequence[float]) -> Size:
    """The same with seconds of updates by the rate, in FLOP/s, of what was measured."""
    rate = statistics.median(rates)
    return replace(size, seconds={n: PASSES[n] * BATCH * size.flops / rate for n in PASSES})
