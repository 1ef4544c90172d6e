"""The one place that seeds: seeds by what they are for, generators, and the global random state."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2^63) that depends on nothing but ``parts``."""
    text = json.dumps({"seed": parts}, separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator whose seed is derived from ``parts``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def forked(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Put torch's global generators of the CPU and of ``device`` back after the ``with``."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed all global generators inside the ``with``, and put them back after it.

    Dropout and its like draw from them.

    Args:
        device: Whose generator is seeded besides the CPU's; of no other GPU.
    """
    device = device or torch.device("cpu")
    with forked(device):
        numpy_state, python_state = np.random.get_state(), random.getstate()
        np.random.set_state(np.random.RandomState(seed % 2**32).get_state())
        random.setstate(random.Random(seed).getstate())
        # not torch.manual_seed, which would seed all accelerators as well
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextlib.contextmanager
def seeded_from(rng: torch.Generator) -> Iterator[None]:
    """As `seeded`, with a seed that is drawn from ``rng``."""
    with seeded(int(torch.randint(2**63 - 1, (), generator=rng))):
        yield
