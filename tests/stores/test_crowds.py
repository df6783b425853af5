"""Many commands in few statements: the same answers, and the same rows, as one by one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel.core.commands import Claim, Complete, Found, Release, Renew, StoreCommand, Takeover
from semel.core.record import Response
from semel.stores import statements as sql
from semel.stores.sqlite import SQLiteStore
from semel.stores.sqlite.batches import PendingCommand, execute_batch

NOW = 1_000_000.0


def opened() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for _, script in sql.migrations("sqlite"):
        connection.executescript(script)
    return connection


ONE_BY_ONE = SQLiteStore(":memory:", clock=lambda: NOW)


def together(connection: sqlite3.Connection, commands: Sequence[StoreCommand]) -> list[Any]:
    asked = [PendingCommand(command) for command in commands]
    execute_batch(connection, asked, ONE_BY_ONE.apply, NOW)
    return [each.result() for each in asked]


def one_by_one(connection: sqlite3.Connection, commands: Sequence[StoreCommand]) -> list[Any]:
    """In the order in which a crowd's commands are carried out."""
    order = (Complete, Release, Claim)
    told: list[Any] = [None] * len(commands)
    for place, command in sorted(enumerate(commands), key=lambda at: order.index(type(at[1]))):
        told[place] = ONE_BY_ONE.apply(connection, command)
    return told


def rows(connection: sqlite3.Connection) -> list[Any]:
    return connection.execute("select * from semel_record order by token").fetchall()


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def claim(number: int, owner: int) -> Claim:
    return Claim(key(number), b"\x01" + b"f" * 32, 30.0, bytes([owner]) * 14)


def complete(number: int, token: int) -> Complete:
    return Complete(key(number), token, Response(201, (), bytes([number, token])), 60.0, 5.0)


numbers = st.integers(0, 5)
commands = st.one_of(
    st.builds(claim, numbers, st.integers(0, 3)),
    st.builds(complete, numbers, st.integers(1, 9)),
    st.builds(lambda n, token: Release(key(n), token), numbers, st.integers(1, 9)),
)


@pytest.fixture(autouse=True, scope="module")
def never_started() -> Iterator[None]:
    yield
    assert ONE_BY_ONE._writer is None


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.lists(commands, max_size=40), max_size=6))
def test_a_crowd_is_told_what_each_would_be_told_alone(crowds: list[list[StoreCommand]]) -> None:
    one, many = opened(), opened()
    for crowd in crowds:
        assert together(many, crowd) == one_by_one(one, crowd)
        assert rows(many) == rows(one)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 100])
def test_claims_and_completions_of_a_crowd_take_few_statements(size: int) -> None:
    connection = opened()
    said: list[str] = []
    connection.set_trace_callback(said.append)
    claimed = together(connection, [claim(n, n) for n in range(size)])
    assert len({each.token for each in claimed}) == size
    done = together(connection, [complete(n, claimed[n].token) for n in range(size)])
    assert done == [True] * size
    most = size // 16 + 4
    assert len(said) <= 2 * most


def test_a_completion_that_is_fenced_leaves_the_others_theirs() -> None:
    connection = opened()
    claimed = together(connection, [claim(n, n) for n in range(16)])
    crowd = [complete(n, claimed[n].token + (n == 7)) for n in range(16)]
    assert together(connection, crowd) == [n != 7 for n in range(16)]
    assert together(connection, crowd) == [False] * 16  # written once


def test_a_completion_given_twice_at_once_is_written_once() -> None:
    connection = opened()
    (claimed,) = together(connection, [claim(1, 1)])
    twice = [complete(1, claimed.token), complete(1, claimed.token)]
    assert together(connection, twice) == [True, False]


def test_a_completion_goes_before_the_takeover_that_came_with_it() -> None:
    connection = opened()
    (claimed,) = together(connection, [claim(1, 1)])
    connection.execute("update semel_record set lease_until = ?", (NOW - 1,))
    fingerprint = b"\x01" + b"f" * 32
    takeover = Takeover(key(1), claimed.token, fingerprint, 30.0, b"other", False)
    taken, done = together(connection, [takeover, complete(1, claimed.token)])
    assert done is True
    assert isinstance(taken, Found)


def test_a_renewal_that_came_before_its_completion_has_lost_nothing() -> None:
    connection = opened()
    (claimed,) = together(connection, [claim(1, 1)])
    renewal = Renew(((key(1), claimed.token),), 30.0)
    lost, done = together(connection, [renewal, complete(1, claimed.token)])
    assert lost == frozenset()
    assert done is True


def test_completions_of_a_crowd_find_their_rows_by_the_token() -> None:
    connection = opened()
    said: list[str] = []
    connection.set_trace_callback(said.append)
    claimed = together(connection, [claim(n, n) for n in range(16)])
    said.clear()
    together(connection, [complete(n, claimed[n].token) for n in range(16)])
    update = next(each for each in said if "update" in each)
    plan = [row[3] for row in connection.execute(f"explain query plan {update}")]
    assert not [step for step in plan if step.startswith("SCAN semel_record")]
