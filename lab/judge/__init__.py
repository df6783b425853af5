"""Judges histories: the checker of S1-S14 and L1, and an independent oracle."""
