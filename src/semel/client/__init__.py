"""A client that retries under one key, and resumes what a crash of its own left unfinished.

`RetryTransport` and `AsyncRetryTransport` go into httpx, `RetryAdapter` into requests. A name that
needs one of them imports it on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from semel.client.budget import Budget
from semel.client.errors import (
    JournalDamaged,
    JournalError,
    JournalFull,
    JournalInUse,
    KeysNotIssued,
    RequestTooLarge,
    Try,
    Unsettled,
)
from semel.client.journal import Journal, Resumed, Unfinished
from semel.client.keys import KeyPool, uuid7
from semel.client.retry import Retry

if TYPE_CHECKING:
    from semel.client.httpx import AsyncRetryTransport, RetryTransport
    from semel.client.requests import RetryAdapter

__all__ = [
    "AsyncRetryTransport",
    "Budget",
    "Journal",
    "JournalDamaged",
    "JournalError",
    "JournalFull",
    "JournalInUse",
    "KeyPool",
    "KeysNotIssued",
    "RequestTooLarge",
    "Resumed",
    "Retry",
    "RetryAdapter",
    "RetryTransport",
    "Try",
    "Unfinished",
    "Unsettled",
    "uuid7",
]

_MODULES = {
    "AsyncRetryTransport": "semel.client.httpx",
    "RetryTransport": "semel.client.httpx",
    "RetryAdapter": "semel.client.requests",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
