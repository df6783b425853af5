"""A handler that raised: what its operation records, and what the client is told.

Adapters call the handler and catch what it raises; what follows from it is decided here.
"""

from __future__ import annotations

from typing import Final

from semel.core import problems
from semel.core.commands import Answer, StoreError
from semel.core.engine import Deliver, Outcome, Refuse
from semel.core.policy import Policy
from semel.core.record import Response
from semel.core.steps import OutcomeUnknown, StepFenced

OPERATION_ERRORS: Final = (StoreError, OutcomeUnknown, StepFenced)
"""What the methods of an operation raise. The client is told a problem, not a server error."""


def failed(base: str = problems.BASE, *, atomic: bool, sent: Response | None = None) -> Answer:
    """Return what is recorded of a handler that raised.

    `base` is that of problem types, `atomic` whether its writes are in an open transaction, `sent`
    the response of which a part has left already.
    """
    if sent is not None:
        return Answer(sent._replace(body=None), atomic, sent=True)
    return Answer(problems.HANDLER_FAILED.response(base), atomic, raised=True)


def cut_off(base: str = problems.BASE, *, policy: Policy, atomic: bool) -> Answer:
    """Return what is recorded of a handler that was ended before its end.

    By its client's leaving, or by a shutdown: how far it came nobody knows. At most once it is
    parked. Else its writes are rolled back, and a retry runs it again.
    """
    answer = Answer(problems.HANDLER_FAILED.response(base), atomic, raised=True)
    if policy.guarantee == "at-most-once":
        return answer._replace(parked="it was ended before its end: its client had left")
    return answer._replace(released=True)


def told(outcome: Outcome, error: BaseException) -> Outcome:
    """Return what the client of a handler that raised `error` is told.

    `outcome` is what came of recording the failure. `Deliver`: nothing of ours, the exception goes
    on to the framework and the server.
    """
    if type(outcome) is not Deliver:
        return outcome
    if outcome.kept:
        return Refuse(problems.HANDLER_FAILED)
    if isinstance(error, OPERATION_ERRORS):
        return Refuse(problems.OUTCOME_UNRECORDED)
    return outcome


def told_caller(outcome: Outcome, error: BaseException) -> Refuse | None:
    """Return what the caller of a function that raised `error` is told instead; None: the error.

    A caller in the same process sees the exception itself, which says more than a problem would,
    unless it came from the operation, whose record says what is known.
    """
    if type(outcome) is Refuse and isinstance(error, (StoreError, OutcomeUnknown)):
        return outcome
    return None
