"""What holds for all tests: a missing program skips its tests, and in CI nothing is skipped."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from semel.testing.programs import ProgramMissing


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    """Skip a test whose fixtures need a program that is not here."""
    try:
        yield
    except ProgramMissing as missing:
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip a test that needs a program that is not here."""
    try:
        yield
    except ProgramMissing as missing:
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where `CI` is set, make a skip a failure: everything is there, or it is not tested.

    A combination of parameters that makes no sense skips with "not applicable: …", and stays so.
    """
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if str(why).startswith("Skipped: not applicable: "):
            return report
        report.outcome = "failed"
        report.longrepr = f"In CI nothing is skipped. {why}"
    return report
