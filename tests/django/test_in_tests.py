"""Users' own tests: `TestCase` holds everything in one transaction, and it still works."""

from __future__ import annotations

import unittest
from typing import Any, ClassVar

import pytest
from django.test import TestCase

from semel.stores import StoreSetupError
from semel.stores.django import DjangoStore
from semel.web.django.conf import configured
from tests.django import project
from tests.django.shop.models import Charge


class InATestCase(TestCase):
    __test__ = False  # run below, on a database in memory
    databases: ClassVar[Any] = {"default"}

    def send(self) -> Any:
        body = '{"order": "o"}'
        kind, key = "application/json", {"HTTP_IDEMPOTENCY_KEY": "k"}
        return self.client.post("/charge", body, content_type=kind, **key)

    def test_a_repeat_is_replayed(self) -> None:
        first, repeat = self.send(), self.send()
        self.assertEqual((first.status_code, repeat.content), (201, first.content))
        self.assertEqual(repeat["Idempotent-Replayed"], "true")
        self.assertEqual(Charge.objects.count(), 1)

    def test_the_one_before_has_left_nothing(self) -> None:
        self.assertFalse(self.send().has_header("Idempotent-Replayed"))

    async def test_an_async_client_too(self) -> None:
        for _ in range(2):
            answer = await self.async_client.post(
                "/async_charge", {}, headers={"Idempotency-Key": "k"}
            )
        self.assertEqual(answer["Idempotent-Replayed"], "true")
        self.assertEqual(await Charge.objects.acount(), 1)


@pytest.fixture
def in_memory() -> Any:
    project.use("default", {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})
    configured.cache_clear()
    yield
    project.connections["default"].close()


@pytest.mark.usefixtures("in_memory")
def test_testcases_pass_on_a_database_in_memory() -> None:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(InATestCase)
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun == 3
    assert result.errors + result.failures == []


@pytest.mark.usefixtures("in_memory")
def test_outside_a_testcase_a_database_in_memory_is_refused() -> None:
    with pytest.raises(StoreSetupError, match="in-memory"):
        DjangoStore("default").start()


def test_a_database_that_is_not_configured_is_refused() -> None:
    with pytest.raises(StoreSetupError, match="nowhere"):
        DjangoStore("nowhere").start()
