"""Functions for views: the operation, preconditions, responses of `semel.web.conditional`."""

from __future__ import annotations

from flask import Response, current_app, request

from semel.core.record import Response as Answer
from semel.operation import Operation, current_operation
from semel.web.conditional import NotMet, Preconditions

__all__ = ["not_met", "operation", "preconditions", "respond"]


def operation() -> Operation:
    """Return the operation of the present view. A view that takes it needs a key.

    Raises `NoOperation` where there is none: without a key, on a route that is not covered, and in
    `before_request` functions, which run before it begins.
    """
    return current_operation()


def preconditions() -> Preconditions:
    """Return what the present request asks for.

    Its `require(…)` refuses with 304, 412 or 428; see `semel.web.conditional`.
    """
    return Preconditions.from_environ(request.environ)


def respond(answer: Answer) -> Response:
    """Return an answer of `semel.web.conditional` as what a view returns."""
    response = current_app.response_class(answer.body, answer.status)
    response.headers.clear()  # a page's Content-Type, and the length of a HEAD's empty body
    for name, value in answer.headers:
        response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    return response


def not_met(error: NotMet) -> Response:
    """Answer `NotMet` without `init_app`: `app.register_error_handler(NotMet, not_met)`."""
    return respond(error.response())
