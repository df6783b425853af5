"""A shop's views, each one way to go right or wrong."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import IntegrityError, connection, transaction
from django.http import FileResponse, Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.utils.decorators import sync_only_middleware
from django.utils.deprecation import MiddlewareMixin
from rest_framework import serializers, viewsets
from rest_framework.authentication import (
    BaseAuthentication,
    SessionAuthentication,
    TokenAuthentication,
)
from rest_framework.permissions import DjangoModelPermissions
from rest_framework.response import Response
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from django import forms
from django.views import View
from semel import Idempotency
from semel.core.commands import StoreError, StoreUnavailable
from semel.operation import current_async_operation, current_operation
from semel.web.django import aoperation, idempotency_policy, operation
from tests.django.shop.models import Charge

runs: list[str] = []
hooks: list[str] = []
begun = threading.Event()
go_on = threading.Event()


def charge(request: Any) -> HttpResponse:
    runs.append("charge")
    made = Charge.objects.create(order=json.loads(request.body).get("order", ""), amount=1)
    transaction.on_commit(lambda: hooks.append("charge"))
    return JsonResponse({"id": made.pk, "run": len(runs)}, status=201)


class Answered(Exception):
    """Which a middleware of the shop makes an answer of."""


def fails(request: Any) -> HttpResponse:
    """Write, then end as `?how=` says."""
    runs.append("fails")
    Charge.objects.create(order="fails")
    transaction.on_commit(lambda: hooks.append("fails"))
    how = request.GET["how"]
    if how == "swallow":
        try:
            with connection.cursor() as cursor:
                cursor.execute("select nonsense from nowhere")
        except Exception:
            pass
        return HttpResponse("fine")
    if how == "nested":
        try:
            with transaction.atomic():
                Charge.objects.create(order="inner")
                raise IntegrityError
        except IntegrityError:
            return HttpResponse("outer only")
    if how == "close":
        connection.close()
        return HttpResponse("closed")
    if how == "hook":
        transaction.on_commit(lambda: 1 // 0)
        return HttpResponse("hooked")
    if how.isdigit():
        return HttpResponse(how, status=int(how))
    raised: dict[str, Exception] = {
        "answered": Answered(400),
        "redirected": Answered(302),
        "raise": RuntimeError("on purpose"),
        "store": StoreUnavailable("on purpose"),
        "404": Http404(),
        "suspicious": SuspiciousOperation("on purpose"),
        "not-found": Http404(),
        "denied": PermissionDenied(),
    }
    raise raised[how]


def streams(request: Any) -> HttpResponse:
    runs.append("streams")
    size = int(request.GET.get("size", "1"))

    def made() -> Any:
        Charge.objects.create(order="stream")
        for _ in range(3):
            yield b"x" * size
        if request.GET.get("break"):
            raise RuntimeError("on purpose")

    return StreamingHttpResponse(made(), content_type="text/x")


def files(request: Any) -> HttpResponse:
    runs.append("files")
    Charge.objects.create(order="file")
    return FileResponse(open(__file__, "rb"))


def upload(request: Any) -> HttpResponse:
    """The form as Django reads it."""
    runs.append("upload")
    file = request.FILES["file"]
    return JsonResponse({"name": request.POST["name"], "size": sum(map(len, file.chunks()))})


def form(request: Any) -> HttpResponse:
    """The same, and not exempt from CSRF protection."""
    return upload(request)


def raw(request: Any) -> HttpResponse:
    runs.append("raw")
    return HttpResponse(str(sum(map(len, iter(lambda: request.read(65536), b"")))))


def steps(request: Any) -> HttpResponse:
    runs.append("steps")
    op = operation(request)
    Charge.objects.create(order="steps")
    told = op.step("call", lambda key: hooks.append(key) or "done")
    if op.attempt == 1 and request.GET.get("fail") and len(runs) == 1:
        raise RuntimeError("on purpose")
    return JsonResponse({"told": told})


def parks(request: Any) -> HttpResponse:
    runs.append("parks")
    Charge.objects.create(order="parks")
    operation(request).park("nobody knows")


def commits(request: Any) -> HttpResponse:
    runs.append("commits")
    Charge.objects.create(order="commits")
    operation(request).commit()
    return StreamingHttpResponse(iter([b"a", b"b"]))


def waits(request: Any) -> HttpResponse:
    runs.append("waits")
    Charge.objects.create(order="waits")
    begun.set()
    assert go_on.wait(20)
    return HttpResponse("waited")


@idempotency_policy(required=True)
def needs_key(request: Any) -> HttpResponse:
    runs.append("needs_key")
    return HttpResponse("had")


class Put(View):
    @idempotency_policy(guarantee="at-most-once")
    def put(self, request: Any) -> HttpResponse:
        runs.append("put")
        Charge.objects.create(order="put")
        if request.GET.get("fail"):
            raise RuntimeError("on purpose")
        return HttpResponse("put")


@idempotency_policy(guarantee="at-least-once")
def plain(request: Any) -> HttpResponse:
    runs.append("plain")
    Charge.objects.create(order="plain")
    return HttpResponse("plain")


@idempotency_policy(guarantee="at-least-once")
def plain_stream(request: Any) -> HttpResponse:
    return streams(request)


@idempotency_policy(guarantee="at-least-once")
async def async_plain_stream(request: Any) -> HttpResponse:
    runs.append("async_plain_stream")

    async def made() -> Any:
        for _ in range(3):
            yield b"x"
            begun.set()
            await asyncio.to_thread(go_on.wait, 20)

    return StreamingHttpResponse(made())


async def async_charge(request: Any) -> HttpResponse:
    runs.append("async_charge")
    await Charge.objects.acreate(order="async")
    if request.GET.get("step"):
        await aoperation(request).step("call", lambda key: hooks.append(key) or "done")
    if request.GET.get("fail"):
        raise RuntimeError("on purpose")
    in_block = await sync_to_async(lambda: connection.in_atomic_block)()
    return JsonResponse({"atomic": in_block, "run": len(runs)}, status=201)


async def async_escapes(request: Any) -> HttpResponse:
    """Its second write goes to a thread that is not the operation's."""
    runs.append("async_escapes")
    await Charge.objects.acreate(order="inside")
    await sync_to_async(Charge.objects.create, thread_sensitive=False)(order="outside")
    raise RuntimeError("on purpose")


