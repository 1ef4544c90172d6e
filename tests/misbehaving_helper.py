"""Beside a plugin file that imports it."""

CACHE: list[int] = []
