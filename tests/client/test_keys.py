"""Keys that are drawn, and keys that come from a pool."""

from __future__ import annotations

import json
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from semel.client import KeyPool, KeysNotIssued, uuid7

URL = "https://shop.example/idempotency-keys"
NOW = 1_800_000_000.0


def issued(count: int, *, seconds: float = 3600, first: int = 0) -> bytes:
    until = datetime.fromtimestamp(NOW + seconds, UTC).isoformat().replace("+00:00", "Z")
    keys = [f"ik.{number}" for number in range(first, first + count)]
    return json.dumps({"keys": keys, "not_after": until}).encode()


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def pool(count: int = 5, low: int = 2, clock: Clock | None = None) -> KeyPool:
    return KeyPool(URL, count=count, low=low, clock=clock or Clock())


def test_a_drawn_key_is_a_uuid_of_version_7_with_the_time_first() -> None:
    before = time.time_ns() // 1_000_000
    keys = [uuid.UUID(uuid7()) for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert {(key.version, key.variant) for key in keys} == {(7, uuid.RFC_4122)}
    assert all(before <= key.int >> 80 <= after for key in keys)
    assert len(set(keys)) == 1000


def test_an_empty_pool_asks_for_keys_and_a_low_one_asks_once() -> None:
    keys = pool()
    assert keys.needed() == 0  # as often as it takes
    keys.add(201, issued(5))
    keys.fetched()
    assert keys.needed() is None
    assert [keys.take() for _ in range(3)] == ["ik.0", "ik.1", "ik.2"]
    assert keys.needed() == 1
    assert keys.needed() is None  # somebody is at it, and there are some left
    keys.add(201, issued(5, first=5))
    keys.fetched()
    assert [keys.take() for _ in range(7)] == [f"ik.{n}" for n in range(3, 10)]


def test_where_a_refill_fails_the_rest_is_used_up_and_it_is_not_asked_for_at_once() -> None:
    clock = Clock()
    keys = pool(clock=clock)
    keys.add(201, issued(2))
    assert keys.needed() == 1
    keys.failed("503")
    keys.fetched()
    assert keys.needed() is None
    clock.now += 5
    assert keys.needed() == 1
    keys.fetched()
    keys.take(), keys.take()
    with pytest.raises(KeysNotIssued, match="empty"):
        keys.take()
    with pytest.raises(KeysNotIssued, match="503"):
        keys.failed("503")


def test_keys_that_expire_soon_are_thrown_away() -> None:
    clock = Clock()
    keys = pool(clock=clock)
    keys.add(201, issued(5, seconds=600))
    assert keys.take() == "ik.0"
    clock.now += 300  # good_for: 5 minutes
    assert keys.needed() == 0
    with pytest.raises(KeysNotIssued, match="good_for"):
        keys.add(201, issued(5, seconds=400))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"keys": 5}', b'{"keys": ["a"], "not_after": "soon"}', b"\xff"]
)
def test_an_answer_without_keys_says_so(body: bytes) -> None:
    with pytest.raises(KeysNotIssued, match="500"):
        pool().add(500, body)


def test_no_key_is_handed_out_twice_to_threads() -> None:
    keys = KeyPool(URL, count=1000, clock=Clock())
    keys.add(201, issued(1000))
    taken: list[str] = []
    threads = [
        threading.Thread(target=lambda: taken.extend(keys.take() for _ in range(100)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 800


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"count": 0}, "count"),
        ({"count": 1001}, "count"),
        ({"low": 50}, "low"),
        ({"low": -1}, "low"),
        ({"url": "/idempotency-keys"}, "url"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KeyPool(**{"url": URL, "good_for": timedelta(0), **wrong})  # type: ignore[arg-type]
