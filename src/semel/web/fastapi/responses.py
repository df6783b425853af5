"""Responses of `semel.web.conditional` as Starlette's."""

from __future__ import annotations

from fastapi import Request, Response

from semel.core.record import Response as Answer
from semel.web.conditional import NotMet

__all__ = ["not_met", "respond"]


def respond(answer: Answer) -> Response:
    """Return an answer of `semel.web.conditional` as what a handler returns."""
    response = Response(answer.body or b"", answer.status)
    own = {name for name, _ in answer.headers}
    kept = [field for field in response.raw_headers if field[0] not in own]
    response.raw_headers = [*kept, *answer.headers]
    return response


async def not_met(request: Request, error: NotMet) -> Response:
    """Answer `NotMet` without `init_app`: `app.add_exception_handler(NotMet, not_met)`."""
    return respond(error.response())
