"""Conversion of Django's responses to stored ones, and back."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any

from django.http import HttpResponse

from semel.core.engine import Outcome, Refuse, Replay
from semel.core.policy import Policy
from semel.core.record import Response
from semel.web.http import headers as answer_headers


def stored(response: Any, body: bytes | None, policy: Policy) -> Response:
    """Return the answer as it is recorded."""
    fields = [(name.encode("latin-1"), str(v).encode("latin-1")) for name, v in response.items()]
    cookies = response.cookies.values()
    fields += [(b"set-cookie", cookie.OutputString().encode("latin-1")) for cookie in cookies]
    return Response(response.status_code, answer_headers.kept(fields, policy), body)


def told(outcome: Outcome, base: str) -> HttpResponse:
    """Return a replay or a refusal."""
    if isinstance(outcome, Replay):
        status, fields, body = outcome.response
        return _response(status, answer_headers.replayed(fields), body or b"")
    assert isinstance(outcome, Refuse)
    return plain(outcome.problem.response(base))


def plain(response: Response) -> HttpResponse:
    """Return an answer of ours as it is."""
    return _response(*response)


def _response(status: int, fields: Any, body: bytes | None) -> HttpResponse:
    response = HttpResponse(body or b"", status=status)
    del response["Content-Type"]
    for name, value in fields:
        text = value.decode("latin-1")
        if name == b"set-cookie":
            _set_cookie(response, text)
        else:
            response[name.decode("latin-1").title()] = text
    return response


def _set_cookie(response: HttpResponse, text: str) -> None:
    cookies: SimpleCookie = SimpleCookie()
    cookies.load(text)
    response.cookies.update(cookies)
