"""The sources of a request's key, and the rules that come with each.

A key is named by the client (a header, a form's field) or given by the request's content (a natural
key, the payload itself). Those of one kind never meet those of another: what the client names has
no spaces in it.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from semel.core.keys import InvalidKey, parse_key
from semel.core.policy import Policy, RequestView
from semel.idempotency import Idempotency
from semel.issuer import GRACE
from semel.web.http import forms
from semel.web.http.body import IN_MEMORY, Body
from semel.web.http.callers import ANONYMOUS

log = logging.getLogger("semel")

_MALFORMED: Final = (LookupError, TypeError, ValueError, AttributeError)
"""What a `key` function may raise on a request that is not as it should be."""


@runtime_checkable
class Placed(Protocol):
    """A request that may have several paths: by where its application is mounted."""

    def places(self) -> set[str]:
        """Return its path below where the application is mounted, and below the server's root."""


class ResolvedKey(NamedTuple):
    """A request's key, and the rules it runs under."""

    key: str
    policy: Policy
    left: float | None = None
    """Of an issued key: for how many seconds it is good still."""


class RequestContent:
    """A request and its body, as a `key` function sees them."""

    __slots__ = ("_body", "_view", "method", "native", "path")

    def __init__(self, view: RequestView, body: Body) -> None:
        self.method = view.method
        self.path = view.path
        self.native = view.native
        self._view = view
        self._body = body

    def header(self, name: str) -> str | None:
        """Return a header's value, or None."""
        return self._view.header(name)

    @property
    def body(self) -> bytes:
        """The body; of one longer than 1 MiB, the first MiB."""
        parts, size = [], 0
        for chunk in self._body.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size >= IN_MEMORY:
                break
        return b"".join(parts)[:IN_MEMORY]

    def json(self) -> Any:
        """Return the body's JSON value, or None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def form(self) -> dict[str, str]:
        """Return the fields of an HTML form (urlencoded or multipart), files left out."""
        return self._form().fields

    def _form(self) -> forms.Form:
        return forms.read(self.header("content-type") or "", self._body.chunks())

    def key_in(self, field: str) -> bytes | None:
        """Return the value of a form's field, or None where the form has none.

        Raises `InvalidKey` where it may have one that cannot be read: it must not run unprotected.
        """
        fields, whole = self._form()
        if not fields.get(field) and not whole:
            raise InvalidKey(
                f"the form is cut short, or too large to find its field {field} in; put that field"
                " before the others"
            )
        return fields[field].encode() if fields.get(field) else None


def may_be_in_content(policy: Policy) -> bool:
    """Say whether a request without the header may have a key all the same."""
    return policy.key is not None or policy.form_field is not None


def resolve_key(
    idempotency: Idempotency,
    policy: Policy,
    fields: Sequence[bytes],
    scope: str,
    view: RequestView,
    body: Body,
) -> ResolvedKey | None:
    """Return the key of a request whose body has been read, or None where it has none.

    `fields`: the values of its `Idempotency-Key` lines; `scope`: whose request it is. Raises
    `InvalidKey`.
    """
    if not fields and policy.form_field is not None:
        value = RequestContent(view, body).key_in(policy.form_field)
        fields = (value,) if value is not None else ()
    key = parse_key(fields)
    if key is not None:
        return _by_client(idempotency, policy, key, scope, view)
    if policy.key is not None and scope == ANONYMOUS and not policy.shared:
        _warn_of_strangers(f"{view.method} {view.path}")
        return None
    if policy.key == "payload":
        rules = policy.without_header
        return ResolvedKey(f"payload {body.fingerprint(rules.algorithm).hex()}", rules)
    if policy.key is None:
        return None
    try:
        natural = policy.key(RequestContent(view, body))
        if isinstance(natural, str):
            natural.encode()  # a lone surrogate of JSON names nothing
    except _MALFORMED as error:
        log.debug("%s %s has no natural key: %r", view.method, view.path, error)
        return None
    if natural is None or natural == "":  # an empty field names nothing
        return None
    if not isinstance(natural, str):
        raise TypeError(f"key= has to return a string or None, not {natural!r}")
    return ResolvedKey(f"{view.method} {view.path} {natural}", policy.without_header)


@functools.lru_cache(maxsize=256)
def _warn_of_strangers(route: str) -> None:
    """Say once of a path that a key from content was not used."""
    log.warning(
        "%s: its key comes from the request's content, and nothing tells its callers apart: it runs"
        " without a key. Name the caller (caller= or scope=), or say Policy(shared=True) where all"
        " are one caller",
        route,
    )


def _by_client(
    idempotency: Idempotency, policy: Policy, key: str, scope: str, view: RequestView
) -> ResolvedKey:
    issuer = idempotency.issuer
    if issuer is None or not (issuer.owns(key) or policy.required == "issued"):
        return ResolvedKey(key, policy.with_header)
    places = view.places() if isinstance(view, Placed) else {view.path}
    checked = [issuer.check(key, scope, view.method, path) for path in places]
    left = next((left for left in checked if left is not None), None)
    if left is None:
        raise InvalidKey("the key was not issued to this caller for this request")
    return ResolvedKey(key, policy.with_header.until(left, GRACE), left)
