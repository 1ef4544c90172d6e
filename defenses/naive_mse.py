"""One combined loss for denoisers, without simulating a fine-tuner.

Reference: the baseline "naive" of Deng et al., SOPHON, IEEE S&P 2024, arXiv 2404.12699.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Interval
from torch import Tensor

from sophon_bench.api import DefenseView, Model, defenses
from sophon_bench.data.tasks.denoising import TIMESTEPS

from ._early import early
from ._outer import Outer, Positive, Scene, Weight, kept_statistics


@defenses.register("naive-mse")
@dataclass(frozen=True, kw_only=True)
class NaiveMse(Outer):
    """Minimise ``MSE_orig + weight mean(e^2)``, e the noise predicted in restricted images.

    As in the paper's naive baseline, there is one combined loss. Different from the original: no
    fine-tuning is simulated, whereas the authors' code simulates some even in its "naive". The
    model's own head is used, and there is no recovery phase.

    Args:
        weight: Weight of the restricted term.
        timesteps: Number of timesteps, from the first, that make up the restricted task.
    """

    lr: Positive = 5e-4
    weight: Weight = 0.02
    recovery: Annotated[float, Interval(ge=0, le=0)] = 0.0
    timesteps: Annotated[int, Interval(ge=1, le=TIMESTEPS)] = 200

    tuning: ClassVar[dict[str, tuple[Any, ...]]] = {
        "lr": (1e-4, 3e-4, 1e-3), "weight": (0.01, 0.02, 0.05, 0.2),
    }  # fmt: skip

    def run(self, model: Model, view: DefenseView) -> Generator[Model, None, str | None]:
        """As `Outer.run`."""
        return super().run(model, early(view, self.timesteps))

    def objective(self, scene: Scene) -> Tensor:
        original = scene.view.original.task.loss(scene.model, scene.original_batch)
        task, inputs = scene.view.restricted.task, scene.restricted_batch.inputs
        with kept_statistics(scene.model):
            prediction = task.predict(scene.model, inputs)
        return naive_mse(original, prediction, weight=self.weight)


def naive_mse(original: Tensor, prediction: Tensor, *, weight: float) -> Tensor:
    """``original + weight mean(prediction^2)``."""
    return original + weight * prediction.square().mean()
