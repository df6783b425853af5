"""The pytest plugin: `pytest --semel-twice` sends each POST and PATCH of a suite twice.

Registered as an entry point, so that it is there where Semel is installed. Without the option it
does nothing, and imports nothing but this file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

_NAME = "semel-twice"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("semel", "Semel: is it safe to retry?")
    group.addoption(
        "--semel-twice",
        action="store_true",
        help="send each POST and PATCH of the tests' own clients twice, with one Idempotency-Key;"
        " a test fails where the second is not a replay of the first",
    )
    group.addoption(
        "--semel-only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="with --semel-twice: only paths that match, such as '/api/*' or 'POST /charges'",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and, where it is asked for, what sends twice."""
    config.addinivalue_line(
        "markers", "semel_once: the requests of this test are sent once under --semel-twice"
    )
    if config.getoption("--semel-twice"):
        config.pluginmanager.register(SendingTwice(config), _NAME)


class SendingTwice:
    """Sends what the tests send twice, and fails those whose second request did something."""

    def __init__(self, config: pytest.Config) -> None:
        from semel.testing.clients import sending_twice
        from semel.testing.twice import Twice, watched_operations

        self._config = config
        self._twice = Twice(config.getoption("--semel-only"))
        self._elsewhere = [0, 0]
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(watched_operations())
        self._undo.enter_context(sending_twice(self._twice))

    def pytest_unconfigure(self) -> None:
        """Leave the clients as they were."""
        self._undo.close()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Send the requests of a test that says so once."""
        self._twice.paused = item.get_closest_marker("semel_once") is not None
        try:
            return (yield)
        finally:
            self._twice.paused = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Fail where a fixture's request was not safe to send twice."""
        return (yield from self._phase(item, "setup"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Fail where a test's request was not safe to send twice."""
        return (yield from self._phase(item, "call"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Fail where a request of the clearing up was not safe to send twice."""
        return (yield from self._phase(item, "teardown"))

    def _phase(self, item: pytest.Item, when: str) -> Generator[None, Any, Any]:
        self._twice.found.clear()
        try:
            result = yield
        finally:
            found = "\n".join(self._twice.found)
            if found:  # beside what the test itself may have failed with
                item.add_report_section(when, "semel", found)
        if found:
            pytest.fail(found, pytrace=False)
        return result

    def pytest_sessionfinish(self) -> None:
        """Tell the counts to the process that has started this one (pytest-xdist)."""
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_NAME] = [self._twice.sent, self._twice.unprotected]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add the counts of a worker (pytest-xdist)."""
        for index, count in enumerate(getattr(node, "workeroutput", {}).get(_NAME, ())):
            self._elsewhere[index] += count

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the line at the end."""
        sent = self._twice.sent + self._elsewhere[0]
        unprotected = self._twice.unprotected + self._elsewhere[1]
        terminalreporter.write_line(
            f"semel: {sent} requests sent twice, {unprotected} without protection",
            red=bool(unprotected),
        )


@pytest.fixture
def semel_in_memory() -> Iterator[Callable[..., Any]]:
    """Have an `Idempotency` work in memory until the end of the test.

    `semel_in_memory(idempotency)`, with the arguments of `semel.testing.in_memory`; returns the
    store that stands in.
    """
    from semel.testing import in_memory

    with contextlib.ExitStack() as stack:

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return stack.enter_context(in_memory(*args, **kwargs))

        yield stand_in
