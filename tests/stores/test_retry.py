"""Retries of what a database has undone."""

from __future__ import annotations

import pytest

from semel.stores.retry import CommandRetry


class Undone(Exception):
    pass


def failing(times: int, error: type[Exception] = Undone) -> tuple[list[int], object]:
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error(f"attempt {len(calls)}")
        return "done"

    return calls, work


def undone(error: Exception) -> bool:
    return isinstance(error, Undone)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("times", [0, 1, 3])
async def test_work_that_was_undone_is_run_again(how: str, times: int) -> None:
    calls, work = failing(times)
    retry = CommandRetry(undone, limit=3, pause=0.0)
    assert await run(retry, how, work) == "done"
    assert len(calls) == times + 1


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_after_the_last_retry_its_error_is_raised(how: str) -> None:
    calls, work = failing(9)
    with pytest.raises(Undone, match="attempt 4"):
        await run(CommandRetry(undone, limit=3, pause=0.0), how, work)
    assert len(calls) == 4


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_another_error_is_raised_at_once(how: str) -> None:
    calls, work = failing(1, OSError)
    with pytest.raises(OSError, match="attempt 1"):
        await run(CommandRetry(undone), how, work)
    assert len(calls) == 1


def test_pauses_grow_and_differ() -> None:
    retry = CommandRetry(undone, pause=0.02)
    first = [retry._jittered(0) for _ in range(100)]
    assert 0.002 <= min(first) < max(first) <= 0.02
    assert 0.008 <= retry._jittered(2) <= 0.08


async def run(retry: CommandRetry, how: str, work: object) -> object:
    if how == "sync":
        return retry.run(work)

    async def awork() -> object:
        return work()

    return await retry.arun(awork)
