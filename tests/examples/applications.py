"""Whole applications with Semel in them: what each has to show, under its real server.

An application is a folder of `examples/`, and is told of its database by `DATABASE_URL`. It makes
its tables at its start, or `prepare` does, and the people `alice` and `bob`, whose password is
`secret`. `ApplicationTests` tests those that a subclass names:

    class TestFastAPI(ApplicationTests):
        APPLICATIONS = (SQLMODEL, ...)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import sqlalchemy

from tests import servers

ROOT = Path(__file__).parents[2]
SERVERS = {
    "uvicorn": ("uvicorn", "--log-level=warning", "--fd={fd}"),
    "gunicorn": ("gunicorn", "--threads=4", "--log-level=warning", "--bind=fd://{fd}"),
}
COPIES = 12
REPLAYED = "Idempotent-Replayed"
_numbers = itertools.count()


@dataclass(frozen=True)
class Ask:
    """A request of an application's own suite, and the status that it has there.

    `json` or `form` is its body; `who` is the person who is logged in, or None.
    """

    method: str
    path: str
    status: int = 200
    json: Any = None
    form: Mapping[str, str] | None = None
    who: str | None = "alice"


Login = Callable[[httpx.Client, str], None]
"""Logs a person in by the application's own login: sets the client's header or cookies."""


@dataclass(frozen=True)
class Application:
    """One application and its suite.

    - `folder`, `app`, `server`: where it is in `examples/`, and how it is served.
    - `drivers`: the scheme of `DATABASE_URL` by database; it is tested on those that it names.
    - `suite`: its requests in order, without logins; at least one of them is refused.
    - `once`: what must not happen twice, with what it answers; `table` gets one row by it.
    - `refused`: what is refused by a 4xx that is *raised after a write* to `written`.
    - `prepare`: a command that makes the tables and people, where the start does not.
    - `needs`: what has to have happened before `once` and `refused`.
    """

    folder: str
    server: str
    login: Login
    suite: Sequence[Ask]
    once: Ask
    table: str
    refused: Ask
    written: str
    app: str = "app:app"
    drivers: Mapping[str, str] = field(default_factory=dict)
    prepare: Sequence[str] = ()
    needs: Sequence[Ask] = ()
    tables: Sequence[str] = ()
    options: Sequence[str] = ()

    def counted(self) -> set[str]:
        """Return the tables whose rows are counted."""
        return {self.table, self.written, *self.tables}


def bearer(path: str = "/login", **more: Any) -> Login:
    """Log in by a form that answers `access_token`, as OAuth2's password flow does."""

    def login(client: httpx.Client, name: str) -> None:
        answer = client.post(path, data={"username": name, "password": "secret", **more})
        assert answer.status_code == 200, answer.text
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    return login


class Running:
    """An application on a database of its own, and its servers, one after the other."""

    def __init__(self, application: Application, database: str, folder: Path) -> None:
        self.application = application
        driver = application.drivers[database]
        if database == "sqlite":
            plain = f"sqlite:///{folder / f'shop{next(_numbers)}.db'}"
            looks = plain
        else:
            plain = servers.postgresql().database(f"as_it_is{next(_numbers)}")
            looks = plain.replace("postgresql", "postgresql+psycopg", 1)
        inherited = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
        self.environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            "DATABASE_URL": plain.replace(database, driver, 1),
        }
        self.cwd = ROOT / "examples" / application.folder
        self._looks = sqlalchemy.create_engine(looks, poolclass=sqlalchemy.NullPool)
        if application.prepare:
            command = [sys.executable, *application.prepare]
            subprocess.run(command, cwd=self.cwd, env=self.environment, check=True)

    @contextlib.contextmanager
    def served(self, failpoint: str = "") -> Iterator[Served]:
        """Serve it; it is killed at the end, if it has not been at the failpoint."""
        name, *options = SERVERS[self.application.server]
        with socket.create_server(("127.0.0.1", 0)) as listening:
            options = [option.format(fd=listening.fileno()) for option in options]
            command = [name, self.application.app, *options, *self.application.options]
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.cwd,
                env={**self.environment, "SEMEL_FAILPOINT": failpoint},
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )
            try:
                server = Served(self.application, listening.getsockname()[1], process)
                server.wait()
                yield server
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def read(self, query: str) -> list[Any]:
        with self._looks.begin() as connection:
            return [tuple(row) for row in connection.execute(sqlalchemy.text(query))]

    def rows(self) -> dict[str, int]:
        """Return how many rows each of the application's tables has."""
        return {
            table: self.read(f"select count(*) from {table}")[0][0]
            for table in sorted(self.application.counted())
        }

    def end_leases(self) -> None:
        """Let those of a killed server's claims end, in the place of waiting for it."""
        with self._looks.begin() as connection:
            connection.execute(
                sqlalchemy.text("update semel_record set lease_until = 0 where state = 1")
            )


