"""Semel makes HTTP APIs safe to retry: retry anything; it happens once."""

from semel.codecs import StepResultNotKept
from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.core.keys import InvalidKey, derive, hash_key, parse_key
from semel.core.policy import Policy, PolicyError
from semel.core.record import Response
from semel.core.steps import NotDone, OutcomeUnknown, StepFenced
from semel.functions import idempotent
from semel.idempotency import Idempotency
from semel.issuer import Issuer
from semel.operation import (
    AsyncOperation,
    NestedOperation,
    NoOperation,
    Operation,
    OperationOver,
    current_async_operation,
    current_operation,
)
from semel.stores import StoreSetupError
from semel.web.asgi.middleware import ASGIMiddleware
from semel.web.wsgi.middleware import WSGIMiddleware

__version__ = "0.1.0"

__all__ = [
    "ASGIMiddleware",
    "AsyncOperation",
    "Idempotency",
    "InvalidKey",
    "Issuer",
    "NestedOperation",
    "NoOperation",
    "NotDone",
    "Operation",
    "OperationOver",
    "OutcomeUnknown",
    "Policy",
    "PolicyError",
    "Response",
    "StepFenced",
    "StepResultNotKept",
    "StoreError",
    "StoreSetupError",
    "StoreUnavailable",
    "StoreUnknown",
    "WSGIMiddleware",
    "current_async_operation",
    "current_operation",
    "derive",
    "hash_key",
    "idempotent",
    "parse_key",
]
