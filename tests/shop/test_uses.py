"""What the same means for each use of the shop, and what a lost answer comes to, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
from pathlib import Path

import pytest

from tests.http.harness import Answer
from tests.shop.conftest import Visitor, shop_on

LOST = http.client.RemoteDisconnected
CREATE = [("If-None-Match", "*")]


def keys(visitor: Visitor) -> list[str]:
    """Return the keys that the payments' page brings along."""
    page = visitor.page("payments")
    field = re.search(r'name="idempotency_key" value="([^"]+)"', page)
    pool = re.search(r'data-semel-keys="/idempotency-keys">(.+)</script>', page)
    assert field is not None
    assert pool is not None
    return [field[1], *json.loads(pool[1])["keys"]]


def pay(visitor: Visitor, key: str | None, euros: str = "19.90", **more: str) -> Answer:
    return visitor.form("/payments", key, purpose="tea", euros=euros, **more)


def order(item: str = "tea") -> bytes:
    return json.dumps({"item": item, "quantity": 2}).encode()


# --- payments ----------------------------------------------------------------------------------


def test_a_payment_is_the_same_by_its_issued_key(visitor: Visitor) -> None:
    one, two, *_ = keys(visitor)
    first, again = pay(visitor, one), pay(visitor, one)
    assert (first.status, again.status, again.replayed) == (303, 303, True)
    assert again.header("location") == first.header("location")
    assert pay(visitor, one, "20.90").problem == "key-reused"
    assert visitor.happened("payments") == 1
    assert pay(visitor, two).status == 303
    assert visitor.happened("payments") == 2


def test_a_payment_without_javascript_has_its_key_in_the_form(visitor: Visitor) -> None:
    key, *_ = keys(visitor)
    assert pay(visitor, None, idempotency_key=key).status == 303
    assert pay(visitor, None, idempotency_key=key).replayed
    assert visitor.happened("payments") == 1


def test_a_payment_takes_no_key_that_was_made_up_or_is_somebody_elses(
    visitor: Visitor, another: Visitor
) -> None:
    assert pay(visitor, "made-up").problem == "key-invalid"
    assert pay(visitor, keys(another)[0]).problem == "key-invalid"
    assert pay(visitor, None).problem == "key-missing"
    assert visitor.happened("payments") == 0


def test_keys_are_refilled_for_the_customer_who_asks(visitor: Visitor, another: Visitor) -> None:
    answer = visitor.send("/idempotency-keys", None, b'{"count": 10}')
    issued = json.loads(answer.body)["keys"]
    assert (answer.status, len(set(issued))) == (201, 10)
    assert pay(another, issued[0]).problem == "key-invalid"
    assert pay(visitor, issued[0]).status == 303


def test_a_payment_whose_answer_is_lost_is_made_and_told_of_at_the_next_try(
    visitor: Visitor,
) -> None:
    key, *_ = keys(visitor)
    visitor.network("bad")
    with pytest.raises(LOST):
        pay(visitor, key)
    assert visitor.happened("payments") == 1
    assert pay(visitor, key).replayed
    page = visitor.page("payments")
    assert "response lost" in page
    assert "replayed" in page
    assert visitor.happened("payments") == 1


# --- orders ------------------------------------------------------------------------------------


def test_an_order_is_the_same_by_its_number(visitor: Visitor) -> None:
    def put(key: str, item: str = "tea", headers: list[tuple[str, str]] | None = None) -> Answer:
        return visitor.send("/orders/AB12-0001", key, order(item), "PUT", headers)

    created = put("k1", headers=CREATE)
    assert (created.status, created.header("location")) == (201, "/orders/AB12-0001")
    assert put("k1", headers=CREATE).replayed
    assert put("k2", headers=CREATE).problem == "precondition-failed"
    assert put("k3").status == 200
    tag = visitor.send("/orders/AB12-0001", None, b"", "GET").header("etag")
    assert tag
    assert put("k4", "coffee", [("If-Match", tag)]).status == 200
    assert put("k5", "cocoa", [("If-Match", tag)]).problem == "precondition-failed"
    got = visitor.send("/orders/AB12-0001", None, b"", "GET")
    assert json.loads(got.body) == {"number": "AB12-0001", "item": "coffee", "quantity": 2}
    assert visitor.happened("orders") == 1
    for key in ("k6", "k7"):
        assert visitor.send("/orders/AB12-0001", key, b"", "DELETE").status == 204
    assert visitor.happened("orders") == 0
    assert put("k8", headers=CREATE).status == 201
    assert put("k9", headers=[("If-Match", tag)]).status == 412, "not the order it was"


