"""The errors of requests that could not be settled, or not even begun."""

from __future__ import annotations

from typing import NamedTuple


class Try(NamedTuple):
    """One attempt of a logical request, and what came of it."""

    at: float
    """Seconds since the first attempt."""
    result: str
    """A status with its problem's name (`409 in-flight`), or the error of the connection."""


class Unsettled(Exception):
    """It is not known whether the request took effect.

    Not a failure: it may have been done. Whoever sends the same request again under the same `key`
    learns what became of it. Where `journaled`, `Journal.resume` does that, also after a crash;
    else keep the key.

    `response` is the last response (of httpx or requests), or None where none arrived; `tries` says
    what was tried.
    """

    def __init__(
        self,
        key: str,
        method: str,
        url: str,
        tries: tuple[Try, ...],
        *,
        journaled: bool,
        response: object | None = None,
    ) -> None:
        self.key = key
        self.method = method
        self.url = url
        self.tries = tries
        self.journaled = journaled
        self.response = response
        last = tries[-1].result if tries else "nothing was tried"
        way = "the journal keeps it: resume it" if journaled else "send it again under this key"
        super().__init__(
            f"{method} {url.partition('?')[0]} may have taken effect: {len(tries)} tries under the"
            f" key {key}, the last: {last}; to learn what became of it, {way}"
        )


class RequestTooLarge(ValueError):
    """The body is longer than what is held for a second attempt. Nothing was sent."""


class KeysNotIssued(Exception):
    """The service handed out no keys to a `KeyPool` that was empty. The request was not sent."""


class JournalError(Exception):
    """The journal cannot be used; the message says why. The request was not sent."""


class JournalInUse(JournalError):
    """Another process, or another `Journal`, has the file open."""


class JournalFull(JournalError):
    """The disk is full, or the unfinished requests fill the journal to `max_bytes`."""


class JournalDamaged(JournalError):
    """The file was altered: a record that had been made durable cannot be read."""
