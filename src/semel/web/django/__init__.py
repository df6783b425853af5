"""Django: the installed app `semel.web.django`, its middleware, and functions for views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import django  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.django needs Django: pip install 'semel[django]'") from error

if TYPE_CHECKING:
    from semel.operation import AsyncOperation, Operation
    from semel.web.django.rules import idempotency_policy

__all__ = ["aoperation", "idempotency_policy", "operation"]


def operation(request: Any) -> Operation:
    """Return the operation of a plain view. A view that takes it needs a key.

    Takes the request of a view of Django's, of REST framework's or of Ninja's. Its writes need no
    `connection()`: the ORM's are in the transaction already.
    """
    from semel.operation import Operation

    return Operation(_driver(request))


def aoperation(request: Any) -> AsyncOperation:
    """Return the operation of an async view; its methods are awaited."""
    from semel.operation import AsyncOperation, NoOperation
    from semel.runtime.drivers import AsyncDriver

    driver = _driver(request)
    if not isinstance(driver, AsyncDriver):
        raise NoOperation("this server runs async views on threads (WSGI): use operation(request)")
    return AsyncOperation(driver)


def _driver(request: Any) -> Any:
    from semel.operation import NoOperation
    from semel.web.django.exchange import exchange_of

    exchange = exchange_of(getattr(request, "_request", request))
    if exchange is None or exchange.driver is None:
        error = NoOperation(
            "no operation: the request carries no Idempotency-Key, its view is not covered, or"
            " IdempotencyMiddleware is missing"
        )
        if exchange is not None:
            exchange.missed.append(error)
        raise error
    return exchange.driver


def __getattr__(name: str) -> Any:  # apps are imported before settings can be read
    if name == "idempotency_policy":
        from semel.web.django.rules import idempotency_policy

        return idempotency_policy
    raise AttributeError(name)
