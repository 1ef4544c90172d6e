"""Optional loggers: experiment trackers that are told of every record that a run makes.

A logger is a class in the entry-point group ``sophon_bench.loggers``; ``--log NAME`` makes one for
the run. What the store had is not logged again. Loggers see records and change nothing: one that
fails, as where its server is gone, is warned of and told no more.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from sophon_bench.plugins.failures import BadInput, first_line
from sophon_bench.plugins.registry import unknown
from sophon_bench.results.records import Cell, ModelRecord

GROUP = "sophon_bench.loggers"


class LoggerError(BadInput):
    """A logger that cannot be used: unknown, not installed, or refused by its own package."""


class Logger(Protocol):
    """What an entry point makes when it is called with the name of the run."""

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Values of one model or cell.

        Args:
            name: The stage, as progress shows it.
            values: Utilities as fractions, costs in seconds and units.
            step: The cost so far in units, rounded; 0 for a model.
        """
        ...

    def close(self) -> None:
        """The run is over, also where it failed."""
        ...


@contextlib.contextmanager
def opened(names: Sequence[str], run: str) -> Iterator[list[Logger]]:
    """The loggers of these names, closed in the end.

    Raises:
        LoggerError: If there is none of a name, what it needs is not installed, or it cannot begin.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    with contextlib.ExitStack() as stack:
        loggers: list[Logger] = []
        for name in names:
            if name not in known:
                raise LoggerError(unknown("logger", name, known))
            try:
                logger: Logger = known[name].load()(run)
            except ImportError as error:
                raise LoggerError(
                    f"--log {name} needs {error.name}, which is not installed: in a clone of the "
                    f"repository, pip install '.[{name}]'"
                ) from error
            except Exception as error:
                raise LoggerError(f"--log {name} cannot begin: {first_line(error)}") from error
            loggers.append(_Guarded(name, logger))
            stack.callback(loggers[-1].close)
        yield loggers


class _Guarded:
    """A logger whose failure is only warned of."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger, self._failed = name, logger, False

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        if not self._failed:
            with self._warned():
                self._logger.log(name, values, step)

    def close(self) -> None:
        with self._warned():
            self._logger.close()

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed = True
            words = f"--log {self._name} failed and is told no more: {first_line(error)}"
            warnings.warn(words, RuntimeWarning, stacklevel=2)


def series(record: ModelRecord | Cell) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps and values of a record: of a model one row, of a cell one per scored checkpoint."""
    if isinstance(record, ModelRecord):
        values = {"original": record.original, "restricted": record.restricted}
        cost = {} if record.cost is None else {"seconds": record.cost.seconds}
        found = {name: value for name, value in {**values, **cost}.items() if value is not None}
        if found:
            yield 0, found
        return
    curve = record.curve
    for units, seconds, selection, test in zip(
        curve.units, curve.seconds, curve.selection, curve.test, strict=True
    ):
        yield round(units), {"selection": selection, "test": test, "seconds": seconds}


class TensorBoard:
    """Event files in the folder ``runs``, one folder per run."""

    def __init__(self, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path("runs") / run))

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(f"{name}/{key}", value, step)

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A run of MLflow, where ``MLFLOW_TRACKING_URI`` says."""

    def __init__(self, run: str) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.start_run(run_name=run)

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        stage = re.sub(r"[^\w.\- /]", "_", name)  # other characters are refused
        self.mlflow.log_metrics({f"{stage}/{k}": v for k, v in values.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


class WeightsAndBiases:
    """A run of Weights & Biases, in the project ``sophon-bench``."""

    def __init__(self, run: str) -> None:
        import wandb

        self.run = wandb.init(project="sophon-bench", name=run)

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        # stages interleave, so the cost so far is a value: wandb's own step only grows
        self.run.log({f"{name}/{key}": value for key, value in {**values, "units": step}.items()})

    def close(self) -> None:
        self.run.finish()
