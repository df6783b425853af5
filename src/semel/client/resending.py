"""Sends a journaled request again, through the caller's own client of httpx or requests.

Neither library is imported for the other's sake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from semel.client.errors import JournalError, RequestTooLarge, Unsettled
from semel.client.stored_request import StoredRequest

if TYPE_CHECKING:
    import httpx
    import requests

_OUTCOMES: Final = (Unsettled, JournalError, RequestTooLarge)


def resend(
    client: httpx.Client | requests.Session, request: StoredRequest
) -> httpx.Response | requests.Response | Exception:
    """Send the request; return the response, or why there is none."""
    if hasattr(client, "build_request"):
        import httpx

        try:
            return client.send(_rebuilt(client, request))  # type: ignore[arg-type]
        except (*_OUTCOMES, httpx.HTTPError) as error:
            return error
    return _with_requests(client, request)


async def aresend(client: httpx.AsyncClient, request: StoredRequest) -> httpx.Response | Exception:
    """Do as `resend`, with an async client."""
    import httpx

    try:
        return await client.send(_rebuilt(client, request))
    except (*_OUTCOMES, httpx.HTTPError) as error:
        return error


def _rebuilt(client: httpx.Client | httpx.AsyncClient, request: StoredRequest) -> httpx.Request:
    return client.build_request(
        request.method, request.url, headers=request.headers, content=request.body
    )


def _with_requests(
    session: requests.Session, request: StoredRequest
) -> requests.Response | Exception:
    from requests import Request, RequestException

    headers = dict(request.headers)
    try:
        prepared = session.prepare_request(
            Request(request.method, request.url, headers=headers, data=request.body)
        )
        how = session.merge_environment_settings(prepared.url or "", {}, None, None, None)
        return session.send(prepared, **how)
    except (*_OUTCOMES, RequestException) as error:
        return error
