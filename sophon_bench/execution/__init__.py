"""Execution: what a run has to do, in which order, and where."""
