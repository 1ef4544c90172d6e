"""Results: what records say, as frames that users and the analysis read."""

from sophon_bench.results.frames import Results

__all__ = ["Results"]