class Served:
    """A server under test, and the people who use it."""

    def __init__(
        self, application: Application, port: int, process: subprocess.Popen[bytes]
    ) -> None:
        self._application = application
        self._base = f"http://127.0.0.1:{port}"
        self._process = process
        self._lock = threading.Lock()
        self._clients: dict[str | None, httpx.Client] = {}

    def wait(self) -> None:
        """Wait until it has started: whatever it answers, its tables are there."""
        while True:
            assert self._process.poll() is None, "the server did not start"
            with contextlib.suppress(httpx.TransportError):
                httpx.get(self._base, timeout=1)
                return

    def _client(self, who: str | None) -> httpx.Client:
        with self._lock:
            return self._logged_in(who)

    def _logged_in(self, who: str | None) -> httpx.Client:
        if who not in self._clients:
            client = httpx.Client(base_url=self._base, timeout=60)
            if who is not None:
                self._application.login(client, who)
            self._clients[who] = client
        return self._clients[who]

    def send(self, ask: Ask, key: str | None = None, who: str | None = "") -> httpx.Response:
        """Send a request, by `who` in the place of the one whom it names."""
        client = self._client(ask.who if who == "" else who)
        headers = {"Idempotency-Key": key} if key else {}
        return client.request(ask.method, ask.path, json=ask.json, data=ask.form, headers=headers)

    def prepare(self) -> None:
        """Do what `once` and `refused` need, without a key."""
        for ask in self._application.needs:
            answer = self.send(ask)
            assert answer.status_code == ask.status, answer.text

    def until_answered(self, ask: Ask, key: str) -> httpx.Response:
        """Retry as a client does, until there is a definite answer."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self.send(ask, key)
            if answer.status_code not in (409, 503):
                return answer
            time.sleep(0.05)
        raise AssertionError(f"no answer in a minute: {answer.text}")


def seen(answer: httpx.Response) -> tuple[int, Any]:
    """What a client makes of a response."""
    is_json = "json" in answer.headers.get("content-type", "")
    return answer.status_code, answer.json() if is_json else answer.text


class ApplicationTests:
    """What every application shows; a subclass names them."""

    APPLICATIONS: ClassVar[Sequence[Application]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each of them on each of its databases."""
        if "running" in metafunc.fixturenames:
            places = [(each, name) for each in self.APPLICATIONS for name in each.drivers]
            names = [f"{each.folder}-{name}" for each, name in places]
            metafunc.parametrize("running", places, ids=names, indirect=True)

    @pytest.fixture
    def running(self, request: pytest.FixtureRequest, tmp_path: Path) -> Running:
        application, database = request.param
        return Running(application, database, tmp_path)

    def test_its_suite_has_the_same_results_with_keys_and_each_post_sent_twice(
        self, running: Running, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        application = running.application
        assert any(400 <= ask.status < 500 for ask in application.suite)
        with running.served() as server:
            without = [seen(server.send(ask)) for ask in application.suite]
        assert [status for status, _ in without] == [ask.status for ask in application.suite], (
            without
        )
        _, database = request.node.callspec.params["running"]
        keyed = Running(application, database, tmp_path)
        with keyed.served() as server:
            for number, (ask, expected) in enumerate(zip(application.suite, without, strict=True)):
                key = f"key-{number}" if ask.method in ("POST", "PATCH") else None
                first = server.send(ask, key)
                assert seen(first) == expected, ask
                assert REPLAYED not in first.headers
                if key is None:
                    continue
                before = keyed.rows()
                second = server.send(ask, key)
                assert seen(second) == expected, ask
                if ask.status not in (401, 403, 422):
                    assert second.headers[REPLAYED] == "true", ask
                assert keyed.rows() == before, ask
        assert keyed.rows() == running.rows()

    def test_who_asks_and_what_was_raised(self, running: Running) -> None:
        application = running.application
        with running.served() as server:
            server.prepare()
            before = running.rows()

            # What was raised after a write leaves no row, and is replayed.
            refused = [server.send(application.refused, "refused") for _ in range(2)]
            assert [r.status_code for r in refused] == [application.refused.status] * 2, refused
            assert seen(refused[1]) == seen(refused[0])
            assert refused[1].headers[REPLAYED] == "true"
            assert running.rows() == before

            # Nobody gets another's response.
            first = server.send(application.once, "k")
            assert first.status_code == application.once.status, first.text
            assert running.rows()[application.table] == before[application.table] + 1
            after = running.rows()
            stranger = server.send(application.once, "k", who=None)
            assert stranger.status_code in (401, 403), stranger.text
            assert REPLAYED not in stranger.headers
            assert running.rows() == after
            bob = server.send(application.once, "k", who="bob")
            assert REPLAYED not in bob.headers
            assert seen(bob) != seen(first)

            again = server.send(application.once, "k")
            assert seen(again) == seen(first)
            assert again.headers[REPLAYED] == "true"

    def test_copies_at_the_same_time_have_one_effect(self, running: Running) -> None:
        application = running.application
        with running.served() as server, ThreadPoolExecutor(COPIES) as threads:
            server.prepare()
            before = running.rows()
            copies = threads.map(server.until_answered, [application.once] * COPIES, ["k"] * COPIES)
            first, *others = [seen(answer) for answer in copies]
            assert first[0] == application.once.status
            assert others == [first] * (COPIES - 1)
            assert running.rows()[application.table] == before[application.table] + 1

    @pytest.mark.chaos
    @pytest.mark.parametrize(
        ("point", "committed"),
        [("before_commit", False), ("after_commit", True)],
        ids=["written and not committed", "committed and not told"],
    )
    def test_a_kill_in_mid_request_and_a_retry_have_one_effect(
        self, running: Running, point: str, committed: bool
    ) -> None:
        application = running.application
        with running.served(f"{point}=kill") as server:
            server.prepare()
            before = running.rows()
            with pytest.raises(httpx.TransportError):
                server.send(application.once, "k")
            left = running.rows()
        assert left[application.table] == before[application.table] + committed
        assert (left == before) is not committed
        running.end_leases()
        with running.served() as server:
            retried = server.until_answered(application.once, "k")
            assert retried.status_code == application.once.status, retried.text
            assert (REPLAYED in retried.headers) is committed
            rows = running.rows()
            assert rows[application.table] == before[application.table] + 1
            again = server.until_answered(application.once, "k")
            assert seen(again) == seen(retried)
            assert again.headers[REPLAYED] == "true"
            assert running.rows() == rows
