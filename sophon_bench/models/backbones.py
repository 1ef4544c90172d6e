"""timm -> `Model`: any classifier of timm as a body with a detachable head.

The classifier is taken out of timm's module and stands beside what is left, so that
``forward(x) == head(features(x))`` and "body or head" is a matter of ``.parameters()``.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import skip_init

from sophon_bench.api import Model
from sophon_bench.models import published_weights
from sophon_bench.models.published_weights import WeightsError, in_short
from sophon_bench.plugins.registry import unknown
from sophon_bench.plugins.selectors import format_selector
from sophon_bench.seeding import seeded_from

Precision = Literal["fp32", "bf16"]
Compile = Literal["off", "default", "reduce-overhead", "max-autotune"]
"""How the body is compiled: not at all, or in one of `torch.compile`'s modes; CUDA graphs in the
last two."""

Value = bool | int | float | str | None | tuple["Value", ...]

_OURS = {
    "num_classes": "the task sets the number of outputs",
    "in_chans": "images have 3 channels",
    "checkpoint_path": "weights come from pre-training",
    "features_only": "a backbone needs its classifier",
    "pretrained_cfg": "the tag is part of the name, as in 'resnet18.a1_in1k'",
    "pretrained_cfg_overlay": "the tag is part of the name, as in 'resnet18.a1_in1k'",
    "cache_dir": "HF_HUB_CACHE and TORCH_HOME set where pre-trained weights are kept",
}


class BackboneError(ValueError):
    """A backbone that does not exist, or cannot be built or trained as asked; one line."""


def list_backbones() -> list[str]:
    """All names of timm."""
    return list(timm.list_models())


COMMON = (
    "resnet18", "resnet34", "resnet50", "resnet101", "vit_tiny_patch16_224",
    "vit_small_patch16_224", "vit_base_patch16_224", "deit_tiny_patch16_224", "convnext_tiny",
    "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "vgg11_bn", "vgg16",
    "vgg19_bn", "densenet121", "swin_tiny_patch4_window7_224", "test_resnet",
)  # fmt: skip
"""Architectures that `resembling` compares with besides those of a like name."""


def resembling(shapes: Mapping[str, Sequence[int]], name: str) -> list[str]:
    """Architectures that have weights of these names and shapes, two (a classifier's) aside.

    Args:
        shapes: Of a state dict, under timm's own names.
        name: What it was taken for; of architectures, those of a like name and `COMMON` are tried.
    """
    given = {key: tuple(shape) for key, shape in shapes.items()}
    close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=8)
    found = []
    for other in dict.fromkeys([*close, *COMMON]):
        expected = _shapes(other)
        same = sum(given.get(key) == shape for key, shape in expected.items())
        if max(len(given), len(expected)) - same <= 2:
            found.append(other)
    return found


@functools.cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Of the state dict of a timm model, as it is without parameters."""
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise with BatchNorm's running statistics, and do not move them, inside the ``with``.

    Module types stay as they are; calling ``model.train()`` inside ends the effect.
    """
    frozen = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for module in frozen:
        module.training = False
    try:
        yield
    finally:
        for module in frozen:
            module.training = True


class Architecture(Protocol):
    """What the models of a run are built by: timm's classifiers, or a denoising U-Net.

    Attributes:
        task: The name of the tasks that it is for.
        label: The selector for it.
    """

    @property
    def task(self) -> str: ...

    @property
    def label(self) -> str: ...

    def __hash__(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """Name and parameters as plain JSON."""
        ...

    def build(
        self,
        num_outputs: int,
        rng: torch.Generator,
        *,
        precision: Precision = "fp32",
        fresh: bool = False,
    ) -> Model:
        """A model on the CPU in train mode, its weights drawn from ``rng``."""
        ...

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 pixels ``(N, 3, H, W)`` in the scale that models take."""
        ...

    def check(self, image_size: int, num_outputs: int) -> None:
        """Fail early and in words if such images or outputs are not for it."""
        ...


@dataclass(frozen=True)
class Backbone:
    """A timm architecture with its constructor's parameters.

    Args:
        name: A name of timm, with or without a tag (``resnet18.a1_in1k``).
        parameters: Sorted pairs for timm's constructor; `of` makes them from a dict. The parameter
            ``pretrained=True`` starts from timm's weights, which need a network or a cache.
    """

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    task: ClassVar[str] = "classification"

    @classmethod
    def of(cls, name: str, parameters: Mapping[str, Any] | None = None) -> Backbone:
        """A backbone from a dict of plain values; lists become tuples."""
        pairs = sorted((parameters or {}).items())
        return cls(name, tuple((key, _frozen(value)) for key, value in pairs))

    @property
    def label(self) -> str:
        """The selector: ``vit_tiny_patch16_224[img_size=32,patch_size=4]``."""
        return format_selector(self.name, dict(self.parameters))

    def identity(self) -> dict[str, Any]:
        """Name and parameters as plain JSON."""
        return {
            "name": self.name,
            "parameters": {key: _plain(value) for key, value in self.parameters},
        }

    def build(
        self,
        num_outputs: int,
        rng: torch.Generator,
        *,
        precision: Precision = "fp32",
        fresh: bool = False,
    ) -> TimmModel:
        """A model on the CPU in train mode with every parameter trainable.

        Args:
            num_outputs: Width of the head's output.
            rng: CPU generator that the weights are drawn from; no global generator moves.
            precision: ``bf16`` runs the model under autocast; weights and outputs stay float32.
            fresh: Whether to ignore the parameter ``pretrained``, and draw all weights.

        Raises:
            BackboneError: If timm does not know the name or refuses the parameters, or its weights
                cannot be had.
        """
        if precision not in get_args(Precision):
            known = " or ".join(get_args(Precision))
            raise BackboneError(f"unknown precision {precision!r}; expected {known}")
        body = self._create(num_outputs, rng, fresh=fresh)
        if not _classifiers(body):
            raise BackboneError(
                f"backbone {self.label!r} is no classifier: timm's {type(body).__name__} has no "
                f"head to fine-tune; choose another, such as 'resnet18'"
            )
        model = TimmModel(body, num_outputs, precision=precision)
        return model.requires_grad_(True).train()

    def _create(self, num_outputs: int, rng: torch.Generator, *, fresh: bool) -> nn.Module:
        """The architecture as timm makes it, its classifier in place."""
        if num_outputs < 1:
            raise BackboneError(f"a backbone needs at least 1 output, got {num_outputs}")
        pretrained = self._pretrained and not fresh
        parameters: dict[str, Any] = dict(self.parameters)
        parameters.pop("pretrained", None)
        for key in parameters.keys() & _OURS.keys():
            raise BackboneError(f"backbone {self.label!r} takes no parameter {key!r}: {_OURS[key]}")
        _config(self.name)  # says so if there is no such name
        if pretrained:
            parameters["pretrained_cfg_overlay"] = self._published()
        with seeded_from(rng):
            try:
                body: nn.Module = timm.create_model(
                    self.name, pretrained=pretrained, num_classes=num_outputs, **parameters
                )
            except Exception as error:
                raise BackboneError(self._refusal(error)) from error
        return body

    @property
    def _pretrained(self) -> bool:
        """Whether the parameters ask for timm's weights."""
        value = dict(self.parameters).get("pretrained", False)
        if not isinstance(value, bool):
            raise BackboneError(
                f"pretrained of backbone {self.label!r} is true or false; got {_plain(value)!r}"
            )
        return value

    def _published(self) -> dict[str, Any]:
        """What makes timm read its weights from a file that is on this machine."""
        try:
            return published_weights.overlay(self.name)
        except WeightsError as error:
            raise BackboneError(f"backbone {self.label!r}: {error}") from error

    def check_weights(self) -> None:
        """See that timm's weights are on this machine and whole, if the backbone starts from them.

        They are downloaded if no cache holds them.

        Raises:
            BackboneError: If they cannot be had, or their file does not hold them.
        """
        if self._pretrained:
            _config(self.name)  # says so if there is no such name
            _check_file(self.label, self.name, **self._published())

    def timm_state(self, num_outputs: int) -> dict[str, Tensor]:
        """The state dict of timm's own model, under timm's own names; its values mean nothing.

        Raises:
            BackboneError: As `build`.
        """
        return dict(self._create(num_outputs, torch.Generator(), fresh=True).state_dict())

    def adopt(self, state: Mapping[str, Tensor], num_outputs: int) -> dict[str, Tensor]:
        """The state dict of a model of `build`, from one of timm's own model.

        Args:
            state: Names and shapes as those of `timm_state`.
            num_outputs: Width of the classifier.

        Raises:
            BackboneError: As `build`.
        """
        body = self._create(num_outputs, torch.Generator(), fresh=True)
        body.load_state_dict(state)
        return dict(TimmModel(body, num_outputs).state_dict())

    @property
    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation, by channel, that pixels in [0, 1] are normalised with."""
        config = _config(self.name)
        return config.mean, config.std

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in the scale that the backbone was made for.

        Args:
            pixels: ``(N, 3, H, W)`` uint8.

        Returns:
            ``(N, 3, H, W)`` float32 in channels-last order, normalised with the mean and
            deviation of timm's config.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise BackboneError(
                f"expected uint8 pixels of shape (N, 3, H, W), got {pixels.dtype} "
                f"{tuple(pixels.shape)}"
            )
        mean, std = _statistics(self.name, pixels.shape[3], pixels.device)
        images = pixels.permute(0, 2, 3, 1).contiguous().float()
        images.flatten(2).div_(255).sub_(mean).div_(std)
        return images.permute(0, 3, 1, 2)

    def check(self, image_size: int, num_outputs: int) -> None:
        """Build the model once and train it on two images, to fail early and in words.

        If it starts from timm's weights, they are looked at as well, as by `check_weights`.

        Args:
            image_size: Height and width of the images, in pixels.
            num_outputs: Width of the head's output.

        Raises:
            BackboneError: With what the backbone takes and, if any was found to work, a size or
                parameters to use instead; or as `check_weights`.
        """
        if image_size < 1:
            raise BackboneError(f"images need at least 1 pixel a side, got {image_size}")
        reason = self._failure(image_size, num_outputs)
        if reason is None:
            self.check_weights()
            if self._pretrained:  # its parameters may not fit the weights
                self.build(num_outputs, torch.Generator().manual_seed(0))
            return
        config = _config(self.name)
        native: Any = dict(self.parameters).get("img_size", config.input_size[-1])
        size = f"{image_size}x{image_size}"
        if config.fixed_input_size and native != image_size:
            problem = f"takes {native}x{native} images, not {size} ({reason})"
        else:
            problem = f"cannot be trained on {size} images ({reason})"
        others = []
        if native != image_size and self._works(native, num_outputs):
            others.append(f"--image-size {native}")
        others += [repr(o.label) for o in self._resized(image_size, num_outputs)]
        advice = f"try {' or '.join(others)}" if others else "choose another backbone"
        raise BackboneError(f"backbone {self.label!r} {problem}; {advice}")

    def _failure(self, image_size: int, num_outputs: int) -> str | None:
        """Why a model cannot take a training step on two images, or None if it can."""
        rng = torch.Generator().manual_seed(0)
        model = self.build(num_outputs, rng, fresh=True)
        with seeded_from(rng):
            try:
                outputs = model(torch.randn(2, 3, image_size, image_size))
                outputs.sum().backward()
            except Exception as error:
                return in_short(error)
        if outputs.shape != (2, num_outputs):
            return f"outputs are {tuple(outputs.shape)} where {(2, num_outputs)} is expected"
        return None if outputs.isfinite().all() else "outputs are not finite"

    def _works(self, image_size: int, num_outputs: int) -> bool:
        try:
            return self._failure(image_size, num_outputs) is None
        except BackboneError:
            return False

    def _resized(self, image_size: int, num_outputs: int) -> Iterator[Backbone]:
        """The first set of size parameters, if any, with which the architecture takes the size."""
        accepted = _accepted(self.build(num_outputs, torch.Generator(), fresh=True).body)
        eighth, sixteenth = max(1, image_size // 8), max(1, image_size // 16)
        for sizes in (
            {"img_size": image_size, "patch_size": eighth},
            {"img_size": image_size, "patch_size": sixteenth, "window_size": eighth},
            {"img_size": image_size},
        ):
            if sizes.keys() <= set(accepted):
                other = Backbone.of(self.name, {**dict(self.parameters), **sizes})
                if other._works(image_size, num_outputs):
                    yield other
                    return

    def _refusal(self, error: Exception) -> str:
        """One line that says why timm did not build the model."""
        found = re.search(r"unexpected keyword argument[^']*'(\w+)'", str(error))
        if found is None:
            return f"backbone {self.label!r} cannot be built: {in_short(error)}"
        with torch.device("meta"):
            accepted = _accepted(timm.create_model(self.name))
        close = difflib.get_close_matches(found[1], accepted, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
        return (
            f"backbone {self.name!r} takes no parameter {found[1]!r}; "
            f"{hint or 'it takes: ' + ', '.join(accepted)}"
        )


class TimmModel(Model):
    """A timm classifier, its head detached.

    Attributes:
        body: timm's module; where its classifier was, features pass through.
        head: timm's classifier, on features ``(B, D)``.
        passed: What features pass through: a place to count passes where the body is compiled,
            and its modules are not called one by one.
        precision: ``fp32``, or ``bf16`` for autocast.

    Args:
        body: A timm classifier, which is taken apart.
        num_outputs: The classifier's width.
        precision: What `forward` and `features` compute in; the result is float32 either way.
    """

    def __init__(self, body: nn.Module, num_outputs: int, *, precision: Precision = "fp32") -> None:
        super().__init__()
        self.precision = precision
        self._num_outputs = num_outputs
        # feature_info names timm's stages; a container that holds one, or the head, is no block
        stages = [info["module"] for info in getattr(body, "feature_info", [])]
        paths = {id(module): name for name, module in body.named_modules()}
        stages += [paths[id(classifier)] for classifier in _classifiers(body)]
        self._inner = tuple(stages)
        self.head = _detach_head(body)
        self.body = body
        self.passed = nn.Identity()

    @property
    def num_outputs(self) -> int:
        return self._num_outputs

    def forward(self, inputs: Tensor) -> Tensor:
        with self._autocast(inputs):
            return self._cast(self.head(self.features(inputs)))

    def features(self, inputs: Tensor) -> Tensor:
        with self._autocast(inputs):
            features: Tensor = self.body(inputs)
            passed: Tensor = self.passed(features.flatten(1))
            return self._cast(passed)

    def fresh_head(self, num_outputs: int, rng: torch.Generator) -> None:
        """Replace the head by the one that timm gives a new task, drawn from ``rng``.

        The draw is made on the CPU, so that every device gets the same head.
        """
        if num_outputs < 1:
            raise BackboneError(f"a head needs at least 1 output, got {num_outputs}")
        tensors = [*self.body.parameters(), *self.body.buffers()]
        skeleton: Any = copy.deepcopy(self.body, {id(t): _on_cpu(t) for t in tensors})
        with seeded_from(rng):
            skeleton.reset_classifier(num_outputs)
        like = next(self.body.parameters())
        self.head = _detach_head(skeleton).to(like.device, like.dtype).train()
        self.drawn_head = tuple(p.detach().clone() for p in self.head.parameters())
        self._num_outputs = num_outputs

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """The body's stages in forward order as ``(path in the model, module)``.

        The order is timm's of registration, which is not the order of running where an
        architecture alternates between lists (CoaT, EfficientViM, Twins). Parameters that belong to
        no stage (class token, position embedding) are in no block.
        """
        return list(_stages(self.body, "", self._inner))

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the head; with `body_parameters`, each parameter exactly once."""
        return list(self.head.parameters())

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of all but the head."""
        return list(self.body.parameters())

    def _autocast(self, inputs: Tensor) -> torch.autocast:
        enabled = self.precision == "bf16"
        return torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _cast(self, outputs: Tensor) -> Tensor:
        return outputs.float() if self.precision == "bf16" else outputs


class _Slot(nn.Module):
    """Stands for one of several heads whose outputs timm averages; the average is all features.

    It pads ``(B, D_i)`` to ``(B, D)``, its own place among the features of all heads.
    """

    def __init__(self, index: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.padding = (sum(widths[:index]), sum(widths[index + 1 :]))
        self.heads = len(widths)

    def forward(self, features: Tensor) -> Tensor:
        return functional.pad(features, self.padding) * self.heads


class _AveragedHeads(nn.Module):
    """The heads of a distilled model: the mean of what each makes of its own features."""

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.widths = list(widths)

    def forward(self, features: Tensor) -> Tensor:
        parts = torch.split(features, self.widths, dim=1)
        outputs = [head(part) for head, part in zip(self.heads, parts, strict=True)]
        return torch.stack(outputs).mean(dim=0)


def _classifiers(body: Any) -> list[nn.Module]:
    """The classifiers of timm; several where their outputs are averaged."""
    found = body.get_classifier() if hasattr(body, "get_classifier") else None
    parts = found if isinstance(found, tuple | nn.ModuleList) else (found,)
    return [p for p in parts if p is not None and any(True for _ in p.parameters())]


def _detach_head(body: nn.Module) -> nn.Module:
    """Take the classifier out of ``body`` and let the features through in its place."""
    heads = _classifiers(body)
    paths = {id(module): name for name, module in body.named_modules()}
    if len(heads) == 1:
        body.set_submodule(paths[id(heads[0])], nn.Identity())
        return _linear(heads[0])
    widths = [
        next(m.in_features for m in head.modules() if isinstance(m, nn.Linear)) for head in heads
    ]
    for index, head in enumerate(heads):
        body.set_submodule(paths[id(head)], _Slot(index, widths))
    return _AveragedHeads(heads, widths)


def _linear(head: nn.Module) -> nn.Module:
    """A 1x1 convolution on pooled features as the linear layer that it is; others unchanged."""
    if not isinstance(head, nn.Conv2d):
        return head
    linear: nn.Linear = skip_init(  # draws nothing
        nn.Linear, head.in_channels, head.out_channels, bias=head.bias is not None
    )
    linear.weight = nn.Parameter(head.weight.detach().flatten(1))
    if head.bias is not None:
        linear.bias = nn.Parameter(head.bias.detach())
    return linear


def _stages(
    module: nn.Module, prefix: str, inner: Sequence[str]
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        holds = isinstance(child, nn.Sequential) and any(i.startswith(f"{path}.") for i in inner)
        if holds or isinstance(child, nn.ModuleList):
            yield from _stages(child, f"{path}.", inner)
        elif any(True for _ in child.parameters()):
            yield f"body.{path}", child


def _on_cpu(tensor: Tensor) -> Tensor:
    """A stand-in of the same type, shape and dtype; its values are never read."""
    empty = torch.empty_like(tensor, device="cpu", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


@functools.lru_cache
def _config(name: str) -> PretrainedCfg:
    """What timm knows of ``name``: mean and deviation of its images, and their size."""
    if not timm.is_model(name):
        raise BackboneError(unknown("backbone", name, timm.list_models()))
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        architecture = name.split(".")[0]
        tags = timm.list_pretrained(f"{architecture}.*")
        raise BackboneError(unknown("backbone", name, [architecture, *tags])) from error


@functools.lru_cache
def _check_file(label: str, name: str, file: str, custom_load: bool) -> None:
    """Load a file of weights into the architecture as it is, where each tensor has to fit.

    A backbone of another number of classes takes a file of another architecture without a word.
    """
    source = {"file": file, "custom_load": custom_load}
    with seeded_from(torch.Generator().manual_seed(0)):
        try:
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source)
        except Exception as error:  # whatever a file can make the libraries do
            raise BackboneError(
                f"backbone {label!r}: {file!r} does not hold timm's weights of {name!r} "
                f"({in_short(error)}); delete {published_weights.discard(Path(file))}, and it is "
                f"downloaded again"
            ) from error


@functools.lru_cache
def _statistics(name: str, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of timm's config for each of ``width`` times 3 values of an image's row.

    A whole row at a time is ten times as fast as 3 values; they are sent to the device once.
    """
    config = _config(name)
    mean, std = (torch.tensor(v, device=device).repeat(width) for v in (config.mean, config.std))
    return mean, std


def _accepted(body: nn.Module) -> list[str]:
    """Names of the parameters that the constructor of ``body`` takes."""
    names: dict[str, None] = {}
    for cls in type(body).__mro__:
        parameters = inspect.signature(cls).parameters
        variadic = [name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD]
        named = [
            name
            for name, p in parameters.items()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        names.update(dict.fromkeys(named))
        if not variadic or cls is nn.Module:
            break
    return [name for name in names if name not in {"device", "dtype", *_OURS}]


def _frozen(value: Any) -> Value:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _plain(value: Value) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
