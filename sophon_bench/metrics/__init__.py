"""Pure functions of records: what a table says. Nothing here trains, reads or writes.

Utilities are fractions; a claim about several seeds is a mean with a 95 % interval over them.
"""

from sophon_bench.metrics.choosing import chosen, criteria
from sophon_bench.metrics.comparing import Incomparable, Threshold, compare, threshold
from sophon_bench.metrics.envelopes import (
    Interval,
    Places,
    envelope,
    interval,
    place,
    places,
    selected,
)
from sophon_bench.metrics.frozen import Frozen, Gap, freeze
from sophon_bench.metrics.generated import Made, images, makers
from sophon_bench.metrics.masking import flags
from sophon_bench.metrics.overhead import PRETRAINING, half_costs, protection
from sophon_bench.metrics.reproducing import agreements
from sophon_bench.metrics.scoring import differences, ranked, scores
from sophon_bench.metrics.series import (
    ablation,
    curves,
    magnitude,
    recipe,
    releases,
    shown,
    sweeps,
    winners,
)
from sophon_bench.metrics.trials import (
    ENVELOPE,
    PLACE,
    STRETCHED_ENVELOPE,
    intactness,
    pivot,
    rows,
)

__all__ = [
    "ENVELOPE",
    "PLACE",
    "PRETRAINING",
    "STRETCHED_ENVELOPE",
    "Frozen",
    "Gap",
    "Incomparable",
    "Interval",
    "Made",
    "Places",
    "Threshold",
    "ablation",
    "agreements",
    "chosen",
    "compare",
    "criteria",
    "curves",
    "differences",
    "envelope",
    "flags",
    "freeze",
    "half_costs",
    "images",
    "intactness",
    "interval",
    "magnitude",
    "makers",
    "pivot",
    "place",
    "places",
    "protection",
    "ranked",
    "recipe",
    "releases",
    "rows",
    "scores",
    "selected",
    "shown",
    "sweeps",
    "threshold",
    "winners",
]
