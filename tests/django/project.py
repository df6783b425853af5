"""Django as the tests use it: set up once a process, with databases that they name."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django.settings"
pymysql.install_as_MySQLdb()
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402
from django.test import override_settings  # noqa: E402

from tests import servers  # noqa: E402

VENDORS = ("sqlite", "postgresql", "mariadb")


def database(vendor: str, name: str, folder: Path) -> dict[str, Any]:
    """Return the settings of a new, empty database on a real server."""
    if vendor == "sqlite":
        pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"
        options: dict[str, Any] = {"timeout": 20}
        if django.VERSION >= (5, 1):
            options |= {"init_command": pragmas, "transaction_mode": "IMMEDIATE"}
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(folder / f"{name}.db"),
            "OPTIONS": options,
        }
    if vendor == "postgresql":
        parts = urlsplit(servers.postgresql().database(name))
        engine, options = "django.db.backends.postgresql", {}
    else:
        parts = urlsplit(servers.mariadb().url)
        engine, options = "django.db.backends.mysql", {}
        with pymysql.connect(host="127.0.0.1", port=parts.port or 0, user="root") as connection:
            connection.query(f"create database `{name}` character set utf8mb4")
        parts = parts._replace(path=f"/{name}")
    return {
        "ENGINE": engine,
        "NAME": parts.path[1:],
        "USER": parts.username or "",
        "HOST": parts.hostname,
        "PORT": parts.port,
        "OPTIONS": options,
    }


def use(alias: str, settings: dict[str, Any]) -> None:
    """Have `connections[alias]` be this database, with its tables made."""
    whole = {**copy.deepcopy(connections.settings["default"]), **settings}
    if alias in connections:
        connections[alias].close()
        del connections[alias]
    connections.settings[alias] = whole
    connections.databases[alias] = whole
    with override_settings(SEMEL={"alias": alias}):
        call_command("migrate", database=alias, verbosity=0)


def forget_steps(alias: str) -> None:
    """Remove the file in which DjangoStore keeps the steps of an SQLite database."""
    name = connections[alias].settings_dict["NAME"]
    for ending in ("", "-wal", "-shm"):
        Path(f"{name}-semel-steps{ending}").unlink(missing_ok=True)
