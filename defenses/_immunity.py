"""Which weights IMMA immunises, and the fine-tuner that it immunises them against."""

import copy
import itertools

import torch
from torch import nn

from sophon_bench.api import Model
from sophon_bench.training import choose_head

from ._outer import Scene


def immunised(model: Model) -> list[nn.Parameter]:
    """The weights of attention layers and of the middle block, the bottleneck of a U-Net."""
    blocks = model.blocks()
    attention = [m for m in model.modules() if "attention" in type(m).__name__.lower()]
    chosen = [blocks[len(blocks) // 2][1], *attention]
    own = {id(p) for module in chosen for p in module.parameters()}
    return [p for p in model.parameters() if id(p) in own]


def adapt(scene: Scene, *, steps: int, lr: float, batch_size: int) -> None:
    """Train the scene's learner further, after resetting its immunised weights to the model's.

    Raises:
        Incompatible: If the model, whose head the learner keeps, has too few outputs.
    """
    learner, domain, rng = scene.learner, scene.view.restricted, scene.view.rng
    if learner.head is scene.head:  # the first time
        learner.head = copy.deepcopy(scene.model.head)
        choose_head(learner, "kept", outputs=domain.task.num_outputs, rng=rng)
    with torch.no_grad():
        for parameter, released in zip(immunised(learner), immunised(scene.model), strict=True):
            parameter.copy_(released)
    optimizer = torch.optim.SGD(learner.parameters(), lr=lr)
    for batch in itertools.islice(domain.train.batches(batch_size, rng), steps):
        optimizer.zero_grad()
        domain.task.loss(learner, batch).backward()
        optimizer.step()
