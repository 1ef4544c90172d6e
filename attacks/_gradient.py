"""Plain gradient descent on the restricted task: one trial, or several in parallel."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from sophon_bench import training
from sophon_bench.api import AttackView, Model


class Recipe(Protocol):
    """The hyperparameters of `FineTune`."""

    @property
    def optimizer(self) -> training.OptimizerName: ...
    @property
    def lr(self) -> float: ...
    @property
    def schedule(self) -> training.ScheduleName: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def scope(self) -> training.ScopeName: ...
    @property
    def last_blocks(self) -> int: ...
    @property
    def head(self) -> training.HeadName: ...
    @property
    def steps(self) -> int | None: ...


TOGETHER = ("lr", "weight_decay")
"""What may differ between recipes that are followed at once."""


def descend(trials: Sequence[Recipe], model: Model, view: AttackView) -> Iterator[list[Model]]:
    """Run ``trials``, which differ only in `TOGETHER`, all starting from ``model``.

    Yields one model per trial after every update; a single trial updates ``model`` itself.
    """
    recipe = trials[0]
    training.choose_head(model, recipe.head, outputs=view.task.num_outputs, rng=view.rng)
    moving = training.move_only(model, recipe.scope, count=recipe.last_blocks)
    batches = view.batches(recipe.batch_size)
    if len(trials) > 1:
        yield from training.descend_many(
            model, view.task, batches, moving, optimizer=recipe.optimizer,
            lrs=[trial.lr for trial in trials], decays=[trial.weight_decay for trial in trials],
            schedule=recipe.schedule, steps=recipe.steps, clip=recipe.clip,
        )  # fmt: skip
        return
    for _ in training.descend(
        lambda batch: view.task.loss(model, batch), batches, moving,
        optimizer=recipe.optimizer, lr=recipe.lr, decay=recipe.weight_decay,
        schedule=recipe.schedule, steps=recipe.steps, clip=recipe.clip,
    ):  # fmt: skip
        yield [model]
