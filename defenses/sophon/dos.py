"""SOPHON's loss for generation, denial of service, with the paper's known hyperparameters.

Reference: Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699; code ChiangE/Sophon.
"""

import copy
import itertools
from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from sophon_bench.api import DefenseView, Model, defenses
from sophon_bench.data.tasks.denoising import TIMESTEPS

from .._early import early
from .._watch import Watch
from .defense import Count, Positive, Sophon
from .losses import denial_of_service
from .strategies import Head

# Step sizes, ntr_steps and iterations are from the authors' README, the rest from their code, which
# keeps the head for generation. How often it checks the original loss is not documented.
PAPER: dict[str, Any] = {
    "alpha": 5e-6,
    "beta": 2e-4,
    "mu": 1.0,
    "iterations": 200,
    "fts_steps": 1,
    "ntr_steps": 10,
    "inner_steps": 50,
    "strategies": ("sgd@1e-4",),
    "head": "kept",
    "batch_size": 150,
    "adapt": 130,
    "ntr_batch_size": 150,
    "gamma": "mean",
    "order": 1,
    "clip": 0.5,
    "min_original": None,
    "max_drop": None,
    "watch_every": 10,
    "patience": 1,
    "timesteps": TIMESTEPS,
    "joint": False,
}


@defenses.register("sophon-dos")
@dataclass(frozen=True, kw_only=True)
class SophonDos(Sophon):
    """SOPHON with denial of service: the fine-tuned denoiser predicts no noise.

    Minimise ``E_phi[mean(e^2)] + mu MSE_orig``, e the noise that a simulated fine-tuner phi
    predicts in restricted images. Only ``order=1``. Different from the original: both terms are in
    one step, not in alternating ones; several timesteps are simulated and evaluated, there only the
    first (as in ``glyphs-digits-gen[one_step=true]``); each fine-tuner is drawn from
    ``strategies``; every inner update draws its own batch; losing the original task causes a
    roll-back.

    Args:
        timesteps: Number of timesteps, from the first, that are simulated and evaluated: those with
            little enough noise to tell the domains apart.
        joint: One step of Adam for both terms, with step size ``alpha`` on a cosine schedule; the
            original loss is a mean over ``ntr_steps`` batches. Alternating steps (False) undo each
            other where both domains are denoised by the same weights; only they use ``beta``.
    """

    alpha: Positive = 1e-3
    mu: Positive = 50.0
    iterations: Count = 300
    ntr_steps: Count = 2
    inner_steps: Count = 2
    head: Head = "kept"
    batch_size: Annotated[int, Ge(2)] = 60
    clip: Positive = 1.0
    watch_every: Count = 20
    timesteps: Annotated[int, Interval(ge=1, le=TIMESTEPS)] = 200
    joint: bool = True

    claim: ClassVar[str] = (
        "By third-party notes on the paper, CIFAR-100 → CelebA, MSE after fine-tuning: SOPHON "
        ".705, undefended .445, scratch .479."
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": PAPER, "embedded": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order == 2:
            raise ValueError(
                "order=2 differentiates through classifiers only, and a denoiser is told the "
                "timestep too; use order=1"
            )

    @property
    def steps(self) -> int:
        """As `Sophon.steps`; a joint step is one update."""
        return self.iterations if self.joint else super().steps

    def run(self, model: Model, view: DefenseView) -> Generator[Model, None, str | None]:
        """As `Sophon.run`, or with one step for both terms."""
        view = early(view, self.timesteps)
        if not self.joint:
            return (yield from super().run(model, view))
        self._check(model, view.restricted)
        watch = Watch(
            model, view.original, floor=self._floor(model, view.original), patience=self.patience,
            every=self.watch_every, last=self.iterations,
        )  # fmt: skip
        model.train()
        learners = {head: copy.deepcopy(model) for head in self.heads}
        batches = view.original.train.batches(self.ntr_batch_size, view.rng)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.alpha)
        annealed = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
        for iteration in range(1, self.iterations + 1):
            optimizer.zero_grad()
            self._simulate(model, learners, self.beginnings(), view)
            for batch in itertools.islice(batches, self.ntr_steps):
                (self.mu / self.ntr_steps * view.original.task.loss(model, batch)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            annealed.step()
            yield model
            if ended := watch.look(iteration):
                yield model
                return ended
        return None

    def suppression_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """DoS of the predicted noise; the targets do not matter."""
        return denial_of_service(outputs)
