"""Histories in files, an event a line (JSONL)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, TextIO

from lab.judge.contract import Promise
from lab.judge.history import (
    ClaimGranted,
    Effect,
    Event,
    FinalRecord,
    Foreign,
    HistoryError,
    Note,
    Paused,
    Purged,
    ResponseSeen,
    Restarted,
    Sent,
    Settled,
    StepBegun,
    StepsForgotten,
    StepSkipped,
    Stored,
    Surveyed,
    Wrote,
)

EVENTS: Final[dict[str, type[Event]]] = {
    kind.__name__: kind
    for kind in (
        Sent,
        ResponseSeen,
        ClaimGranted,
        Wrote,
        Stored,
        Purged,
        Effect,
        StepBegun,
        Foreign,
        StepSkipped,
        StepsForgotten,
        Settled,
        Restarted,
        Paused,
        Surveyed,
        FinalRecord,
        Note,
        Promise,
    )
}


def dump_event(event: Event) -> str:
    """Return the event as one line of JSON, without the line's end.

    `{"event": "Sent", "time": …}`. Bytes are written as text, one character (U+0000 to U+00FF) a
    byte, so ASCII stays readable; fields that have their default are left out.
    """
    kind = type(event)
    line: dict[str, Any] = {"event": kind.__name__}
    for name, value in zip(kind._fields, event, strict=True):
        if name in kind._field_defaults and value == kind._field_defaults[name]:
            continue
        line[name] = _as_json(value)
    return json.dumps(line)


def _as_json(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return value


def load_event(line: str) -> Event:
    """Return the event that `dump_event` wrote. Raises `HistoryError` where the line is none."""
    try:
        fields = json.loads(line)
        kind = EVENTS[fields.pop("event")]
        if "body" in fields:
            fields["body"] = fields["body"].encode("latin-1")
        if "headers" in fields:
            fields["headers"] = tuple(
                (n.encode("latin-1"), v.encode("latin-1")) for n, v in fields["headers"]
            )
        return kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError(f"not an event: {line[:200]!r} ({error!r})") from error


def dump(history: Iterable[Event], file: TextIO) -> None:
    """Write a history, an event a line (JSONL). More of it may be appended later."""
    file.writelines(dump_event(event) + "\n" for event in history)


def load(file: Iterable[str]) -> Iterator[Event]:
    """Read what `dump` wrote; empty lines are passed over.

    A torn last line, as a killed process leaves it, is passed over too: it was not yet an event.
    Raises `HistoryError` for any other line that is not an event.
    """
    last = ""
    for line in file:
        if last.strip():
            yield load_event(last)
        last = line
    if not last.strip():
        return
    try:
        event = load_event(last)
    except HistoryError:
        if last.endswith("\n"):
            raise
        return
    yield event
