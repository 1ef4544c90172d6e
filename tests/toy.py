"""A model and two domains so small that a defense runs on them in a moment, in float64 too.

And records of a denoiser with pictures, made by hand.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from conftest import Attempt
from msgspec.structs import replace
from torch import Tensor, nn

from sophon_bench.api import AttackView, DefenseView, Domain, Model, Samples
from sophon_bench.data.tasks.classification import Classification
from sophon_bench.results.pictures import picture_of
from sophon_bench.results.records import Generated

ORIGINAL, RESTRICTED = 4, 3


class Tiny(Model):
    """A smooth two-layer network with BatchNorm on ``(B, 8)`` inputs."""

    def __init__(self, seed: int = 0, width: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.Tanh())
        self.head = nn.Linear(width, ORIGINAL)
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))

    @property
    def num_outputs(self) -> int:
        return self.head.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))

    def features(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)

    def fresh_head(self, num_outputs: int, rng: torch.Generator) -> None:
        old = self.head.weight
        self.head = nn.utils.skip_init(nn.Linear, old.shape[1], num_outputs, dtype=old.dtype)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(num_outputs, old.shape[1], generator=rng) * 0.3)
            self.head.bias.zero_()

    def blocks(self) -> list[tuple[str, nn.Module]]:
        return [("body", self.body)]


def samples(n: int, classes: int, seed: int, dtype: torch.dtype = torch.float32) -> Samples:
    """Blobs around unit vectors; those of odd seeds lie across those of even ones."""
    rng = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % classes
    centres = 3 * torch.eye(8)[targets + 4 * (seed % 2)]
    return Samples((centres + 0.7 * torch.randn(n, 8, generator=rng)).to(dtype), targets)


def view(seed: int = 0, dtype: torch.dtype = torch.float32, n: int = 40) -> DefenseView:
    return DefenseView(
        original=Domain(
            Classification(ORIGINAL),
            samples(64, ORIGINAL, 2, dtype),
            samples(64, ORIGINAL, 4, dtype),
        ),
        restricted=Domain(
            Classification(RESTRICTED),
            samples(n, RESTRICTED, 1, dtype),
            samples(32, RESTRICTED, 3, dtype),
        ),
        device=torch.device("cpu"),
        rng=torch.Generator().manual_seed(seed),
    )


def trained(steps: int = 150) -> Tiny:
    model, data = Tiny(), view().original
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batches = data.train.batches(32, torch.Generator().manual_seed(0))
    for batch in itertools.islice(batches, steps):
        optimizer.zero_grad()
        torch.autograd.backward(data.task.loss(model, batch))
        optimizer.step()
    return model


def fine_tune(
    model: Model, view: AttackView, lr: float = 0.02, *, trained: nn.Module | None = None
) -> Iterator[Model]:
    """The plain loop of an attack behind a fresh head; of ``trained`` around it, if given."""
    model.fresh_head(view.task.num_outputs, view.rng)
    moving = model if trained is None else trained
    optimizer = torch.optim.SGD(moving.parameters(), lr=lr)
    for batch in view.batches(16):
        optimizer.zero_grad()
        torch.autograd.backward(view.task.loss(moving, batch))
        optimizer.step()
        yield moving


def drain(run: Iterator[Model]) -> tuple[list[dict[str, Tensor]], str | None]:
    """The state at every yield of ``run``, and the sentence that it returns."""
    states = []
    while True:
        try:
            states.append(state(next(run)))
        except StopIteration as stop:
            return states, stop.value


def state(model: Model) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


SKILL = "denoising skill"


def drawing(number: int) -> str:
    """A small picture in base64, another for each number."""
    pixels = np.full((4, 40, 3), number * 37 % 256, dtype=np.uint8)
    pixels[1:3, ::4, number % 3] = 255
    return picture_of(pixels)


def generated(number: int, frechet: float | None = None) -> Generated:
    """Images with this Fréchet distance, the number if none is given."""
    return Generated(
        count=200,
        frechet=float(number) if frechet is None else frechet,
        frechet_real=1.5,
        classifier_score=4.0,
        picture=drawing(number),
    )


def generation(make_cell: Callable[..., Attempt], **changes: object) -> list[Attempt]:
    """Records of a denoiser: a defense and the controls on two seeds, each with pictures.

    Losses at utility 0 are 0.2 on the original domain and 0.1 on the restricted one. Fréchet
    distances are tens by the model: undefended and defended, attacked, from scratch; plus the seed.
    """
    cells = []
    for seed in (0, 1):
        for defense, attack, test, number in (
            ("none", "scratch", 0.4, 50),
            ("none", "finetune[lr=0.1]", 0.9 - 0.1 * seed, 60),
            ("none", "finetune[lr=0.2]", 0.9, 30),
            ("dos", "finetune[lr=0.1]", 0.6 - 0.1 * seed, 70),
            ("dos", "finetune[lr=0.2]", 0.7, 40),
        ):
            # equal models, by equal keys, have equal pictures
            selection = 0.95 if attack == "finetune[lr=0.2]" else test
            cell = make_cell(
                defense=defense,
                attack=attack,
                seed=seed,
                curve=[(12800.0, selection, test)],
                original=(0.9, 0.9 if defense == "none" else 0.8),
                utility=SKILL,
                trivial_loss=0.1,
                **changes,
            )
            made = {"trivial_loss": 0.2}
            before, after = 10 + seed, (10 if defense == "none" else 20) + seed
            cells.append(
                replace(
                    cell,
                    generated=generated(number + seed),
                    pretrained=replace(cell.pretrained, generated=generated(before), **made),
                    released=replace(cell.released, generated=generated(after), **made),
                )
            )
    return cells
