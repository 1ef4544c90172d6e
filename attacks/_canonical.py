"""Undo reparametrisations that change how weights train but hardly what they compute.

Scales are compared with those of a randomly initialised model. Whether a repair is harmless is not
deduced from the architecture but tested: it is kept if the features of the attacker's images stay
the same.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from sophon_bench.api import Model
from sophon_bench.training import is_norm

OUTLIER = 1e4
"""An entry so many times larger than is usual in its tensor is a trap, not a weight."""

EXPLODED = 1e3
"""So many times the fresh norm is too large if the features overflow."""

DEAD = 1e-3
"""A gain of so little of its layer's largest may be dead."""

TINY = 1e-30
"""Keeps zero out of denominators."""

SWEEPS = 20
"""Alternations of rows and columns; a few do for weights that nobody scaled."""

DROWNED = 10
"""A running variance of no more than so many times BatchNorm's eps hardly matters beside it."""

SAME = 1e-2
"""Relative change of features that rounding and the eps of normalisation layers explain."""


@torch.no_grad()
def replace_broken(model: Model, fresh: Model, inputs: Tensor) -> Iterator[None]:
    """Replace entries that are not finite, or outliers of their tensor, by initial values.

    The initial values are those of ``fresh``. An outlier may be one side of a rescaling that
    another layer compensates, so a tensor keeps its outliers if the features of ``inputs`` change
    without them. If the features overflow, all outliers are replaced; if they still overflow,
    weights whose norm has exploded are scaled to about the initial norm. Yields after every check.
    """
    drawn = fresh.state_dict()
    tensors = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    for name, tensor in tensors.items():
        tensor.copy_(torch.where(tensor.isfinite(), tensor, drawn[name]))
    traps = {name: found for name, t in tensors.items() if (found := _outliers(t)).any()}
    before = model.eval().features(inputs)
    yield
    finite = bool(before.isfinite().all())
    for name, trap in traps.items():
        kept = tensors[name].clone()
        tensors[name].copy_(torch.where(trap, drawn[name], kept))
        if finite and not _same(model.features(inputs), before):
            tensors[name].copy_(kept)
        yield
    if finite or model.features(inputs).isfinite().all():
        return
    for name, weight in model.named_parameters():
        ratio = float(weight.double().norm() / usual(fresh, name).norm().clamp_min(TINY))
        if EXPLODED < ratio < math.inf:
            weight.mul_(2.0 ** -round(math.log2(ratio)))
    yield


def _outliers(tensor: Tensor) -> Tensor:
    size = tensor.abs()
    return size > OUTLIER * size.median().clamp_min(1e-2)


@torch.no_grad()
def restate(model: Model, inputs: Tensor) -> Iterator[None]:
    """Set BatchNorm's statistics to those of ``inputs``, and adapt gains and biases to compensate.

    Released statistics may fit no data at all, with gains and biases that compensate for it in eval
    mode only; in train mode, the model then computes another function.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    handles = [norm.register_forward_pre_hook(_restate) for norm in norms]
    model.eval().features(inputs)
    for handle in handles:
        handle.remove()
    yield


def _restate(norm: nn.Module, arguments: tuple[Tensor]) -> None:
    """The output in eval mode does not change, so one forward pass serves all layers."""
    assert isinstance(norm, _BatchNorm)
    (inputs,) = arguments
    over = [d for d in range(inputs.ndim) if d != 1]
    mean, variance = inputs.mean(over), inputs.var(over, correction=0)
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        return
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.bias.add_(slope * (mean - norm.running_mean))
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@torch.no_grad()
def lift(model: Model, inputs: Tensor) -> Iterator[None]:
    """Rescale channels that BatchNorm's eps drowns out to unit variance; the gain compensates.

    Where the running variance is at most `DROWNED` times eps, BatchNorm does not fully cancel the
    scale of the layer before it, which then trains at whatever scale it has. A change is kept if
    the features of ``inputs``, under running statistics, stay the same. Yields after every check.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | _BatchNorm)]
    before = model.eval().features(inputs)
    yield
    for layer, norm in itertools.pairwise(layers):
        if not isinstance(norm, _BatchNorm) or isinstance(layer, _BatchNorm):
            continue
        mean, variance, weight = norm.running_mean, norm.running_var, layer.weight
        if mean is None or variance is None or norm.weight is None or len(weight) != len(mean):
            continue
        drowned = (variance > 0) & (variance <= DROWNED * norm.eps)
        if not drowned.any():
            continue
        touched = [t for t in (weight, layer.bias, mean, variance, norm.weight) if t is not None]
        kept = [tensor.clone() for tensor in touched]
        factor = torch.where(drowned, variance.rsqrt(), 1.0)
        gain = ((1 + norm.eps) / (variance + norm.eps)).sqrt() / factor
        for tensor in (weight, layer.bias, mean):
            if tensor is not None:
                tensor.mul_(factor.view(-1, *[1] * (tensor.ndim - 1)))
        norm.weight.mul_(torch.where(drowned, gain, 1.0))
        variance.copy_(torch.where(drowned, 1.0, variance))
        if not _same(model.features(inputs), before):
            for tensor, old in zip(touched, kept, strict=True):
                tensor.copy_(old)
        yield


