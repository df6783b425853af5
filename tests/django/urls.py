from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.views.decorators.csrf import csrf_exempt
from rest_framework.routers import DefaultRouter

from django.urls import path, re_path
from semel.web.django.issuing import issue_keys
from tests.django import ninja_api, views

router = DefaultRouter()
router.register("payments", views.Charges)
router.register("throttled", views.Throttled, basename="throttled")

PLAIN = (
    *("charge", "fails", "streams", "files", "upload", "raw", "steps", "parks", "commits"),
    *("waits", "needs_key", "plain", "plain_stream", "async_charge", "async_escapes"),
    *("async_waits", "async_plain_stream"),
)


def exempt(view: Any) -> Any:
    view.csrf_exempt = True  # Django's own decorator knows async views only from 5.0 on
    return view


urlpatterns = [
    path("admin/", admin.site.urls),
    path("form", views.form),
    path("idempotency-keys", issue_keys),
    path("put", csrf_exempt(views.Put.as_view())),
    path("rethinks", views.Rethinks.as_view()),
    path("for_both", views.ForBoth.as_view()),
    *(path(name, exempt(getattr(views, name))) for name in PLAIN),
    *router.urls,
    path("api/", ninja_api.api.urls),
    path("lax/", ninja_api.lax.urls),
    re_path(r"^optional/?$", exempt(views.charge)),
    path("slashed/", exempt(views.charge)),
    path("session", exempt(views.session)),
    path("hidden", exempt(views.hidden)),
    path("asks", exempt(views.asks)),
    path("async_asks", exempt(views.async_asks)),
    path("validated", exempt(views.validated)),
    path("lenient", views.Lenient.as_view()),
    path("own_way", views.OwnWay.as_view()),
    path("own_store", exempt(views.own_store)),
    path("gets", exempt(views.gets)),
    path("async_fails", exempt(views.async_fails)),
    path("decorated", exempt(views.decorated)),
]
