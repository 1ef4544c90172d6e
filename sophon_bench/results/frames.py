"""Records as pandas frames: one row per model, per cell, and per scored checkpoint.

Utilities are fractions, higher is better; costs are counted in units, one forward and backward pass
of the undefended backbone on one example. Labels are selectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec

from sophon_bench.results.files import no_collector
from sophon_bench.results.records import OR, Asked, Cell, Curve, ModelRecord, PluginId, Records

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

    from sophon_bench.results.store import Store

PLACE = ("scenario", "revision", "backbone", "precision", "budget", "protocol")
"""What two cells must have in common to stand in one score: all but defense, attack and n."""

COSTS = ("seconds", "steps", "examples", "units", "flops", "peak_bytes", "together")
MADE = (
    "status", "reason", "note", "original", "original_second", "original_validation",
    "restricted", "trivial_loss", "generated", "weights", "sigma_ratios", "gradient_ratios",
    "recipe",
)  # fmt: skip
PLUGIN = ("name", "parameters", "source", "distribution", "control", "mechanism", "version")
POINT = ("steps", "units", "seconds", "fit", "validation", "selection", "test", "second_test")
PROVENANCE = (
    "version", "commit", "dirty", "python", "torch", "timm", "cuda", "device", "threads",
    "compiled", "finished",
)  # fmt: skip
CELL = (
    "domain", "role", "suite", "derived", "samples", "seed", "stretch", "status", "reason",
    "test_examples", "utility", "trivial_loss", "nonfinite_step", "generated",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Results:
    """The records of one or several runs.

    Attributes:
        models: One row per pre-trained or released model, by its content key (the index).

            ``kind`` is ``pretrained`` or ``released``; ``defense`` the selector, null for a
            pre-trained model; `PLACE` without the budget, and ``seed``, say where it was made;
            `MADE` what came out, ``original`` and ``restricted`` being test utilities before any
            attack and ``recipe`` how a pre-trained model was trained, where there was a choice;
            `COSTS` what making it took; `PROVENANCE`, each with ``made_`` before it, by
            what.
        cells: One row per cell, by its content key, in the order of seeds and keys.

            `PLACE` and `CELL` say what was done and how it ended; ``defense`` and ``attack`` are
            selectors, and of each plugin there is `PLUGIN` (``attack_mechanism``); ``lr`` is the
            trial's learning rate and ``family`` a hash of all its other parameters; ``pretrained``
            and ``released`` are keys of `models`; `COSTS` is what the attack took; `PROVENANCE`,
            each with ``made_`` before it, by what.
        points: One row per scored checkpoint, in the order of `cells` and of cost: ``cell`` is the
            key, ``number`` counts from 0; `POINT` has costs so far and utilities by split.
        store: The store that has the models' weights, if it is known.
    """

    models: DataFrame
    cells: DataFrame
    points: DataFrame
    store: str | Path | None = None

    @classmethod
    def of(cls, records: Records, store: str | Path | None = None) -> Results:
        """The frames of records."""
        return cls(*_frames(records.cells, lambda _: records.models, records.asked), store)

    @classmethod
    def stored(cls, store: Store) -> Results:
        """The frames of all records in a store.

        A cell is let go when its row is read, so that 100 000 of them are never in memory at once.
        """
        return cls(*_frames(store.cells(), store.models, store.asked()), store.root)


NUMBERS = (
    "seconds", "units", "flops", "peak_bytes", "original", "original_second",
    "original_validation", "restricted", "trivial_loss", "lr", "nonfinite_step", "fit",
    "validation", "selection", "test", "second_test",
)  # fmt: skip
"""Columns of float64, NaN where there is none; ``steps``, ``examples`` and ``together`` too where a
cost may be missing."""

WHOLE = ("budget", "samples", "seed", "stretch", "test_examples", "number")
TRUTH = ("derived", "defense_control", "attack_control")
DTYPES: dict[str, Any] = {
    **dict.fromkeys((*NUMBERS, "steps", "examples", "together"), "float64"),
    **dict.fromkeys(WHOLE, "int64"),
    **dict.fromkeys(TRUTH, "bool"),
}


def _frame(columns: Mapping[str, Any]) -> DataFrame:
    """A frame of columns by name; what is no number is of objects, None where there is none."""
    return _as_frame({name: _array(v, DTYPES.get(name, object)) for name, v in columns.items()})


def _as_frame(arrays: Mapping[str, NDArray[Any]]) -> DataFrame:
    import pandas as pd

    series = {name: pd.Series(a, dtype=a.dtype) for name, a in arrays.items()}
    return pd.DataFrame(series, copy=False)


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    """(rows,) the values; of objects one each, whatever they hold."""
    import numpy as np

    if dtype is object and not isinstance(values, np.ndarray):
        return np.fromiter(values, object, len(values))
    return np.asarray(values, dtype=dtype)


class _Columns:
    """Columns by name, filled a part of the rows after the other."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}

    def add(self, part: Iterable[Any]) -> None:
        """Add rows: the values of each column."""
        for (name, arrays), values in zip(self._parts.items(), part, strict=True):
            arrays.append(_array(values, DTYPES.get(name, object)))

    def whole(self, order: NDArray[np.intp] | None = None) -> dict[str, NDArray[Any]]:
        """(rows,) each column, in that order of rows."""
        import numpy as np

        columns = {
            name: np.concatenate([np.empty(0, DTYPES.get(name, object)), *arrays])
            for name, arrays in self._parts.items()
        }
        return columns if order is None else {name: v[order] for name, v in columns.items()}


