"""Notes the exception that a view raises, before any middleware can turn it into a response.

Django asks the `process_exception` of the innermost middleware first, and nobody further out where
one has answered; it has no hook between a view and them. So the handler's own method, which every
error of a view or of its template's rendering passes, is wrapped, once a process.
"""

from __future__ import annotations

import functools
from typing import Any

from django.core.handlers.base import BaseHandler
from django.http import HttpRequest

from semel.web.django.exchange import exchange_of

_METHOD = "process_exception_by_middleware"
_MARK = "_semel_notes"


def note_errors() -> None:
    """Have each exchange know what its view has raised. To be called any number of times."""
    original = getattr(BaseHandler, _METHOD)
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def noting(handler: BaseHandler, exception: Exception, request: HttpRequest) -> Any:
        exchange = exchange_of(request)
        if exchange is not None:
            exchange.note(exception)
        return original(handler, exception, request)

    setattr(noting, _MARK, True)
    setattr(BaseHandler, _METHOD, noting)
