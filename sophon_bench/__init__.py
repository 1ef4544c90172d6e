"""sophon-bench: does a model that claims to be non-fine-tunable hold up?

The command line's verbs, to call from Python; importing this costs nothing until one is called.

>>> import sophon_bench
>>> results = sophon_bench.load_results("published/provisional-five-seeds")
>>> sorted(results.cells["defense"].unique())
['naive-ascent', 'none', 'repnoise', 'sophon-ice', 'sophon-wide']
>>> int(results.models.query("defense == 'sophon-ice'")["seed"].nunique())
5
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sophon_bench.library import Report, Verdict, audit, check, load_model, load_results, run
    from sophon_bench.results import Results

__all__ = ["Report", "Results", "Verdict", "audit", "check", "load_model", "load_results", "run"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("sophon_bench.library"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
