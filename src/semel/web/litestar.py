"""Litestar: `SemelPlugin` puts Semel into an application, between its guards and its handlers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

try:
    from litestar import Litestar, Request, post
    from litestar.config.app import AppConfig
    from litestar.connection import ASGIConnection
    from litestar.handlers import HTTPRouteHandler
    from litestar.middleware._internal.exceptions import ExceptionHandlerMiddleware
    from litestar.middleware.authentication import AbstractAuthenticationMiddleware
    from litestar.openapi.spec import OpenAPI
    from litestar.plugins import InitPluginProtocol, ReceiveRoutePlugin
    from litestar.response import Response as LitestarResponse
    from litestar.routes import BaseRoute, HTTPRoute
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.litestar needs Litestar: pip install 'semel[litestar]'") from error

from semel.applications import Endpoint, policy_on
from semel.core import failures, keys
from semel.core.policy import PolicyError
from semel.core.record import Response
from semel.idempotency import Idempotency
from semel.operation import (
    AsyncOperation,
    NoOperation,
    Operation,
    current_async_operation,
    current_operation,
    note_raised,
)
from semel.web.asgi.inside import PlacedMiddleware, ask, parameter, rules_beside
from semel.web.asgi.messages import (
    ASGIScope,
    ASGIView,
    Message,
    Receive,
    Send,
    route_path,
    wanted,
)
from semel.web.conditional import NotMet, Preconditions
from semel.web.http import key_source
from semel.web.http.callers import Caller, named_caller
from semel.web.openapi import document

__all__ = ["SemelPlugin", "async_operation", "operation", "preconditions"]

_Connection = ASGIConnection[Any, Any, Any, Any]
_BARE = "semel.route"


class SemelPlugin(InitPluginProtocol, ReceiveRoutePlugin):
    """Protects an application: `plugins=[SemelPlugin(idempotency)]`.

    Semel stands inside the application's middleware, its compression, CSRF protection and guards,
    wherever the plugin stands in the list; routes that are registered later are covered, too. The
    key's header and the problem responses are written into the OpenAPI document.

    `caller` says who has sent a request: a plain or async function of the connection that returns
    the user or the user's id, and raises the exception of a 401 or 403 where it is nobody. It is
    asked after the guards, before a claim and before a replay. Without it: `connection.user`, where
    an authentication middleware has set one, else the request's credentials.

    Raises `PolicyError` for an application that has two, and where `Idempotency(scope=…)` names the
    caller, too.
    """

    def __init__(
        self, idempotency: Idempotency, *, caller: Callable[[_Connection], object] | None = None
    ) -> None:
        self._idempotency = idempotency
        self._middleware = RouteMiddleware(idempotency, caller)
        self._with_operation: set[tuple[str, str]] = set()

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Called by Litestar as the application is made."""
        if sum(isinstance(plugin, SemelPlugin) for plugin in app_config.plugins) > 1:
            raise PolicyError("plugins: this application has two SemelPlugin; keep one")
        base, issuer = self._idempotency.problem_base, self._idempotency.issuer

        def not_met(request: Request[Any, Any, Any], error: NotMet) -> LitestarResponse[bytes]:
            return _response(error.response(base))

        if isinstance(app_config.exception_handlers, dict):
            app_config.exception_handlers.setdefault(NotMet, not_met)
        app_config.on_startup.append(self._start)
        app_config.on_shutdown.append(self._middleware.end)
        if app_config.openapi_config is not None:
            config = copy.copy(app_config.openapi_config)
            make = config.to_openapi_schema
            config.to_openapi_schema = lambda: self._documented(make())  # type: ignore[method-assign]
            app_config.openapi_config = config
        if issuer is not None and issuer.path is not None:
            app_config.route_handlers.append(
                post(issuer.path, name=_ISSUING, include_in_schema=False)(_issue)
            )
        return app_config

    async def _start(self, app: Litestar) -> None:
        self._middleware.complete_through(app)  # type: ignore[arg-type]
        await self._middleware.begin()

    def receive_route(self, route: BaseRoute) -> None:
        """Called by Litestar for every route of the application."""
        if type(route) is not HTTPRoute:
            return
        for handler in route.route_handlers:
            if _takes_operation(handler):
                self._with_operation |= {(route.path_format, m) for m in handler.http_methods}
        self._middleware.take(route)

    def _documented(self, openapi: OpenAPI) -> OpenAPI:
        make = openapi.to_schema

        def to_schema() -> dict[str, Any]:
            schema = make()
            for path, method in self._with_operation:
                described = schema.get("paths", {}).get(path, {}).get(method.lower())
                if described is not None:
                    header = {"name": keys.HEADER, "in": "header", "schema": {}}
                    described.setdefault("parameters", []).append(header)
            document(schema, self._idempotency)
            return schema

        openapi.to_schema = to_schema  # type: ignore[method-assign]
        return openapi


