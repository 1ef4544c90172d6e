"""What hyperparameters are chosen by: the score's formula without a look at a test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sophon_bench import protocol
from sophon_bench.analysis.case import PROTECTED, SCRATCH, UNDEFENDED, Case, clip
from sophon_bench.analysis.envelope import outcomes
from sophon_bench.analysis.score import cases
from sophon_bench.analysis.statistics import Groups, table
from sophon_bench.analysis.trials import made, spent
from sophon_bench.results.frames import Results

if TYPE_CHECKING:
    from pandas import DataFrame
