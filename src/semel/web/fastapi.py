"""FastAPI: the middleware, the operation as a dependency, and both in the OpenAPI document."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

try:
    from anyio.lowlevel import RunVar
    from anyio.to_thread import current_default_thread_limiter
    from fastapi import FastAPI, Header, Request, Response, routing
    from starlette.routing import Mount
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.fastapi needs FastAPI: pip install 'semel[fastapi]'") from error

from semel.core import keys, problems
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.record import Response as Answer
from semel.idempotency import POLICY_ATTRIBUTE, Idempotency
from semel.operation import (
    Operation,
    SyncOperation,
    current_operation,
    current_sync_operation,
)
from semel.web.asgi import ASGIMiddleware
from semel.web.conditional import NotMet, Preconditions
from semel.web.conditional.preconditions import READS

_CONVERTER = re.compile(r":\w+(?=\})")

_KeyHeader = Annotated[
    str | None,
    Header(
        alias=keys.HEADER,
        description="Names this operation: draw a new one for a new operation, send the same with"
        " every retry. 1 to 255 visible ASCII characters, bare or quoted.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]

_IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        description="Only if the resource has one of these ETags; `*`: only if it exists.",
    ),
]
_IfNoneMatch = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        description="Only if the resource has none of these ETags; `*`: only if it does not exist.",
    ),
]


async def operation(idempotency_key: _KeyHeader = None) -> Operation:
    """Give an async handler its operation: `op: Operation = Depends(operation)`.

    A handler that takes it needs a key: without one the client gets 400 `key-missing`.
    """
    return current_operation()


async def sync_operation(idempotency_key: _KeyHeader = None) -> SyncOperation:
    """Give a plain `def` handler its operation: `op: SyncOperation = Depends(sync_operation)`.

    At most half the threads of the pool run such handlers at a time, the others wait without one:
    whoever holds `op.connection()` needs a thread once more before its answer is known (FastAPI
    serialises there), and those that wait for the connection must not have taken them all.
    """
    op = current_sync_operation()
    room = _room()
    await room.acquire()
    op.when_ended(room.release)
    return op


async def preconditions(
    request: Request, if_match: _IfMatch = None, if_none_match: _IfNoneMatch = None
) -> Preconditions:
    """Give a handler what its request asks for: `when: Preconditions = Depends(preconditions)`.

    `when.require(…)` then refuses with 304, 412 or 428; see `semel.web.conditional`. The parameters
    are there for the OpenAPI document: the headers are read from the request.
    """
    return Preconditions.from_headers(request.method, request.headers.raw)


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


_ROOM: RunVar[asyncio.Semaphore] = RunVar("semel_room")


def _room() -> asyncio.Semaphore:
    """The places for plain handlers of this event loop."""
    room = _ROOM.get(None)
    if room is None:
        threads = current_default_thread_limiter().total_tokens
        room = asyncio.Semaphore(max(1, int(min(threads, 1000) // 2)))
        _ROOM.set(room)
    return room


def init_app(app: FastAPI, idempotency: Idempotency) -> None:
    """Protect an application: add the middleware, take over `@idempotency.route(…)` rules, answer
    `NotMet`, and write the headers and their problem answers into the OpenAPI document.

    Call it after the routes are defined, and before authentication is added with
    `app.add_middleware` (what is added later runs earlier).
    """
    for path, route in _routes(app.routes):
        policy = getattr(getattr(route, "endpoint", None), POLICY_ATTRIBUTE, None)
        if policy is not None:
            for method in sorted(route.methods or ()):
                _register(idempotency, method, path, policy)
    app.add_middleware(ASGIMiddleware, idempotency=idempotency)

    async def refuse(request: Request, error: NotMet) -> Response:
        return respond(error.response(idempotency.problem_base))

    app.exception_handler(NotMet)(refuse)
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document(make_document(), idempotency)
        return make_document()

    app.openapi = openapi  # type: ignore[method-assign]


def _routes(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every route with its whole path, those of routers and mounted applications too."""
    # FastAPI copied included routers into a flat list before it had this function.
    for route in getattr(routing, "iter_route_contexts", iter)(routes):
        mounted = getattr(route, "original_route", route)
        if isinstance(mounted, Mount):
            yield from _routes(mounted.routes, prefix + mounted.path)
        elif route.path is not None:
            yield prefix + route.path, route


