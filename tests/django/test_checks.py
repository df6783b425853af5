"""What `manage.py check` says of a project, and the log of a server's first request."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.http import HttpResponse
from django.middleware.gzip import GZipMiddleware
from django.test import RequestFactory, override_settings
from django.views.decorators.csrf import csrf_exempt

from django.urls import path
from django.views import View
from semel.web.django import idempotency_policy
from semel.web.django.checks import check_middleware, check_settings, check_views
from semel.web.django.conf import configured
from semel.web.django.middleware import IdempotencyMiddleware
from tests.django import views

OURS = "semel.web.django.middleware.IdempotencyMiddleware"
PAYLOAD = {"key": "payload", "window": timedelta(minutes=5)}


class OwnAuthentication(AuthenticationMiddleware):
    pass


class OwnIdempotency(IdempotencyMiddleware):
    pass


class OwnGZip(GZipMiddleware):
    pass


def _bare(view: Any) -> Any:
    """A decorator without functools.wraps."""
    return lambda request: view(request)


@idempotency_policy(required=True)
def _required(request: Any) -> HttpResponse:
    return HttpResponse("had")


class Refunds(View):
    @_bare
    @idempotency_policy(required=True)
    def post(self, request: Any) -> HttpResponse:
        return HttpResponse("had")

    @idempotency_policy(required=True)
    def put(self, request: Any) -> HttpResponse:
        return HttpResponse("had")


urlpatterns = [
    path("pay/<int:pk>/", csrf_exempt(views.charge)),
    path("lost", _bare(_required)),
    path("refunds", Refunds.as_view()),
]


@contextlib.contextmanager
def project(semel: dict[str, Any], **more: Any) -> Iterator[None]:
    with override_settings(SEMEL={"store": "memory://", **semel}, **more):
        configured.cache_clear()
        yield
    configured.cache_clear()


def ids(found: Any) -> list[str]:
    return [each.id for each in found]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("django.contrib.auth.middleware.AuthenticationMiddleware", "semel.E004"),
        ("django.contrib.sessions.middleware.SessionMiddleware", "semel.E004"),
        ("django.middleware.csrf.CsrfViewMiddleware", "semel.E004"),
        ("tests.django.test_checks.OwnAuthentication", "semel.E004"),
        ("django.middleware.gzip.GZipMiddleware", "semel.W006"),
        ("tests.django.test_checks.OwnGZip", "semel.W006"),
        ("corsheaders.middleware.CorsMiddleware", "semel.W006"),
        (OURS, "semel.E003"),
        ("tests.django.test_checks.OwnIdempotency", "semel.E003"),
    ],
)
def test_the_middlewares_place_is_checked(name: str, said: str) -> None:
    with override_settings(MIDDLEWARE=[OURS, name]):
        (found,) = check_middleware()
    assert found.id == said
    assert found.hint
    with override_settings(MIDDLEWARE=[name]):
        assert ids(check_middleware()) == (
            [] if name.endswith("OwnIdempotency") or name == OURS else ["semel.E003"]
        )


def test_marks_that_no_url_leads_to_are_named() -> None:
    with project({}, ROOT_URLCONF=__name__):
        lost = [each.msg for each in check_views() if each.id == "semel.E005"]
    assert any("test_checks._required" in each for each in lost)
    assert any("Refunds.post" in each for each in lost)
    assert len(lost) == 2  # and not Refunds.put
    with project({}):
        found = [each for each in check_views() if "test_checks._required" in each.msg]
    assert ids(found) == ["semel.W010"]


def test_marks_of_the_shop_are_found_through_its_decorators() -> None:
    with project({}):
        found = [each.msg for each in check_views() if each.id in ("semel.E005", "semel.W010")]
    assert not any("tests.django.views" in each for each in found)


@pytest.mark.parametrize(
    ("pattern", "met"),
    [
        ("POST /pay/{pk}/", True),
        ("/pay/{pk:int}/", True),
        ("/pay/{rest:path}", True),
        ("PUT /refunds", True),
        ("PATCH /refunds", False),
        ("/pay/{pk}", False),
        ("/nowhere", False),
    ],
)
def test_a_route_that_is_no_url_is_named(pattern: str, met: bool) -> None:
    with project({"routes": {pattern: {"required": True}}}, ROOT_URLCONF=__name__):
        found = [each for each in check_views() if each.id == "semel.W007"]
    assert [pattern in each.msg for each in found] == ([] if met else [True])
    if pattern == "/pay/{pk}":
        assert "/pay/<int:pk>/" in found[0].hint


@pytest.mark.parametrize("pattern", ["/pay/<int:pk>/", "/pay/<pk>/", "POST /pay/<slug:pk>/"])
def test_djangos_own_parameters_are_refused_with_the_fix(pattern: str) -> None:
    with project({"routes": {pattern: {"required": True}}}):
        (found,) = check_settings()
    assert "write {pk" in found.msg


def test_keys_from_the_content_need_callers() -> None:
    without = [OURS]
    with project({"policy": PAYLOAD}, ROOT_URLCONF=__name__, MIDDLEWARE=without):
        found = [each for each in check_views() if each.id == "semel.E008"]
        assert "POST /pay/<int:pk>/" in found[0].msg
    for named in ({"caller": "tests.django.test_sessions.caller"}, {"credentials": ["X-Cert"]}):
        with project({"policy": PAYLOAD, **named}, ROOT_URLCONF=__name__, MIDDLEWARE=without):
            assert "semel.E008" not in ids(check_views())
    with project(
        {"policy": {**PAYLOAD, "shared": True}}, ROOT_URLCONF=__name__, MIDDLEWARE=without
    ):
        assert "semel.E008" not in ids(check_views())
    with project({"policy": PAYLOAD}, ROOT_URLCONF=__name__):
        assert "semel.E008" not in ids(check_views())


def test_callers_who_all_look_the_same_are_a_warning() -> None:
    with project({}, ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]):
        (found,) = [each for each in check_views() if each.id == "semel.W009"]
    assert "/pay/<int:pk>/" in found.msg


def test_a_caller_and_a_scope_are_one_too_many() -> None:
    by = "tests.django.test_sessions.caller"
    with project({"caller": by, "scope": by}):
        (found,) = check_settings()
    assert "one of the two" in found.msg


def test_the_first_request_has_the_findings_logged(caplog: Any) -> None:
    with project({"routes": {"/nowhere": None}}), caplog.at_level(logging.WARNING, "semel"):
        logging.getLogger("semel").setLevel(logging.WARNING)
        middleware = IdempotencyMiddleware(lambda request: HttpResponse("made"))
        for _ in range(2):
            middleware(RequestFactory().get("/charge"))
    assert len([each for each in caplog.messages if "'/nowhere' is no URL" in each]) == 1


@pytest.mark.parametrize("vendor", ["sqlite"])
def test_twice_in_the_list_it_serves_once(serve: Any) -> None:
    client = serve(MIDDLEWARE=[*settings.MIDDLEWARE, OURS])
    first, repeat = client.send("/raw"), client.send("/raw")
    assert (first.status, repeat.body, repeat.replayed) == (200, first.body, True)


@pytest.mark.parametrize("vendor", ["sqlite"])
@pytest.mark.parametrize("path", ["/hidden", "/decorated"])
def test_a_mark_below_a_decorator_holds(serve: Any, path: str) -> None:
    client = serve()
    assert client.send(path, key=None).problem == "key-missing"
    assert client.send(path).replayed is False
    assert client.send(path).replayed