class KeyedRoute(HTTPRoute):
    """A route of an application that has the plugin."""

    __slots__ = ()

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        plugin = scope["litestar_app"].plugins.get(SemelPlugin)
        await plugin._middleware.serve(self, scope, receive, send)


class RouteMiddleware(PlacedMiddleware):
    """The middleware inside the routes of one application."""

    def __init__(
        self, idempotency: Idempotency, caller: Callable[[_Connection], object] | None
    ) -> None:
        ask = self._who if caller is not None or idempotency.scope is None else None
        super().__init__(
            self._run, idempotency, who=caller, ask=ask, endpoints=self._endpoints_found
        )
        self._caller = caller
        self._bare: dict[int, HTTPRoute] = {}
        self._routes: dict[str, HTTPRoute] = {}

    def take(self, route: HTTPRoute) -> None:
        """Stand inside a route from now on."""
        bare = copy.copy(route)
        bare.route_handler_map = {}
        for method, (handler, model) in route.route_handler_map.items():
            inner = copy.copy(handler)  # the guards and hooks have been asked before it runs
            inner._resolved_guards = []
            inner._resolved_before_request = None
            bare.route_handler_map[method] = (inner, model)
        self._bare[id(route)] = bare
        self._routes[route.path] = route
        self._applications.met = False
        route.__class__ = KeyedRoute

    def _endpoints_found(self) -> Iterator[Endpoint]:
        for route in self._routes.values():
            path = _PARAMETER.sub(lambda found: parameter(*found.groups()), route.path)
            for handler in route.route_handlers:
                if handler.name == _ISSUING:
                    continue
                known = self._caller is not None or _authenticated(handler)
                methods = tuple(sorted(handler.http_methods))
                yield Endpoint(methods, path, _function(handler), identified=known)

    async def serve(self, route: HTTPRoute, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve a request that has come to its route."""
        method = scope["method"]
        handler, _ = route.route_handler_map[method]
        scope[_BARE] = self._bare[id(route)]
        if "semel.completing" in scope:
            await self._run(scope, receive, send)
            return
        if handler.name == _ISSUING:
            again = await self._let_in(handler, scope, receive, send)
            if again is not None:
                await self._issue(scope, again, send)
            return
        path = route_path(scope) if scope.get("root_path") else scope["path"]
        policy = self.rules(rules_beside(_function(handler), method), method, path)
        if policy is None:
            await HTTPRoute.handle(route, cast(Any, scope), cast(Any, receive), cast(Any, send))
        elif key_source.may_be_in_content(policy) or _has_key(scope):
            again = await self._let_in(handler, scope, receive, send)
            if again is not None:
                await self._covered(policy, scope, again, send)
        else:
            scope[_BARE] = route  # its guards and hooks run on the way to the handler
            await self._covered(policy, scope, receive, send)

    async def _let_in(
        self, handler: HTTPRouteHandler, scope: ASGIScope, receive: Receive, send: Send
    ) -> Receive | None:
        """Ask the guards and the hook before the request. None: the hook has answered.

        Returns what the request is read from now: they may have read it.
        """
        taken = Taken(receive)
        connection: Any = handler.resolve_request_class()
        request = connection(scope, taken, send)
        await handler.authorize_connection(connection=request)
        hook = handler.resolve_before_request()
        answer = await hook(request) if hook is not None else None
        if not answer:
            return taken.again
        made = await handler.to_response(app=scope["litestar_app"], data=answer, request=request)
        await made(cast(Any, scope), cast(Any, receive), cast(Any, send))
        return None

    async def _who(self, scope: ASGIScope, receive: Receive) -> Caller:
        if self._caller is not None:
            connection: _Connection = Request(scope, receive)  # type: ignore[arg-type]
            return named_caller(await ask(self._caller, connection))
        user = scope.get("user")
        if user is not None:
            return named_caller(user)
        return self._known(ASGIView(scope, wanted(scope, self._wanted)[1]))

    async def _run(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Run the handler, and make what it raises into the application's response."""
        route: HTTPRoute = scope[_BARE]
        ours: Exception | None = None

        async def handle(scope: Any, receive: Any, send: Any) -> None:
            nonlocal ours
            try:
                await HTTPRoute.handle(route, scope, receive, send)
            except (NoOperation, *failures.OPERATION_ERRORS) as error:
                ours = error
            except Exception as error:
                note_raised(error)
                raise

        await ExceptionHandlerMiddleware(handle, debug=None)(scope, receive, send)  # type: ignore[arg-type]
        if ours is not None:
            raise ours


class Taken:
    """The messages of a request that guards and hooks have read, to be read once more."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._taken: list[Message] = []

    async def __call__(self) -> Message:
        message = await self._receive()
        self._taken.append(message)
        return message

    async def again(self) -> Message:
        return self._taken.pop(0) if self._taken else await self._receive()


def _has_key(scope: ASGIScope) -> bool:
    return any(name == b"idempotency-key" for name, _ in scope["headers"])


def _function(handler: HTTPRouteHandler) -> object:
    """What may carry the mark: a handler's function."""
    if policy_on(handler) is not None:
        return handler
    return getattr(handler.fn, "func", handler.fn)  # sync_to_thread=True


def _authenticated(handler: HTTPRouteHandler) -> bool:
    kinds = (getattr(each, "middleware", each) for each in handler.resolve_middleware())
    return any(
        isinstance(k, type) and issubclass(k, AbstractAuthenticationMiddleware) for k in kinds
    )


_PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")


def _takes_operation(handler: HTTPRouteHandler) -> bool:
    taken = handler.parsed_fn_signature.parameters
    provided = handler.resolve_dependencies().items()
    return any(
        provide.dependency in (operation, async_operation)
        for name, provide in provided
        if name in taken
    )


def _response(response: Response) -> LitestarResponse[bytes]:
    made = LitestarResponse(response.body or b"", status_code=response.status)
    made.headers.clear()
    for name, value in response.headers:
        made.headers[name.decode("latin-1")] = value.decode("latin-1")
        if name == b"content-type":
            made.media_type = value.decode("latin-1")
    return made


async def async_operation() -> AsyncOperation:
    """Give an async handler its operation: `dependencies={"op": Provide(async_operation)}`.

    A handler that takes it needs a key: without one the client gets 400 `key-missing`.
    """
    return current_async_operation()


async def operation() -> Operation:
    """Give a plain `def` handler its operation: `dependencies={"op": Provide(operation)}`."""
    return current_operation()


async def preconditions(request: Request[Any, Any, Any]) -> Preconditions:
    """Give a handler what its request asks for; see `semel.web.conditional`."""
    return Preconditions.from_headers(request.method, request.scope["headers"])


async def _issue() -> None:
    """Have a place among the routes; the middleware answers."""


_ISSUING = "semel_keys"
