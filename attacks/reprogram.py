"""Train a perturbation that is added to every image, and a head; the body stays frozen.

Reference: Elsayed et al., Adversarial reprogramming of neural networks, ICLR 2019,
arXiv 1806.11146; Bahng et al., Exploring visual prompts, 2022, arXiv 2203.17274.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor, nn

from sophon_bench import training
from sophon_bench.api import AttackView, Model, Predictor, attacks

from . import _peft


@attacks.register("reprogram")
@dataclass(frozen=True, kw_only=True)
class Reprogram:
    """Minimise the task's loss over a frame that is added to all images, and a fresh head.

    The body's weights and BatchNorm statistics stay as released.

    Args:
        width: Width of the frame as a fraction of the image's side; 0.5 covers the whole image.
        lr: Step size of Adam for the head.
        prompt_lr: Step size of Adam for the frame.
        head: Train a fresh head, or keep the original one frozen and use its first outputs.
        batch_size: Examples per update, or all if there are fewer.
    """

    width: Annotated[float, Interval(gt=0, le=0.5)] = 0.5
    lr: Annotated[float, Gt(0)] = 1e-2
    prompt_lr: Annotated[float, Gt(0)] = 1e-3
    head: training.HeadName = "fresh"
    batch_size: Annotated[int, Gt(0)] = 64

    def run(self, model: Model, view: AttackView) -> Iterator[Predictor]:
        training.choose_head(model, self.head, outputs=view.task.num_outputs, rng=view.rng)
        model.eval().requires_grad_(False)
        model.head.requires_grad_(self.head == "fresh")
        shape = view.train.inputs.shape[1:]
        frame = torch.ones(shape, device=view.device)
        top, left = (round(self.width * side) for side in shape[1:])
        frame[:, top : shape[1] - top, left : shape[2] - left] = 0
        prompt = nn.Parameter(torch.zeros(shape, device=view.device))
        optimizer = torch.optim.Adam([prompt], lr=self.prompt_lr)
        optimizer.add_param_group({"params": _peft.trainable(model), "lr": self.lr})

        def reprogrammed(inputs: Tensor) -> Tensor:
            logits: Tensor = model(inputs + frame * prompt)
            return logits

        for batch in view.batches(self.batch_size):
            optimizer.zero_grad()
            view.task.loss(reprogrammed, batch).backward()
            optimizer.step()
            yield reprogrammed