def test_a_retry_of_ones_own_order_gets_its_201_and_not_412(visitor: Visitor) -> None:
    visitor.network("bad")
    asked = {"path": "/orders/AB12-0002", "body": order(), "method": "PUT", "headers": CREATE}
    with pytest.raises(LOST):
        visitor.send(key="k1", **asked)
    answer = visitor.send(key="k1", **asked)
    assert (answer.status, answer.replayed) == (201, True)


def test_an_order_of_somebody_else_is_not_overwritten_and_not_shown(
    visitor: Visitor, another: Visitor
) -> None:
    url = "/orders/AB12-0003"
    assert visitor.send(url, "k1", order(), "PUT").status == 201
    assert another.send(url, "k1", order("mine"), "PUT").status == 403
    assert another.send(url, "k2", b"", "DELETE").status == 403
    assert another.send(url, None, b"", "GET").status == 404


def test_an_order_that_the_shop_numbers_is_the_same_by_its_key(visitor: Visitor) -> None:
    first, again = (visitor.send("/orders", "k1", order()) for _ in range(2))
    assert (first.status, again.body, again.replayed) == (201, first.body, True)
    number = json.loads(first.body)["number"]
    assert visitor.send(f"/orders/{number}", None, b"", "GET").status == 200


# --- subscriptions -----------------------------------------------------------------------------


def subscribe(visitor: Visitor, follows: int = 0, plan: str = "tea") -> Answer:
    return visitor.form("/subscriptions", plan=plan, follows=follows)


def number_of(answer: Answer) -> int:
    assert answer.status == 303, answer.body
    return int(str(answer.header("location")).rpartition("=")[2])


def test_a_subscription_is_the_same_by_customer_and_plan(
    visitor: Visitor, another: Visitor
) -> None:
    first, again = subscribe(visitor), subscribe(visitor)
    assert (number_of(again), again.replayed) == (number_of(first), True)
    assert visitor.happened("subscriptions") == 1, "one letter of welcome"
    assert number_of(subscribe(visitor, plan="coffee")) != number_of(first)
    assert number_of(subscribe(another)) != number_of(first)


def test_a_subscription_after_a_cancellation_is_a_new_one_at_once(visitor: Visitor) -> None:
    first = number_of(subscribe(visitor))
    for repeat in (False, True):
        cancelled = visitor.form("/subscriptions/cancel", subscription=first)
        assert (cancelled.status, cancelled.replayed) == (303, repeat)
    again = subscribe(visitor, follows=first)
    assert number_of(again) > first
    assert not again.replayed
    assert subscribe(visitor, follows=first).replayed
    assert visitor.happened("subscriptions") == 2
    assert f'name="follows" value="{first}"' in visitor.page("subscriptions")


def test_a_subscription_that_the_key_has_forgotten_is_still_the_same(visitor: Visitor) -> None:
    first = subscribe(visitor)
    later = visitor.form("/subscriptions", "another-key", plan="tea", follows=0)
    assert (number_of(later), later.replayed) == (number_of(first), False)
    assert visitor.happened("subscriptions") == 1


def test_a_subscription_from_an_outdated_page_is_refused(visitor: Visitor) -> None:
    assert subscribe(visitor, follows=7).status == 409
    first = number_of(subscribe(visitor))
    assert subscribe(visitor, follows=first).status == 409, "it runs still"
    assert visitor.happened("subscriptions") == 1


def test_nobody_cancels_somebody_elses_subscription(visitor: Visitor, another: Visitor) -> None:
    first = number_of(subscribe(visitor))
    assert another.form("/subscriptions/cancel", subscription=first).status == 404


def test_a_subscription_whose_answer_is_lost_is_there_once(visitor: Visitor) -> None:
    visitor.network("bad")
    with pytest.raises(LOST):
        subscribe(visitor)
    assert subscribe(visitor).replayed
    assert visitor.happened("subscriptions") == 1


# --- sign-up -----------------------------------------------------------------------------------


def test_an_account_is_the_same_by_its_e_mail(visitor: Visitor, another: Visitor) -> None:
    email = f"{visitor.cookies['customer'].lower()}@example.org"
    first = visitor.form("/sign-up", email=email, name="Ada")
    again = visitor.form("/sign-up", email=email.upper(), name="Ada L.")
    assert (number_of(again), again.replayed) == (number_of(first), True)
    later = visitor.form("/sign-up", "another-key", email=email)
    assert (number_of(later), later.replayed) == (number_of(first), False)
    assert another.form("/sign-up", email=email).status == 409
    assert (visitor.happened("sign-up"), another.happened("sign-up")) == (1, 0)


