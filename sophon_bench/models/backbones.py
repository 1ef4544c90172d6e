"""timm's classifiers as backbones: names and parameters, built, checked and scaled for."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from sophon_bench.models import published_weights
from sophon_bench.models.architecture import BackboneError, Precision, check_pixels
from sophon_bench.models.published_weights import WeightsError, in_short
from sophon_bench.models.timm_models import TimmModel, classifiers
from sophon_bench.models.weight_files import CheckpointError, Content, few, read
from sophon_bench.models.weight_names import fitted
from sophon_bench.plugins.registry import closest, unknown
from sophon_bench.plugins.selectors import format_selector, plain
from sophon_bench.seeding import seeded_from

Value = bool | int | float | str | None | tuple["Value", ...]

_OURS = {
    "in_chans": "images have 3 channels",
    "checkpoint_path": "--weights FILE names a file to start from",
    "features_only": "a backbone needs its classifier",
    "pretrained_cfg": "the tag is part of the name, as in 'resnet18.a1_in1k'",
    "pretrained_cfg_overlay": "the tag is part of the name, as in 'resnet18.a1_in1k'",
    "weights": "--weights FILE names a file, and records its SHA-256",
    "cache_dir": "HF_HUB_CACHE and TORCH_HOME set where pre-trained weights are kept",
}


def list_backbones() -> list[str]:
    """All names of timm."""
    return list(timm.list_models())


@dataclass(frozen=True)
class StartingWeights:
    """A file that models start from; what it holds is its identity, and not where it is.

    Attributes:
        sha256: Of the file, in hexadecimal; of one that is known from a label alone, the first
            twelve digits.
        file: Where it is on this machine, if that is known.
    """

    sha256: str
    file: Path | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """What selectors and records call it."""
        return f"sha256:{self.sha256[:12]}"


@dataclass(frozen=True)
class Backbone:
    """A timm architecture with its constructor's parameters.

    Args:
        name: A name of timm, with or without a tag (``resnet18.a1_in1k``).
        parameters: Sorted pairs for timm's constructor; `of` makes them from a dict. The parameter
            ``pretrained=True`` starts from timm's weights, which need a network or a cache;
            ``num_classes=N`` is a head of N outputs, of which the original domain's classes are
            the first. Without it, the head has as many outputs as there are classes.
        weights: A file to start from; of its classifier nothing is taken.
    """

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()
    weights: StartingWeights | None = None

    task: ClassVar[str] = "classification"

    @classmethod
    def of(cls, name: str, parameters: Mapping[str, Any] | None = None) -> Backbone:
        """A backbone from a dict of plain values; lists become tuples.

        The parameter ``weights=sha256:…`` is what `label` says of a file to start from.
        """
        given = dict(parameters or {})
        digest = re.fullmatch("sha256:([0-9a-f]{12,64})", str(given.get("weights")))
        weights = StartingWeights(digest[1]) if digest else None
        pairs = sorted((k, v) for k, v in given.items() if not (digest and k == "weights"))
        return cls(name, tuple((key, _frozen(value)) for key, value in pairs), weights)

    @property
    def label(self) -> str:
        """The selector: ``vit_tiny_patch16_224[img_size=32,patch_size=4]``."""
        parameters = dict(self.parameters)
        if self.weights is not None:
            parameters["weights"] = self.weights.label
        return format_selector(self.name, parameters)

    def identity(self) -> dict[str, Any]:
        parameters = {key: plain(value) for key, value in self.parameters}
        found: dict[str, Any] = {"name": self.name, "parameters": parameters}
        return found if self.weights is None else {**found, "weights": self.weights.sha256}

    @property
    def bare(self) -> Backbone:
        """The same architecture, started from random weights."""
        parameters = tuple(pair for pair in self.parameters if pair[0] != "pretrained")
        return Backbone(self.name, parameters)

    def with_head(self, num_classes: int | None) -> Backbone:
        """The same with a head of so many outputs; None: of as many as there are classes."""
        given = {key: value for key, value in self.parameters if key != "num_classes"}
        own = {} if num_classes is None else {"num_classes": num_classes}
        return dataclasses.replace(self, parameters=tuple(sorted({**given, **own}.items())))

    def starting_from(self, weights: str | Path) -> Backbone:
        """The same architecture, started from other weights.

        Args:
            weights: ``timm``, ``random``, or a file of safetensors or torch.save.

        Raises:
            BackboneError: If the selector asks for others.
            CheckpointError: If there is no such file, or it holds no weights.
        """
        asked = dict(self.parameters).get("pretrained")
        if weights in ("timm", "random"):
            wanted = weights == "timm"
            if self.weights is not None or asked not in (None, wanted):
                raise BackboneError(_contradiction(weights, self.label))
            if asked is not None or not wanted:
                return self
            return Backbone.of(self.name, {**dict(self.parameters), "pretrained": True})
        if asked:
            raise BackboneError(_contradiction(str(weights), self.label))
        content = _content(weights)
        found = StartingWeights(content.sha256, content.file.absolute())
        if self.weights is not None and not found.sha256.startswith(self.weights.sha256):
            raise BackboneError(
                f"backbone {self.label!r} starts from another file than {str(weights)!r}, which is "
                f"{found.label}"
            )
        return dataclasses.replace(self.bare, weights=found)

    def build(
        self,
        num_outputs: int,
        rng: torch.Generator,
        *,
        precision: Precision = "fp32",
        fresh: bool = False,
    ) -> TimmModel:
        if self.weights is not None and not fresh:
            model = self.bare.build(num_outputs, rng, precision=precision)
            model.load_state_dict({**model.state_dict(), **self._body()})
            return model
        num_outputs = self._outputs(num_outputs)
        body = self._create(num_outputs, rng, fresh=fresh)
        if not classifiers(body):
            raise BackboneError(
                f"backbone {self.label!r} is no classifier: timm's {type(body).__name__} has no "
                f"head to fine-tune; choose another, such as 'resnet18'"
            )
        return TimmModel(body, num_outputs, precision=precision)

    def _create(self, num_outputs: int, rng: torch.Generator, *, fresh: bool) -> nn.Module:
        """The architecture as timm makes it, its classifier in place."""
        if num_outputs < 1:
            raise BackboneError(f"a backbone needs at least 1 output, got {num_outputs}")
        pretrained = self._pretrained and not fresh
        parameters: dict[str, Any] = dict(self.parameters)
        parameters.pop("pretrained", None)
        parameters.pop("num_classes", None)
        for key in parameters.keys() & _OURS.keys():
            raise BackboneError(f"backbone {self.label!r} takes no parameter {key!r}: {_OURS[key]}")
        _config(self.name)  # says so if there is no such name
        if pretrained:
            parameters["pretrained_cfg_overlay"] = self._published()
        try:
            with seeded_from(rng):
                body: nn.Module = timm.create_model(
                    self.name, pretrained=pretrained, num_classes=num_outputs, **parameters
                )
        except Exception as error:
            raise BackboneError(self._refusal(error)) from error
        if pretrained:  # copies of the model need no copies of what it was loaded from
            config: Any = body.pretrained_cfg
            config.pop("state_dict", None)
        return body

    def _outputs(self, classes: int) -> int:
        """Outputs of the head of a task with so many classes."""
        wanted = dict(self.parameters).get("num_classes", classes)
        if not isinstance(wanted, int) or isinstance(wanted, bool):
            raise BackboneError(
                f"num_classes of backbone {self.label!r} is a whole number; got {plain(wanted)!r}"
            )
        if wanted < classes:
            raise BackboneError(
                f"backbone {self.label!r} has {wanted} outputs, and the original domain "
                f"{classes} classes; it needs one for each"
            )
        return wanted

    @property
    def _pretrained(self) -> bool:
        """Whether the parameters ask for timm's weights."""
        value = dict(self.parameters).get("pretrained", False)
        if not isinstance(value, bool):
            raise BackboneError(
                f"pretrained of backbone {self.label!r} is true or false; got {plain(value)!r}"
            )
        if value and self.weights is not None:
            raise BackboneError(f"backbone {self.label!r}: pretrained=true contradicts its weights")
        return value

    def _body(self) -> dict[str, Tensor]:
        """The weights to start from, without the file's head.

        Raises:
            BackboneError: If the file is not known, or has values that are not finite.
            CheckpointError: If the file is another one by now, or no model of this backbone.
        """
        weights = self.weights
        if weights is None or weights.file is None:
            raise BackboneError(
                f"backbone {self.label!r} starts from a file; name it with --weights FILE"
            )
        content = read(weights.file, sha256=weights.sha256, pickles=True)
        state = fitted(content, self.bare, None).weights
        body = {name: tensor for name, tensor in state.items() if name.startswith("body.")}
        if broken := [name for name, tensor in body.items() if not tensor.isfinite().all()]:
            raise CheckpointError(
                f"{str(weights.file)!r} has values that are not finite, in {few(broken)}"
            )
        return body

    def _published(self) -> dict[str, Any]:
        """What makes timm read its weights from a file that is on this machine."""
        _config(self.name)  # says so if there is no such name
        try:
            return published_weights.overlay(self.name)
        except WeightsError as error:
            raise BackboneError(f"backbone {self.label!r}: {error}") from error

    def check_weights(self) -> None:
        """Have timm's weights on this machine and whole, if the backbone starts from them.

        Those of a file are looked at as well.

        Raises:
            BackboneError: If they cannot be had, or their file does not hold them.
            CheckpointError: If a file that was named does not hold a model of the backbone.
        """
        if self.weights is not None:
            self._body()
        if self._pretrained and "file" in (source := self._published()):
            _check_file(self.label, self.name, **source)

    def timm_state(self, num_outputs: int) -> dict[str, Tensor]:
        """The state dict of timm's own model, under timm's own names; its values mean nothing."""
        return dict(self._create(num_outputs, torch.Generator(), fresh=True).state_dict())

    def adopt(self, state: Mapping[str, Tensor], num_outputs: int) -> dict[str, Tensor]:
        """The state dict of a model of `build`, from one with the names of `timm_state`."""
        body = self._create(num_outputs, torch.Generator(), fresh=True)
        body.load_state_dict(state)
        return dict(TimmModel(body, num_outputs).state_dict())

    @property
    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation, by channel, that pixels in [0, 1] are normalised with."""
        config = _config(self.name)
        return config.mean, config.std

    def normalize(self, pixels: Tensor) -> Tensor:
        """As `Architecture.normalize`, with mean and deviation of timm's config."""
        check_pixels(pixels)
        mean, std = _statistics(self.name, pixels.shape[3], pixels.device)
        images = pixels.permute(0, 2, 3, 1).contiguous().float()
        images.flatten(2).div_(255).sub_(mean).div_(std)
        return images.permute(0, 3, 1, 2)

    def check(self, image_size: int, num_outputs: int) -> None:
        """As `Architecture.check`: build the model once and train it on two images.

        If it starts from timm's weights or a file, they are looked at as well, as by
        `check_weights`.
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
        expected = (2, model.num_outputs)
        if outputs.shape != expected:
            return f"outputs are {tuple(outputs.shape)} where {expected} is expected"
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
        hint = closest(found[1], accepted, f"it takes: {', '.join(accepted)}")
        return f"backbone {self.name!r} takes no parameter {found[1]!r}; {hint}"


def _contradiction(weights: str, label: str) -> str:
    return f"--weights {weights} contradicts backbone {label!r}; leave one of them out"


def _content(weights: str | Path) -> Content:
    """The file that ``--weights`` names."""
    file = Path(weights)
    if file.name == str(weights) and not file.suffix and not file.exists():
        words = closest(file.name, ["random", "timm"], "there are timm and random")
        raise BackboneError(
            f"--weights takes timm, random or a file; there is no file {file.name!r}; {words}"
        )
    return read(file, pickles=True)


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
        parameters = inspect.signature(cls).parameters.values()
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names |= dict.fromkeys(p.name for p in by_name)
        if all(p.kind is not p.VAR_KEYWORD for p in parameters) or cls is nn.Module:
            break
    return [name for name in names if name not in {"device", "dtype", *_OURS}]


def _frozen(value: Any) -> Value:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value
