"""Refusals of calls: the exceptions that stand for problems, in the words of calls."""

from __future__ import annotations

from typing import ClassVar, Final

from semel.core.problems import (
    CONNECTION_NOT_TAKEN,
    HANDLER_FAILED,
    IN_FLIGHT,
    KEY_EXPIRED,
    KEY_REUSED,
    OUTCOME_UNKNOWN,
    OUTCOME_UNRECORDED,
    RESPONSE_NOT_KEPT,
    STORE_UNAVAILABLE,
    Problem,
)

__all__ = [
    "CallFailed",
    "CallParked",
    "CallRefused",
    "InFlight",
    "KeyExpired",
    "KeyReused",
    "ResultNotKept",
    "StoreDown",
    "refusal",
]


class CallRefused(Exception):
    """The call was not run, or what came of it cannot be told; `problem` says which and why."""

    problems: ClassVar[tuple[Problem, ...]] = ()
    """The problems that this class stands for; those of no class raise `CallRefused` itself."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)  # what it is pickled with
        self.problem = problem

    def __str__(self) -> str:
        """Return what it means and what to do."""
        reference = f" (reference {self.problem.reference})" if self.problem.reference else ""
        return f"{self.problem.title}: {self.problem.detail}{reference}"

    @property
    def retry_after(self) -> int | None:
        """Seconds after which to call again with the same arguments; None: that does not help."""
        return self.problem.retry_after


class InFlight(CallRefused):
    """Another call under this key is running. Call again later: negative-acknowledge a message."""

    problems = (IN_FLIGHT,)


class KeyReused(CallRefused):
    """The key was used with other arguments. A bug of the caller: dead-letter a message."""

    problems = (KEY_REUSED,)


class KeyExpired(CallRefused):
    """The result is no longer kept. It was done: acknowledge a message."""

    problems = (KEY_EXPIRED,)


class ResultNotKept(CallRefused):
    """It was done, but its result could not be kept or not be read again. Acknowledge a message."""

    problems = (RESPONSE_NOT_KEPT,)


class CallParked(CallRefused):
    """Nobody knows what became of the first call. It waits to be settled: dead-letter a message."""

    problems = (OUTCOME_UNKNOWN,)


class CallFailed(CallRefused):
    """The first call failed, and at most once is the rule. Dead-letter a message."""

    problems = (HANDLER_FAILED,)


class StoreDown(CallRefused):
    """The store cannot be asked, or what ran could not be recorded. Call again later."""

    problems = (STORE_UNAVAILABLE, OUTCOME_UNRECORDED)


_WORDS: Final = {
    IN_FLIGHT.slug: (
        "the first call is still running",
        "another call under this key is in progress, and nothing was done by this one. Call again,"
        " with the same arguments, after retry_after seconds.",
    ),
    KEY_REUSED.slug: (
        "the key was used with other arguments",
        "a call under this key was made before with arguments that differ, and nothing was done"
        " now. The same arguments get the first result; for something else use another key. What"
        " is no part of what is asked for is left out with ignore=.",
    ),
    KEY_EXPIRED.slug: (
        "the key has expired",
        "the result of the first call is no longer kept, and nothing was done now. Look up what"
        " became of it before calling under a new key. Policy(expires=…) says how long results are"
        " kept.",
    ),
    RESPONSE_NOT_KEPT.slug: (
        "the call is done, its result was not kept",
        "the first call with this key did its work, but its result has no stored form, is larger"
        " than max_response_body, or cannot be read any more. It is not run again: look the result"
        " up where the function has put it.",
    ),
    OUTCOME_UNKNOWN.slug: (
        "it is not known what became of the first call",
        "it was cut off or gave up on knowing, and it is not run again until that is settled with"
        " Idempotency.settle(); calling again does not help.",
    ),
    HANDLER_FAILED.slug: (
        "the first call failed",
        'it raised, may have taken effect in part, and is not run again: guarantee="at-most-once".',
    ),
    STORE_UNAVAILABLE.slug: (
        "the store cannot be asked now",
        "nothing was done: without its records a repeat cannot be told from a first call. Call"
        " again, with the same arguments, after retry_after seconds.",
    ),
    OUTCOME_UNRECORDED.slug: (
        "the outcome could not be recorded",
        "the function ran, and it is not known whether it took effect. Call again with the same"
        " arguments: only its key can tell.",
    ),
    CONNECTION_NOT_TAKEN.slug: (
        "the function did not take the connection",
        'guarantee="atomic" is declared, but the function returned without op.connection(), so'
        " nothing tied its writes to the key. Its result was withheld and nothing was recorded:"
        " take the connection, or drop the declaration.",
    ),
}
"""Title and detail, by slug, of each problem that a call can meet."""


def refusal(problem: Problem) -> CallRefused:
    """Return the exception that stands for a problem."""
    title, detail = _WORDS.get(problem.slug, (problem.title, problem.detail))
    told = problem._replace(title=title, detail=detail)
    for kind in CallRefused.__subclasses__():
        if any(problem.slug == one.slug for one in kind.problems):
            return kind(told)
    return CallRefused(told)