def _values(records: Sequence[Any], paths: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    """Attributes of at least one record by their dotted paths, a tuple each."""
    return zip(*map(attrgetter(*paths.values()), records), strict=True)


def _columns(records: Sequence[Any], paths: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Columns by name, each of an attribute of records by its dotted path."""
    columns = _Columns(paths)
    if records:
        columns.add(_values(records, paths))
    return columns.whole()


def _paths(names: Iterable[str], prefix: str = "", of: str = "") -> dict[str, str]:
    return {f"{prefix}{name}": f"{of}{name}" for name in names}


WHERE = {
    "scenario": "scenario.label", "revision": "scenario.revision", "backbone": "backbone",
    "precision": "precision",
}  # fmt: skip
MADE_BY = _paths(PROVENANCE, "made_", "provenance.")
ELSEWHERE = ("suite", "derived", "seed")
"""What the manifests of runs say of a cell, and its model."""

OWN = ("key", "budget", "protocol", *(name for name in CELL if name not in ELSEWHERE))
ROW = {**_paths(OWN), **MADE_BY, **_paths(("model", "attack"))}
"""What is read of each cell, by its dotted path, besides its cost and checkpoints."""

COLUMNS = (
    "key", *PLACE, "defense", *_paths(PLUGIN, "defense_"), "attack", *_paths(PLUGIN, "attack_"),
    "lr", "family", *CELL, "pretrained", "released", *COSTS, *MADE_BY,
)  # fmt: skip
"""Of `Results.cells`, in order."""


UNKNOWN = SimpleNamespace(**dict.fromkeys(COSTS))
"""What a stage took where that is not known."""

PART = 500
"""Cells that are read at once: they stay in the processor's cache until all columns have them."""


@no_collector()
def _frames(
    cells: Iterable[Cell],
    read_models: Callable[[Iterable[str]], Mapping[str, ModelRecord]],
    asked: Mapping[str, Asked],
) -> tuple[DataFrame, DataFrame, DataFrame]:
    """Models, cells and points.

    Args:
        cells: In any order.
        read_models: The models of some keys, and the pre-trained ones that they are of.
        asked: Who asked for a cell, by its key.
    """
    import numpy as np
    import pandas as pd

    rows, costs, points = _Columns(ROW), _Columns(COSTS), _Columns(POINT)
    scored: list[int] = []
    remaining = iter(cells)
    while part := list(islice(remaining, PART)):
        rows.add(_values(part, ROW))
        costs.add(_values([cell.cost or UNKNOWN for cell in part], _paths(COSTS)))
        points.add(_scorings([cell.curve for cell in part]))
        scored += [len(cell.curve) for cell in part]
    own = rows.whole()
    models = read_models(pd.unique(own["model"]))
    seeds = np.array([models[key].seed for key in own["model"]], dtype="int64")
    order = np.lexsort((own["key"], seeds))
    own = {name: values[order] for name, values in own.items()}
    return (
        _models(models, pd.unique(own["model"])),
        _cells(own, costs.whole(order), models, asked),
        _points(own["key"], points.whole(), np.array(scored, dtype="int64"), order),
    )


def _scorings(curves: Sequence[Curve]) -> Iterator[NDArray[Any]]:
    """The columns `POINT` of all checkpoints of at least one cell."""
    import numpy as np

    for lists in zip(*map(attrgetter(*POINT), curves), strict=True):
        if None in lists:
            unknown = (repeat(math.nan, len(curve)) for curve in curves)
            lists = tuple(v or nan for v, nan in zip(lists, unknown, strict=True))
        yield np.fromiter(chain.from_iterable(lists), "float64")


def _plugins(kind: str, plugins: Sequence[PluginId]) -> dict[str, Any]:
    """Columns of plugins; few plugins are in many cells, and are hashed once each."""
    import numpy as np
    import pandas as pd

    encode = msgspec.msgpack.Encoder().encode
    encoded = {key: encode(plugin) for key, plugin in {id(each): each for each in plugins}.items()}
    rows = pd.factorize(_array([encoded[id(plugin)] for plugin in plugins], object))[0]
    _, first = np.unique(rows, return_index=True)
    paths = {kind: "label", **_paths(PLUGIN, f"{kind}_")}
    if kind == "attack":
        paths |= _paths(("lr", "family"))
    columns = _columns([plugins[index] for index in first], paths)
    return {name: values[rows] for name, values in columns.items()}


def _cells(
    own: Mapping[str, NDArray[Any]],
    costs: Mapping[str, NDArray[Any]],
    models: Mapping[str, ModelRecord],
    asked: Mapping[str, Asked],
) -> DataFrame:
    by_none = Asked(key="")
    askers = [asked.get(key, by_none) for key in own["key"]]
    suites = {each: OR.join(sorted(each)) or None for each in {each.suites for each in askers}}
    columns = {
        **own,
        **costs,
        **_of_models(models, own["model"]),
        **_plugins("attack", own["attack"].tolist()),
        "suite": [suites[each.suites] for each in askers],
        "derived": [each.derived for each in askers],
        "released": own["model"],
    }
    return _frame({name: columns[name] for name in COLUMNS}).set_index("key", drop=False)


def _of_models(records: Mapping[str, ModelRecord], keys: NDArray[Any]) -> dict[str, Any]:
    """Columns that cells have of their released models, which few of them are."""
    import pandas as pd

    rows, found = pd.factorize(keys)
    models = [records[key] for key in found]
    columns = {
        **_columns(models, {**WHERE, "seed": "seed", "pretrained": "pretrained"}),
        **_plugins("defense", [model.defense for model in models if model.defense is not None]),
    }
    return {name: values[rows] for name, values in columns.items()}


def _models(records: Mapping[str, ModelRecord], released: Iterable[str]) -> DataFrame:
    """Released models in that order, and the pre-trained ones before them."""
    keys = dict.fromkeys(k for key in released for k in (str(records[key].pretrained), key))
    models = [records[key] for key in keys]
    columns: dict[str, Any] = {
        "key": list(keys),
        "kind": ["pretrained" if model.defense is None else "released" for model in models],
        **_columns(models, {**WHERE, **_paths(("protocol", "seed"))}),
        "defense": [None if model.defense is None else model.defense.label for model in models],
        **_columns(models, _paths(MADE)),
        **_columns([model.cost or UNKNOWN for model in models], _paths(COSTS)),
        **_columns(models, MADE_BY),
    }
    return _frame(columns).set_index("key", drop=False)


def _points(
    keys: NDArray[Any],
    columns: Mapping[str, NDArray[Any]],
    scored: NDArray[np.int64],
    order: NDArray[np.intp],
) -> DataFrame:
    """Checkpoints in the order of cells.

    Args:
        keys: (cells,) their keys, in order.
        columns: (points,) by name, as cells were read.
        scored: (cells,) how many points each cell has, as cells were read.
        order: (cells,) where each was read.
    """
    import numpy as np

    begins, counts = (np.cumsum(scored) - scored)[order], scored[order]
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.repeat(begins, counts) + number
    return _as_frame(
        {
            "cell": np.repeat(keys, counts),
            "number": number,
            **{name: values[rows] for name, values in columns.items()},
        }
    ).astype({"steps": "int64"})
