"""Semel makes HTTP APIs safe to retry: retry anything; it happens once."""

from semel.core.keys import derive, hash_key, parse_key
from semel.core.policy import Policy, PolicyError
from semel.core.steps import NotDone, OutcomeUnknown, StepFenced
from semel.functions import idempotent
from semel.idempotency import Idempotency
from semel.issuer import Issuer
from semel.operation import (
    NoOperation,
    Operation,
    OperationOver,
    SyncOperation,
    current_operation,
    current_sync_operation,
)
from semel.stores import StoreSetupError
from semel.web.asgi import ASGIMiddleware
from semel.web.wsgi import WSGIMiddleware

__version__ = "0.1.0"

__all__ = [
    "ASGIMiddleware",
    "Idempotency",
    "Issuer",
    "NoOperation",
    "NotDone",
    "Operation",
    "OperationOver",
    "OutcomeUnknown",
    "Policy",
    "PolicyError",
    "StepFenced",
    "StoreSetupError",
    "SyncOperation",
    "WSGIMiddleware",
    "current_operation",
    "current_sync_operation",
    "derive",
    "hash_key",
    "idempotent",
    "parse_key",
]
