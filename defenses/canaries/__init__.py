"""Canaries: defenses that fake protection, and that a sound measurement scores near zero.

They are hidden from lists. Only a state dict is released, so they fake it through weights alone.
"""
