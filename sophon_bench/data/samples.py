"""Images kept as they are stored, a byte per channel: on the device, or streamed to it.

A set of float32 images takes four times the memory and the bandwidth of its pixels; so pixels are
kept, and a batch is scaled for the backbone where it is used. Order, draws and values are the same
whichever way a set is kept.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from sophon_bench.api import Batch, Samples

Scale = Callable[[Tensor], Tensor]
"""Pixels ``(B, 3, H, W)`` uint8 to images in a backbone's input scale, on the same device."""

AHEAD = 4
"""Batches that a streamed set gathers before they are asked for."""

SMALL = 8 << 20
"""Bytes of pixels below which a set is scaled once and held as float32 as well."""

WORKERS = 2
"""Threads that gather them: copying out of a memory map lets others run."""

THREADS = "sophon-bench samples"
"""Begins the names of those threads."""


class Pixels(Samples):
    """Labelled images held as pixels on the device.

    Args:
        pixels: ``(N, 3, H, W)`` uint8.
        targets: ``(N,)`` class ids.
        scale: Applied to every batch.
        device: Where pixels are held and batches made.
    """

    def __init__(
        self, pixels: Tensor, targets: Tensor, scale: Scale, *, device: torch.device
    ) -> None:
        self._pixels = self._hold(pixels, device)
        super().__init__(self._pixels, targets.to(device))
        self._scale = scale
        self.device = device

    def _hold(self, pixels: Tensor, device: torch.device) -> Tensor:
        return pixels.contiguous(memory_format=torch.channels_last).to(device)

    @functools.cached_property
    def _all(self) -> Tensor:
        return self._prepared(self._pixels)

    @property
    def inputs(self) -> Tensor:
        """``(N, 3, H, W)`` images, all at once: made at the first look, float32."""
        return self._all

    def __getitem__(self, index: slice | Tensor) -> Batch:
        if self._pixels.nbytes <= SMALL:
            return Batch(_chosen(self._all, index), self._targets[index])
        return Batch(self._prepared(_chosen(self._pixels, index)), self._targets[index])

    def copy(self) -> Pixels:
        """The same pixels with tensors that may be written over."""
        return type(self)(self._pixels, self._targets.clone(), self._scale, device=self.device)

    def _prepared(self, pixels: Tensor) -> Tensor:
        return self._scale(pixels.to(self.device, memory_format=torch.channels_last))


class Streamed(Pixels):
    """Labelled images held as pixels in the host's memory, or in a file that is mapped into it.

    For sets that the device has no room for: threads gather the next batches while the device
    works on this one. The order is drawn when it is needed, as for `Pixels`.
    """

    def _hold(self, pixels: Tensor, device: torch.device) -> Tensor:  # noqa: ARG002
        return pixels

    def __getitem__(self, index: slice | Tensor) -> Batch:
        on_host = index if isinstance(index, slice) else index.cpu()
        return Batch(self._prepared(_chosen(self._pixels, on_host)), self._targets[index])

    def _endless(self, size: int, rng: torch.Generator) -> Iterator[Batch]:
        order = torch.empty(0, dtype=torch.long)
        ahead: deque[tuple[Tensor, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(WORKERS, thread_name_prefix=THREADS) as workers:
            while True:
                while not ahead and len(order) < size:
                    order = torch.cat([order, torch.randperm(len(self), generator=rng)])
                while len(order) >= size and len(ahead) < AHEAD:
                    index, order = order[:size], order[size:]
                    ahead.append((index, workers.submit(self._gathered, index)))
                index, gathered = ahead.popleft()
                pixels = gathered.result().to(self.device, non_blocking=True)
                targets = self._targets[index.to(self.device, non_blocking=True)]
                yield Batch(self._prepared(pixels), targets)

    def _gathered(self, index: Tensor) -> Tensor:
        pixels = _chosen(self._pixels, index)
        return pixels.pin_memory() if self.device.type == "cuda" else pixels


def _chosen(pixels: Tensor, index: slice | Tensor) -> Tensor:
    """Some of the images; whole ones are copied as they lie in memory, which is fastest."""
    if isinstance(index, slice):
        return pixels[index]
    if pixels.is_contiguous(memory_format=torch.channels_last):
        return pixels.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return pixels.index_select(0, index)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device; of the CPU, all that the machine has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
