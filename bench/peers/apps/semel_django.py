"""Semel on Django: the view and its key commit in one `atomic()`."""

import json
import time
from datetime import timedelta

from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import JsonResponse

import django
from bench.peers.apps import books
from bench.peers.apps.wsgi import authenticated
from django.urls import path
from semel import Issuer

books.open_tables()
settings.configure(
    ROOT_URLCONF=__name__,
    SECRET_KEY="a bench",
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": books.FOLDER / "shop.db",
            "OPTIONS": {"timeout": 10, "transaction_mode": "IMMEDIATE"},
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "semel.web.django"],
    MIDDLEWARE=["semel.web.django.middleware.IdempotencyMiddleware"],
    SEMEL={
        "policy": {"required": True, "lease": timedelta(seconds=books.LEASE)},
        "scope": lambda request: books.ACCOUNTS[request.header("Authorization")],
        "issuer": Issuer(b"a secret of more than 32 bytes, for a bench"),
    },
)
django.setup()

from semel.web.django.issuing import issue_keys  # noqa: E402


def count(request):
    return JsonResponse({"charges": books.count()})


def charge(request):
    wanted = json.loads(request.body)
    if wanted["amount"] < 0:
        return JsonResponse({"error": "declined"}, status=402)
    time.sleep(books.BEFORE)
    with connection.cursor() as cursor:
        cursor.execute(books.CHARGE.replace("?", "%s"), ("", wanted["amount"]))
        number = cursor.lastrowid
    time.sleep(books.AFTER)
    status, body, headers = books.answer(number)
    return JsonResponse(body, status=status, headers=headers)


urlpatterns = [
    path("charges/count", count),
    path("charges", charge),
    path("refunds", charge),
    path("idempotency-keys", issue_keys),
]
call_command("migrate", verbosity=0)
app = authenticated(get_wsgi_application())
