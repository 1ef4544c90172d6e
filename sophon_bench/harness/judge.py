"""Scores a predictor on everything that the harness holds, without a trace in the run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sophon_bench.api import Predictor, Samples
from sophon_bench.data.samples import Pixels
from sophon_bench.data.scenario import DomainData
from sophon_bench.harness.bench import Bench
from sophon_bench.harness.containment import Containment
from sophon_bench.harness.meter import Meter, WatchedTask
from sophon_bench.protocol import FIT_EXAMPLES, REFERENCE_BATCH
from sophon_bench.results.records import Generated, Point
from sophon_bench.seeding import seeded


class Judge:
    """What an attack's predictors are scored with.

    Args:
        bench: Where the attack runs.
        domain: What it adapts the model to.
        task: Of the domain, as the attack has it.
        train: The attacker's training samples.
        validation: Those kept for its own choices.
        meter: What the attack spends.
        rng: What it draws from.
        stage: What its predictors are called in.
    """

    def __init__(
        self,
        bench: Bench,
        domain: DomainData,
        task: WatchedTask,
        train: Pixels,
        validation: Pixels,
        meter: Meter,
        rng: torch.Generator,
        stage: Containment,
    ) -> None:
        self.bench, self.domain, self.task = bench, domain, task
        self.meter, self.rng, self.stage = meter, rng, stage
        self.splits = {"fit": Samples(*train[:FIT_EXAMPLES]), "validation": validation.copy()}
        for split in ("selection", "test", "second_test"):
            if split in domain.splits:
                self.splits[split] = bench.samples(domain, split)

    def score(self, predictor: Predictor) -> Point | None:
        """The scores now; None if the last loss, or an output on the selection split, is NaN."""
        self.meter.settle()
        if not self.task.finite():
            return None
        state = self.rng.get_state()
        with self.stage.visit(), self.bench.eager(), self.meter.looking():
            watched = _Watched(predictor)
            selection = self.task.utility(watched, self.splits["selection"])
            if watched.nan:
                return None
            utilities = {
                name: selection if name == "selection" else self.task.utility(predictor, samples)
                for name, samples in self.splits.items()
            }
        self.rng.set_state(state)
        return Point(
            steps=self.meter.steps,
            units=self.meter.units,
            seconds=self.meter.seconds,
            **utilities,
        )

    def generated(self, predictor: Predictor) -> Generated | None:
        """What it makes of noise, where that is the restricted domain's question."""
        if self.domain is not self.bench.data.restricted:
            return None
        with self.stage.visit(), self.meter.looking():
            images = self.bench.images(predictor, self.domain)
        return self.bench.judged(images, self.domain)

    def same(self, one: Predictor, other: Predictor) -> bool:
        """Whether two predictors agree to the last bit on examples of the selection split."""
        inputs, _ = self.splits["selection"][:REFERENCE_BATCH]
        with self.stage.visit(), self.bench.eager(), self.meter.looking():
            return torch.equal(*(self._predicted(p, inputs) for p in (one, other)))

    def _predicted(self, predictor: Predictor, inputs: Tensor) -> Tensor:
        with seeded(0, self.bench.device):  # a task may draw noise
            return self.task.predict(predictor, inputs)

    def words(self, curve: Sequence[Point]) -> str:
        """How an attack stands, for progress."""
        return f"{self.task.utility_name} {100 * curve[-1].test:.1f} %" if curve else "…"


class _Watched:
    """A predictor that remembers whether any of its outputs was NaN."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        # what `inspect.signature` goes by
        self.__wrapped__ = predictor.forward if isinstance(predictor, nn.Module) else predictor
        self._found: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        outputs = self._predictor(*inputs)
        if isinstance(outputs, Tensor):
            found = outputs.isnan().any()
            self._found = found if self._found is None else self._found | found
        return outputs

    @property
    def nan(self) -> bool:
        """Whether one was; waits for the device."""
        return self._found is not None and bool(self._found)
