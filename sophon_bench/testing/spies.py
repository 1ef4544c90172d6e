"""A plugin that is looked at while it runs."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from sophon_bench.api import AttackView, Declared, Domain, Model, Predictor, Samples
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.meter import CountedSamples, Meter
from sophon_bench.seeding import seeded

SEEDING = ((torch, "manual_seed"), (torch, "seed"), (random, "seed"), (np.random, "seed"))


class Watched:
    """A plugin that remembers what it did.

    Args:
        updates: Stop after so many yields.
        seconds: Stop the first run after so long, and later ones after as many yields.

    Attributes:
        view: What it was shown.
        last: What it yielded last.
        yields: How often it did in the last run.
        later_draws: Examples that it drew per update, those before the first yield aside.
        spoiled: Whether the class or the forward of the given model was replaced.
        overwritten: Samples of the view that were modified.
        moved: Global generators that were drawn from.
        seeded: Global seeding functions that were called.
        contained: What it did to the process.
    """

    def __init__(
        self, plugin: Any, *, updates: int | None = None, seconds: float | None = None
    ) -> None:
        self.plugin = self.__wrapped__ = plugin
        self.steps = Declared.of(plugin).steps
        self.view: Any = None
        self.last: Any = None
        self.yields = 0
        self.later_draws = 0.0
        self.spoiled = False
        self.overwritten: set[str] = set()
        self.moved: set[str] = set()
        self.seeded: set[str] = set()
        self.contained: list[str] = []
        self._updates = updates
        self._seconds = seconds

    def run(self, model: Model, view: Any) -> Generator[Any, None, Any]:
        """As the plugin does."""
        self.view, self.yields = view, 0
        # of the last run alone: a library that the first one imports may draw while it is imported
        self.moved = set()
        kind, samples = type(model), _samples(view)
        given = {name: (s.inputs.clone(), s.targets.clone()) for name, s in samples.items()}
        counted = view.train if isinstance(view, AttackView) else None
        begin, drawn_at_first = time.perf_counter(), 0
        steps = self.plugin.run(model, view)
        if not isinstance(steps, Iterable):
            raise TypeError(
                f"run returned {type(steps).__name__}, not a generator: yield after every update"
            )
        steps = iter(steps)
        while True:
            with _draws(self.moved, excused=any(task.draws for task in _tasks(view))):
                try:
                    made = next(steps)
                except StopIteration as stop:
                    self._seconds = None
                    return stop.value
                finally:
                    self.spoiled |= type(model) is not kind or "forward" in vars(model)
                    self.overwritten |= {
                        name
                        for name, s in samples.items()
                        if not all(map(torch.equal, (s.inputs, s.targets), given[name]))
                    }
            self.last = made
            self.yields += 1
            drawn = counted.drawn if isinstance(counted, CountedSamples) else 0
            if self.yields == 1:
                drawn_at_first = drawn
            else:
                self.later_draws = (drawn - drawn_at_first) / (self.yields - 1)
            yield made
            late = self._seconds is not None and time.perf_counter() - begin > self._seconds
            if late or self.yields == self._updates:
                self._updates, self._seconds = self.yields, None
                return None

    def predicted(self, predictor: Predictor, bench: Bench) -> Tensor:
        """``predictor`` on the view's validation images, scored as the harness does."""
        with Meter(bench.profile, bench.device).looking(), seeded(0):
            outputs: Tensor = self.view.task.predict(predictor, self.view.validation.inputs)
            return outputs.detach().clone()

    @contextlib.contextmanager
    def seedings(self) -> Iterator[None]:
        """Note which global seeding functions are called inside."""

        def spy(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def seed(*arguments: Any, **named: Any) -> Any:
                self.seeded.add(name)
                return original(*arguments, **named)

            return seed

        with contextlib.ExitStack() as stack:
            for module, name in SEEDING:
                spied = spy(f"{module.__name__}.{name}", getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, spied))
            yield


def _domains(view: Any) -> dict[str, Any]:
    """What has a task and samples, by how a plugin calls it."""
    if isinstance(view, AttackView):
        return {"view": view}
    return {f"view.{name}": part for name, part in vars(view).items() if isinstance(part, Domain)}


def _tasks(view: Any) -> list[Any]:
    return [domain.task for domain in _domains(view).values()]


def _samples(view: Any) -> dict[str, Samples]:
    """What may not be modified; a look at it is not taken for the plugin's."""
    return {
        f"{path}.{name}": part.counted if isinstance(part, CountedSamples) else part
        for path, domain in _domains(view).items()
        for name, part in vars(domain).items()
        if isinstance(part, Samples)
    }


@contextlib.contextmanager
def _draws(moved: set[str], *, excused: bool) -> Iterator[None]:
    """Enter into ``moved`` whose global generator is in another state after it.

    Modules may draw from torch's in their forward pass (dropout): if one did, torch's is let be,
    as it is if ``excused``.
    """
    before, at_entry, depth, by_module = _states(), b"", 0, excused

    def enter(_module: Any, _inputs: Any) -> None:
        nonlocal at_entry, depth
        if depth == 0:
            at_entry = _torch_state()
        depth += 1

    def leave(_module: Any, _inputs: Any, _outputs: Any) -> None:
        nonlocal depth, by_module
        depth -= 1
        if depth == 0:
            by_module |= _torch_state() != at_entry

    hooks = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        moved.update(
            n for n, s in _states().items() if s != before[n] and not (n == "torch" and by_module)
        )


def _states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": _torch_state(),
        "numpy": (kind, np.asarray(keys).tobytes(), *rest),
        "random": random.getstate(),
    }


def _torch_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal, also in where they are NaN."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
