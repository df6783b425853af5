"""One request under a policy: its key and body, its operation, and the view's response."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from django.http import HttpRequest

from semel.core import failures, problems
from semel.core.commands import Answer
from semel.core.engine import Deliver, Outcome
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.failpoints import failpoint
from semel.idempotency import Idempotency
from semel.operation import NoOperation
from semel.runtime.operations import Driver, Known
from semel.stores.django.store import DjangoStore
from semel.stores.django.transaction import DjangoTransaction
from semel.web.django import answers
from semel.web.django import body as receiving
from semel.web.django.asked import DjangoView
from semel.web.http import admission, key_source
from semel.web.http.body import Body
from semel.web.http.callers import Caller, scope_name

log = logging.getLogger("semel")

ATTRIBUTE = "_semel_exchange"


class DjangoExchange:
    """One request, from its arrival to its response."""

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
        self.missed: list[NoOperation] = []
        """What the view was told where it asked for an operation, and there is none."""
        self.entered = False
        """Whether it has been asked who sends the request, and the key looked up."""
        self.authenticated = False
        """Whether Ninja's authenticators have let the request through."""
        self.served = False
        """Whether the response has been made."""
        self._fields: list[bytes] = []
        self._body: Body | None = None
        self._caller: Caller | None = None
        setattr(request, ATTRIBUTE, self)

    # --- before the view -------------------------------------------------------------------

    def receive(self) -> None:
        """Read the key and the body."""
        idempotency, policy, request = self.idempotency, self.policy, self.request
        field = request.META.get("HTTP_IDEMPOTENCY_KEY")
        self._fields = [] if field is None else [field.encode("latin-1", "replace")]
        keyed = bool(self._fields) or key_source.may_be_in_content(policy)
        self.refusal = admission.unready(idempotency) or admission.malformed(self._fields)
        if self.refusal is None and not keyed:
            self.refusal = admission.without_key(policy)
        if self.refusal is not None:
            receiving.read(policy, request, lambda chunk: None)
        elif keyed:
            self._body = body = receiving.body_of(policy, request)
            self.refusal = receiving.read(policy, request, body.write)
            receiving.give(request, body)

    @property
    def may_have_operation(self) -> bool:
        """True if the request carries (or may carry) a key, or has to be refused."""
        return self._body is not None or self.refusal is not None

    def enters(self) -> bool:
        """Say whether the view is to be claimed for now: once, and where there may be a key."""
        if self.entered:
            return False
        self.entered = True
        return self.may_have_operation

    def admit(self, kind: type[Driver], caller: Caller) -> Driver | Outcome | None:
        """Return the driver of its operation, or what is known without; None: it has no key."""
        assert self._body is not None
        receiving.give(self.request, self._body)  # who authenticates may have read it
        self._caller = caller
        view = DjangoView(self.request)
        scope = scope_name(caller)
        admitted = admission.admit(
            self.idempotency, kind, self.policy, self._fields, scope, view, self._body
        )
        if admitted is None:
            problem = admission.without_key(self.policy)
            return None if problem is None else self.idempotency.operations.refuse(problem)
        if isinstance(admitted, Known):
            return admitted.outcome
        self.policy = admitted.policy
        return admitted

    @property
    def wraps(self) -> bool:
        """Whether the view runs in the transaction that its record is completed in."""
        store = self.idempotency.store
        return isinstance(store, DjangoStore) and self.policy.guarantee in (None, "atomic")

    def not_begun(self) -> Answer:
        """The answer of a view that could not be run: its transaction could not be begun."""
        unavailable = problems.STORE_UNAVAILABLE.response(self.idempotency.problem_base)
        return Answer(unavailable, released=True)

    # --- after the view --------------------------------------------------------------------

    def note(self, error: Exception) -> None:
        """Note what the view has raised, before anything makes a response of it."""
        self.error = error

    def concerns(self, error: Exception) -> bool:
        """Say whether an error is one that `op` raised."""
        if self.driver is None:
            return isinstance(error, NoOperation)
        return isinstance(error, failures.OPERATION_ERRORS)

    def raised(self, error: Exception) -> Any:
        """Return the response to what `op` raised, None to all else."""
        if not self.concerns(error):
            return None
        if self.driver is None:
            return self._key_missing()
        told = failures.told(Deliver(kept=False), error)
        return answers.told(told, self.idempotency.problem_base)

    def unprotected(self, response: Any) -> Any:
        """Return the response of a view that ran without an operation, or that had to have one.

        A handler of the service's own, or a page, may have made a server's failure of that.
        """
        if self.driver is None and self.missed and response.status_code >= 500:
            return self._key_missing()
        return response

    def _key_missing(self) -> Any:
        refused = self.idempotency.operations.refuse(problems.KEY_MISSING)
        return answers.told(refused, self.idempotency.problem_base)

    @property
    def over(self) -> bool:
        """Whether the view has committed by itself (`op.commit()`), or never ran under a claim."""
        return self.driver is None or self.driver.outcome is not None

    @property
    def passes(self) -> bool:
        """Whether a stream goes out as it is made; where a transaction is open it is held."""
        return self.driver.transaction is None and self.policy.guarantee != "atomic"

    def _raised(self, response: Any) -> bool:
        """Whether a response disowns what the view has written: an error was turned into it.

        A 404 that was raised, a serializer's 400, the redirect that a middleware has made of an
        error. It is recorded all the same.
        """
        transaction = self.driver.transaction
        if self.error is not None or getattr(response, "exception", False):  # REST framework's
            return True
        broken = isinstance(transaction, DjangoTransaction) and transaction.broken
        return broken and response.status_code >= 400

    def answer(self, response: Any, body: bytes | None, *, sent: bool = False) -> Answer:
        """Return what came of the view, as the engine takes it."""
        if self._failed(response):
            return self.failed()._replace(sent=sent)
        stored = answers.stored(response, body, self.policy)
        return Answer(stored, self.driver.taken, sent, raised=self._raised(response))

    def _failed(self, response: Any) -> bool:
        """Whether the response is what a server says where a view has raised."""
        return self.error is not None and response.status_code >= 500

    def failed(self) -> Answer:
        """Return what came of a view, or of the middleware inside, that broke off."""
        return failures.failed(self.idempotency.problem_base, atomic=self.driver.taken)

    def cut_off(self) -> Answer:
        """Return what came of a view that was ended before its end, its client having left."""
        failpoint("cut_off")
        log.info("operation %s was ended: its client had left", self.driver.key[:6].hex())
        base, atomic = self.idempotency.problem_base, self.driver.taken
        return failures.cut_off(base, policy=self.policy, atomic=atomic)

    @property
    def cancels(self) -> bool:
        """Whether the client's leaving is to end the view."""
        return self.policy.on_disconnect == "cancel"

    def sent(self, outcome: Outcome, response: Any, chunks: Iterable[bytes] | None) -> Any:
        """Return the response that may be sent: the view's own, or what stands in its place."""
        base = self.idempotency.problem_base
        if self.error is not None and outcome == Deliver(kept=True) and self._failed(response):
            outcome = failures.told(outcome, self.error)
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
        if self.policy.next_key and issuer is not None and self._caller is not None:
            (response["Idempotency-Key"],) = issuer.issue(scope_name(self._caller)).keys
        return response

    def close(self) -> None:
        """Give the body back."""
        self.served = True
        if self._body is not None:
            self._body.close()

    def fits(self, size: int) -> bool:
        """Whether an answer of this size is kept."""
        return size <= self.policy.max_response_body


def exchange_of(request: Any) -> DjangoExchange | None:
    """Return the exchange of a request, or None where it is not covered."""
    return getattr(request, ATTRIBUTE, None)


def _after_answer() -> None:
    failpoint("after_answer")
