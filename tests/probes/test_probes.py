"""Twenty probes that libraries for idempotency keys fail, put to Semel as it is recommended:
guarantee="atomic" on SQLite, real servers, the effects counted in the business table.

Each test's name begins with its probe; `python -m tests.probes.table` prints the outcome.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.http.harness import until
from tests.probes.conftest import Shop, body_of


def test_probe_13_killed_at_the_commit_there_is_one_effect_and_one_answer(
    shop: Shop, moment: str
) -> None:
    shop.charge_and_be_cut_off(misfortune=moment)
    answer = shop.charge(misfortune=moment)
    assert (answer.status, shop.effects) == (201, 1)
    assert shop.charge(misfortune=moment).body == answer.body


@pytest.fixture(
    params=[
        "kill after",
        "before_complete",
        "in_commit",
        "before_commit",
        "after_commit",
        "after_complete",
        "before_answer",
    ]
)
def moment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_probe_10_a_handler_that_raises_before_or_after_its_write_or_answers_503_runs_again(
    shop: Shop,
) -> None:
    for number, misfortune in enumerate(["raise before", "raise after", "answer 503"]):
        assert shop.charge(str(number), misfortune=misfortune).status in (500, 503)
        assert shop.effects == number
        assert shop.charge(str(number), misfortune=misfortune).status == 201
        assert shop.effects == number + 1


def test_probe_07_another_caller_with_the_same_key_has_an_operation_of_its_own(shop: Shop) -> None:
    alice, bob = [("Authorization", "Bearer alice")], [("Authorization", "Bearer bob")]
    first = shop.charge(headers=alice)
    theirs = shop.charge(headers=bob)
    assert (theirs.status, theirs.replayed) == (201, False)
    assert theirs.body != first.body
    assert shop.charge(headers=bob, amount=6).status == 422  # bob's own, not alice's
    assert shop.charge(headers=alice).body == first.body
    assert shop.effects == 2


def test_probe_01_a_replay_has_the_status_the_body_and_the_headers(shop: Shop) -> None:
    first, repeat = shop.charge(), shop.charge()
    assert (repeat.status, repeat.body) == (first.status, first.body)
    for name in ("X-Charge-Id", "Location", "Content-Type"):
        assert repeat.header(name) == first.header(name) is not None


def test_probe_02_a_replay_is_marked(shop: Shop) -> None:
    assert shop.charge().header("Idempotent-Replayed") is None
    assert shop.charge().header("Idempotent-Replayed") == "true"


def test_probe_03_fifty_at_once_have_one_effect(shop: Shop) -> None:
    for round_number in range(1, 6):
        answers = shop.together(50, path="/charge", key=f"k{round_number}", body=body_of())
        assert Counter(a.status for a in answers) == {201: 50}
        assert len({a.body for a in answers}) == 1
        assert shop.effects == round_number


def test_probe_04_losers_wait_for_the_answer_or_are_told_when_to_come_back(shop: Shop) -> None:
    with ThreadPoolExecutor() as pool:
        request = {"path": "/impatient", "misfortune": "wait"}
        first = pool.submit(shop.charge, **request)
        shop.someone_waits()
        loser = shop.charge(**request)
        assert (loser.status, loser.problem) == (409, "in-flight")
        assert loser.header("Retry-After") is not None
        shop.let_go()
        assert first.result().status == 201
    assert shop.effects == 1


def test_probe_05_the_same_key_with_another_body_is_refused(shop: Shop) -> None:
    shop.charge(note="a")
    assert shop.charge(amount=6).status == 422
    reordered = shop.send("/charge", body=b'{"note": "a", "amount": 5}')
    assert reordered.status == 422  # fingerprint="json" would replay
    assert shop.effects == 1


def test_probe_06_the_same_key_on_another_path_or_method_is_refused(shop: Shop) -> None:
    shop.charge()
    assert shop.charge(path="/other").status == 422
    assert shop.charge(method="PATCH").status == 422
    assert shop.effects == 1


def test_probe_08_a_missing_key_is_refused_where_it_is_required(shop: Shop) -> None:
    refused = shop.charge(key=None)
    assert (refused.status, refused.problem, shop.effects) == (400, "key-missing", 0)


def test_probe_09_bad_keys_are_refused_and_a_quoted_key_is_the_bare_one(shop: Shop) -> None:
    for key in ("", "a" * 300, "a" * 5000, "a b", '""'):
        assert shop.charge(key).status == 400, key[:10]
    two = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]
    assert shop.charge(None, headers=two).status == 400
    assert shop.effects == 0
    shop.charge("8e03978e-40d5-43dd-bc93-6894a57f9324")
    assert shop.charge('"8e03978e-40d5-43dd-bc93-6894a57f9324"').replayed
    assert shop.effects == 1


def test_probe_11_a_client_that_disconnects_finds_its_answer_later(shop: Shop) -> None:
    body = body_of(misfortune="wait")
    with shop.connect() as connection:
        connection.sendall(
            b"POST /charge HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        shop.someone_waits()
    shop.let_go()
    until(lambda: shop.effects == 1)
    answer = shop.charge(misfortune="wait")
    assert (answer.status, answer.replayed, shop.effects) == (201, True, 1)


def test_probe_12_killed_before_the_effect_a_retry_runs_once_the_lease_has_ended(
    shop: Shop,
) -> None:
    shop.charge_and_be_cut_off(misfortune="kill before")
    answer = shop.charge(misfortune="kill before")  # waits for the lease, then runs
    assert (answer.status, answer.replayed, shop.effects) == (201, False, 1)


def test_probe_14_two_workers_have_one_effect(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop(workers=2)
    for round_number in range(1, 9):
        answers = shop.together(24, path="/charge", key=f"k{round_number}", body=body_of())
        assert Counter(a.status for a in answers) == {201: 24}
        assert shop.effects == round_number


@pytest.mark.parametrize("path", ["/stream", "/atomic-stream"])
def test_probe_15_the_first_byte_of_a_stream_passes_at_once_and_a_repeat_never_runs(
    shop: Shop, path: str
) -> None:
    with shop.connect() as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: k\r\n"
            b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" % path.encode()
        )
        received = b""
        while b"first " not in received:  # the second chunk has yet to be made
            received += connection.recv(65536)
        assert b"second" not in received
        shop.let_go()
        while chunk := connection.recv(65536):
            received += chunk
    assert b"second" in received
    repeat = shop.send(path, body=b"{}")
    if path == "/stream":
        assert (repeat.body, repeat.replayed) == (b"first second", True)
    else:  # `op.commit()` gave the answer up to let it pass
        assert (repeat.status, repeat.problem, shop.effects) == (409, "response-not-kept", 1)


def test_probe_16_large_answers_and_uploads_pass_and_are_replayed(shop: Shop) -> None:
    first, repeat = shop.charge("a", answer="large"), shop.charge("a", answer="large")
    assert (repeat.replayed, repeat.body) == (True, first.body)
    large = b"x" * 20_000_000
    assert shop.send("/upload", "b", large).body == b"20000000"
    assert shop.send("/upload", "b", large).replayed
    assert shop.effects == 2


@pytest.mark.parametrize("kind", ["binary", "text", "nothing", "redirect", "cookies"])
def test_probe_17_answers_of_every_kind_are_replayed(shop: Shop, kind: str) -> None:
    first, repeat = shop.charge(answer=kind), shop.charge(answer=kind)
    assert (repeat.status, repeat.body, repeat.replayed) == (first.status, first.body, True)
    assert repeat.header("Location") == first.header("Location")
    cookies = ["session=1; HttpOnly", "theme=dark"] if kind == "cookies" else []
    assert (first.all("Set-Cookie"), repeat.all("Set-Cookie")) == (cookies, [])
    assert shop.effects == 1


def test_probe_18_a_handler_that_outlives_its_lease_is_not_run_beside_itself(shop: Shop) -> None:
    request = {"sleep": 2.5}  # two and a half leases
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(shop.charge(**request))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [a.status for a in answers] == [201] * 3
    assert shop.effects == 1


def test_probe_19_a_store_that_is_down_refuses_and_one_that_dies_midway_undoes(shop: Shop) -> None:
    assert shop.charge("warm").status == 201
    with shop.out_of_order():
        refused = shop.charge("new")
        assert (refused.status, refused.problem) == (503, "store-unavailable")
        assert refused.header("Retry-After") is not None
    assert shop.effects == 1
    assert shop.charge("new").status == 201
    with ThreadPoolExecutor() as pool:
        first = pool.submit(shop.charge, "midway", misfortune="wait")
        shop.someone_waits()
        with shop.out_of_order():
            shop.let_go()
            refused = first.result()
        assert (refused.status, refused.problem) == (503, "outcome-unrecorded")
        assert refused.header("Retry-After") is not None
    assert shop.effects == 2
    assert shop.charge("midway", misfortune="wait").status == 201
    assert shop.effects == 3


def test_probe_20_an_answer_is_kept_as_long_as_was_said(
    shop: Shop, expiry: Callable[[], None]
) -> None:
    first = shop.charge(path="/brief")
    assert shop.charge(path="/brief").replayed
    expiry()
    again = shop.charge(path="/brief")
    assert (again.status, again.replayed, again.body != first.body) == (201, False, True)
    assert shop.effects == 2
