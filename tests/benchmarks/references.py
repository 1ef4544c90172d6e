"""The loops that others write, as small and honest as they can be, to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sophon_bench.api import Batch, Model, Task
from sophon_bench.defenses.sophon.simulate import Objective, Step


def learn2learn_style(
    model: Model, steps: Iterable[Step], *, lr: float, task: Task, objective: Objective
) -> None:
    """First-order suppression as with learn2learn's clones; leaves the gradient on ``model``.

    A clone of the weights that stays connected to them takes SGD steps; the losses on T_k are
    summed and differentiated at the end, so that all of their graphs are alive until then.
    """
    names = [name for name, _ in model.named_parameters()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = [p.clone() for p in model.parameters()]

    def outputs(inputs: Tensor) -> Tensor:
        now = dict(zip(names, weights, strict=True)) | buffers
        found: Tensor = functional_call(model, now, inputs)
        return found

    total = torch.zeros(())
    for adapt, judge, weight in steps:
        gradients = torch.autograd.grad(task.loss(outputs, adapt), weights)
        weights = [w - lr * g for w, g in zip(weights, gradients, strict=True)]
        total = total + weight * objective(outputs(judge.inputs), judge.targets)
    total.backward()  # type: ignore[no-untyped-call]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets give them: decoded to PIL, transformed one by one."""

    def __init__(self, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.pixels[index].transpose(1, 2, 0))
        return self.transform(image), int(self.labels[index])


def loader_fine_tune(
    model: nn.Module, data: Pictures, device: torch.device, *, batch_size: int, workers: int
) -> Iterator[float]:
    """A fine-tune as in most repositories: DataLoader, SGD with momentum, the loss every step."""
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    while True:
        for inputs, targets in loader:
            batch = Batch(inputs.to(device), targets.to(device))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch.inputs), batch.targets)
            loss.backward()
            optimizer.step()
            yield loss.item()
