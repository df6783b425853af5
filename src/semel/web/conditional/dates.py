"""HTTP dates (RFC 9110 section 5.6.7): three forms are read, one is written."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)
_MONTH: Final = f"(?P<month>{'|'.join(_MONTHS)})"
_DAY: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY: Final = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_TIME: Final = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS: Final = (
    re.compile(f"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    re.compile(f"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(f"{_DAY} {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
"""IMF-fixdate, RFC 850's and asctime's. `strptime` would go by the process's locale."""


def format_date(moment: datetime) -> str:
    """Write a date as IMF-fixdate, to the second. Raises `ValueError` for one without a zone."""
    if moment.tzinfo is None:
        raise ValueError(f"last_modified: give a datetime with its time zone, not {moment!r}")
    return format_datetime(moment.astimezone(UTC), usegmt=True)


def parse_date(text: str, now: datetime | None = None) -> datetime | None:
    """Read a date in any of the three forms; None where it is none.

    `now` (default: the clock) settles the century of a year with two digits: what would lie more
    than 50 years ahead was in the past.
    """
    for form in _FORMS:
        match = form.fullmatch(text.strip(" \t"))
        if match is not None:
            break
    else:
        return None
    month = _MONTHS.index(match["month"]) + 1
    day, hour, minute, second = (int(match[n]) for n in ("day", "hour", "minute", "second"))
    if second == 60:
        second = 59  # a leap second, which datetime does not have
    year = int(match["year"])
    try:
        if len(match["year"]) == 4:
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        return _of_two_digits(year, (month, day, hour, minute, second), now or datetime.now(UTC))
    except ValueError:
        return None


def _of_two_digits(year: int, rest: tuple[int, int, int, int, int], now: datetime) -> datetime:
    """Return the latest such date that is not more than 50 years ahead."""
    month, day, hour, minute, second = rest
    now = now.astimezone(UTC)
    last = now.year + 50
    year += last // 100 * 100
    if (year, *rest) > (last, *now.timetuple()[1:6]):
        year -= 100
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
