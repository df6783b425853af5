"""Django REST framework: a serializer, a viewset, tokens. Settings and the WSGI application.

DATABASE_URL=postgresql://user@host/shop python prepare.py, then gunicorn "project:wsgi()"
"""

import os
from typing import Any
from urllib.parse import urlsplit

SECRET_KEY = os.environ.get("SECRET_KEY", "not for production")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "shop.views"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "rest_framework",
    "rest_framework.authtoken",
    "shop",
]
MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",
]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}

url = urlsplit(os.environ["DATABASE_URL"])
DATABASES: dict[str, Any] = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path[1:],
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.hostname,
        "PORT": url.port or 5432,
    }
}
if url.scheme == "sqlite":
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": url.path[1:],
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }
DATABASES["default"]["ATOMIC_REQUESTS"] = True

# --- Semel: a view and its key commit together ---
INSTALLED_APPS += ["semel.web.django"]
MIDDLEWARE += ["semel.web.django.middleware.IdempotencyMiddleware"]
# --- that was it ---


def wsgi() -> Any:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project")
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()
