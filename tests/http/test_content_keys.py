"""Requests whose key is in what they say: natural keys, the payload itself, a form's field."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from semel import Policy, PolicyError
from semel.stores.memory import MemoryStore
from tests.http.harness import Recorder, Request
from tests.http.test_answers import created
from tests.http.test_issued_keys import Clock

FORM = [("Content-Type", "application/x-www-form-urlencoded")]


def email(request: Any) -> str | None:
    return str(request.json()["email"]).lower()


def sign_up(address: str = "a@example.org", **more: str) -> bytes:
    return json.dumps({"email": address, **more}).encode()


def test_the_same_natural_key_is_the_same_operation(start: Any, store_url: str) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url, policy=Policy(shared=True, key=email))
    first = server.send(key=None, body=sign_up())
    again = server.send(key=None, body=sign_up())
    assert (again.body, again.replayed) == (first.body, True)
    assert not server.send(key=None, body=sign_up("b@example.org")).replayed
    assert recorder.runs == 2


def test_the_same_natural_key_with_another_request_is_refused_or_answered_as_chosen(
    start: Any, store_url: str
) -> None:
    recorder = Recorder(created)
    policies = {
        "/strict": Policy(shared=True, key=email),
        "/key": Policy(shared=True, key=email, fingerprint="key"),
    }
    server = start(recorder, store_url, routes=policies)
    for path in policies:
        assert server.send(path, None, sign_up(name="Ann")).status == 201
    other = sign_up("A@example.org", name="Anna")
    assert server.send("/strict", None, other).problem == "key-reused"
    answer = server.send("/key", None, other)
    assert (answer.status, answer.replayed) == (201, True)
    assert recorder.runs == 2


def test_an_empty_field_is_no_natural_key_and_no_error(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(shared=True, key=email))
    for _ in range(2):
        answer = server.send(key=None, body=sign_up(""))
        assert (answer.status, answer.replayed) == (201, False)
    assert recorder.runs == 2


def test_at_once_a_natural_key_runs_once(start: Any, store_url: str) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url, policy=Policy(shared=True, key=email))
    answers = server.together(12, key=None, body=sign_up())
    assert {answer.status for answer in answers} == {201}
    assert recorder.runs == 1


def test_a_natural_key_is_its_routes_own_and_no_header_meets_it(start: Any, store_url: str) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url, policy=Policy(shared=True, key=email))
    server.send("/a", None, sign_up())
    server.send("/b", None, sign_up())
    server.send("/a", "a@example.org", sign_up())
    assert recorder.runs == 3


def test_a_key_in_the_header_goes_before_a_natural_one(start: Any, store_url: str) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url, policy=Policy(shared=True, key=email, fingerprint="key"))
    assert server.send(key="k", body=sign_up()).status == 201
    assert server.send(key="k", body=sign_up(name="Ann")).problem == "key-reused"
    assert server.send(key="k2", body=sign_up()).status == 201
    assert recorder.runs == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"mail": 1}', b"null", b"\xff", b'{"email": ""}', b'{"email": "\\ud800"}'],
)
def test_a_request_that_is_not_as_it_should_be_is_left_to_the_handler(
    start: Any, body: bytes
) -> None:
    seen: list[bytes] = []

    def invalid(number: int, request: Request) -> Any:
        seen.append(request.body)
        return 422, [], [b"not valid"]

    server = start(Recorder(invalid), policy=Policy(shared=True, key=email))
    assert server.send(key=None, body=body).status == 422
    assert seen == [body], "and it can read the body"


def test_a_request_without_its_natural_key_is_refused_where_one_is_required(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(shared=True, key=email, required=True))
    answer = server.send(key=None, body=b"{}")
    assert (answer.status, answer.problem) == (400, "key-missing")
    assert recorder.runs == 0


@pytest.mark.parametrize("given", [b"", 5])
def test_a_key_function_that_gives_no_string_is_a_mistake_that_is_shown(
    start: Any, given: Any
) -> None:
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(shared=True, key=lambda request: given))
    assert server.send(key=None).status == 500
    assert recorder.runs == 0


def test_a_key_can_come_from_another_header(start: Any, store_url: str) -> None:
    """Two requests with the same bytes and another such header are two operations."""
    recorder = Recorder(created)
    server = start(
        recorder, store_url, policy=Policy(shared=True, key=lambda r: r.header("x-event-id"))
    )
    for event, replayed in (("1", False), ("1", True), ("2", False), ("2", True), ("1", True)):
        answer = server.send(key=None, headers=[("X-Event-Id", event)])
        assert answer.replayed is replayed
    assert recorder.runs == 2


def test_the_payload_is_its_own_key_for_a_while(start: Any) -> None:
    clock, recorder = Clock(), Recorder(created)
    policy = Policy(shared=True, key="payload", window=timedelta(seconds=30))
    server = start(recorder, MemoryStore(clock=clock), policy=policy, sweep_every=None)
    assert not server.send(key=None).replayed
    clock.now += 29
    for _ in range(3):
        assert server.send(key=None).replayed
    assert not server.send(key=None, body=b'{"amount": 6}').replayed
    clock.now += 2
    assert not server.send(key=None).replayed, "sent again on purpose"
    assert server.send(key=None).replayed
    assert recorder.runs == 3


def test_a_key_in_the_header_outlasts_the_window(start: Any) -> None:
    clock, recorder = Clock(), Recorder(created)
    policy = Policy(shared=True, key="payload", window=timedelta(seconds=30))
    server = start(recorder, MemoryStore(clock=clock), policy=policy, sweep_every=None)
    server.send(key="k")
    clock.now += 3600
    assert server.send(key="k").replayed
    assert recorder.runs == 1


MULTIPART = (
    b'--{b}\r\nContent-Disposition: form-data; name="amount"\r\n\r\n5\r\n'
    b'--{b}\r\nContent-Disposition: form-data; name="key"; filename="key"\r\n\r\nfile\r\n'
    b'--{b}\r\nContent-Disposition: form-data; name="key"\r\n\r\nk-1\r\n--{b}--\r\n'
)


def test_a_forms_hidden_field_counts_as_the_header_would(start: Any, store_url: str) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url, policy=Policy(form_field="key", required=True))
    body = b"amount=5&key=k-1&key=k-2"
    first = server.send(key=None, body=body, headers=FORM)
    assert (first.status, first.replayed) == (201, False)
    assert server.send(key=None, body=body, headers=FORM).replayed
    assert server.send(key="k-1", body=body, headers=FORM).replayed, "as JavaScript sends it"
    assert server.send(key="other", body=body, headers=FORM).status == 201
    assert server.send(key=None, body=b"amount=5", headers=FORM).problem == "key-missing"
    assert server.send(key=None, body=b"key=a%20b", headers=FORM).problem == "key-invalid"
    assert recorder.runs == 2


def test_the_field_is_found_in_a_multipart_form_whatever_its_boundary(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(form_field="key", required=True))
    for number, boundary in enumerate((b"x1", b"y22")):
        kind = f"multipart/form-data; boundary={boundary.decode()}"
        body = MULTIPART.replace(b"{b}", boundary)
        answer = server.send(key=None, body=body, headers=[("Content-Type", kind)])
        assert (answer.status, answer.replayed) == (201, bool(number))
    assert recorder.runs == 1


def multipart(*parts: tuple[str, bytes], end: bytes = b"--\r\n") -> tuple[Any, bytes]:
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in parts
    )
    return [("Content-Type", "multipart/form-data; boundary=b")], body + b"--b" + end


def test_a_key_after_a_large_file_is_found(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(form_field="key"))
    headers, body = multipart(('file"; filename="f', bytes(2**21)), ("key", b"k-1"))
    for replayed in (False, True):
        answer = server.send(key=None, body=body, headers=headers)
        assert (answer.status, answer.replayed) == (201, replayed)
    assert recorder.runs == 1


@pytest.mark.parametrize(
    "form",
    [
        multipart(("key", b"k"), end=b""),  # cut
        multipart(*((f"f{n}", b"x") for n in range(1001)), ("key", b"k")),
        multipart(("much", bytes(2**20)), ("key", b"k")),
        multipart(("x" * 9000, b"x"), ("key", b"k")),
        (FORM, b"&".join(b"f=1" for _ in range(1001)) + b"&key=k"),
        (FORM, b"f=" + b"x" * 2**20 + b"&key=k"),
        ([("Content-Type", "multipart/form-data")], b"--b\r\n"),
    ],
    ids=["cut", "fields", "text", "head", "urlencoded fields", "urlencoded text", "no boundary"],
)
def test_a_form_whose_key_cannot_be_found_for_certain_is_refused(start: Any, form: Any) -> None:
    """It might have one, and to run it without would be a second effect."""
    headers, body = form
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(form_field="key"))
    answer = server.send(key=None, body=body, headers=headers)
    if b'name="key"' in body and not body.endswith(b"--\r\n"):
        assert answer.status == 400 or recorder.runs == 1  # it was seen before the cut
    else:
        assert (answer.status, answer.problem) == (400, "key-invalid")
        assert recorder.runs == 0


def test_forms_are_read_in_time_linear_in_their_size() -> None:
    """Bodies of twice the size, as ratios: nested, of many parts, with long headers, of marks."""
    from time import process_time

    from semel.web.http import forms

    def attack(kind: str, size: int) -> bytes:
        return {
            "nested": b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" * (size // 50),
            "parts": b'--b\r\nContent-Disposition: form-data; name=""\r\n\r\n\r\n' * (size // 50),
            "head": b"--b\r\nContent-Disposition: form-data" + b"; name*0=a" * (size // 10),
            "marks": b"\r\n--" * (size // 4),
            "lines": b"--b\r\n" + b"a:b\r\n" * (size // 5),
        }[kind]

    def spent(kind: str, size: int) -> float:
        body = attack(kind, size)
        chunks = [body[at : at + 65536] for at in range(0, len(body), 65536)]
        times = []
        for _ in range(5):
            began = process_time()
            forms.read("multipart/form-data; boundary=b", chunks)
            times.append(process_time() - began)
        return min(times)

    for kind in ("nested", "parts", "head", "marks", "lines"):
        once, twice = spent(kind, 2**19), spent(kind, 2**20)
        assert twice < max(4 * once, 0.05), kind


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"key": "email"}, 'key: give "payload" or a function'),
        ({"key": "payload"}, "window"),
        ({"window": timedelta(1)}, "window"),
        ({"key": "payload", "window": timedelta()}, "window: give a timedelta longer than 0"),
        ({"fingerprint": "key"}, 'fingerprint="key"'),
        ({"key": email, "required": "issued"}, "key: with required"),
        ({"form_field": ""}, "form_field: give the name"),
    ],
)
def test_rules_about_keys_that_make_no_sense_are_named(rules: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy(**rules)
