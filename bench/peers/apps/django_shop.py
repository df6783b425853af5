"""The Django project that the Django libraries are put into; `PEER` says which."""

import json
import os

from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse

import django
from bench.peers.apps import books
from bench.peers.apps.wsgi import authenticated
from django.urls import path

SETTINGS = {
    # drf-idempotency's middleware with its Redis backend. It has no scope.
    "drf-idempotency": {
        "INSTALLED_APPS": ["django.contrib.contenttypes", "drf_idempotency"],
        "MIDDLEWARE": ["drf_idempotency.middleware.IdempotencyMiddleware"],
        "IDEMPOTENCY": {
            "BACKEND": "drf_idempotency.backends.redis.RedisBackend",
            "BACKEND_OPTIONS": {"url": books.REDIS},
            "REQUIRE_KEY": True,
            "LOCK_TTL_SECONDS": books.LEASE,
        },
    },
    # django-idempotency-key's middleware, its records in Django's Redis cache, its Redis lock, and
    # the first status for repeats. The Authorization is part of its key.
    "django-idempotency-key": {
        "MIDDLEWARE": ["idempotency_key.middleware.IdempotencyKeyMiddleware"],
        "CACHES": {
            "default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": books.REDIS}
        },
        "IDEMPOTENCY_KEY": {
            "CONFLICT_STATUS_CODE": None,
            "STORAGE": {"CLASS": "idempotency_key.storage.CacheKeyStorage"},
            "LOCK": {
                "CLASS": "idempotency_key.locks.redis.MultiProcessRedisLock",
                "LOCATION": books.REDIS,
                "TTL": books.LEASE,
            },
        },
    },
}


def count(request):
    return JsonResponse({"charges": books.count()})


def charge(request):
    who = books.ACCOUNTS[request.headers["Authorization"]]
    status, body, headers = books.blocking(who, json.loads(request.body))
    return JsonResponse(body, status=status, headers=headers)


urlpatterns = [path("charges/count", count), path("charges", charge), path("refunds", charge)]

books.open_tables()
settings.configure(
    ROOT_URLCONF=__name__,
    SECRET_KEY="a bench",
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": books.FOLDER / "keys.db"}
    },
    **SETTINGS[os.environ["PEER"]],
)
django.setup()
call_command("migrate", verbosity=0)
app = authenticated(get_wsgi_application())
