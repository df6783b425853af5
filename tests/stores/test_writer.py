"""The writer that a crowd shares: whatever happens to some, the others are told the truth."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sqlite3
import threading
import time
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
    Release,
    StoreError,
    StoreUnavailable,
    StoreUnknown,
)
from semel.core.record import Response, State
from semel.stores.sqlite import SQLiteStore
from semel.stores.sqlite.transaction import SQLiteTransaction
from semel.stores.sqlite.writer import Turn

ANSWER = Response(201, (), b"done")


def claim(key: bytes) -> Claim:
    return Claim(key, b"\x01" + b"f" * 32, 30.0, b"me")


def complete(key: bytes, token: int) -> Complete:
    return Complete(key, token, ANSWER, 86400.0, 0.0)


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def token_of(reply: object) -> int:
    assert isinstance(reply, Claimed)
    return reply.token


def open_store(path: Path, timeout: float = 5.0) -> SQLiteStore:
    connection = sqlite3.connect(path)
    connection.executescript(
        "create table if not exists charges (n integer unique);"
        "create table if not exists parent (id integer primary key);"
        "create table if not exists child"
        " (id integer references parent deferrable initially deferred);"
    )
    connection.close()
    store = SQLiteStore(path, timeout=timeout)
    store.start()
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    made = open_store(path)
    yield made
    made.stop()


@pytest.fixture
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def charges(path: Path) -> set[int]:
    connection = sqlite3.connect(path)
    try:
        return {n for (n,) in connection.execute("select n from charges")}
    finally:
        connection.close()


def state_of(store: SQLiteStore, number: int) -> State | None:
    found: Any = store.execute(Lookup(name(number)))
    return None if found is None else found.record.state


def require_free(store: SQLiteStore) -> None:
    """The writer can be had, by all three ways of asking."""
    store.begin().rollback()
    key = os.urandom(16)
    store.execute(Release(key, token_of(store.execute(claim(key)))))

    async def awaited() -> None:
        async with asyncio.timeout(5):
            (await store.abegin()).rollback()
            key = os.urandom(16)
            await store.aexecute(Release(key, token_of(await store.aexecute(claim(key)))))

    asyncio.run(awaited())


# --- a storm --------------------------------------------------------------------------------


class Ledger:
    """What each operation was told, and whether two ever held the writer at once."""

    def __init__(self) -> None:
        self.told: dict[int, str] = {}
        self.holders = 0
        self.overlaps = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self.holders += 1
            self.overlaps += self.holders > 1

    def leave(self) -> None:
        with self._lock:
            self.holders -= 1


FATES = ["keep"] * 6 + ["roll back", "fence", "conflict", "read on", "escape", "throw away"]


def write(transaction: SQLiteTransaction, number: int, fate: str) -> None:
    db = transaction.connection
    db.execute("insert into charges values (?)", (number,))
    if fate == "conflict":
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("insert into charges values (?)", (number,))
    elif fate == "read on":
        assert db.execute("select n from charges").fetchone() is not None  # and no further
    elif fate == "escape":
        with pytest.raises(sqlite3.DatabaseError):
            db.execute(random.choice(["commit", "rollback", "release SEMEL_turn", "begin"]))
    elif fate == "throw away":
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("insert or rollback into charges values (?)", (number,))


def judge(ledger: Ledger, number: int, fate: str, kept: bool) -> None:
    assert kept is (fate != "fence")
    ledger.told[number] = "done" if kept else "undone"


async def operate_async(store: SQLiteStore, ledger: Ledger, number: int, fate: str) -> None:
    ledger.told[number] = "undone"
    token = token_of(await store.aexecute(claim(name(number))))
    transaction = await store.abegin()
    ledger.enter()
    try:
        write(transaction, number, fate)
        await asyncio.sleep(random.choice([0, 0, 0.001]))
    except BaseException:
        ledger.leave()
        transaction.rollback()
        raise
    ledger.leave()
    if fate == "roll back":
        transaction.rollback()
        return
    ledger.told[number] = "unknown"  # where it is cancelled from here on
    try:
        wanted = complete(name(number), token + (fate == "fence"))
        judge(ledger, number, fate, await transaction.acomplete(wanted))
    except StoreUnavailable:
        ledger.told[number] = "undone"


def operate(store: SQLiteStore, ledger: Ledger, number: int, fate: str) -> None:
    ledger.told[number] = "undone"
    token = token_of(store.execute(claim(name(number))))
    transaction = store.begin()
    ledger.enter()
    try:
        write(transaction, number, fate)
    finally:
        ledger.leave()
    if fate == "roll back":
        transaction.rollback()
        return
    ledger.told[number] = "unknown"
    try:
        wanted = complete(name(number), token + (fate == "fence"))
        judge(ledger, number, fate, transaction.complete(wanted))
    except StoreUnavailable:
        ledger.told[number] = "undone"


async def crowd(store: SQLiteStore, ledger: Ledger, first: int, rng: random.Random) -> None:
    async def one(number: int) -> None:
        await asyncio.sleep(rng.random() * 0.05)
        await operate_async(store, ledger, number, rng.choice(FATES))

    tasks = [asyncio.ensure_future(one(first + n)) for n in range(120)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(rng.random() * 0.004)
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        allowed = (asyncio.CancelledError, StoreError, failpoints.Failpoint)
        assert result is None or isinstance(result, allowed), result


@pytest.mark.parametrize("seed", range(6))
def test_in_any_storm_everybody_is_told_the_truth(path: Path, seed: int, disarmed: None) -> None:
    """Two event loops and two threads; cancels, rollbacks, fences, conflicts, lost commits.

    Done means the row and the record are there, undone that neither is, unknown that both or none.
    """
    store = open_store(path, timeout=0.3 if seed % 2 else 5.0)
    ledger = Ledger()
    problems: list[BaseException] = []
    failpoints.arm(
        ",".join(
            f"{point}:{random.Random(seed).randrange(5, 40) + n}=raise"
            for n in range(0, 60, 12)
            for point in ("before_commit", "after_commit", "in_commit", "after_begin")
        )
    )

    def plainly(first: int) -> None:
        rng = random.Random(seed + first)
        for number in range(first, first + 80):
            try:
                operate(store, ledger, number, rng.choice(FATES))
            except (StoreError, failpoints.Failpoint):
                pass
            except BaseException as error:
                problems.append(error)

    def on_a_loop(first: int) -> None:
        try:
            asyncio.run(crowd(store, ledger, first, random.Random(seed + first)))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=plainly, args=(n,)) for n in (0, 1000)]
    threads += [threading.Thread(target=on_a_loop, args=(n,)) for n in (2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "somebody waits for ever"
    failpoints.arm("")
    assert not problems
    assert ledger.overlaps == 0
    require_free(store)
    rows = charges(path)
    wrong = [
        (number, told, number in rows, state_of(store, number))
        for number, told in ledger.told.items()
        if (number in rows) != (state_of(store, number) is State.COMPLETED)
        or (told != "unknown" and (number in rows) != (told == "done"))
    ]
    assert not wrong
    assert sum(told == "done" for told in ledger.told.values()) > 50
    store.stop()


# --- one by one -----------------------------------------------------------------------------


def test_a_half_read_query_does_not_outlive_its_operation(store: SQLiteStore, path: Path) -> None:
    for number in (1, 2):
        token = token_of(store.execute(claim(name(number))))
        transaction = store.begin()
        transaction.connection.execute("insert into charges values (?)", (number,))
        cursor = transaction.connection.execute("select token from semel_record union select 1")
        cursor.fetchone()
        assert transaction.complete(complete(name(number), token))
        with pytest.raises(sqlite3.ProgrammingError):
            cursor.fetchone()
        with pytest.raises(sqlite3.ProgrammingError, match="over"):
            transaction.connection.execute("insert into charges values (99)")
        other = sqlite3.connect(path)  # would make a snapshot that is still held too old to write
        other.execute("insert into charges values (?)", (number + 10,))
        other.commit()
        other.close()
        require_free(store)
    assert 99 not in charges(path)


def test_a_handler_that_rolls_everybody_back_is_told_and_so_are_they(
    store: SQLiteStore, path: Path
) -> None:
    async def both() -> list[Any]:
        tokens = [token_of(await store.aexecute(claim(name(n)))) for n in (1, 2)]
        first = await store.abegin()
        await first.async_connection.execute("insert into charges values (1)")
        finishing = asyncio.ensure_future(first.acomplete(complete(name(1), tokens[0])))
        second = asyncio.ensure_future(store.abegin())
        await asyncio.sleep(0)
        transaction = await second
        with pytest.raises(sqlite3.IntegrityError):
            await transaction.async_connection.execute(
                "insert or rollback into charges select 1 union all select 1"
            )
        with pytest.raises(StoreUnavailable, match="rolled the whole transaction back"):
            await transaction.async_connection.execute("insert into charges values (3)")
        last = transaction.acomplete(complete(name(2), tokens[1]))
        return await asyncio.gather(finishing, last, return_exceptions=True)

    results = asyncio.run(both())
    assert isinstance(results[1], StoreUnavailable)
    told = isinstance(results[0], StoreUnavailable)
    assert charges(path) == (set() if told else {1})
    assert (state_of(store, 1) is State.IN_FLIGHT) == told
    require_free(store)


def test_a_deferred_foreign_key_that_fails_at_the_commit_undoes_it(
    store: SQLiteStore, path: Path
) -> None:
    token = token_of(store.execute(claim(name(1))))
    transaction = store.begin()
    transaction.connection.execute("insert into child values (404)")
    with pytest.raises(StoreUnavailable, match="FOREIGN"):
        transaction.complete(complete(name(1), token))
    assert state_of(store, 1) is State.IN_FLIGHT
    require_free(store)


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ("after_begin", StoreUnavailable),
        ("before_commit", StoreUnavailable),
        ("after_commit", StoreUnknown),
        ("before_checkpoint", None),
    ],
)
def test_an_exception_inside_the_writer_is_told_and_the_writer_lives_on(
    store: SQLiteStore, point: str, told: type | None, disarmed: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr("semel.stores.sqlite.checkpoints.CHECKPOINT_CHANGES", 1)
    for ask in (store.execute, lambda c: asyncio.run(store.aexecute(c))):  # type: ignore[arg-type]
        key = os.urandom(16)
        failpoints.arm(f"{point}=raise")
        if told is None:
            assert isinstance(ask(claim(key)), Claimed)
        else:
            with pytest.raises(told):
                ask(claim(key))
        failpoints.arm("")
        there = store.execute(Lookup(key)) is not None
        assert there == (told is not StoreUnavailable)
        require_free(store)


def test_an_answer_that_cannot_be_written_down_does_not_lose_the_writer(store: SQLiteStore) -> None:
    token = token_of(store.execute(claim(name(1))))
    unfit = Complete(name(1), token, Response(70_000, (), b""), 1.0, 1.0)
    with pytest.raises(Exception, match="format requires"):
        store.begin().complete(unfit)
    require_free(store)
    with pytest.raises(StoreError):
        store.execute(unfit)
    require_free(store)


def test_an_event_loop_that_went_away_does_not_keep_the_writer(store: SQLiteStore) -> None:
    holder = store.begin()

    async def waits_and_is_dropped() -> None:
        await store.abegin()

    loop = asyncio.new_event_loop()
    task = loop.create_task(waits_and_is_dropped())
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    loop.close()
    holder.rollback()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    require_free(store)
    del task
    gc.collect()
    require_free(store)


def test_a_handler_that_holds_the_connection_too_long_costs_others_an_error_not_a_hang(
    path: Path,
) -> None:
    store = open_store(path, timeout=0.1)
    holder = store.begin()
    with pytest.raises(StoreUnavailable, match="one writer"):
        store.execute(claim(name(1)))
    with pytest.raises(StoreUnavailable, match="one writer"):
        asyncio.run(store.aexecute(claim(name(2))))  # type: ignore[arg-type]
    holder.rollback()
    require_free(store)  # and whatever had been left in the queue would have been done by now
    assert store.execute(Lookup(name(1))) is None
    assert store.execute(Lookup(name(2))) is None
    require_free(store)
    store.stop()


def test_what_is_asked_while_the_writer_is_held_waits_as_one_job(path: Path) -> None:
    store = open_store(path, timeout=0.5)
    turn = store.begin()

    async def ask(numbers: range) -> list[Any]:
        asking = []
        for number in numbers:  # each in a tick of its own
            asking.append(asyncio.ensure_future(store.aexecute(claim(name(number)))))
            for _ in range(3):
                await asyncio.sleep(0)
        assert len(store._opened()._jobs) == 1
        if numbers.start:
            turn.rollback()
        return await asyncio.gather(*asking, return_exceptions=True)

    refused = asyncio.run(ask(range(20)))
    assert [type(each) for each in refused] == [StoreUnavailable] * 20
    told = asyncio.run(ask(range(20, 40)))
    assert len({token_of(each) for each in told}) == 20
    assert [n for n in range(40) if state_of(store, n)] == list(range(20, 40))
    store.stop()


def test_a_turn_withdrawn_in_the_instant_it_is_granted_is_passed_on(
    store: SQLiteStore, monkeypatch: Any
) -> None:
    holder = store.begin()
    impatient = Turn(lambda error: None)
    writer = store._opened()
    assert not writer.request(impatient)
    set_mark = writer._group.open_turn

    def withdrawn_meanwhile() -> None:
        set_mark()
        assert writer.withdraw(impatient)

    monkeypatch.setattr(writer._group, "open_turn", withdrawn_meanwhile)
    holder.rollback()
    monkeypatch.undo()
    assert not impatient.had
    require_free(store)


def test_a_stop_during_traffic_finishes_what_was_begun_and_refuses_the_rest(
    store: SQLiteStore, path: Path
) -> None:
    done: list[int] = []
    begun = threading.Event()

    def traffic(first: int) -> None:
        for number in range(first, first + 10_000):
            try:
                token = token_of(store.execute(claim(name(number))))
                transaction = store.begin()
                transaction.connection.execute("insert into charges values (?)", (number,))
                transaction.complete(complete(name(number), token))
            except (StoreUnavailable, sqlite3.ProgrammingError):
                return
            done.append(number)
            begun.set()

    threads = [threading.Thread(target=traffic, args=(n * 100_000,)) for n in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(5)
    store.stop()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert charges(path) == set(done)
    with pytest.raises(StoreUnavailable, match="stopped"):
        store.execute(claim(name(1)))
    store.start()
    assert state_of(store, done[0]) is State.COMPLETED
    require_free(store)


def test_a_store_closes_every_file_it_opened(path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for _ in range(3):
        store = open_store(path)
        store.execute(claim(os.urandom(16)))
        threads = [
            threading.Thread(target=store.execute, args=(Lookup(name(1)),)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.stop()
    gc.collect()
    assert open_files() <= before


# --- files that go away ---------------------------------------------------------------------


def test_a_deleted_file_is_refused_until_it_is_put_back(store: SQLiteStore, path: Path) -> None:
    store.execute(claim(name(1)))
    aside = path.with_suffix(".aside")
    path.rename(aside)
    with pytest.raises(StoreUnavailable, match="has gone"):
        store.execute(claim(name(2)))
    with pytest.raises(StoreUnavailable, match="has gone"):
        store.begin()
    aside.rename(path)
    assert isinstance(store.execute(claim(name(2))), Claimed)
    assert state_of(store, 1) is State.IN_FLIGHT


def test_another_file_in_its_place_is_not_taken_for_it(store: SQLiteStore, path: Path) -> None:
    store.execute(claim(name(1)))
    path.rename(path.with_suffix(".aside"))
    open_store(path).stop()
    with pytest.raises(StoreUnavailable, match="replaced"):
        store.execute(claim(name(1)))


def test_reading_never_makes_an_empty_file(store: SQLiteStore, path: Path) -> None:
    path.rename(path.with_suffix(".aside"))
    refused: list[object] = []

    def read() -> None:
        try:
            store.execute(Lookup(name(1)))
        except StoreUnavailable as error:
            refused.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert refused
    assert not path.exists()


# --- forks ----------------------------------------------------------------------------------


def test_a_child_forked_in_the_middle_of_a_write_refuses_and_does_no_harm(
    store: SQLiteStore, path: Path
) -> None:
    token = token_of(store.execute(claim(name(1))))
    transaction = store.begin()
    transaction.connection.execute("insert into charges values (1)")
    child = os.fork()
    if child == 0:
        status = 0
        try:
            try:
                transaction.connection.execute("insert into charges values (2)")
            except StoreUnavailable:
                status += 1
            try:
                store.execute(claim(name(3)))
            except StoreUnavailable as error:
                status += 2 if "forked" in str(error) else 0
            transaction.rollback()
            status += 4
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert transaction.complete(complete(name(1), token))
    assert charges(path) == {1}
    require_free(store)


def test_forks_under_traffic_leave_parent_and_children_working(path: Path) -> None:
    store = open_store(path)
    stopping = threading.Event()
    done: list[int] = []
    problems: list[BaseException] = []

    def traffic(first: int) -> None:
        number = first
        while not stopping.is_set():
            try:
                token = token_of(store.execute(claim(name(number))))
                transaction = store.begin()
                transaction.connection.execute("insert into charges values (?)", (number,))
                assert transaction.complete(complete(name(number), token))
                assert state_of(store, number) is State.COMPLETED
            except BaseException as error:
                problems.append(error)
                return
            done.append(number)
            number += 1

    threads = [threading.Thread(target=traffic, args=(n * 100_000,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    statuses = []
    for number in range(15):
        time.sleep(0.01)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                token = token_of(store.execute(claim(name(number))))
                transaction = store.begin()
                transaction.connection.execute("insert into charges values (?)", (number,))
                status = 0 if transaction.complete(complete(name(number), token)) else 2
            finally:
                os._exit(status)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stopping.set()
    for thread in threads:
        thread.join(10)
    store.stop()
    assert not problems
    assert statuses == [0] * 15
    assert charges(path) == {*done, *range(15)}
    check = sqlite3.connect(path)
    assert check.execute("pragma integrity_check").fetchone() == ("ok",)
    check.close()
