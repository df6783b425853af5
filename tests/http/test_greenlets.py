"""gevent: leases outlast a handler that computes, and greenlets wait for each other."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import servers
from tests.http.processes import ask, gunicorn, noted, serving, until_noted

APPLICATION = """
import logging, os, pathlib, time
from datetime import timedelta
from flask import Flask
from semel import Idempotency, Policy, current_operation
from semel.web.flask import init_app

here = pathlib.Path(os.environ["HERE"])
app = Flask(__name__)

@app.post("/computes")
def computes():
    with open(here / "notes", "a") as notes:
        notes.write("began\\n")
    while not (here / "go").exists():  # never waits: no other greenlet runs
        sum(range(1000))
    return {}, 201

@app.post("/writes")
def writes():
    db = current_operation().connection()
    db.execute("insert into charges values (1)")
    time.sleep(0.02)  # the others run
    return {}, 201

@app.get("/health")
def health():
    return "ok"

policy = Policy(lease=timedelta(seconds=1), wait=timedelta(0))
waits = Policy(wait=timedelta(seconds=30))
init_app(app, Idempotency(os.environ["STORE"], policy=policy, routes={"/writes": waits}))
"""

GEVENT = gunicorn("-k", "gevent", "-w", "2")


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    if request.param == "redis":
        return servers.valkey().url
    return servers.postgresql().database("greenlets")


def test_a_lease_outlasts_a_handler_that_computes(store: str, tmp_path: Path) -> None:
    statuses: list[int] = []
    with serving(tmp_path, APPLICATION, GEVENT, STORE=store) as (port, _):
        first = threading.Thread(
            target=lambda: statuses.append(ask(port, "POST", "/computes", str(tmp_path)))
        )
        first.start()
        until_noted(tmp_path, "began")
        for _ in range(8):  # four leases; the other process is asked
            time.sleep(0.5)
            assert ask(port, "POST", "/computes", str(tmp_path)) == 409
        (tmp_path / "go").touch()
        first.join(50)
        assert statuses == [201]
        assert ask(port, "POST", "/computes", str(tmp_path)) == 201
    assert noted(tmp_path) == ["began"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_greenlets_take_turns_with_connections(kind: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    database: Any = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    if kind == "postgresql":
        url = servers.postgresql().database("greenlet_turns")
        database = psycopg.connect(url, autocommit=True)
    with contextlib.closing(database):
        database.execute("create table charges (n int)")
        with serving(tmp_path, APPLICATION, gunicorn("-k", "gevent"), STORE=url) as (port, _):
            statuses: list[int] = []
            threads = [
                threading.Thread(
                    target=lambda n=n: statuses.append(ask(port, "POST", "/writes", f"k{n % 20}"))
                )
                for n in range(40)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert statuses == [201] * 40
        assert database.execute("select count(*) from charges").fetchone()[0] == 20


PATCHED_LATE = """
import logging
logging.basicConfig(level="WARNING")
from semel import Idempotency
idempotency = Idempotency("memory://")
from gevent import monkey
monkey.patch_all()
idempotency.start()
"""

UNRENEWED = """
from gevent import monkey
monkey.patch_all()
import logging
logging.basicConfig(level="WARNING")
import sqlalchemy
from semel import Idempotency
from semel.stores.sqlalchemy import SQLAlchemyStore
Idempotency(SQLAlchemyStore(sqlalchemy.create_engine("sqlite:///shop.db"))).start()
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [(PATCHED_LATE, "patch first"), (UNRENEWED, "Policy(lease=…) longer than any computation")],
)
def test_what_cannot_work_under_gevent_is_said(program: str, said: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert said in run.stderr, run.stderr
