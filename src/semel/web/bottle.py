"""Bottle: `init_app` puts Semel around an application, and inside its other plugins."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

try:
    import bottle
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.bottle needs Bottle: pip install bottle") from error

from semel.applications import Endpoint
from semel.idempotency import Idempotency
from semel.web.http.callers import named_caller, there_already
from semel.web.wsgi.inside import InsideMiddleware, exchange_of

__all__ = ["init_app"]


def init_app(
    app: Any, idempotency: Idempotency, *, caller: Callable[[], object] | None = None
) -> None:
    """Protect an application and those that are mounted in it, after its plugins are installed.

    `caller` is a function without parameters that finds out who sends `bottle.request`; see
    `semel.web.http.callers.named_caller` for what it may return. What it raises (`abort(401)`) goes
    out instead: no claim, no replay. It is called inside the application's plugins, before a key is
    looked up. A second call with the same objects does nothing. Raises `PolicyError` where it names
    another caller or `Idempotency`, and where `Idempotency(scope=…)` names the caller already.
    """
    there = next((plugin for plugin in app.plugins if isinstance(plugin, BottlePlugin)), None)
    if not there_already(there, idempotency, caller):
        BottlePlugin(app, idempotency, caller)


class BottlePlugin(InsideMiddleware):
    """The plugin of one application: it looks a key up in the place of the callback."""

    name = "semel"
    api = 2

    def __init__(
        self, app: Any, idempotency: Idempotency, caller: Callable[[], object] | None
    ) -> None:
        who = None if caller is None else lambda environ: named_caller(caller())
        super().__init__(app.wsgi, idempotency, who)
        self.caller = caller
        self._bottle = app
        app.wsgi = self
        app.install(self)
        if self._keys_path is not None:
            app.post(self._keys_path, callback=self._issue_keys)

    def apply(self, callback: Any, route: Any) -> Any:
        """Wrap a callback: Bottle's interface of plugins."""

        @functools.wraps(callback)
        def inside(*args: Any, **named: Any) -> Any:
            answer = self.enter(bottle.request.environ)
            if answer is not None:
                return _respond(answer)
            try:
                made = callback(*args, **named)
            except Exception as error:
                _note(error)
                raise
            return _noted(made) if inspect.isgenerator(made) else made

        return inside

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of the application, and be a plugin of what is mounted in it."""
        found = []
        for route in self._bottle.routes:
            owner = route.config.get("mountpoint.target", route.app)
            if isinstance(owner, bottle.Bottle) and self not in owner.plugins:
                owner.install(self)
            path, segments = self._pattern(route.rule)
            methods = () if route.method in ("ANY", "PROXY") else (route.method,)
            if route.rule != self._keys_path:
                found.append(Endpoint(methods, path, route.callback, segments=segments))
        return found

    def _pattern(self, rule: str) -> tuple[str, dict[str, str]]:
        """A rule as a pattern of `Routes`, with the expressions of its wildcards."""
        router = self._bottle.router
        path, segments = "", {}
        for number, (name, kind, setting) in enumerate(router._itertokens(rule)):
            if kind is None:
                path += name or ""
                continue
            name = name or f"part{number}"
            used = router.default_filter if kind == "default" else kind
            segments[name] = router.filters[used](setting)[0]
            path += f"{{{name}}}"
        return path, segments

    def _issue_keys(self) -> Any:
        return _respond(self.issue_keys(bottle.request.environ))


def _respond(answer: Any) -> bytes:
    """Make the present response what is given, which hooks may add to."""
    bottle.response.status = answer.status
    for name, value in answer.headers:
        bottle.response.add_header(name.decode("latin-1"), value.decode("latin-1"))
    return answer.body or b""


def _noted(made: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from made
    except Exception as error:
        _note(error)
        raise


def _note(error: Exception) -> None:
    exchange = exchange_of(bottle.request.environ)
    if exchange is not None:
        exchange.note(error.status_code if isinstance(error, bottle.HTTPResponse) else None)
