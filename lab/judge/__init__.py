"""Judges histories: the checker of S1-S15 and L1, and an independent oracle."""