async def async_waits(request: Any) -> HttpResponse:
    runs.append("async_waits")
    await Charge.objects.acreate(order="before")
    begun.set()
    await asyncio.to_thread(go_on.wait, 20)
    await Charge.objects.acreate(order="after")
    return HttpResponse("waited")


class ChargeSerializer(serializers.ModelSerializer):
    class Meta:
        model = Charge
        fields = ("id", "order", "amount")


class Charges(viewsets.ModelViewSet):
    queryset = Charge.objects.all()
    serializer_class = ChargeSerializer
    authentication_classes = (SessionAuthentication, TokenAuthentication)
    permission_classes = (DjangoModelPermissions,)

    @idempotency_policy(required=True)
    def create(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append("create")
        return super().create(request, *args, **kwargs)


class Rethinks(APIView):
    """It writes, and then finds that it should not have."""

    authentication_classes = ()
    permission_classes = ()

    def post(self, request: Any) -> Any:
        runs.append("rethinks")
        Charge.objects.create(order="rethinks")
        raise serializers.ValidationError("on second thoughts")


class Devices(BaseAuthentication):
    """Knows devices, which are numbered as users are."""

    class Device:
        is_authenticated = True

        def __init__(self, number: int) -> None:
            self.pk = number

    def authenticate(self, request: Any) -> Any:
        number = request.headers.get("X-Device")
        return (self.Device(int(number)), None) if number else None


class ForBoth(APIView):
    authentication_classes = (Devices, TokenAuthentication)

    def post(self, request: Any) -> Any:
        runs.append("for_both")
        return Response(type(request.user).__name__)


class Lenient(APIView):
    """One whose service has a response of its own to everything."""

    authentication_classes = ()

    def get_exception_handler(self) -> Any:
        return lambda error, context: Response({"own": type(error).__name__}, status=400)

    def post(self, request: Any) -> Any:
        runs.append("lenient")
        Charge.objects.create(order="lenient")
        if request.GET.get("asks"):
            operation(request)
        raise RuntimeError("on purpose")


class OwnWay(APIView):
    """One that makes its own responses of what is raised, and asks nobody."""

    authentication_classes = ()

    def handle_exception(self, exc: Exception) -> Any:
        return JsonResponse({"own": type(exc).__name__}, status=409 if self.busy else 400)

    busy = False

    def post(self, request: Any) -> Any:
        runs.append("own_way")
        Charge.objects.create(order="own_way")
        if request.GET.get("asks"):
            current_operation()
        raise RuntimeError("on purpose")


def session(request: Any) -> HttpResponse:
    """Order something, and note it in the session, as flash messages are."""
    runs.append("session")
    request.session["orders"] = request.session.get("orders", 0) + 1
    who = request.user.username if request.user.is_authenticated else "nobody"
    return JsonResponse({"order": len(runs), "of": who})


def _hides(view: Any) -> Any:
    """A decorator that names what it hides, and copies nothing."""

    def around(request: Any) -> HttpResponse:
        return view(request)

    around.__wrapped__ = view  # type: ignore[attr-defined]
    return around


@_hides
@idempotency_policy(required=True)
def hidden(request: Any) -> HttpResponse:
    runs.append("hidden")
    return HttpResponse("had")


marking = Idempotency("memory://")


@_hides
@marking.route(required=True)
def decorated(request: Any) -> HttpResponse:
    runs.append("decorated")
    return HttpResponse("had")


def asks(request: Any) -> HttpResponse:
    runs.append("asks")
    if request.GET.get("current"):
        return HttpResponse(str(current_operation().attempt))
    return HttpResponse(str(operation(request).attempt))


async def async_asks(request: Any) -> HttpResponse:
    runs.append("async_asks")
    if request.GET.get("current"):
        return HttpResponse(str(current_async_operation().attempt))
    return HttpResponse(str(aoperation(request).attempt))


class ChargeForm(forms.Form):
    order = forms.CharField(max_length=3)


def validated(request: Any) -> HttpResponse:
    """It notes the attempt, and says what is wrong with it."""
    runs.append("validated")
    Charge.objects.create(order="attempt")
    form = ChargeForm(request.POST)
    return JsonResponse(form.errors, status=422 if not form.is_valid() else 201)


def gets(request: Any) -> HttpResponse:
    runs.append("gets")
    Charge.objects.create(order="gets")
    return HttpResponse(str(get_object_or_404(Charge, pk=-1)))


async def async_fails(request: Any) -> HttpResponse:
    runs.append("async_fails")
    await Charge.objects.acreate(order="async")
    raise {"404": Http404, "400": SuspiciousOperation, "403": PermissionDenied}[request.GET["how"]]


def own_store(request: Any) -> HttpResponse:
    """It writes with the records of another store than Django's."""
    runs.append("own_store")
    connection = operation(request).connection()
    execute = getattr(connection, "exec_driver_sql", connection.execute)
    execute("insert into own (what) values ('made')")
    if request.GET["how"] == "404":
        raise Http404
    return HttpResponse(status=int(request.GET["how"]))


class Busy(SimpleRateThrottle):
    rate = "1/day"
    allows = False

    def allow_request(self, request: Any, view: Any) -> bool:
        return Busy.allows


class Throttled(Charges):
    throttle_classes = (Busy,)


@sync_only_middleware
def plain_middleware(get_response: Any) -> Any:
    """One of the old kind: under ASGI Django runs it, and what is outside it, on a thread."""
    return lambda request: get_response(request)


class AnswersErrors(MiddlewareMixin):
    """One that makes answers of a service's own errors, before anybody further out sees them."""

    def process_exception(self, request: Any, error: Exception) -> Any:
        return HttpResponse("answered", status=error.args[0]) if type(error) is Answered else None


class AnswersStoreErrors(MiddlewareMixin):
    """One with a page of its own for a store that cannot be had."""

    def process_exception(self, request: Any, error: Exception) -> Any:
        return HttpResponse("our own page", status=503) if isinstance(error, StoreError) else None


@sync_only_middleware
def reads_forms(get_response: Any) -> Any:
    """One that looks into forms before anybody else."""

    def serve(request: Any) -> Any:
        assert request.POST is not None
        return get_response(request)

    return serve


class AnswersEverything(MiddlewareMixin):
    """One with a page for everything."""

    def process_exception(self, request: Any, error: Exception) -> Any:
        return HttpResponse("sorry", status=500)
