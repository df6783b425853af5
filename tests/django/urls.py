from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.views.decorators.csrf import csrf_exempt
from rest_framework.routers import DefaultRouter

from django.urls import path
from semel.web.django.issuing import issue_keys
from tests.django import views

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
]