def test_an_account_of_a_program_is_the_same_by_its_e_mail_too(visitor: Visitor) -> None:
    def create(email: str) -> Answer:
        return visitor.send("/accounts", None, json.dumps({"email": email}).encode())

    email = f"{visitor.cookies['customer'].lower()}@example.org"
    first, again = create(email), create(email.upper())
    assert (first.status, again.body, again.replayed) == (201, first.body, True)
    assert number_of(visitor.form("/sign-up", email=email)) == json.loads(first.body)["account"]
    stranger = Visitor(visitor.port)
    for _ in range(2):
        assert stranger.send("/accounts", None, json.dumps({"email": email}).encode()).status == 409


def test_a_sign_up_whose_answer_is_lost_is_there_once(visitor: Visitor) -> None:
    email = f"{visitor.cookies['customer'].lower()}@example.org"
    visitor.network("bad")
    with pytest.raises(LOST):
        visitor.form("/sign-up", email=email)
    assert visitor.form("/sign-up", email=email).replayed
    visitor.network("good")
    assert visitor.happened("sign-up") == 1


# --- uploads -----------------------------------------------------------------------------------

TUS = [("Tus-Resumable", "1.0.0")]
PIECE = ("Content-Type", "application/offset+octet-stream")


def test_a_file_is_the_same_by_its_bytes_and_goes_on_after_a_lost_answer(
    visitor: Visitor,
) -> None:
    data = visitor.cookies["customer"].encode() * 1000

    def create(key: str, name: str) -> Answer:
        named = base64.b64encode(name.encode()).decode()
        metadata = [("Upload-Length", str(len(data))), ("Upload-Metadata", f"filename {named}")]
        return visitor.send("/uploads/", key, b"", headers=[*TUS, *metadata])

    def piece(url: str, at: int) -> Answer:
        headers = [*TUS, PIECE, ("Upload-Offset", str(at))]
        return visitor.send(url, None, data[at : at + 15_000], "PATCH", headers)

    def keep(key: str, url: str) -> Answer:
        return visitor.send("/files", key, json.dumps({"upload": url}).encode())

    visitor.network("bad")
    with pytest.raises(LOST):
        create("u1", "a.txt")
    url = str(create("u1", "a.txt").header("location"))
    with pytest.raises(LOST):
        piece(url, 0)
    asked = visitor.send(url, None, b"", "HEAD", TUS)
    assert asked.header("upload-offset") == "15000"
    visitor.network("good")
    assert keep("k0", url).status == 404, "it is not complete"
    assert piece(url, 15_000).header("upload-offset") == str(len(data))
    kept = keep("k1", url)
    assert json.loads(kept.body)["digest"] == hashlib.sha256(data).hexdigest()

    copy = str(create("u2", "copy.txt").header("location"))
    for at in (0, 15_000):
        assert piece(copy, at).status == 204
    assert json.loads(keep("k2", copy).body)["file"] == json.loads(kept.body)["file"]
    assert visitor.happened("uploads") == 1


def test_an_upload_of_somebody_else_is_not_there(visitor: Visitor, another: Visitor) -> None:
    made = visitor.send("/uploads/", None, b"mine", headers=[("Content-Type", "text/plain")])
    body = json.dumps({"upload": made.header("location")}).encode()
    assert another.send("/files", "k", body).status == 404
    assert visitor.send("/files", "k", body).status == 201


# --- the stage ---------------------------------------------------------------------------------


def test_the_bad_network_is_bad_for_its_visitor_only(visitor: Visitor, another: Visitor) -> None:
    visitor.network("bad")
    for number in range(3):
        assert another.send("/orders", f"k{number}", order()).status == 201
    assert "Good network" in another.page("orders")
    assert "Bad network" in visitor.page("orders")


def test_the_pages_run_no_script_of_anybody_else(visitor: Visitor) -> None:
    answer = visitor.send("/try/payments", None, b"", "GET")
    policy = str(answer.header("content-security-policy"))
    assert "default-src 'none'; script-src 'self'" in policy
    body = visitor.form("/network", network="good", back="//evil.example")
    assert body.header("location") == "/"


def test_what_is_typed_is_shown_as_text(visitor: Visitor) -> None:
    key, *_ = keys(visitor)
    visitor.form("/payments", key, purpose="<b>&$x", euros="1")
    assert "&lt;b&gt;&amp;$x" in visitor.page("payments")


def test_without_semel_the_same_shop_does_it_again(tmp_path: Path) -> None:
    with shop_on("sqlite", tmp_path, protected=False) as port:
        visitor = Visitor(port)
        visitor.page("orders")
        key, *_ = keys(visitor)
        assert [pay(visitor, key).status for _ in range(2)] == [303, 303]
        assert visitor.happened("payments") == 2
        url = "/orders/AB12-0009"
        assert visitor.send(url, "k", order(), "PUT", CREATE).status == 201
        assert visitor.send(url, "k", order(), "PUT", CREATE).status == 412
        assert visitor.send(url, "k", b"", "DELETE").status == 204
