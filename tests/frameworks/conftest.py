from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

PASSED: set[tuple[str, str]] = set()
"""The cells of the table whose tests have passed in this process."""


def cell_of(item: pytest.Item) -> tuple[str, str] | None:
    """Return the cell, (application, column), that a test is of."""
    framework = getattr(item, "callspec", None) and item.callspec.params.get("framework")  # type: ignore[attr-defined]
    if framework is None:
        return None
    return framework.application, item.function.__name__.removeprefix("test_")  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[Any]:
    report = yield
    cell = cell_of(item)
    if cell is not None and report.when == "call" and report.passed:
        PASSED.add(cell)
    return report
