"""State that belongs to one event loop each."""

from __future__ import annotations

import asyncio
import threading

import pytest

from semel.stores.per_loop import PerLoop


async def get(held: PerLoop[list[int]]) -> list[int]:
    return held.get()


def test_each_loop_has_a_value_of_its_own_made_once() -> None:
    held: PerLoop[list[int]] = PerLoop(lambda loop: [id(loop)])
    loops = [asyncio.new_event_loop() for _ in range(2)]
    try:
        values = [loop.run_until_complete(get(held)) for loop in loops]
        assert values == [[id(loop)] for loop in loops]
        assert loops[0].run_until_complete(get(held)) is values[0]
    finally:
        for loop in loops:
            loop.close()


def test_values_of_closed_loops_are_dropped_when_another_is_made() -> None:
    held: PerLoop[list[int]] = PerLoop(lambda loop: [])
    for _ in range(5):
        asyncio.run(get(held))
    assert len(held.pop_all()) == 1
    assert held.pop_all() == {}


async def test_a_value_is_popped_by_its_own_loop() -> None:
    held: PerLoop[list[int]] = PerLoop(lambda loop: [])
    assert held.pop() is None
    value = held.get()
    assert held.pop() is value
    assert held.get() is not value


async def test_what_make_raises_is_raised_and_nothing_is_kept() -> None:
    refused = True

    def make(loop: asyncio.AbstractEventLoop) -> list[int]:
        if refused:
            raise OSError("stopped")
        return []

    held = PerLoop(make)
    with pytest.raises(OSError, match="stopped"):
        held.get()
    refused = False
    assert held.get() == []


def test_loops_of_many_threads_are_kept_apart() -> None:
    held: PerLoop[list[int]] = PerLoop(lambda loop: [])
    together = threading.Barrier(8)
    values: list[list[int]] = []

    async def use() -> None:
        together.wait(10)
        values.append(held.get())
        together.wait(10)
        assert held.get() is held.get()

    threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(value) for value in values}) == 8
