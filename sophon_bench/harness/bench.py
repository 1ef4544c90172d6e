"""A scenario's data on the device, and models of a backbone: where stages work."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sophon_bench.api import Domain, Generative, Model, Predictor, Samples
from sophon_bench.data.samples import Pixels, Streamed, free_bytes
from sophon_bench.data.scenario import DomainData, Images, ScenarioData
from sophon_bench.harness.generation import Critic
from sophon_bench.harness.meter import Profile, profile
from sophon_bench.models import inception
from sophon_bench.models.architecture import Architecture, Compile, Precision
from sophon_bench.protocol import VALIDATION_SHARE
from sophon_bench.results.records import Generated
from sophon_bench.seeding import derive_seed

Weights = Mapping[str, Tensor]


class Bench:
    """A scenario's data on the device in a backbone's input scale: where stages work.

    fp32 is fp32: TF32 is off from then on in the process.

    Args:
        data: The built scenario.
        backbone: The architecture of every model.
        device: Where to train and score.
        precision: ``fp32``, or ``bf16`` for autocast.
        compiled: How models are compiled; copies that plugins make, and scoring, are not.
        room: Bytes of pixels that one split may take on the device, larger ones are streamed;
            None: half of what the device has free.

    Raises:
        ScenarioError: If there is a file with Inception's weights and it is not the published one.
    """

    def __init__(
        self,
        data: ScenarioData,
        backbone: Architecture,
        *,
        device: torch.device,
        precision: Precision,
        compiled: Compile = "off",
        room: int | None = None,
    ) -> None:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.data = data
        self.backbone = backbone
        self.device = device
        self.precision = precision
        self.compiled = compiled
        self._room = free_bytes(device) // 2 if room is None else room
        self._samples: dict[tuple[str, str], Pixels] = {}
        self._critics: dict[str, Critic] = {}
        generates = isinstance(data.restricted.task, Generative)
        self._inception = inception.weights() if generates else None

    def samples(self, domain: DomainData, split: str) -> Pixels:
        """A whole split on the device."""
        key = (domain.name, split)
        if key not in self._samples:
            self._samples[key] = self._upload(domain.splits[split])
        return self._samples[key]

    def _upload(self, images: Images, index: Tensor | None = None) -> Pixels:
        pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
        if index is not None:
            pixels, labels = pixels[index], labels[index]
        held = Pixels if pixels.nbytes <= self._room else Streamed
        return held(pixels, labels, self.backbone.normalize, device=self.device)

    def defender(self) -> tuple[Domain, Domain]:
        """The original and the restricted domain as a defender sees them."""
        original, restricted = self.data.original, self.data.restricted
        train, validation = _carve(restricted.splits["defender"], len(restricted.classes), 0)
        return (
            Domain(
                original.task,
                self.samples(original, "train").copy(),
                self.samples(original, "validation").copy(),
            ),
            Domain(
                restricted.task,
                self._upload(restricted.splits["defender"], train),
                self._upload(restricted.splits["defender"], validation),
            ),
        )

    def attacker(self, domain: DomainData, count: int, seed: int) -> tuple[Pixels, Pixels]:
        """The attacker's ``count`` samples of this seed, as training and validation.

        Fewer samples are a subset of more: both are the beginning of one balanced order.
        """
        train, validation = _carve(domain.pool, len(domain.classes), seed, count)
        return self._upload(domain.pool, train), self._upload(domain.pool, validation)

    def auxiliary(self) -> Samples | None:
        """Benign data for an attacker to keep: the first benign domain's training samples."""
        benign = self.data.benign
        return self.samples(benign[0], "train").copy() if benign else None

    def new_model(self, rng: torch.Generator, *, pretrained: bool = False) -> Model:
        """A model with random weights and the original head; or the published weights, if asked."""
        model: Model = self.backbone.build(
            self.data.original.task.num_outputs,
            rng,
            precision=self.precision,
            fresh=not pretrained,
        )
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compiled != "off":
            model.get_submodule("body").compile(mode=self.compiled)
        return model

    def eager(self) -> contextlib.AbstractContextManager[object]:
        """Nothing is compiled inside: what is called a few times only is not worth it."""
        if self.compiled == "off":
            return contextlib.nullcontext()
        stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance

    def load(self, weights: Weights) -> Model:
        """A fresh model of the backbone with these weights and nothing else.

        Raises:
            ValueError: If they do not fit the backbone.
        """
        model = self.new_model(torch.Generator())
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split()[:40])
            raise ValueError(f"the weights do not fit {self.backbone.label}: {reason}") from error
        return model

    @functools.cached_property
    def profile(self) -> Profile:
        """FLOPs of the undefended backbone."""
        size = self.data.image_size
        inputs = torch.zeros(2, 3, size, size, device=self.device)
        return profile(self.new_model(torch.Generator()), inputs, whole=self.compiled != "off")

    def utility(self, weights: Weights, domain: DomainData, split: str) -> float:
        """Utility of weights as they are on one split."""
        model = self.load(weights).eval()
        with torch.no_grad(), self.eager():
            return domain.task.utility(model, self.samples(domain, split))

    def trivial_loss(self, domain: DomainData) -> float | None:
        """The task's loss at utility 0 on the test split, if utility follows from the loss."""
        return domain.task.trivial_loss(self.samples(domain, "test"))

    def images(self, predictor: Predictor, domain: DomainData) -> Tensor | None:
        """What a predictor in eval mode makes of noise, ``(N, 3, H, W)`` uint8.

        None where the task's models make no images.
        """
        if not isinstance(domain.task, Generative):
            return None
        count, size = self.data.generated, self.data.image_size
        with self.eager():
            return domain.task.generate(predictor, count, size, self.device)

    def judged(self, images: Tensor | None, domain: DomainData) -> Generated | None:
        """How good such images are, next to a domain's; its critic is trained at the first ones."""
        if images is None:
            return None
        if domain.name not in self._critics:
            labelled = domain if len(domain.classes) > 1 else self.data.original
            self._critics[domain.name] = Critic(
                domain, labelled, self.device, count=len(images), inception=self._inception
            )
        return self._critics[domain.name].judge(images)


def _carve(
    images: Images, classes: int, seed: int, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Indices for training and validation: class-balanced, in an order drawn from the seed."""
    rng = np.random.default_rng(derive_seed("data", seed))
    shuffled = rng.permutation(len(images))
    rank = np.empty(len(images), dtype=np.int64)
    for label in range(classes):
        members = shuffled[images.labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    order = shuffled[np.argsort(rank[shuffled], kind="stable")][:count]
    held_out = max(1, round(VALIDATION_SHARE * len(order)))
    return torch.from_numpy(order[:-held_out]), torch.from_numpy(order[-held_out:])
