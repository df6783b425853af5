"""One request under a policy: what is known of it, and what becomes of the view's answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.http import HttpRequest

from semel.core import problems
from semel.core.commands import Answer, StoreError
from semel.core.engine import Deliver, Life, Outcome, Refuse, Request, run, settled
from semel.core.keys import InvalidKey, hash_key, parse_key
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.record import UnreadableRecord
from semel.core.steps import OutcomeUnknown, StepFenced
from semel.failpoints import failpoint
from semel.idempotency import Idempotency, Whose, scope_name
from semel.operation import NoOperation
from semel.stores.django.store import DjangoStore
from semel.stores.django.transaction import DjangoTransaction
from semel.web.django import answers
from semel.web.django import body as receiving
from semel.web.django.callers import View
from semel.web.http import key_source as naming
from semel.web.http.body import Body

ATTRIBUTE = "_semel_exchange"


class Exchange:
    """What the middleware knows of one request from its arrival to its answer."""

    def __init__(self, idempotency: Idempotency, policy: Policy, request: HttpRequest) -> None:
        self.idempotency = idempotency
        self.policy = policy
        self.request = request
        self.refusal: Problem | None = None
        """What the request is refused with, once it is known to be allowed here."""
        self.driver: Any = None
        """Set while the view runs under a claim."""
        self.error: Exception | None = None
        """What the view has raised, whatever Django or a middleware made of it."""
        self._fields: list[bytes] = []
        self._body: Body | None = None
        self._whose: Whose | None = None
        setattr(request, ATTRIBUTE, self)

    # --- before the view -------------------------------------------------------------------

    def receive(self) -> None:
        """Read the key and the body."""
        if not self.idempotency.started and not self.idempotency.ready():
            self.refusal = problems.STORE_UNAVAILABLE
        field = self.request.META.get("HTTP_IDEMPOTENCY_KEY")
        self._fields = [] if field is None else [field.encode("latin-1", "replace")]
        try:
            parse_key(self._fields)
        except InvalidKey as error:
            self.refusal = problems.key_invalid(str(error))
        may_have_key = bool(self._fields) or naming.may_be_in_content(self.policy)
        if not may_have_key and self.refusal is None and self.policy.required:
            self.refusal = problems.KEY_MISSING
        if self.refusal is not None:
            receiving.read(self.policy, self.request, lambda chunk: None)
        elif may_have_key:
            self._body = body = receiving.body_of(self.policy, self.request)
            self.refusal = receiving.read(self.policy, self.request, body.write)
            receiving.give(self.request, body)

    @property
    def concerned(self) -> bool:
        """Whether there may be an operation, or a refusal."""
        return self._body is not None or self.refusal is not None

    def life(self, whose: Whose) -> tuple[bytes, Life] | Outcome | None:
        """Return the key and life, or what is known without them; None: it has no key."""
        assert self._body is not None
        receiving.give(self.request, self._body)  # who authenticates may have read it
        self._whose = whose
        scope = scope_name(whose)
        view = View(self.request)
        try:
            named = naming.name(
                self.idempotency, self.policy, self._fields, scope, view, self._body
            )
        except InvalidKey as error:
            return Refuse(problems.key_invalid(str(error)))
        if named is None:
            return Refuse(problems.KEY_MISSING) if self.policy.required else None
        self.policy = named.policy
        key = hash_key(scope, named.key)
        fingerprint = self._body.fingerprint
        try:
            found = None if named.late else self.idempotency.look_up(key)
            outcome = settled(fingerprint, self.policy, *found) if found is not None else None
        except UnreadableRecord:
            return Refuse(problems.STORE_UNAVAILABLE)
        if outcome is not None:
            return outcome
        asked = Request(key, self.idempotency.owner(), fingerprint, late=named.late)
        opens = self.idempotency.opens(self.policy)
        return key, run(asked, self.policy, found, opens=opens)

    @property
    def wraps(self) -> bool:
        """Whether the view runs in the transaction that its record is completed in."""
        store = self.idempotency.store
        return isinstance(store, DjangoStore) and self.policy.guarantee in (None, "atomic")

    def not_begun(self) -> Answer:
        """The answer of a view that could not be run: its transaction could not be begun."""
        return Answer(problems.STORE_UNAVAILABLE.response(self.idempotency.problem_base))

    # --- after the view --------------------------------------------------------------------

    def raised(self, error: Exception) -> Any:
        """Return the answer to what `op` raised."""
        base = self.idempotency.problem_base
        if isinstance(error, NoOperation) and self.driver is None:
            return answers.refused(problems.KEY_MISSING, base)
        if isinstance(error, (StoreError, OutcomeUnknown, StepFenced)) and self.driver is not None:
            return answers.refused(problems.OUTCOME_UNRECORDED, base)
        return None

    @property
    def over(self) -> bool:
        """Whether the view has committed by itself (`op.commit()`), or never ran under a claim."""
        return self.driver is None or self.driver.outcome is not None

    @property
    def passes(self) -> bool:
        """Whether a stream goes out as it is made; where a transaction is open it is held."""
        return self.driver.transaction is None and self.policy.guarantee != "atomic"

    def undoes(self, response: Any) -> DjangoTransaction | None:
        """Return the transaction whose writes an answer disowns: an error that was turned into it.

        The answer (a 404 that was raised, a serializer's 400, the redirect that a middleware has
        made of an error) is recorded all the same.
        """
        transaction = self.driver.transaction
        if not isinstance(transaction, DjangoTransaction):
            return None
        raised = self.error is not None or getattr(response, "exception", False)  # REST framework's
        broken = response.status_code >= 400 and transaction.broken
        return transaction if raised or broken else None

    def answer(self, response: Any, body: bytes | None, *, sent: bool = False) -> Answer:
        """Return what came of the view, as the engine takes it."""
        if self.error is not None and response.status_code >= 500:
            kept = problems.HANDLER_FAILED.response(self.idempotency.problem_base)
        else:
            kept = answers.stored(response, body, self.policy)
        return Answer(kept, self.driver.taken, sent)

    def failed(self) -> Answer:
        """Return what came of a view, or of the middleware inside, that broke off."""
        return Answer(
            problems.HANDLER_FAILED.response(self.idempotency.problem_base), self.driver.taken
        )

    def sent(self, outcome: Outcome, response: Any, chunks: Iterable[bytes] | None) -> Any:
        """Return the response that may be sent: the view's own, or what stands in its place."""
        base = self.idempotency.problem_base
        if outcome == Deliver(kept=True) and self.error is not None:
            if response.status_code >= 500:
                outcome = Refuse(problems.HANDLER_FAILED)
        if isinstance(outcome, Deliver):
            if chunks is not None:
                response.streaming_content = chunks
            failpoint("before_answer")
            response._resource_closers.append(_after_answer)
            return response
        instead = answers.told(outcome, base)
        instead._resource_closers.extend(response._resource_closers)
        return instead

    def handing_out(self, response: Any) -> Any:
        """Put a fresh key for the caller's next operation into the answer, where that is asked."""
        issuer = self.idempotency.issuer
        if self.policy.next_key and issuer is not None and self._whose is not None:
            (response["Idempotency-Key"],) = issuer.issue(scope_name(self._whose)).keys
        return response

    def close(self) -> None:
        """Give the body back."""
        if self._body is not None:
            self._body.close()

    def fits(self, size: int) -> bool:
        """Whether an answer of this size is kept."""
        return size <= self.policy.max_response_body


def exchange_of(request: Any) -> Exchange | None:
    """Return the exchange of a request, or None where it is not covered."""
    return getattr(request, ATTRIBUTE, None)


def _after_answer() -> None:
    failpoint("after_answer")
