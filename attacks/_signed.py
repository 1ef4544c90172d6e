"""A model whose outputs may be negated."""

import torch
from torch import Tensor, nn

from sophon_bench.api import Model, Samples, Task


class Signed(nn.Module):
    """``sign * model(inputs)``.

    Attributes:
        sign: 1, or -1 where the model ranks the true class last.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.sign = 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(B, K)`` of images ``(B, C, H, W)``."""
        outputs: Tensor = self.model(inputs)
        return self.sign * outputs

    @torch.no_grad()
    def choose(self, task: Task, samples: Samples) -> None:
        """Choose the sign with the higher utility on ``samples``; a tie keeps the current sign."""
        self.eval()
        present = task.utility(self, samples)
        self.sign = -self.sign
        if task.utility(self, samples) <= present:
            self.sign = -self.sign
        self.train()
