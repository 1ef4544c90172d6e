"""Seconds, FLOPs, peak memory, examples drawn: what a plugin spends between two yields.

Passes are counted by light hooks on the leaf modules of every model that is handed out (and of
every deep copy of one): a forward pass of the whole backbone on one example is 1/3 unit, forward
and backward together one unit. A gradient is waited for where the body ends, once for all layers
that it can reach, or at a layer that is called by itself. Where the model in use differs from the
backbone, or work happens outside its leaves, or a loss is taken inside the body alone, the count is
converted by the FLOPs of sampled steps, which are measured exactly with torch's `FlopCounterMode`,
outside the clock. A step is converted as the last sampled one that counted as much, or else as the
last sampled one. Sampled are the Fibonacci numbers: log-spaced, and in step with no cycle of a
plugin's that has several kinds of update.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from sophon_bench.api import Batch, Model, Predictor, Samples, Task
from sophon_bench.harness.honesty import Uncounted
from sophon_bench.protocol import SAME_MODEL
from sophon_bench.results.records import Cost
from sophon_bench.seeding import forked

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flop_counter() -> FlopCounterMode:
    """Torch's counter, with the backward pass of a convolution counted right.

    torch's own formula for it leaves out ``groups`` and so charges a depthwise convolution many
    times over; each of the two products of the backward pass takes what the forward pass takes.
    """
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution_backward(
    grad_out: Any, inputs: Any, weight: Any, *rest: Any, **_named: Any
) -> int:
    transposed, output_mask = rest[4], rest[7]
    forward = conv_flop_count(inputs, weight, grad_out, transposed=transposed)
    return int(forward * (output_mask[0] + output_mask[1]))


@dataclass(frozen=True)
class Profile:
    """What one unit of the undefended backbone costs.

    Attributes:
        flops_per_unit: FLOPs of forward and backward on one example.
        charges: Units per output element of a forward call, by name of the leaf module.
    """

    flops_per_unit: float
    charges: Mapping[str, float]


BODY, PASSED = "body.", "passed"
"""Names in a backbone: of what is compiled, and of the module that its outputs pass through."""


def profile(model: Model, inputs: Tensor, *, whole: bool = False) -> Profile:
    """Measure the FLOPs of ``model`` on ``inputs`` ``(B, C, H, W)``, B at least 2.

    Works on a copy: the model, its buffers and the global random state are left alone.

    Args:
        whole: Charge the whole body at once, since its modules are not called one by one.
    """
    model = copy.deepcopy(model).train()
    flops: dict[str, int] = {}
    elements: dict[str, int] = {}
    with forked(inputs.device), flop_counter() as all:
        before = [0]

        def enter(_module: nn.Module, _arguments: Any) -> None:
            before[0] = all.get_total_flops()

        def leave(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    flops[name] = flops.get(name, 0) + all.get_total_flops() - before[0]
                    elements[name] = elements.get(name, 0) + output.numel()

            return hook

        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                module.register_forward_pre_hook(enter)
                module.register_forward_hook(leave(name))
        model(inputs).float().square().mean().backward()
        total = all.get_total_flops()
    if whole:
        flops[PASSED] = sum(flops.pop(name) for name in [*flops] if name.startswith(BODY))
    forward = sum(flops.values())
    charges = {n: f / (3 * forward) * len(inputs) / elements[n] for n, f in flops.items() if f}
    return Profile(flops_per_unit=total / len(inputs), charges=charges)


class Meter:
    """Drives a plugin's generator and counts what it costs.

    Args:
        profile: Of the undefended backbone.
        device: Where the plugin works.
        together: Trials that the plugin runs at once; what is told is the share of one.
    """

    def __init__(self, profile: Profile, device: torch.device, *, together: int = 1) -> None:
        self.profile = profile
        self.device = device
        self.together = together
        self.units = 0.0
        self.steps = 0
        self._recent: deque[float] = deque(maxlen=2)
        self.note: str | None = None
        self._counter = _Counter()
        self._ratio = 1.0
        self._ratios: dict[int, float] = {}
        self._flat = 0.0
        self._timed_steps = 0
        self._timed_seconds = 0.0
        self._sampled_seconds = 0.0

    def watch(self, model: Model) -> Model:
        """Count the passes of ``model`` and of its deep copies from now on."""
        for name, module in model.named_modules():
            if name in self.profile.charges:
                module.register_forward_hook(_hook(self._counter, self.profile.charges[name]))
        if any(name.startswith(BODY) for name in self.profile.charges):
            body = model.get_submodule(BODY.removesuffix("."))
            body.register_forward_pre_hook(_enter(self._counter))
            body.register_forward_hook(_leave(self._counter), always_call=True)
        return model

    def drive(self, steps: Iterator[T]) -> Iterator[T]:
        """Yield what ``steps`` yields; the clock and the counters run only inside its ``next``.

        Steps 1, 2, 3, 5, 8, … are sampled for their exact FLOPs and left out of the clock; step 1
        is the warm-up too. What the generator returns becomes ``note``.
        """
        fibonacci = (1, 2)
        while True:
            sampled = self.steps + 1 == fibonacci[0]
            if sampled:
                fibonacci = (fibonacci[1], sum(fibonacci))
            self._counter.clear()
            flops = flop_counter() if sampled else None
            if sampled:
                self.settle()
            begin = time.perf_counter()
            try:
                with flops or contextlib.nullcontext():
                    item = next(steps)
            except StopIteration as stop:
                self.note = stop.value if isinstance(stop.value, str) else None
                return
            if flops is not None:
                synchronize(self.device)
                self._sampled_seconds += time.perf_counter() - begin
                units = flops.get_total_flops() / self.profile.flops_per_unit
                self._calibrate(units)
            else:
                self._timed_seconds += time.perf_counter() - begin
                self._timed_steps += 1
            counted = self._counter.units
            ratio = self._ratios.get(round(counted), self._ratio)
            self._recent.append(max(1.0, counted * ratio if counted else self._flat))
            self.units += self._recent[-1]
            self.steps += 1
            yield item

    def _calibrate(self, units: float) -> None:
        """See what one trial's share of an update of ``units`` is: shared passes it would make."""
        counted, shared = self._counter.units, self._counter.shared
        alone = shared + (units - shared) / self.together
        if counted:
            ratio = alone / counted
            self._ratio = 1.0 if abs(ratio - 1) <= SAME_MODEL else ratio
            self._ratios[round(counted)] = self._ratio
        else:
            self._flat = alone

    @property
    def went_backward(self) -> bool:
        """Whether a gradient ever went through a watched model."""
        return self._counter.backward

    @property
    def next(self) -> float:
        """What the next update will cost at least, going by the last two; 0 after only one."""
        return min(self._recent) if len(self._recent) == 2 else 0.0

    def settle(self) -> None:
        """Wait for the device, on the plugin's time: what it queued belongs to it."""
        begin = time.perf_counter()
        synchronize(self.device)
        self._timed_seconds += time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        """Time inside the plugin; sampled steps count as much as the others do on average."""
        if self._timed_steps == 0:
            return self._sampled_seconds / self.together
        return self._timed_seconds * self.steps / self._timed_steps / self.together

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Score inside: nothing is counted, every module that is called is in eval mode.

        After it all is as before: modes, and the global random state on the device.

        Raises:
            Uncounted: Where a module is called while gradients are on.
        """
        changed: list[nn.Module] = []

        def evaluate(module: nn.Module, _arguments: Any) -> None:
            if torch.is_grad_enabled():
                raise Uncounted(
                    "the predictor takes gradients when it is called, which no budget counts; "
                    "train in run and yield after every update"
                )
            if module.training:
                changed.append(module)
                module.training = False

        self._counter.counting = False
        handle = register_module_forward_pre_hook(evaluate)
        try:
            with torch.no_grad(), forked(self.device):
                yield
        finally:
            handle.remove()
            for module in changed:
                module.training = True
            self._counter.counting = True

    def cost(self, *, examples: int, peak_bytes: int | None) -> Cost:
        """What was spent so far, as a record."""
        return Cost(
            seconds=self.seconds,
            steps=self.steps,
            examples=examples,
            units=self.units,
            flops=self.units * self.profile.flops_per_unit,
            peak_bytes=peak_bytes,
            together=self.together,
        )


class _Counter:
    """Counts of an update.

    Attributes:
        units: What passed.
        shared: The part of it whose weights were not stacked: made once for all trials.
        counting: Whether passes count now.
        backward: Whether a gradient ever came.
        awaited: Units and shared ones of the pass through a body that is under way, for which a
            gradient may come; None outside of bodies.
    """

    def __init__(self) -> None:
        self.units = self.shared = 0.0
        self.counting = True
        self.backward = False
        self.awaited: tuple[float, float] | None = None

    def clear(self) -> None:
        self.units = self.shared = 0.0

    def await_gradient(self, output: Tensor, amount: float, shared: float) -> None:
        """Count twice ``amount`` when a gradient of ``output`` comes, if any can."""

        def came(_gradients: Any) -> None:
            self.units += 2 * amount
            self.shared += 2 * shared
            self.backward = True

        node = output.grad_fn
        if node is not None:  # half the price of a tensor's hook
            node.register_prehook(came)


# Plain closures: a deep copy of the module keeps counting in the same counter.


def _hook(counter: _Counter, charge: float) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
        if not (counter.counting and isinstance(output, Tensor)):
            return
        amount = charge * output.numel()
        shared = 0.0 if is_functorch_wrapped_tensor(output) else amount
        counter.units += amount
        counter.shared += shared
        if counter.awaited is None:
            counter.await_gradient(output, amount, shared)
        elif output.requires_grad:
            counter.awaited = counter.awaited[0] + amount, counter.awaited[1] + shared

    return hook


def _enter(counter: _Counter) -> Callable[[nn.Module, Any], None]:
    def hook(_module: nn.Module, _arguments: Any) -> None:
        counter.awaited = 0.0, 0.0

    return hook


def _leave(counter: _Counter) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
        awaited, counter.awaited = counter.awaited, None
        if counter.counting and awaited is not None and output is not None:  # None: it failed
            counter.await_gradient(output if isinstance(output, Tensor) else output[0], *awaited)

    return hook


class CountedSamples(Samples):
    """Samples that know how many examples were drawn and whether anybody looked at all."""

    def __init__(self, samples: Samples) -> None:
        super().__init__(samples.targets, samples.targets)
        self.counted = samples
        self.drawn = 0
        self.touched = False

    @property
    def inputs(self) -> Tensor:
        """``(N, C, H, W)`` images."""
        self.touched = True
        return self.counted.inputs

    def __getitem__(self, index: slice | Tensor) -> Batch:
        self.touched = True
        return self.counted[index]

    def batches(self, batch_size: int, rng: torch.Generator) -> Iterator[Batch]:
        """As `Samples.batches`, counted."""
        return self._counted(self.counted.batches(batch_size, rng))

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.drawn += len(batch.targets)
            self.touched = True
            yield batch


class WatchedTask:
    """A task that remembers its last training loss, to be looked at where the device is waited for.

    Only a loss that a gradient can flow from counts: candidates may be tried and thrown away.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._last: Tensor | None = None
        # the rest is the task's own
        self.name, self.utility_name = task.name, task.utility_name
        self.draws, self.num_outputs = task.draws, task.num_outputs
        self.predict, self.utility = task.predict, task.utility
        self.trivial_loss = task.trivial_loss

    def loss(self, model: Predictor, batch: Batch) -> Tensor:
        """As the task's."""
        loss = self._task.loss(model, batch)
        if loss.requires_grad and not is_functorch_wrapped_tensor(loss):
            self._last = loss.detach()
        return loss

    def finite(self) -> bool:
        """Whether the last training loss was finite; waits for the device."""
        return self._last is None or bool(self._last.isfinite())


class PeakMemory:
    """Peak memory inside a ``with`` block: allocated on the GPU, or resident on a Linux CPU.

    ``bytes`` is None where the platform cannot reset its peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self._reset = False

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
                self._reset = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._reset:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    self.bytes = int(line.split()[1]) * 1024
