"""The way in: from a request that has been read to its operation, for every protocol.

Who asks, which key, what the record says: an adapter hands over what it has read, and gets the
driver of an operation, an outcome that is known already, or word that there is no key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from semel.core import problems
from semel.core.engine import Refuse
from semel.core.keys import InvalidKey, hash_key
from semel.core.policy import Policy, RequestView
from semel.core.remembered import RememberedRequest
from semel.idempotency import Driver, Idempotency, Known
from semel.web.http import completer, key_source
from semel.web.http.body import Body


def unready(idempotency: Idempotency) -> Refuse | None:
    """Refuse what comes while the store cannot be opened."""
    if idempotency.started or idempotency.ready():
        return None
    return idempotency.refuse(problems.STORE_UNAVAILABLE)


def without_key(idempotency: Idempotency, policy: Policy) -> Refuse | None:
    """Refuse a request without a key where one is required; None: it runs, unprotected."""
    return idempotency.refuse(problems.KEY_MISSING) if policy.required else None


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
    `remember` gives the request as it is stored where the policy remembers requests.
    """
    try:
        named = key_source.resolve_key(idempotency, policy, fields, scope, request, body)
    except InvalidKey as error:
        return Known(idempotency.refuse(problems.key_invalid(str(error))))
    if named is None:
        return None
    rules = named.policy
    remembered = None
    if rules.remember_request and remember is not None:
        remembered = functools.partial(completer.remembered, rules, body, remember)
    entered = idempotency.enter(
        kind,
        hash_key(scope, named.key),
        rules,
        body.fingerprint,
        remembered=remembered,
        late=named.late,
    )
    if isinstance(entered, Known) and named.left is not None:
        # once its time is over, the key itself is refused
        return entered._replace(until=min(entered.until, idempotency.store.now() + named.left))
    return entered
