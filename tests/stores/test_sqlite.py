"""What is SQLite's own: shared commits, savepoints, several processes, forks, and full disks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semel import failpoints
from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Lookup,
    Park,
    Renew,
    StoreError,
    StoreUnavailable,
)
from semel.core.record import Response, State
from semel.stores import StoreSetupError
from semel.stores import statements as sql
from semel.stores.sqlite import SQLiteStore
from semel.stores.sqlite import checkpoints as sqlite_checkpoints
from semel.stores.sqlite import file as sqlite_file
from semel.stores.sqlite.checkpoints import Checkpoints
from semel.stores.sqlite.file import has_wal_reset_race

ANSWER = Response(201, (), b"x" * 200)


def claim(key: bytes) -> Claim:
    return Claim(key, b"\x01" + b"f" * 32, 30.0, b"me")


def complete(key: bytes, token: int) -> Complete:
    return Complete(key, token, ANSWER, 86400.0, 0.0)


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    database = tmp_path / "shop.db"
    connection = sqlite3.connect(database)
    connection.execute("create table charges (n integer unique)")
    connection.commit()
    connection.close()
    return database


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    made = SQLiteStore(path, timeout=2.0)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def commits() -> Iterator[list[str]]:
    seen: list[str] = []

    def observe(point: str) -> None:
        if point == "after_commit":
            seen.append(point)

    failpoints.observers.append(observe)
    yield seen
    failpoints.observers.remove(observe)


def charges(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        return [n for (n,) in connection.execute("select n from charges order by n")]
    finally:
        connection.close()


def test_it_commits_durably_unless_told_otherwise(store: SQLiteStore, tmp_path: Path) -> None:
    connection = store._opened().connection
    assert connection.execute("pragma synchronous").fetchone() == (2,)
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    normal = SQLiteStore(tmp_path / "n.db", synchronous="normal")
    normal.start()
    assert normal._opened().connection.execute("pragma synchronous").fetchone() == (1,)
    normal.stop()


def test_no_transaction_begins_deferred() -> None:
    """A deferred one that reads and then writes fails at once where another has written (F17)."""
    folder = Path(sqlite_file.__file__).parent
    for file in [*folder.glob("*.py"), *folder.rglob("*.sql")]:
        for found in re.finditer(r"\bbegin\b(?! immediate)", file.read_text().lower()):
            line = file.read_text().lower()[: found.start()].count("\n")
            text = file.read_text().lower().splitlines()[line]
            assert "execute" not in text, f"{file.name}: {text}"


async def _crowd(store: SQLiteStore, size: int) -> None:
    async def one(number: int) -> None:
        claimed = await store.aexecute(claim(name(number)))
        assert isinstance(claimed, Claimed)
        transaction = await store.abegin()
        db = transaction.async_connection
        await db.execute("insert into charges values (?)", (number,))
        if number % 7 == 3:
            transaction.rollback()
        else:
            assert await transaction.acomplete(complete(name(number), claimed.token))

    await asyncio.gather(*map(one, range(size)))


def test_a_crowd_shares_commits_and_each_keeps_its_own(
    store: SQLiteStore, path: Path, commits: list[str]
) -> None:
    asyncio.run(_crowd(store, 64))
    assert charges(path) == [n for n in range(64) if n % 7 != 3]
    for number in range(64):
        found = store.execute(Lookup(name(number)))
        expected = State.IN_FLIGHT if number % 7 == 3 else State.COMPLETED
        assert found.record.state is expected  # type: ignore[union-attr]
    assert len(commits) < 64 / 2  # of 64 claims and 55 operations


def test_threads_share_commits_too(store: SQLiteStore, path: Path, commits: list[str]) -> None:
    def one(number: int) -> None:
        claimed: Any = store.execute(claim(name(number)))
        transaction = store.begin()
        transaction.connection.execute("insert into charges values (?)", (number,))
        assert transaction.complete(complete(name(number), claimed.token))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert charges(path) == list(range(32))
    assert len(commits) <= 64


def test_nothing_is_told_before_its_commit(store: SQLiteStore) -> None:
    told: list[Any] = []

    def observe(point: str) -> None:
        if point == "before_commit":
            assert not told, "a result was out before the commit"

    failpoints.observers.append(observe)
    try:
        told.append(store.execute(claim(name(1))))
    finally:
        failpoints.observers.remove(observe)
    assert told


REFUSED = ["commit", "begin", "begin immediate", "rollback", "end", "release semel_turn"]


@pytest.mark.parametrize("statement", REFUSED)
def test_a_handler_cannot_end_the_transaction_by_itself(
    store: SQLiteStore, path: Path, statement: str
) -> None:
    token = store.execute(claim(name(1))).token  # type: ignore[union-attr]
    transaction = store.begin()
    transaction.connection.execute("insert into charges values (1)")
    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
        transaction.connection.execute(statement)
    assert transaction.complete(complete(name(1), token))
    assert charges(path) == [1]


def test_savepoints_of_ones_own_and_errors_that_are_caught(store: SQLiteStore, path: Path) -> None:
    token = store.execute(claim(name(1))).token  # type: ignore[union-attr]
    transaction = store.begin()
    db = transaction.connection
    db.execute("insert into charges values (1)")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("insert into charges values (1)")
    db.execute("savepoint mine")
    db.execute("insert into charges values (2)")
    db.execute("rollback to mine")
    db.execute("release mine")
    db.commit()  # does nothing
    assert charges(path) == []
    assert transaction.complete(complete(name(1), token))
    assert charges(path) == [1]
    with pytest.raises(sqlite3.ProgrammingError, match="over"):
        db.execute("insert into charges values (3)")


def test_the_fenced_commit_nothing(store: SQLiteStore, path: Path) -> None:
    token = store.execute(claim(name(1))).token  # type: ignore[union-attr]
    transaction = store.begin()
    transaction.connection.execute("insert into charges values (1)")
    assert transaction.complete(complete(name(1), token + 1)) is False
    assert charges(path) == []


def test_who_waits_too_long_for_a_turn_is_told_and_nobody_is_stuck(path: Path) -> None:
    store = SQLiteStore(path, timeout=0.1)
    store.start()
    holder = store.begin()
    with pytest.raises(StoreUnavailable, match="one writer"):
        store.begin()
    with pytest.raises(StoreUnavailable, match="one writer"):
        asyncio.run(store.abegin())  # type: ignore[arg-type]
    holder.rollback()
    store.begin().rollback()
    store.stop()


async def _until_queued(store: SQLiteStore, count: int) -> None:
    writer = store._opened()
    while sum(len(job.commands) for job in list(writer._jobs)) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_a_renewal_that_waits_is_not_overtaken_by_what_is_asked_later(path: Path) -> None:
    now = [1000.0]
    store = SQLiteStore(path, clock=lambda: now[0])
    store.start()

    async def main() -> None:
        held = await store.aexecute(claim(name(1)))
        assert isinstance(held, Claimed)
        turn = await store.abegin()
        first = asyncio.create_task(store.aexecute(claim(name(2))))
        await _until_queued(store, 1)
        renewal = asyncio.create_task(
            asyncio.to_thread(store.execute, Renew(((name(1), held.token),), 30.0))
        )
        await _until_queued(store, 2)
        now[0] += 31
        park = asyncio.create_task(store.aexecute(Park(name(1), held.token, "gone", True)))
        await _until_queued(store, 3)
        turn.rollback()
        assert isinstance(await first, Claimed)
        assert await renewal == frozenset()
        assert await park is False  # the holder is alive, and has it still

    asyncio.run(main())
    store.stop()


def test_a_write_has_its_own_patience_whoever_waits_before_it(path: Path) -> None:
    store = SQLiteStore(path, timeout=3.0)
    store.start()

    async def main() -> None:
        turn = await store.abegin()
        first = asyncio.create_task(store.aexecute(claim(name(1))))
        await asyncio.sleep(1.5)
        late = asyncio.create_task(store.aexecute(claim(name(2))))
        with pytest.raises(StoreUnavailable):
            await first
        turn.rollback()
        assert isinstance(await late, Claimed)

    asyncio.run(main())
    store.stop()


def test_large_answers_of_a_crowd_need_no_other_file(store: SQLiteStore) -> None:
    async def main() -> None:
        held = await asyncio.gather(*(store.aexecute(claim(name(n))) for n in range(17)))
        answer = Response(201, (), os.urandom(1_000_000))

        def complete_large(number: int) -> Any:
            token = held[number].token  # type: ignore[union-attr]
            return store.aexecute(Complete(name(number), token, answer, 86400.0, 0.0))

        assert await complete_large(16) is True
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        last = max(int(each) for each in os.listdir("/proc/self/fd"))
        spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(last)]  # no number is free below
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, limits[1]))
        try:
            done = await asyncio.gather(*(complete_large(n) for n in range(16)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for each in spare:
                os.close(each)
        assert done == [True] * 16

    asyncio.run(main())


async def _cancelled(store: SQLiteStore) -> None:
    holder = await store.abegin()
    waiting = [asyncio.ensure_future(store.abegin()) for _ in range(5)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    holder.rollback()
    for task in waiting[1::2]:
        (await task).rollback()
    await asyncio.gather(*waiting, return_exceptions=True)
    # Cancelled in the very tick in which it was granted.
    holder = await store.abegin()
    task = asyncio.ensure_future(store.abegin())
    await asyncio.sleep(0)
    holder.rollback()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(1):
        (await store.abegin()).rollback()


def test_a_cancelled_wait_never_loses_the_writer(store: SQLiteStore) -> None:
    asyncio.run(_cancelled(store))
    assert isinstance(store.execute(claim(name(1))), Claimed)


def test_two_event_loops_and_threads_at_once(store: SQLiteStore, path: Path) -> None:
    async def several(first: int) -> None:
        async def one(number: int) -> None:
            claimed: Any = await store.aexecute(claim(name(number)))
            transaction = await store.abegin()
            await transaction.async_connection.execute("insert into charges values (?)", (number,))
            await asyncio.sleep(0)
            assert await transaction.acomplete(complete(name(number), claimed.token))

        await asyncio.gather(*(one(first + n) for n in range(40)))

    def plainly(first: int) -> None:
        for number in range(first, first + 40):
            claimed: Any = store.execute(claim(name(number)))
            transaction = store.begin()
            transaction.connection.execute("insert into charges values (?)", (number,))
            assert transaction.complete(complete(name(number), claimed.token))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(several(n))) for n in (0, 1000)]
    threads += [threading.Thread(target=plainly, args=(n,)) for n in (2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(charges(path)) == 160


# --- disks and files ------------------------------------------------------------------------


def test_a_full_disk_is_said_and_nothing_is_half_done(store: SQLiteStore, path: Path) -> None:
    token = store.execute(claim(name(1))).token  # type: ignore[union-attr]
    connection = store._opened().connection
    pages = connection.execute("pragma page_count").fetchone()[0]
    connection.execute(f"pragma max_page_count = {pages + 3}")
    transaction = store.begin()
    with pytest.raises((sqlite3.OperationalError, StoreError)):
        for _ in range(1000):
            transaction.connection.execute("create table if not exists blob_ (b)")
            transaction.connection.execute("insert into blob_ values (zeroblob(4000))")
        transaction.complete(complete(name(1), token))
    with contextlib.suppress(StoreError):
        transaction.rollback()
    assert store.execute(Lookup(name(1))).record.state is State.IN_FLIGHT  # type: ignore[union-attr]
    with pytest.raises(StoreUnavailable):
        for number in range(2, 400):
            reply: Any = store.execute(claim(name(number)))
            store.execute(complete(name(number), reply.token))
    connection.execute("pragma max_page_count = 1000000")
    assert isinstance(store.execute(claim(name(9999))), Claimed)
    assert charges(path) == []


def test_a_full_disk_in_a_shared_transaction_tells_everyone(store: SQLiteStore, path: Path) -> None:
    async def crowd() -> list[Any]:
        connection = store._opened().connection
        claims: list[Any] = [await store.aexecute(claim(name(n))) for n in range(8)]
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages + 2}")

        async def one(number: int) -> Any:
            transaction = await store.abegin()
            try:
                db = transaction.async_connection
                await db.execute("insert into charges values (?)", (number,))
                await asyncio.sleep(0)
                if number == 4:
                    await db.execute("create table big as select zeroblob(1000000) as b")
                return await transaction.acomplete(complete(name(number), claims[number].token))
            finally:
                transaction.rollback()

        outcomes = await asyncio.gather(*map(one, range(8)), return_exceptions=True)
        connection.execute("pragma max_page_count = 1000000")
        return outcomes

    outcomes = asyncio.run(crowd())
    done = {n for n, outcome in enumerate(outcomes) if outcome is True}
    assert isinstance(outcomes[4], (sqlite3.OperationalError, StoreError))
    assert set(charges(path)) == done  # whoever was told yes is there, and nobody else
    for number in range(8):
        state = store.execute(Lookup(name(number))).record.state  # type: ignore[union-attr]
        assert (state is State.COMPLETED) == (number in done)


def test_a_locked_file_is_waited_for_and_then_said(path: Path) -> None:
    store = SQLiteStore(path, timeout=0.15)
    store.start()
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("begin immediate")
    with pytest.raises(StoreUnavailable, match="locked by another writer"):
        store.execute(claim(name(1)))
    with pytest.raises(StoreUnavailable):
        asyncio.run(store.aexecute(claim(name(1))))  # type: ignore[arg-type]
    assert store.execute(Lookup(name(1))) is None  # reading goes on
    blocker.execute("rollback")
    blocker.close()
    assert isinstance(store.execute(claim(name(1))), Claimed)
    store.stop()


def test_a_file_that_is_no_database_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_bytes(
        b"this is no database, and long enough to be taken for one" * 99
    )
    with pytest.raises(StoreSetupError, match=r"no\.db.*not a database"):
        SQLiteStore(tmp_path / "no.db").start()
    with pytest.raises(StoreSetupError, match="absent"):
        SQLiteStore(tmp_path / "absent" / "shop.db").start()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://shop.db", "sqlite:///relative.db"),
        ("sqlite:///x.db?sync=full", "unknown option 'sync'"),
        ("sqlite:///x.db?synchronous=off", "full or normal"),
        ("memory://?max_records=many", "max_records|invalid literal"),
        ("mongodb://x", "names no store"),
    ],
)
def test_a_url_that_names_no_store_is_explained(url: str, message: str) -> None:
    from semel.stores import open_store

    with pytest.raises(StoreSetupError, match=message):
        open_store(url)


# --- processes ------------------------------------------------------------------------------


def test_a_forked_child_and_its_parent_both_go_on(store: SQLiteStore) -> None:
    assert isinstance(store.execute(claim(name(1))), Claimed)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            found = store.execute(Lookup(name(1)))
            mine = store.execute(claim(name(2)))
            mine_async = asyncio.run(store.aexecute(claim(name(3))))  # type: ignore[arg-type]
            status = 0 if found and type(mine) is type(mine_async) is Claimed else 2
        finally:
            os._exit(status)
    for number in range(10, 40):
        assert isinstance(store.execute(claim(name(number))), Claimed)
    assert os.waitpid(child, 0)[1] == 0
    for number in (2, 3):
        assert store.execute(Lookup(name(number))) is not None


WRITER = """
import sys, time
from semel.stores.sqlite import SQLiteStore
from tests.stores.test_sqlite import claim, complete
store = SQLiteStore(sys.argv[1], timeout=60)  # disks stall, for 12 s once
store.start()
print("ready", flush=True); sys.stdin.readline()
end, done = time.monotonic() + 1.5, 0
while time.monotonic() < end:
    key = (int(sys.argv[2]) << 64 | done).to_bytes(16, "big")
    store.execute(complete(key, store.execute(claim(key)).token))
    done += 1