def _register(idempotency: Idempotency, method: str, path: str, policy: Policy) -> None:
    if method not in policy.methods:
        policy = dataclasses.replace(policy, methods=(*policy.methods, method))
    idempotency.routes.add(f"{method} {path}", policy)


def document(schema: dict[str, Any], idempotency: Idempotency) -> None:
    """Write the key header and the problem answers into an OpenAPI document, in place."""
    covered = False
    rules = idempotency.routes.described
    own = {_CONVERTER.sub("", pattern): policy for pattern, policy in rules.items()}
    for path, item in schema.get("paths", {}).items():
        for method, described in item.items():
            verb = method.upper()
            if not isinstance(described, dict):
                continue
            answers: Answers = {}
            policy = own.get(f"{verb} {path}") or idempotency.routes.find(verb, path)
            if policy is not None:
                answers = _ANSWERS
                _describe_key(described, policy)
            if any(p.get("name") == "If-Match" for p in described.get("parameters", ())):
                answers = _with_preconditions(answers)
                if verb in READS:
                    described.setdefault("responses", {}).setdefault("304", _NOT_MODIFIED)
                    del answers["428"]
            covered = covered or bool(answers)
            for status, types in answers.items():
                answer = described.setdefault("responses", {}).setdefault(
                    status, {"description": "; ".join(problem.title for problem in types)}
                )
                kinds = answer.setdefault("content", {})
                kinds.setdefault("application/problem+json", {"schema": _REFERENCE})
    if covered:
        schema.setdefault("components", {}).setdefault("schemas", {})[_NAME] = _PROBLEM


def _describe_key(described: dict[str, Any], policy: Policy) -> None:
    parameters = described.setdefault("parameters", [])
    for parameter in parameters:
        if parameter.get("in") == "header" and parameter["name"].lower() == keys.HEADER.lower():
            break
    else:
        parameter = {"name": keys.HEADER, "in": "header"}
        parameters.append(parameter)
    takes_operation = "schema" in parameter
    parameter["required"] = bool(policy.required) or takes_operation
    parameter["schema"] = {"type": "string", "minLength": 1, "maxLength": keys.MAX_KEY_LENGTH}
    hours = policy.expires.total_seconds() / 3600
    parameter["description"] = (
        "Names this operation: draw a new key for a new operation, send the same with every"
        f" retry. The answer is kept for {hours:g} hours."
    )


_NAME = "IdempotencyProblem"  # "Problem" may well be the application's own
_REFERENCE = {"$ref": f"#/components/schemas/{_NAME}"}
_PROBLEM = {
    "title": _NAME,
    "description": "RFC 9457 problem details",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "retry_after": {"type": "integer"},
        "reference": {"type": "string"},
    },
}
Answers = dict[str, tuple[Problem, ...]]
_ANSWERS: Answers = {
    "400": (problems.KEY_MISSING, problems.KEY_INVALID),
    "409": (problems.IN_FLIGHT, problems.OUTCOME_UNKNOWN, problems.RESPONSE_NOT_KEPT),
    "410": (problems.KEY_EXPIRED,),
    "413": (problems.REQUEST_TOO_LARGE,),
    "422": (problems.KEY_REUSED,),
    "503": (problems.STORE_UNAVAILABLE, problems.OUTCOME_UNRECORDED),
}
_CONDITIONAL = {
    "400": (problems.PRECONDITION_INVALID,),
    "412": (problems.PRECONDITION_FAILED,),
    "428": (problems.PRECONDITION_REQUIRED,),
}
_NOT_MODIFIED = {"description": "Not modified"}


def _with_preconditions(answers: Answers) -> Answers:
    both = answers | _CONDITIONAL
    return {status: answers.get(status, ()) + _CONDITIONAL.get(status, ()) for status in both}
