"""No write slips in between a precondition's check and its write: real requests, really at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi import Request

from tests import servers
from tests.http.documents import TABLES, database, make_fastapi, make_flask
from tests.http.harness import Answer, Client, asgi_server, until, wsgi_server

PATH = "/documents/a"
CLIENTS = 12


keys = itertools.count()
databases = itertools.count()


def with_table(url: str) -> str:
    with database(url) as db:
        db.execute(TABLES[url.partition(":")[0]])
    return url


@pytest.fixture
def postgresql() -> str:
    return with_table(servers.postgresql().database(f"documents_{next(databases)}"))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return with_table(f"sqlite:///{tmp_path}/documents.db")


@pytest.fixture(params=["fastapi", "flask"])
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Client]:
    if request.param == "fastapi":
        with asgi_server(make_fastapi(url)) as port:
            yield Client(port)
        return
    app = make_flask(url)
    with wsgi_server(app) as port:
        yield Client(port)
    app.extensions["semel"].idempotency.stop()


def send(client: Client, method: str, body: bytes = b"", path: str = PATH, **fields: str) -> Answer:
    headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
    key = None if method == "GET" else f"race-{next(keys)}"
    return client.send(path, key, body, method, headers)


def at_once(calls: list[Callable[[], Answer]]) -> list[Answer]:
    start = threading.Barrier(len(calls))

    def one(call: Callable[[], Answer]) -> Answer:
        start.wait(20)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def test_of_many_that_create_at_once_one_does(client: Client) -> None:
    bodies = [b"%d" % n for n in range(CLIENTS)]
    answers = at_once([partial(send, client, "PUT", b, If_None_Match="*") for b in bodies])
    assert sorted(a.status for a in answers) == [201] + [412] * (CLIENTS - 1)
    (won,) = [body for body, a in zip(bodies, answers, strict=True) if a.status == 201]
    assert send(client, "GET").body == won


def test_of_many_that_change_one_state_at_once_one_does(client: Client) -> None:
    tag = send(client, "PUT", b"first").header("ETag") or ""
    bodies = [b"%d" % n for n in range(CLIENTS)]
    answers = at_once([partial(send, client, "PUT", b, If_Match=tag) for b in bodies])
    assert sorted(a.status for a in answers) == [200] + [412] * (CLIENTS - 1)
    (won,) = [n for n, a in enumerate(answers) if a.status == 200]
    assert send(client, "GET").body == bodies[won]
    assert send(client, "GET").header("ETag") == answers[won].header("ETag")


def test_of_two_that_put_at_once_one_creates_and_one_replaces(client: Client) -> None:
    for n in range(10):
        path = f"/documents/{n}"
        answers = at_once([partial(send, client, "PUT", b"x", path)] * 2)
        assert sorted(a.status for a in answers) == [200, 201]


def test_no_change_is_lost_where_everybody_reads_changes_and_retries(client: Client) -> None:
    send(client, "PUT", b"")

    def append(mark: bytes) -> Answer:
        for _ in range(3):
            while True:
                tag = send(client, "GET").header("ETag") or ""
                answer = send(client, "PATCH", mark, If_Match=tag)
                if answer.status == 204:
                    break
                assert answer.status == 412
        return answer

    marks = [b"a", b"b", b"c", b"d"]
    at_once([partial(append, mark) for mark in marks])
    assert sorted(send(client, "GET").body) == sorted(b"".join(marks) * 3)


def test_copies_of_one_change_at_once_all_get_its_answer(client: Client) -> None:
    """Not 412 for their own success: they wait for the key, and are answered from its record."""
    tag = send(client, "PUT", b"first").header("ETag") or ""
    change = partial(client.send, PATH, "copy", b"second", "PUT", [("If-Match", tag)])
    answers = at_once([change] * CLIENTS)
    assert {(a.status, a.header("ETag")) for a in answers} == {(200, answers[0].header("ETag"))}
    assert sum(a.replayed for a in answers) == CLIENTS - 1
    refused = partial(client.send, PATH, "no", b"third", "PUT", [("If-Match", tag)])
    assert [(a.problem, a.replayed) for a in (refused(), refused())] == [
        ("precondition-failed", False),
        ("precondition-failed", True),
    ]
    assert send(client, "GET").body == b"second"


# --- stopped between the check and the write ----------------------------------------------------


class Stop:
    """Lets requests with `X-Stop: meet` wait for one another, `X-Stop: hold` for `go`."""

    def __init__(self) -> None:
        self.checked = threading.Event()
        self.go = threading.Event()
        self._meeting = asyncio.Barrier(2)

    async def __call__(self, request: Request) -> None:
        asked = request.headers.get("x-stop")
        if asked == "meet":
            async with asyncio.timeout(20):
                await self._meeting.wait()
        elif asked == "hold":
            self.checked.set()
            assert await asyncio.to_thread(self.go.wait, 20)


@contextlib.contextmanager
def stopping(url: str) -> Iterator[tuple[Client, Stop]]:
    stop = Stop()
    with asgi_server(make_fastapi(url, stop)) as port:
        yield Client(port), stop


def test_a_check_that_is_not_tied_to_its_write_loses_a_change(url: str) -> None:
    """What the guard is for: both pass the check, and only the guarded statement notices."""
    with stopping(url) as (client, _):
        for path, guarded in (("/plain/a?naive=1", False), ("/plain/a", True)):
            send(client, "PUT", b"first", "/plain/a")
            tag = send(client, "GET").header("ETag") or ""
            change = partial(send, client, "PUT", path=path, If_Match=tag, X_Stop="meet")
            answers = at_once([partial(change, b"mine"), partial(change, b"yours")])
            assert sorted(a.status for a in answers) == ([204, 412] if guarded else [204, 204])


def test_two_creators_that_both_find_nothing_do_not_both_create(postgresql: str) -> None:
    with stopping(postgresql) as (client, _):
        for fields, statuses in (({"If_None_Match": "*"}, [201, 412]), ({}, [200, 201])):
            path = f"/documents/{len(fields)}"
            put = partial(send, client, "PUT", b"x", path, X_Stop="meet", **fields)
            answers = at_once([put, put])
            assert sorted(a.status for a in answers) == statuses


@pytest.mark.parametrize("second", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("first", ["PUT", "PATCH", "DELETE"])
def test_who_comes_between_the_check_and_the_write_of_another_waits_and_is_refused(
    postgresql: str, first: str, second: str
) -> None:
    """A deleted document is not raised from the dead by a change to what it was, either."""
    with stopping(postgresql) as (client, stop), ThreadPoolExecutor(2) as pool:
        tag = send(client, "PUT", b"first").header("ETag") or ""
        winner: Future[Answer] = pool.submit(
            send, client, first, b"won", If_Match=tag, X_Stop="hold"
        )
        assert stop.checked.wait(20)
        loser = pool.submit(send, client, second, b"lost", If_Match=tag)
        with psycopg.connect(postgresql, autocommit=True) as watch:
            until(lambda: waiting(watch) > 0, "the second did not wait for the first")
        stop.go.set()
        assert winner.result(20).status in (200, 204)
        refused = {"PUT": 412, "PATCH": 404, "DELETE": 204} if first == "DELETE" else {}
        assert loser.result(20).status == refused.get(second, 412)
        left = send(client, "GET")
        assert (left.status, left.body) == {
            "PUT": (200, b"won"),
            "PATCH": (200, b"firstwon"),
            "DELETE": (404, b""),
        }[first]


def waiting(watch: Any) -> int:
    asked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    return int(watch.execute(f"{asked} and datname = current_database()").fetchone()[0])


def test_xmax_tells_an_insert_from_an_update_as_the_version_does(postgresql: str) -> None:
    upsert = (
        "insert into documents (name, content) values ('a', %s) on conflict (name) do update"
        " set content = excluded.content, version = documents.version + 1"
        " returning (xmax = 0), version = 1"
    )
    with (
        psycopg.connect(postgresql) as one,
        psycopg.connect(postgresql, autocommit=True) as other,
        psycopg.connect(postgresql, autocommit=True) as watch,
        ThreadPoolExecutor(1) as pool,
    ):
        assert one.execute(upsert, ("x",)).fetchone() == (True, True)
        racing = pool.submit(lambda: other.execute(upsert, ("y",)).fetchone())
        until(lambda: waiting(watch) > 0)
        one.commit()
        assert racing.result(20) == (False, False)
