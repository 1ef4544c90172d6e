"""Data: samples, splits, tasks, scenarios and their checks."""
