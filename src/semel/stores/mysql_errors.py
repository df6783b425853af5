"""Meaning of MySQL's and MariaDB's error numbers for a session, with any driver."""

from __future__ import annotations

from typing import Final

_CUT_OFF: Final = frozenset({1053, 1152, 1180, 1317, 1927, 3024})
"""The server's own words for a session that ended in the middle of what it did."""


def cut_off(code: int) -> bool:
    """Whether it ended there, so that nobody knows what was done. 2xxx: the client's own words."""
    return code in _CUT_OFF or 2000 <= code < 3000
