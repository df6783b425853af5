"""What is unfinished is sent again, one request after the other, each under its own key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from semel.client.errors import JournalError
from semel.client.journal import Journal, Resumed, Unfinished
from semel.client.kept import Kept

if TYPE_CHECKING:
    import httpx
    import requests

    Outcome = httpx.Response | requests.Response | Exception


def resume(journal: Journal, client: httpx.Client | requests.Session) -> list[Resumed]:
    """Send what is unfinished through a client of httpx or requests; report each outcome."""
    return [
        _report(journal, request, _resend(client, due) if isinstance(due, Kept) else due)
        for request, due in _due(journal)
    ]


async def aresume(journal: Journal, client: httpx.AsyncClient) -> list[Resumed]:
    """Send what is unfinished through an async client; report each outcome."""
    from semel.client.httpx import aresend

    return [
        _report(journal, request, await aresend(client, due) if isinstance(due, Kept) else due)
        for request, due in _due(journal)
    ]


def _resend(client: httpx.Client | requests.Session, request: Kept) -> Outcome:
    if hasattr(client, "build_request"):  # neither library is imported for the other's sake
        from semel.client.httpx import resend as with_httpx

        return with_httpx(client, request)  # type: ignore[arg-type]
    from semel.client.requests import resend as with_requests

    return with_requests(client, request)


def _due(journal: Journal) -> Iterator[tuple[Unfinished, Kept | Exception]]:
    """Yield what is unfinished as it was kept, or why it must not be sent."""
    for request in journal.unfinished():
        due = journal.too_old(request) or journal.load(request)
        if due is not None:
            yield request, due


def _report(journal: Journal, request: Unfinished, outcome: Outcome) -> Resumed:
    if isinstance(outcome, Exception):
        return Resumed(request, None, outcome)
    if request in journal.unfinished():
        raise JournalError(
            "the client does not go through this journal: give one with RetryTransport(journal=...)"
            " or RetryAdapter(journal=...); the request was sent, under its own key"
        )
    return Resumed(request, outcome, None)
