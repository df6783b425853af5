"""Additions to an application's OpenAPI document: the key's header, and the problem responses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from semel.core import keys, problems
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.idempotency import Idempotency
from semel.issuer import MOST, Issuer
from semel.web.conditional.preconditions import READS

_CONVERTER = re.compile(r":\w+(?=\})")


Find = Callable[[str, str, dict[str, Any]], Policy | None]


def document(schema: dict[str, Any], idempotency: Idempotency, find: Find | None = None) -> None:
    """Write the key header and the problem answers into an OpenAPI document, in place.

    `find`: finds the policy by method, path and the description of an operation; for frameworks
    whose handlers are not known to `Idempotency.routes`.
    """
    issuer = idempotency.issuer
    covered = issuer is not None and issuer.path is not None
    find = find or _by_path(idempotency)
    for path, item in schema.get("paths", {}).items():
        for method, described in item.items():
            verb = method.upper()
            if not isinstance(described, dict):
                continue
            answers: Answers = {}
            policy = find(verb, path, described)
            if policy is not None:
                answers = _ANSWERS
                _describe_key(described, policy)
                _describe_replays(described)
            if _describe_preconditions(described):
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
                if status == "400" and "requestBody" in described:
                    kinds.setdefault("application/json", {"schema": _UNREADABLE})
                if any(problem.retry_after for problem in types):
                    answer.setdefault("headers", {}).setdefault("Retry-After", _RETRY_AFTER)
    if issuer is not None and issuer.path is not None:
        schema.setdefault("paths", {}).setdefault(issuer.path, {})["post"] = _issuing(issuer)
    if covered:
        schema.setdefault("components", {}).setdefault("schemas", {})[_NAME] = _PROBLEM


def _by_path(idempotency: Idempotency) -> Find:
    rules = idempotency.routes.described
    own = {_CONVERTER.sub("", pattern): policy for pattern, policy in rules.items()}

    def find(verb: str, path: str, described: dict[str, Any]) -> Policy | None:
        return own.get(f"{verb} {path}") or idempotency.routes.find(verb, path)

    return find


def _describe_key(described: dict[str, Any], policy: Policy) -> None:
    parameters = described.setdefault("parameters", [])
    for parameter in parameters:
        if parameter.get("in") == "header" and parameter["name"].lower() == keys.HEADER.lower():
            break
    else:
        parameter = {"name": keys.HEADER, "in": "header"}
        parameters.append(parameter)
    takes_operation = "schema" in parameter
    # A form's field may stand in for it in a browser; a program sends the header.
    parameter["required"] = policy.key is None and (bool(policy.required) or takes_operation)
    parameter["schema"] = _KEY
    hours = policy.expires.total_seconds() / 3600
    parameter["description"] = (
        "Names this operation: generate a new key for a new operation, send the same with every"
        f" retry. The response is kept for {hours:g} hours."
    )
    if policy.required == "issued":
        parameter["description"] += " Only keys that this service has issued are taken."
    if policy.form_field is not None:
        parameter["description"] += f" A form's field {policy.form_field} counts as the header."
    if policy.key is not None:
        parameter["description"] += " Without it the request's content is its key."


def _describe_preconditions(described: dict[str, Any]) -> bool:
    """Say what a precondition looks like, where the handler takes any."""
    taken = [p for p in described.get("parameters", ()) if p["name"] in _PRECONDITIONS]
    for parameter in taken:
        parameter["schema"] = {"type": "string", "pattern": _TAGS}
    return bool(taken)


def _describe_replays(described: dict[str, Any]) -> None:
    for status, answer in described.get("responses", {}).items():
        if status[0] in "23" and "$ref" not in answer:
            answer.setdefault("headers", {}).setdefault("Idempotent-Replayed", _REPLAYED)


def _issuing(issuer: Issuer) -> dict[str, Any]:
    """Describe where keys are issued; see `semel.web.http.issue`."""
    seconds = issuer.lifetime.total_seconds()
    wanted = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "count": {"type": "integer", "minimum": 1, "maximum": MOST, "default": 1},
            "route": {"type": "string", "pattern": r"^(?:(?:[A-Z]+ )?/[^\x00-\x20\x7f]*)?$"},
        },
    }
    given = {
        "type": "object",
        "required": ["keys", "not_after"],
        "properties": {
            "keys": {"type": "array", "items": {"type": "string"}},
            "not_after": {"type": "string", "format": "date-time"},
        },
    }
    refusals = {
        str(problem.status): {
            "description": problem.title,
            "content": {"application/problem+json": {"schema": _REFERENCE}},
        }
        for problem in (
            problems.KEYS_NOT_ISSUED,
            problems.BODY_TIMEOUT,
            problems.REQUEST_TOO_LARGE,
        )
    }
    return {
        "summary": "Issue keys",
        "description": f"Each is good for one operation, for {seconds / 3600:g} hours, and for the"
        " caller who asked; with `route`, for that path or method and path only.",
        "operationId": "issue_idempotency_keys",
        "requestBody": {"content": {"application/json": {"schema": wanted}}},
        "responses": {
            "201": {
                "description": "Fresh keys",
                "content": {"application/json": {"schema": given}},
            },
            **refusals,
        },
    }


_KEY = {
    "type": "string",
    "minLength": 1,
    "maxLength": keys.MAX_KEY_LENGTH,
    # Bare or quoted, as `parse_key` reads it, without the parameters that hardly anybody sends.
    "pattern": r'^(?:[!#-+\--~][!-+\--~]*|"(?:[!#-\[\]-~]|\\["\\])+")$',
}
_PRECONDITIONS = ("If-Match", "If-None-Match")
_TAG = r'(?:W/)?"[!#-~\x80-\xff]*"'
# `*`, or a list as `parse_tags` reads it, which may be empty and have empty elements.
_TAGS = rf"^(?:[ \t]*\*[ \t]*|[ \t,]*(?:{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*)?)$"
_UNREADABLE = {
    "description": "FastAPI's own answer to a body that it cannot read",
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string"}},
}
_REPLAYED = {
    "description": "The answer to the first request under this key, given again",
    "schema": {"type": "string", "enum": ["true"]},
}
_RETRY_AFTER = {
    "description": "Seconds to wait before the same request may be sent again",
    "schema": {"type": "integer"},
}


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
    "408": (problems.BODY_TIMEOUT,),
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
