"""Operators' work on records: find one, park it, say what became of it."""

from __future__ import annotations

import re
from typing import Any

from django.db.models import Q

from semel.core.commands import Park
from semel.core.keys import hash_key
from semel.core.record import Response, State
from semel.idempotency import Idempotency
from semel.web.django.models import StoredRecord

_HEXADECIMAL = re.compile(r"[0-9a-f]{6,32}")


def are_models(idempotency: Idempotency) -> bool:
    """Whether the records are rows of the models: those of native stores are not."""
    return idempotency.store.name in ("django", "sqlalchemy")


def records(idempotency: Idempotency) -> Any:
    """Return the records that `DjangoStore` keeps, as a query."""
    return StoredRecord.objects.using(getattr(idempotency.store, "alias", "default"))


def named(text: str, scope: str | None = None) -> Q:
    """Return the condition for what an operator pastes.

    A reference as problems and logs show it, or the beginning of a key's hash; or the key as the
    client sent it, with its scope given, or written before it: `user:42 8e03978e-40d5`.
    """
    text = text.strip()
    if scope is not None:
        return Q(key=hash_key(scope, text))
    before, _, key = text.rpartition(" ")
    if before:
        return Q(key=hash_key(before.strip(), key))
    if _HEXADECIMAL.fullmatch(text.lower()):
        first, last = (bytes.fromhex(text.lower().ljust(32, digit)) for digit in "0f")
        return Q(key__gte=first, key__lte=last)
    return Q(key=hash_key("anonymous", text))


def park(idempotency: Idempotency, record: StoredRecord, reason: str) -> bool:
    """Park an operation that is in flight; return whether it was. Raises `StoreError`.

    Where its handler still runs, that is fenced: what it does in its transaction is rolled back.
    """
    command = Park(record.key, record.token, reason, lapsed=False)
    return idempotency.store.execute(command) is True


def settle(idempotency: Idempotency, record: StoredRecord, response: Response | None) -> bool:
    """Say what became of a parked operation; return whether it was parked. Raises `StoreError`.

    With a response repeats get that. Without one nothing had happened: a retry runs anew.
    """
    return idempotency.settle(record.key, response)


def answer(status: int, body: bytes) -> Response:
    """Return the answer that a settled operation is to have, as JSON."""
    if not 200 <= status <= 599:
        raise ValueError(f"status: give 200 to 599, not {status}")
    return Response(status, ((b"content-type", b"application/json"),), body)


def state(record: StoredRecord) -> str:
    """Return the state's name."""
    return State(record.state).name.lower().replace("_", " ")
