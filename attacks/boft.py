"""Rotate the inputs of frozen linear and convolution layers, and rescale their outputs.

Reference: Liu et al., BOFT, ICLR 2024, arXiv 2311.06243; with one butterfly factor, which is Qiu et
al., OFT, NeurIPS 2023, arXiv 2306.07280. Own code: peft multiplies dense matrices as wide as a
convolution's patch, which costs more than training the whole network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import nn
from torch.nn.utils import parametrize

from sophon_bench.api import AttackView, Model
from sophon_bench.registry import attacks

from . import _peft, _rotation


@attacks.register("boft")
@dataclass(frozen=True, kw_only=True)
class BOFT:
    """Minimise the task's loss over block rotations, output gains and a fresh head.

    All linear and convolution layers of the body that ``block`` fits are adapted, grouped ones too;
    BatchNorm adapts.

    Args:
        block: Width of a rotation; layers whose input patch it does not divide are left alone.
        lr: Step size of Adam.
        batch_size: Examples per update; at most all of them.
    """

    block: Annotated[int, Gt(1)] = 8
    lr: Annotated[float, Gt(0)] = 1e-2
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[nn.Module]:
        sites = _peft.sites(
            model,
            lambda layer: _peft.is_weighted(layer) and _peft.fan_in(layer) % self.block == 0,
            what=f"linear or convolution layer whose input is a multiple of block={self.block}",
        )
        model.fresh_head(view.task.num_outputs, view.rng)
        model.requires_grad_(False)
        for layer in sites.values():
            rotation = _rotation.Rotation(layer.get_parameter("weight"), self.block)
            parametrize.register_parametrization(layer, "weight", rotation)
        model.head.requires_grad_(True)
        yield from _peft.train(model, view, lr=self.lr, batch_size=self.batch_size)
