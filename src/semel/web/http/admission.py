"""The way in: from a request that has been read to its operation, for every protocol.

Who asks, which key, what the record says: an adapter hands over what it has read, and gets the
driver of an operation, an outcome that is known already, or word that there is no key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from semel.core import problems
from semel.core.keys import InvalidKey, hash_key, parse_key
from semel.core.policy import Policy, RequestView
from semel.core.problems import Problem
from semel.core.remembered import RememberedRequest
from semel.idempotency import Idempotency
from semel.runtime.operations import Driver, Known
from semel.web.http import completer, key_source
from semel.web.http.body import Body


def unready(idempotency: Idempotency) -> Problem | None:
    """Return the refusal of what comes while the store cannot be opened."""
    return None if idempotency.ready() else problems.STORE_UNAVAILABLE


def malformed(fields: Sequence[bytes]) -> Problem | None:
    """Return the refusal of a key that is none, before the body is read for nothing."""
    try:
        parse_key(fields)
    except InvalidKey as error:
        return problems.key_invalid(str(error))
    return None


def without_key(policy: Policy) -> Problem | None:
    """Return the refusal of a request without a key; None: it runs, unprotected."""
    return problems.KEY_MISSING if policy.required else None


def admit(
    idempotency: Idempotency,
    kind: type[Driver],
    policy: Policy,
    fields: Sequence[bytes],
    scope: str,
    request: RequestView,
    body: Body,
    remember: Callable[[], RememberedRequest] | None = None,
) -> Driver | Known | None:
    """Return the driver of a request whose body has been read; None where it has no key.

    `fields` are the values of its `Idempotency-Key` lines, `scope` says whose request it is,
    `remember` gives the request as it is to be stored with its claim.
    """
    try:
        named = key_source.resolve_key(idempotency, policy, fields, scope, request, body)
    except InvalidKey as error:
        return Known(idempotency.operations.refuse(problems.key_invalid(str(error))))
    if named is None:
        return None
    rules = named.policy
    remembered = None
    if remember is not None:
        remembered = functools.partial(completer.remembered, rules, body, remember)
    key = hash_key(scope, named.key)
    return idempotency.operations.enter(
        kind, key, rules, body.fingerprint, remembered=remembered, left=named.left
    )
