"""Shared by attacks without gradients of the body: activations, and probes on them."""

import contextlib
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional

from sophon_bench.api import AttackView, Incompatible, Model

Candidate = Callable[[int, int], Any]
"""Makes a scikit-learn classifier for so many rows and columns."""

BATCH = 64
"""Examples between two yields while activations are collected."""

LAYERS = 5
"""Blocks that are looked at, evenly spaced, the last among them."""


def channels_last(activation: Tensor) -> bool:
    """Whether the last dimension of a block's output holds the channels.

    True for ``(B, D)`` and for tokens ``(B, N, D)``. Feature maps are assumed to be square, so
    their two equal sides show the layout; if all three sizes are equal, it is ``(B, C, H, W)``.
    """
    if activation.ndim != 4:
        return True
    _, a, b, c = activation.shape
    return a == b != c


def pooled(activation: Tensor, *, grid: int) -> Tensor:
    """``(B, D)``: means over tokens, or over each cell of a ``grid`` x ``grid`` split of a map."""
    if activation.ndim == 4:
        if channels_last(activation):
            activation = activation.permute(0, 3, 1, 2)
        height, width = activation.shape[2:]
        cells = (min(grid, height), min(grid, width))
        return functional.adaptive_avg_pool2d(activation, cells).flatten(1)
    return activation.flatten(1, -2).mean(1) if activation.ndim > 2 else activation


@torch.no_grad()
def activations(model: Model, inputs: Tensor, *, grid: int = 1) -> list[Tensor]:
    """Pooled outputs of several blocks in forward order, then the features.

    Returns:
        ``(B, D_i)`` float64 on the CPU, clamped to ±1e15; NaN becomes 0.
    """
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim > 1:
            caught.append(pooled(output, grid=grid))

    blocks = model.blocks()
    chosen = {round(i) for i in np.linspace(0, len(blocks) - 1, min(LAYERS, len(blocks)))}
    handles = [blocks[i][1].register_forward_hook(catch) for i in sorted(chosen)]
    try:
        features = model.features(inputs)
    finally:
        for handle in handles:
            handle.remove()
    limit = 1e15  # its square is still finite
    return [
        t.double().cpu().nan_to_num(0.0, limit, -limit).clamp(-limit, limit)
        for t in (*caught, features)
    ]


def subsets(layers: int) -> list[tuple[int, ...]]:
    """All layers, then fewer and fewer of the last ones, then each of the others alone."""
    ends = [tuple(range(first, layers)) for first in range(layers)]
    return ends + [(i,) for i in range(layers - 1)]


@dataclass(frozen=True)
class Probe:
    """A scikit-learn classifier fitted on some layers of a model, as a predictor.

    Args:
        model: The body, in eval mode.
        grid: See `pooled`.
        layers: Indices into `activations`.
        classifier: Fitted on the activations of these layers.
        outputs: Classes of the task, of which the classifier may have seen fewer.
    """

    model: Model
    grid: int
    layers: Sequence[int]
    classifier: Any
    outputs: int

    def __call__(self, inputs: Tensor) -> Tensor:
        """Scores ``(B, K)`` of images ``(B, C, H, W)``."""
        parts = activations(self.model, inputs, grid=self.grid)
        return self.scores(parts).to(inputs.device)

    def scores(self, parts: Sequence[Tensor]) -> Tensor:
        """Scores ``(B, K)`` of activations; classes without examples get the lowest score."""
        columns = columns_of(parts, self.layers)
        probabilistic = hasattr(self.classifier, "predict_proba")
        how = "predict_proba" if probabilistic else "decision_function"
        found = np.asarray(getattr(self.classifier, how)(columns))
        found = np.stack([-found, found], axis=1) if found.ndim == 1 else found
        scores = np.full((len(columns), self.outputs), found.min())
        scores[:, self.classifier.classes_] = found
        return torch.from_numpy(scores).float()


def columns_of(parts: Sequence[Tensor], layers: Sequence[int]) -> Any:
    """The chosen activations side by side, ``(B, D)``."""
    return torch.cat([parts[i] for i in layers], dim=1).numpy()


@dataclass(frozen=True, kw_only=True)
class Probing(ABC):
    """Hyperparameters and method that all probes share.

    Args:
        grid: Feature maps are averaged over each of grid x grid cells, tokens over all positions.
    """

    grid: Annotated[int, Gt(0)] = 2

    @abstractmethod
    def candidates(self, outputs: int) -> Sequence[Candidate]:
        """The classifiers to fit on every subset of layers, for ``outputs`` classes."""

    def run(self, model: Model, view: AttackView) -> Iterator[Probe]:
        for (only,) in self.run_many([self], model, view):
            yield only

    def run_many(
        self, trials: Sequence["Probing"], model: Model, view: AttackView
    ) -> Iterator[list[Probe]]:
        candidates = [trial.candidates(view.task.num_outputs) for trial in trials]
        yield from probe(model, view, candidates, grid=self.grid)


def probe(
    model: Model, view: AttackView, trials: Sequence[Sequence[Candidate]], *, grid: int
) -> Iterator[list[Probe]]:
    """Fit every candidate on every subset of layers; yields the best on validation so far.

    Activations are collected first, once for all trials, with one yield per batch. Each further
    step fits one candidate of every trial on one subset. The run ends when all are fitted.

    Args:
        trials: The candidates of each trial, the same number for all. Of candidates that tie on
            validation, the first is kept; until validation starts, the last one is yielded.
        grid: See `pooled`.

    Raises:
        Incompatible: If targets are not class ids.
        NotImplementedError: If trials have different numbers of candidates.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, validation = view.train, view.validation
    if train.targets.ndim != 1 or train.targets.is_floating_point():
        raise Incompatible("probes need class ids as targets, one per example")
    if len({len(candidates) for candidates in trials}) > 1:
        raise NotImplementedError("probes with as many candidates only end at the same time")
    model.eval()
    targets = train.targets.cpu().numpy()

    def fit(candidate: Candidate, layers: Sequence[int]) -> Probe:
        columns = columns_of(seen, layers)
        classifier = make_pipeline(StandardScaler(), candidate(*columns.shape))
        with warnings.catch_warnings():
            # a probe that has not converged is judged on validation like any other
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(columns, targets[: len(columns)])
        return Probe(model, grid, layers, classifier, view.task.num_outputs)

    seen: list[Tensor] = []
    for inputs in train.inputs.split(BATCH):
        parts = activations(model, inputs, grid=grid)
        seen = [torch.cat(pair) for pair in zip(seen, parts, strict=True)] if seen else parts
        best = [fit(candidates[-1], range(len(seen))) for candidates in trials]
        yield best
    held: list[Tensor] = []
    for inputs in validation.inputs.split(BATCH):
        parts = activations(model, inputs, grid=grid)
        held = [torch.cat(pair) for pair in zip(held, parts, strict=True)] if held else parts
        yield best
    highest = [-1.0] * len(trials)
    for layers, candidates in itertools.product(subsets(len(seen)), zip(*trials, strict=True)):
        for trial, candidate in enumerate(candidates):
            # a released model may make columns all alike, which leaves a singular matrix
            with contextlib.suppress(np.linalg.LinAlgError), np.errstate(all="ignore"):
                fitted = fit(candidate, layers)
                right = fitted.scores(held).argmax(1) == validation.targets.cpu()
                if (accuracy := float(right.float().mean())) > highest[trial]:
                    highest[trial], best[trial] = accuracy, fitted
        yield [*best]
