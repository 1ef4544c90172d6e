"""Canaries: defenses that fake protection, and that a sound measurement scores near zero.

They are hidden from lists. All that is released is a state dict, so weights alone do the faking.
"""