print(done, flush=True)
"""


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_share_a_file_do_not_starve_each_other(path: Path, count: int) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for n in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    done = [int(process.communicate(timeout=90)[0]) for process in processes]
    print(done)
    assert min(done) * 5 > max(done), done


def test_processes_that_start_at_once_all_get_their_tables(path: Path) -> None:
    script = (
        "import sys; from semel.stores.sqlite import SQLiteStore;"
        "s = SQLiteStore(sys.argv[1]); s.start(); s.stop()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(4)]
    assert [process.wait(30) for process in processes] == [0] * 4


def test_migrations_are_numbered_and_run_once(store: SQLiteStore, path: Path) -> None:
    numbers = [number for number, _ in sql.migrations("sqlite")]
    assert numbers == list(range(1, len(numbers) + 1))
    store.stop()
    store.start()
    connection = sqlite3.connect(path)
    applied = connection.execute("select number from semel_migration").fetchall()
    connection.close()
    assert [n for (n,) in applied] == numbers


@pytest.mark.parametrize(
    ("version", "racy"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 54, 1), False),
    ],
)
def test_versions_with_the_wal_reset_race_are_known(version: Any, racy: bool) -> None:
    assert has_wal_reset_race(version) is racy


def test_it_warns_once_where_processes_share_a_file_under_the_race(
    store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    writer = store._opened()
    checkpoints = Checkpoints(store._file, writer._group._turnstile)
    checkpoints._racy = True
    with caplog.at_level(logging.WARNING, "semel"):
        checkpoints.after_commit(writer.connection)
        assert "WAL-reset race" not in caplog.text
        writer._group._turnstile.contended = True  # another process has been seen
        for _ in range(3):
            checkpoints.after_commit(writer.connection)
    assert caplog.text.count("WAL-reset race") == 1


def test_checkpoints_keep_the_wal_short(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sqlite_checkpoints, "CHECKPOINT_CHANGES", 50)
    store = SQLiteStore(path, synchronous="normal")
    store.start()
    for number in range(1500):
        reply: Any = store.execute(claim(name(number)))
        store.execute(complete(name(number), reply.token))
    size = Path(f"{path}-wal").stat().st_size
    store.stop()
    assert size < 2 * 1024 * 1024
