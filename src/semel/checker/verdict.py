"""Verdicts on cases, and the clauses of standards that they rest on."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = [
    "AUTHENTICATE",
    "CACHED_POST",
    "CLIENT_ERROR",
    "CONCURRENT",
    "EXPIRY",
    "FIRST",
    "INCOMPLETE",
    "MISSING",
    "NOT_IDEMPOTENT",
    "OUTSTANDING",
    "PROBLEM",
    "PROBLEM_TYPE",
    "RETRY",
    "RETRY_AFTER",
    "REUSED",
    "SECURITY",
    "STRIPE",
    "SYNTAX",
    "UNIQUE",
    "CaseVerdict",
    "Clause",
    "NotRun",
    "Outcome",
    "fault",
    "passed",
    "warning",
]


class Outcome(Enum):
    """Passed; fault: a promise is broken; warning: allowed, but clients will trip; not run."""

    PASSED = "passed"
    FAULT = "fault"
    WARNING = "warning"
    NOT_RUN = "not run"


class CaseVerdict(NamedTuple):
    """The outcome of a case, with a sentence that explains it."""

    outcome: Outcome
    said: str


class NotRun(Exception):
    """A case cannot be run here; the message says why."""


def passed(said: str) -> CaseVerdict:
    """Return a pass."""
    return CaseVerdict(Outcome.PASSED, said)


def fault(said: str) -> CaseVerdict:
    """Return a fault: something that a client relies on does not hold."""
    return CaseVerdict(Outcome.FAULT, said)


def warning(said: str) -> CaseVerdict:
    """Return a warning: where the sources leave a choice, or ask for it with a SHOULD or a MAY."""
    return CaseVerdict(Outcome.WARNING, said)


class Clause(NamedTuple):
    """A passage that a case rests on."""

    name: str
    url: str
    says: str
    """In our words."""


_DRAFT = (
    "https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-06#section-"
)


def _draft(section: str, says: str) -> Clause:
    return Clause(
        f"draft-ietf-httpapi-idempotency-key-header-06 §{section}", _DRAFT + section, says
    )


def _rfc(number: int, section: str, says: str) -> Clause:
    url = f"https://www.rfc-editor.org/rfc/rfc{number}#section-{section}"
    return Clause(f"RFC {number} §{section}", url, says)


SYNTAX = _draft("2.1", "the key is one structured-field String; a client sends one such header")
UNIQUE = _draft("2.2", "a key names one request, and is not reused with another payload")
EXPIRY = _draft("2.3", "a server may let keys expire, and should publish when")
FIRST = _draft("2.6", "a first request is processed normally")
RETRY = _draft("2.6", "a retry after completion is answered with the first result, error or not")
CONCURRENT = _draft("2.6", "a retry before completion is answered with a conflict, and not run")
MISSING = _draft("2.7", "a missing key, where one is required: 400, with a link to documentation")
REUSED = _draft("2.7", "a key reused with another payload: 422, with a link to documentation")
OUTSTANDING = _draft("2.7", "a request that is still processed: 409, with a problem description")
SECURITY = _draft("5", "keys are validated, and bound to what only the server knows of its client")
AUTHENTICATE = _rfc(9110, "15.5.2", "a request without valid credentials is answered 401")
RETRY_AFTER = _rfc(9110, "10.2.3", "Retry-After says how long to wait")
CACHED_POST = _rfc(9110, "9.3.3", "a response to POST is cached only with explicit freshness")
NOT_IDEMPOTENT = _rfc(9110, "9.2.2", "POST and PATCH are not idempotent by themselves")
CLIENT_ERROR = _rfc(9110, "15.5", "a fault in the request is a 4xx, not a 5xx")
INCOMPLETE = _rfc(9112, "8", "a request whose body does not arrive in full is incomplete")
PROBLEM = _rfc(9457, "3", "a problem document is a JSON object; its status is the response's own")
PROBLEM_TYPE = _rfc(9457, "3.1.1", "the type tells one kind of problem from another")
STRIPE = Clause(
    "Stripe, Idempotent requests",
    "https://docs.stripe.com/api/idempotent_requests",
    "status and body of the first request are saved once it runs, 500 included, and returned to"
    " retries; other parameters are an error; keys have up to 255 characters",
)
