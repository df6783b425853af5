"""Repeats that wait leave a WSGI server's threads to others: gunicorn, waitress, Django."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from semel import Idempotency
from semel.core.commands import Wait
from semel.runtime import servers, waiters
from tests.http.processes import WAITRESS, ask, gunicorn, noted, serving, until_noted

APPLICATION = """
import os, pathlib, time
from datetime import timedelta
from flask import Flask
from semel import Idempotency, Policy
from semel.web.flask import init_app

here = pathlib.Path(os.environ["HERE"])
app = Flask(__name__)

@app.post("/charges/<name>")
def charge(name):
    with open(here / "notes", "a") as notes:
        notes.write(name + "\\n")
    while not (here / "go").exists():
        time.sleep(0.01)
    return {}, 201

@app.get("/health")
def health():
    return "ok"

most = os.environ.get("MOST")
policy = Policy(wait=timedelta(seconds=60))
init_app(app, Idempotency(
    f"sqlite:///{here}/records.db", policy=policy, max_waiting_threads=int(most) if most else None,
))
"""

DJANGO = """
import os, pathlib, time
from datetime import timedelta
import django
from django.conf import settings

here = pathlib.Path(os.environ["HERE"])
settings.configure(
    SECRET_KEY="s", ROOT_URLCONF="application", ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["semel.web.django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": here / "django.db"}},
    MIDDLEWARE=["semel.web.django.middleware.IdempotencyMiddleware"],
    SEMEL={"store": f"sqlite:///{here}/records.db", "policy": {"wait": timedelta(seconds=60)}},
)
django.setup()

from django.http import HttpResponse
from django.urls import path

def charge(request, name):
    with open(here / "notes", "a") as notes:
        notes.write(name + "\\n")
    while not (here / "go").exists():
        time.sleep(0.01)
    return HttpResponse(status=201)

urlpatterns = [path("charges/<name>", charge), path("health", lambda request: HttpResponse("ok"))]

from django.core.wsgi import get_wsgi_application
app = get_wsgi_application()
"""

GTHREAD = gunicorn("-k", "gthread", "--threads", "4")
SYNC = gunicorn("-w", "2")


class Posts:
    """Requests that are under way, and the statuses of those that have been told."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.statuses: list[int] = []
        self._threads: list[threading.Thread] = []

    def send(self, name: str) -> None:
        def post() -> None:
            self.statuses.append(ask(self.port, "POST", f"/charges/{name}", name))

        self._threads.append(threading.Thread(target=post))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)


@pytest.mark.parametrize(
    ("source", "server"),
    [(APPLICATION, GTHREAD), (APPLICATION, WAITRESS), (APPLICATION, SYNC), (DJANGO, GTHREAD)],
    ids=["gthread", "waitress", "sync", "django"],
)
def test_repeats_of_one_key_leave_threads_to_others(
    tmp_path: Path, source: str, server: tuple[str, ...]
) -> None:
    """The first cannot end before /health was served: where all threads wait, nothing goes on."""
    with serving(tmp_path, source, server) as (port, _):
        posts = Posts(port)
        posts.send("one")
        until_noted(tmp_path, "one")
        for _ in range(8):
            posts.send("one")
        for _ in range(3):
            assert ask(port, "GET", "/health") == 200
        assert 201 not in posts.statuses
        (tmp_path / "go").touch()
        posts.join()
    assert set(posts.statuses) == {201, 409}
    assert noted(tmp_path) == ["one"]


def test_repeats_of_several_keys_share_the_threads_that_may_wait(tmp_path: Path) -> None:
    names = ("one", "two", "three")
    server = gunicorn("-k", "gthread", "--threads", "8")
    with serving(tmp_path, APPLICATION, server) as (port, _):
        posts = Posts(port)
        for count, name in enumerate(names, 1):
            posts.send(name)
            until_noted(tmp_path, *names[:count])
        for _ in range(3):
            for name in names:
                posts.send(name)
        while len(posts.statuses) < 5:  # the others wait: four of eight threads
            time.sleep(0.01)
        assert posts.statuses == [409] * 5
        assert ask(port, "GET", "/health") == 200
        (tmp_path / "go").touch()
        posts.join()
    assert sorted(posts.statuses) == [201] * 7 + [409] * 5


def test_how_many_threads_may_wait_can_be_said(tmp_path: Path) -> None:
    with serving(tmp_path, APPLICATION, GTHREAD, MOST="0") as (port, _):
        posts = Posts(port)
        posts.send("one")
        until_noted(tmp_path, "one")
        assert [ask(port, "POST", "/charges/one", "one") for _ in range(3)] == [409] * 3
        (tmp_path / "go").touch()
        posts.join()
    assert posts.statuses == [201]


def test_two_services_of_one_process_share_what_may_wait() -> None:
    first, second = waiters.Waiters(1), waiters.Waiters(1)
    first.running(b"k")
    passed: list[float | None] = []
    waiting = threading.Thread(
        target=lambda: passed.append(first.wait_on_server_thread(Wait(b"k", 60.0, 60.0, 9)))
    )
    waiting.start()
    while not first._running[b"k"]:
        time.sleep(0.001)
    assert second.wait_on_server_thread(Wait(b"other", 60.0, 60.0, 9)) is None
    first.ended(b"k")
    waiting.join(10)
    assert len(passed) == 1


def test_a_repeat_may_wait_for_an_operation_that_is_seen_to_run() -> None:
    """The only thread of its name waits where another one, which cannot be seen, runs the first."""
    beside = waiters.Waiters()
    assert beside._most_threads(b"k") == servers.count_threads() // 2 == 0
    beside.running(b"k")
    assert beside._most_threads(b"k") == 1


def test_a_number_of_threads_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="max_waiting_threads: give a whole number"):
        Idempotency("memory://", max_waiting_threads=-1)
