"""Clients with a journal under `kill -9`, while the shop is killed too."""

from __future__ import annotations

from typing import Any

import pytest

from lab.chaos.clients import POINTS, storm
from semel.client import Journal, stored_request
from semel.client.stored_request import StoredRequest

pytestmark = pytest.mark.chaos


def test_every_intent_has_one_effect_though_its_client_and_the_shop_are_killed() -> None:
    verdict = storm(30, seed=1)
    print(verdict)
    assert verdict.faults == []
    assert sum(verdict.killed.values()) >= 30
    assert verdict.shops_killed > 0
    assert verdict.effects == verdict.durable > 0
    assert verdict.left == 0


@pytest.mark.parametrize("point", POINTS)
def test_a_client_is_killed_at_each_failpoint_and_the_next_one_settles_it(point: str) -> None:
    verdict = storm(2, seed=2, point=point)
    assert verdict.faults == []
    assert verdict.killed[point] >= 2
    assert verdict.left == 0


def test_before_the_journal_is_written_nothing_is_sent_and_nothing_is_left() -> None:
    verdict = storm(3, seed=3, point="client_before_journal")
    assert verdict.faults == []
    assert verdict.effects < verdict.intents


def test_a_journal_that_lets_go_too_early_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Journal.begin

    def forgetful(self: Journal, request: Any) -> bool:
        begun = begin(self, request)
        self.forget(request.key)
        return begun

    monkeypatch.setattr(Journal, "begin", forgetful)
    verdict = storm(4, seed=4, point="client_before_send")
    assert any("durable, and lost" in fault for fault in verdict.faults)


def test_a_journal_that_resumes_under_another_key_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = stored_request.decode

    def changed(data: bytes) -> StoredRequest:
        one = decode(data)
        key = one.key + "-again"
        headers = [h for h in one.headers if h[0].lower() != "idempotency-key"]
        return one._replace(key=key, headers=(*headers, ("Idempotency-Key", key)))

    monkeypatch.setattr(stored_request, "decode", changed)
    verdict = storm(4, seed=5, point="client_answered")
    assert any("sent under" in fault for fault in verdict.faults)
    assert any("2 effects" in fault for fault in verdict.faults)