@torch.no_grad()
def revive(model: Model, inputs: Tensor) -> Iterator[None]:
    """Set gains of normalisation layers to 1 where they are so small that nothing passes through.

    A small gain that the next layer compensates is not dead: the features of ``inputs`` change if
    it is set to zero. Yields after every check.
    """
    before = model.eval().features(inputs)
    yield
    for module in model.modules():
        if is_norm(module) and isinstance(module.weight, nn.Parameter):
            small = module.weight.abs() < DEAD * module.weight.abs().max().clamp_min(DEAD)
            if small.any():
                kept = module.weight.clone()
                module.weight[small] = 0.0
                same = _same(model.features(inputs), before)
                module.weight.copy_(torch.where(small, 1.0, kept) if same else kept)
                yield


@torch.no_grad()
def standardise_head(model: Model, inputs: Tensor) -> Tensor | None:
    """Make a linear head read standardised features, and return the factors on its columns."""
    if not isinstance(model.head, nn.Linear):
        return None
    features = model.eval().features(inputs)
    deviation, mean = torch.std_mean(features, dim=0)
    factors = 1 / deviation.clamp_min(1e-3 * deviation.max().clamp_min(TINY))
    model.head.weight.mul_(factors)
    if isinstance(model.head.bias, nn.Parameter):
        model.head.bias.sub_(model.head.weight @ mean)
    return factors


def rescale(model: Model, fresh: Model, columns: Tensor | None, inputs: Tensor) -> None:
    """Reparametrise so that every weight is trained at the scale of its initialisation.

    A weight matrix W becomes diag(r) U diag(c), and U is trained; biases are trained at the scale
    of their channel. Factors on channels that neighbouring layers compensate are absorbed by these
    scales, so they do not change any update.

    Args:
        columns: Factors on the columns of the head, as `standardise_head` returns them.
        inputs: Images on which the scale of channels is measured.
    """
    outputs = _sizes(model, inputs)
    for path, module in list(model.named_modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if module is model.head and weight.ndim > 1 and columns is not None:
                scale = columns.expand_as(weight)
            elif module is not model.head and weight.ndim > 1:
                size = usual(fresh, f"{path}.{name}".lstrip(".")).square().mean().sqrt()
                scale = _scale(weight.detach()) / size.clamp_min(TINY)
            elif is_norm(module) and isinstance(module.weight, Tensor):
                scale = module.weight.detach().abs()
            elif path in outputs:
                scale = outputs[path]
            else:
                continue
            scale = scale.clamp_min(TINY * float(scale.max().clamp_min(TINY)))
            parametrize.register_parametrization(module, name, _Scaled(scale))


@torch.no_grad()
def _sizes(model: Model, inputs: Tensor) -> dict[str, Tensor]:
    """Root mean square of each output channel of linear and convolution layers, by layer path."""
    found: dict[str, Tensor] = {}

    def hook(path: str, channel: int) -> Callable[[nn.Module, object, Tensor], None]:
        def note(_module: nn.Module, _arguments: object, output: Tensor) -> None:
            over = [d for d in range(output.ndim) if d != channel % output.ndim]
            found[path] = output.square().mean(over).sqrt()

        return note

    handles = [
        module.register_forward_hook(hook(path, -1 if isinstance(module, nn.Linear) else 1))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module is not model.head
    ]
    model.eval().features(inputs)
    for handle in handles:
        handle.remove()
    return found


class _Scaled(nn.Module):
    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.scale: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.scale


def _scale(weight: Tensor) -> Tensor:
    """Row scales times column scales of ``(O, I, ...)``; scaling a channel scales them alike."""
    square = weight.double().square().flatten(1).view(*weight.shape[:2], -1).mean(2)
    rows, columns = square.new_ones(len(square), 1), square.new_ones(1, square.shape[1])
    for _ in range(SWEEPS):
        rows = (square / columns).mean(1, keepdim=True).clamp_min(TINY)
        columns = (square / rows).mean(0, keepdim=True).clamp_min(TINY)
    found = (rows * columns).sqrt().to(weight)
    return found.view(*found.shape, *[1] * (weight.ndim - 2)).expand_as(weight)


def usual(fresh: Model, name: str) -> Tensor:
    """The initial weight; 1 for normalisation layers, some of whose gains start at 0."""
    weight = fresh.get_parameter(name).detach().double()
    gains = is_norm(fresh.get_submodule(name.rpartition(".")[0]))
    return torch.ones_like(weight) if gains else weight


def _same(features: Tensor, before: Tensor) -> bool:
    return bool((features - before).norm() <= SAME * before.norm())
