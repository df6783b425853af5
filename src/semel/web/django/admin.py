"""The admin of records: found by key, read only, parked and settled with a confirmation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.html import format_html

from semel.core.commands import StoreError
from semel.core.record import Response, UnreadableRecord, decode_response
from semel.web.django import operators
from semel.web.django.conf import configured
from semel.web.django.models import StoredRecord

BODY = "body"
"""The parameter that asks for an answer's body: it is the caller's, so it is not shown unasked."""
SHOWN = 64 * 1024
"""Bytes of a body that are shown."""


@admin.register(StoredRecord)
class RecordAdmin(admin.ModelAdmin):
    """Records, read only.

    The permission `semel.view_storedrecord` sees them, `semel.settle_record` acts on them.
    """

    list_display = ("reference", "state", "attempt", "lease_ends", "expires", "reason")
    list_filter = ("state",)
    search_fields = ("key",)
    search_help_text = (
        "A reference (as problem answers and logs show it), or scope and key: user:42 8e03978e-40d5"
    )
    ordering = ("-token",)
    show_full_result_count = False
    actions = ("park", "settle_as_done", "settle_as_not_done")

    def get_queryset(self, request: HttpRequest) -> Any:
        """Return the records where the store has them."""
        return operators.records(configured().idempotency).order_by(*self.ordering)

    def get_search_results(self, request: HttpRequest, queryset: Any, term: str) -> Any:
        """Find a record by what an operator pastes."""
        return (queryset.filter(operators.named(term)) if term.strip() else queryset), False

    # --- permissions -----------------------------------------------------------------------

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Whether there is anything to see: records of native stores are not in the models."""
        allowed: bool = super().has_module_permission(request)
        return allowed and operators.are_models(configured().idempotency)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether this person may see records, where there are any to see."""
        allowed: bool = super().has_view_permission(request, obj)
        return allowed and operators.are_models(configured().idempotency)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody makes records by hand."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody writes into records."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A deleted record is a second effect waiting to happen."""
        return False

    def has_settle_permission(self, request: HttpRequest) -> bool:
        """Whether this person may say what became of operations."""
        allowed: bool = request.user.has_perm("semel.settle_record")
        return allowed

    # --- what is shown ---------------------------------------------------------------------

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return what is shown of one record."""
        shown = ["reference", "key_hash", "state", "token", "attempt", "lease_ends", "expires"]
        return [*shown, "purged", "reason", "answer_status", "answer_headers", self._body(request)]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return the same: nothing is written here."""
        return self.get_fields(request, obj)

    def _body(self, request: HttpRequest) -> str:
        return "answer_body" if request.GET.get(BODY) else "answer_size"

    @admin.display(ordering="lease_until")
    def lease_ends(self, record: StoredRecord) -> datetime | None:
        """When the claim ends unless it is renewed."""
        return _time(record.lease_until)

    @admin.display(ordering="due_at")
    def expires(self, record: StoredRecord) -> datetime | None:
        """When the answer goes."""
        return _time(record.due_at)

    @admin.display(ordering="purge_at")
    def purged(self, record: StoredRecord) -> datetime | None:
        """Until when the key is refused."""
        return _time(record.purge_at)

    def answer_status(self, record: StoredRecord) -> int | str | None:
        """The status of the answer."""
        answer = _answer(record)
        return answer.status if isinstance(answer, Response) else answer

    def answer_headers(self, record: StoredRecord) -> str | None:
        """The headers that a replay carries."""
        answer = _answer(record)
        if not isinstance(answer, Response):
            return None
        return "\n".join(f"{n.decode('latin-1')}: {v.decode('latin-1')}" for n, v in answer.headers)

    @admin.display(description="answer body")
    def answer_size(self, record: StoredRecord) -> str | None:
        """How large the body is, and the way to it."""
        answer = _answer(record)
        if not isinstance(answer, Response) or answer.body is None:
            return "not kept" if isinstance(answer, Response) else None
        link: str = format_html('{} bytes, <a href="?{}=1">show</a>', len(answer.body), BODY)
        return link

    def answer_body(self, record: StoredRecord) -> str | None:
        """The body, asked for."""
        answer = _answer(record)
        if not isinstance(answer, Response) or answer.body is None:
            return None
        return answer.body[:SHOWN].decode("utf-8", "replace")

    # --- actions ---------------------------------------------------------------------------

    @admin.action(
        description="Park: stop what is in flight until it is settled", permissions=["settle"]
    )
    def park(self, request: HttpRequest, queryset: Any) -> Any:
        """Park operations that are in flight."""
        by = f"parked in the admin by {request.user.get_username()}"
        return self._act(
            request,
            queryset,
            "park",
            "parked",
            "Whatever still runs under these keys is fenced: it can no longer record an answer, and"
            " an atomic operation is rolled back. Repeats get 409 outcome-unknown until each is"
            " settled.",
            lambda record: operators.park(configured().idempotency, record, by),
        )

    @admin.action(description="Settle: it was done, with this answer", permissions=["settle"])
    def settle_as_done(self, request: HttpRequest, queryset: Any) -> Any:
        """Complete parked operations with an answer."""
        try:
            status = int(request.POST.get("status") or 200)
            response = operators.answer(status, request.POST.get("body", "{}").encode())
        except ValueError as error:
            self.message_user(request, str(error), messages.ERROR)
            return None
        return self._act(
            request,
            queryset,
            "settle_as_done",
            "settled with an answer",
            "These parked operations took effect. Repeats get the answer below; nothing runs.",
            lambda record: operators.settle(configured().idempotency, record, response),
            asks_answer=True,
        )

    @admin.action(description="Release: it was not done, a retry may run", permissions=["settle"])
    def settle_as_not_done(self, request: HttpRequest, queryset: Any) -> Any:
        """Free the keys of parked operations."""
        return self._act(
            request,
            queryset,
            "settle_as_not_done",
            "released",
            "Be sure that these parked operations took no effect: their keys are freed, and a retry"
            " runs them again.",
            lambda record: operators.settle(configured().idempotency, record, None),
        )

    def _act(
        self,
        request: HttpRequest,
        queryset: Any,
        action: str,
        told: str,
        warning: str,
        do: Callable[[StoredRecord], bool],
        *,
        asks_answer: bool = False,
    ) -> Any:
        if not request.POST.get("confirmed"):
            context = {
                **self.admin_site.each_context(request),
                "title": "Are you sure?",
                "opts": self.model._meta,
                "records": list(queryset),
                "action": action,
                "checkbox": ACTION_CHECKBOX_NAME,
                "warning": warning,
                "asks_answer": asks_answer,
            }
            return TemplateResponse(request, "semel/confirm.html", context)
        done: list[str] = []
        left: list[str] = []
        for record in queryset:
            try:
                applied = do(record)
            except StoreError as error:
                self.message_user(request, f"{record}: {error}", messages.ERROR)
                continue
            (done if applied else left).append(str(record))
            if applied:
                self.log_change(request, record, f"{told} (was {operators.state(record)})")
        if done:
            self.message_user(request, f"{told}: {', '.join(done)}", messages.SUCCESS)
        if left:
            said = f"{', '.join(left)}: left as it was, its state did not allow it"
            self.message_user(request, said, messages.WARNING)
        return None


def _time(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _answer(record: StoredRecord) -> Response | str | None:
    if record.answer is None:
        return None
    try:
        return decode_response(bytes(record.answer))
    except UnreadableRecord as error:
        return str(error)
