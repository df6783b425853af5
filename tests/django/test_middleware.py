"""Django: the view, its transaction and the record, on each database, behind WSGI and ASGI."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.django import views
from tests.django.shop.models import Charge
from tests.http.harness import until
from tests.http.test_outcomes import named

JSON = b'{"order": "o1"}'


def orders() -> list[str]:
    from django.db import connection

    connection.close()
    return sorted(Charge.objects.values_list("order", flat=True))


def test_a_view_runs_once_and_its_answer_is_replayed(serve: Any) -> None:
    client = serve()
    first, repeat = client.send("/charge", body=JSON), client.send("/charge", body=JSON)
    assert (first.status, repeat.status, repeat.body) == (201, 201, first.body)
    assert (first.replayed, repeat.replayed) == (False, True)
    assert repeat.header("Content-Type") == "application/json"
    assert (orders(), views.hooks) == (["o1"], ["charge"])


@pytest.mark.parametrize("how", ["raise", "500", "503", "409", "denied"])
def test_what_is_no_outcome_rolls_back_and_may_be_tried_again(serve: Any, how: str) -> None:
    client = serve()
    for _ in range(2):
        assert client.send(f"/fails?how={how}").status in (500, 503, 409, 403)
    assert (orders(), views.hooks, views.runs) == ([], [], ["fails"] * 2)


def test_what_a_view_wrote_before_it_raised_is_undone_though_its_answer_is_kept(
    serve: Any,
) -> None:
    client = serve()
    for how, status in (("not-found", 404), ("suspicious", 400)):
        first = client.send(f"/fails?how={how}", key=how)
        repeat = client.send(f"/fails?how={how}", key=how)
        assert (first.status, repeat.status, repeat.replayed) == (status, status, True)
    assert (orders(), views.hooks, len(views.runs)) == ([], [], 2)


@pytest.mark.parametrize(("how", "status"), [("answered", 400), ("redirected", 302)])
def test_it_is_undone_where_a_middleware_inside_has_answered_what_was_raised(
    serve: Any, how: str, status: int
) -> None:
    from django.conf import settings

    client = serve(MIDDLEWARE=[*settings.MIDDLEWARE, "tests.django.views.AnswersErrors"])
    first, repeat = client.send(f"/fails?how={how}"), client.send(f"/fails?how={how}")
    assert (first.status, repeat.body, repeat.replayed) == (status, b"answered", True)
    assert (orders(), views.hooks, len(views.runs)) == ([], [], 1)


def test_it_is_undone_where_rest_framework_has_answered_what_was_raised(serve: Any) -> None:
    client = serve()
    first, repeat = client.send("/rethinks"), client.send("/rethinks")
    assert (first.status, repeat.status, repeat.replayed) == (400, 400, True)
    assert (orders(), len(views.runs)) == ([], 1)


def test_an_answer_that_was_given_and_not_raised_keeps_its_writes(serve: Any) -> None:
    client = serve()
    assert client.send("/fails?how=422").status == 422
    assert client.send("/fails?how=422").replayed
    assert orders() == ["fails"]


def test_an_inner_atomic_is_a_savepoint(serve: Any) -> None:
    client = serve()
    assert client.send("/fails?how=nested").body == b"outer only"
    assert client.send("/fails?how=nested").replayed
    assert orders() == ["fails"]


def test_atomic_requests_changes_nothing(serve: Any, database: Any, kind: str) -> None:
    database.settings_dict["ATOMIC_REQUESTS"] = True
    database.settings_dict.setdefault("ATOMIC_REQUESTS", True)
    try:
        client = serve()
        assert client.send("/charge", body=JSON).status == 201
        assert client.send("/charge", body=JSON).replayed
        assert client.send("/fails?how=not-found", key="n").status == 404
        assert client.send("/fails?how=not-found", key="n").replayed
        assert orders() == ["o1"]
    finally:
        database.settings_dict["ATOMIC_REQUESTS"] = False


def test_a_failed_statement_that_was_swallowed_commits_nothing_where_nothing_can_be(
    serve: Any, vendor: str
) -> None:
    told = serve().send("/fails?how=swallow")
    if vendor == "postgresql":  # its transaction is lost with the statement
        assert (told.problem, orders()) == ("store-unavailable", [])
    else:
        assert (told.status, orders()) == (200, ["fails"])


def test_a_view_that_closes_the_connection_has_done_nothing(serve: Any) -> None:
    client = serve()
    assert client.send("/fails?how=close").problem == "store-unavailable"
    assert orders() == []


def test_a_hook_that_raises_comes_too_late_to_undo_anything(serve: Any) -> None:
    client = serve()
    assert client.send("/fails?how=hook").body == b"hooked"
    assert client.send("/fails?how=hook").replayed
    assert orders() == ["fails"]


def test_another_request_under_the_same_key_is_refused(serve: Any) -> None:
    client = serve()
    client.send("/charge", body=JSON)
    assert client.send("/charge", body=b'{"order": "o2"}').problem == "key-reused"
    assert client.send("/charge?x=1", body=JSON).problem == "key-reused"
    assert orders() == ["o1"]


def test_a_key_is_checked(serve: Any) -> None:
    client = serve()
    assert client.send("/needs_key", key=None).problem == "key-missing"
    assert client.send("/needs_key", key="a b").problem == "key-invalid"
    assert client.send("/steps", key=None).problem == "key-missing"
    assert client.send("/charge", key=None, body=JSON).status == 201
    assert client.send("/needs_key").body == b"had"


def test_methods_and_paths_that_are_not_covered_pass(serve: Any) -> None:
    client = serve({"routes": {"/charge": None}})
    for _ in range(2):
        assert client.send("/charge", body=JSON).status == 201
        assert client.send("/nowhere").status == 404
    assert client.send("/needs_key", method="GET", body=b"").body == b"had"
    assert orders() == ["o1", "o1"]


def test_a_repeat_waits_for_the_first(serve: Any) -> None:
    client = serve()
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.send("/waits"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert views.begun.wait(20)
    views.go_on.set()
    for thread in threads:
        thread.join()
    assert {answer.body for answer in answers} == {b"waited"}
    assert sorted(answer.replayed for answer in answers) == [False, True, True]
    assert orders() == ["waits"]


@pytest.mark.parametrize("path", ["/streams", "/files"])
def test_a_stream_in_a_transaction_is_held_and_replayed(serve: Any, path: str) -> None:
    client = serve()
    first, repeat = client.send(path), client.send(path)
    assert first.status == 200
    assert first.body == repeat.body
    assert repeat.replayed
    assert len(orders()) == 1


def test_a_stream_that_breaks_in_a_transaction_has_done_nothing(serve: Any) -> None:
    client = serve()
    assert client.send("/streams?break=1").status == 500
    assert orders() == []


def test_an_answer_over_the_limit_is_sent_whole_and_never_made_twice(serve: Any) -> None:
    client = serve({"policy": {"max_response_body": 1000}})
    assert len(client.send("/streams?size=600").body) == 1800
    assert client.send("/streams?size=600").problem == "response-not-kept"
    assert orders() == ["stream"]


def test_a_stream_outside_a_transaction_passes_through_and_is_replayed(serve: Any) -> None:
    client = serve()
    first, repeat = client.send("/plain_stream"), client.send("/plain_stream")
    assert (first.body, repeat.body, repeat.replayed) == (b"xxx", b"xxx", True)
    assert orders() == ["stream"]


def test_forms_and_files_reach_the_view(serve: Any) -> None:
    client = serve()
    for size in (10, 3_000_000):
        name = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\ntea\r\n'
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        body = name + head + b"x" * size + b"\r\n--b--\r\n"
        kind = [("Content-Type", "multipart/form-data; boundary=b")]
        for repeat in range(2):
            told = client.send("/upload", key=str(size), body=body, headers=kind)
            assert (json.loads(told.body), told.replayed) == (
                {"name": "tea", "size": size},
                bool(repeat),
            )
        other = client.send("/upload", key=str(size), body=body.replace(b"xx", b"yy"), headers=kind)
        assert other.problem == "key-reused"


def test_a_large_body_can_be_read_piece_by_piece(serve: Any) -> None:
    client = serve()
    assert client.send("/raw", body=b"x" * 3_000_000).body == b"3000000"
    assert client.send("/raw", body=b"x" * 3_000_000).replayed
    small = serve({"policy": {"max_request_body": 10}})
    assert small.send("/raw", key="other", body=b"x" * 11).problem == "request-too-large"


def test_a_step_outlives_the_rollback_of_its_view(serve: Any) -> None:
    client = serve()
    assert client.send("/steps?fail=1").status == 500
    assert client.send("/steps?fail=1").status == 200
    assert (orders(), len(views.hooks), views.runs) == (["steps"], 1, ["steps"] * 2)


def test_a_parked_operation_is_rolled_back_and_refused(serve: Any) -> None:
    client = serve()
    assert client.send("/parks").problem == "outcome-unknown"
    assert client.send("/parks").problem == "outcome-unknown"
    assert (orders(), len(views.runs)) == ([], 1)


def test_at_most_once_keeps_what_failed(serve: Any) -> None:
    client = serve()
    assert client.send("/put?fail=1", method="PUT").problem == "handler-failed"
    repeat = client.send("/put?fail=1", method="PUT")
    assert (repeat.status, repeat.replayed) == (500, True)
    assert orders() == ["put"]  # beside the record, not with it


def test_at_least_once_is_recorded_beside_the_view(serve: Any) -> None:
    client = serve()
    assert client.send("/plain").body == b"plain"
    assert client.send("/plain").replayed
    assert orders() == ["plain"]


def test_an_async_view_is_in_the_transaction(serve: Any, kind: str) -> None:
    client = serve()
    first, repeat = client.send("/async_charge"), client.send("/async_charge")
    assert json.loads(first.body)["atomic"] is True
    assert (repeat.body, repeat.replayed) == (first.body, True)
    assert client.send("/async_charge?fail=1", key="f").status == 500
    assert orders() == ["async"]


@pytest.mark.parametrize("kind", ["asgi"])
def test_an_async_view_has_its_steps(serve: Any) -> None:
    client = serve()
    assert client.send("/async_charge?step=1&fail=1").status == 500
    assert client.send("/async_charge?step=1").status == 201  # the step is not called again
    assert (len(views.hooks), orders()) == (1, ["async"])


@pytest.mark.parametrize("vendor", ["postgresql", "mariadb"])  # SQLite's one writer would wait
@pytest.mark.parametrize("kind", ["asgi"])
def test_what_an_async_view_writes_on_a_thread_of_another_is_outside(serve: Any) -> None:
    """A weakness that the guide names."""
    assert serve().send("/async_escapes").status == 500
    assert orders() == ["outside"]


@pytest.mark.parametrize("kind", ["asgi"])
@pytest.mark.parametrize("path", ["/async_waits", "/waits"])
def test_a_view_runs_on_without_its_client_in_its_transaction(serve: Any, path: str) -> None:
    client = serve()
    with client.connect() as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        connection.sendall(head.encode())
        assert views.begun.wait(20)
    views.go_on.set()
    answer = client.send(path, body=b"{}")
    until(lambda: client.send(path, body=b"{}").replayed)
    assert client.send(path, body=b"{}").body == b"waited"
    assert answer.body == b"waited"
    assert len(views.runs) == 1
    assert orders() == (["waits"] if path == "/waits" else ["after", "before"])


@pytest.mark.parametrize("kind", ["asgi"])
def test_a_stream_is_made_to_its_end_without_its_client(serve: Any) -> None:
    client = serve()
    with client.connect() as connection:
        head = b"POST /async_plain_stream HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        connection.sendall(head)
        assert views.begun.wait(20)
    views.go_on.set()
    until(lambda: client.send("/async_plain_stream", body=b"{}").replayed)
    assert client.send("/async_plain_stream", body=b"{}").body == b"xxx"
    assert len(views.runs) == 1


def test_an_operation_may_commit_before_its_answer(serve: Any, kind: str) -> None:
    client = serve()
    told = client.send("/commits")
    if kind == "asgi":  # the operation belongs to the event loop
        assert (told.status, orders()) == (500, [])
        return
    assert told.body == b"ab"
    assert client.send("/commits").problem == "response-not-kept"
    assert orders() == ["commits"]


@pytest.mark.parametrize("vendor", ["sqlite"])
def test_a_database_that_is_gone_refuses_and_runs_nothing(serve: Any, database: Any) -> None:
    client = serve()
    assert client.send("/charge", key="first", body=JSON).status == 201
    with database.cursor() as cursor:
        cursor.execute("alter table semel_record rename to elsewhere")
    try:
        assert client.send("/charge", body=JSON).problem == "store-unavailable"
    finally:
        with database.cursor() as cursor:
            cursor.execute("alter table elsewhere rename to semel_record")
    assert orders() == ["o1"]


@pytest.mark.parametrize("vendor", ["sqlite"])
def test_any_other_store_may_hold_the_records(serve: Any) -> None:
    client = serve({"store": "memory://"})
    assert client.send("/charge", body=JSON).status == 201
    assert client.send("/charge", body=JSON).replayed
    assert orders() == ["o1"]


@pytest.mark.parametrize("kind", ["asgi"])
@pytest.mark.parametrize("path", ["/charge", "/async_charge"])
def test_middleware_that_knows_no_async_changes_nothing(serve: Any, path: str) -> None:
    from django.conf import settings

    client = serve(MIDDLEWARE=[*settings.MIDDLEWARE, "tests.django.views.plain_middleware"])
    first, repeat = client.send(path, body=JSON), client.send(path, body=JSON)
    assert (first.status, repeat.body, repeat.replayed) == (201, first.body, True)
    assert client.send("/fails?how=raise", key="f").status == 500
    assert len(orders()) == 1


def test_middleware_that_has_read_an_upload_is_named(serve: Any) -> None:
    """Its body is gone, so two uploads could not be told apart: an error, and no guess."""
    from django.conf import settings

    reads = "tests.django.views.reads_forms"
    client = serve(MIDDLEWARE=[*settings.MIDDLEWARE[:-1], reads, settings.MIDDLEWARE[-1]])
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n--b--\r\n'
    kind = [("Content-Type", "multipart/form-data; boundary=b")]
    assert client.send("/upload", body=head, headers=kind).status == 500
    assert views.runs == []
    plain = [("Content-Type", "application/x-www-form-urlencoded")]
    assert client.send("/needs_key", body=b"a=1", headers=plain).status == 200
    assert client.send("/needs_key", body=b"a=2", headers=plain).problem == "key-reused"


def test_each_outcome_is_seen_once(serve: Any) -> None:
    from semel.web.django.conf import configured

    client = serve()
    seen: list[Any] = []
    configured().idempotency.outcomes.observers += (seen.append,)

    def outcome(path: str, key: str | None = "k", body: bytes = JSON) -> list[tuple[str, int]]:
        seen.clear()
        client.send(path, key=key, body=body)
        return [(named(passed), passed.attempt) for passed in seen]

    assert outcome("/charge") == [("kept", 1)]
    assert outcome("/charge") == [("replayed", 0)]
    assert outcome("/charge", body=b"{}") == [("key-reused", 0)]
    assert outcome("/fails?how=raise", "raised") == [("released", 1)]
    assert outcome("/fails?how=not-found", "denied") == [("kept", 1)]
    assert outcome("/parks", "parked") == [("outcome-unknown", 1)]
    assert outcome("/needs_key", None) == [("key-missing", 0)]
    assert outcome("/charge", "two words") == [("key-invalid", 0)]


def test_a_page_of_the_services_own_is_not_replaced(serve: Any) -> None:
    from django.conf import settings

    own = [*settings.MIDDLEWARE, "tests.django.views.AnswersStoreErrors"]
    client = serve(MIDDLEWARE=own)
    for _ in range(2):
        answer = client.send("/fails?how=store")
        assert (answer.status, answer.body, answer.replayed) == (503, b"our own page", False)
    assert (orders(), views.runs) == ([], ["fails"] * 2)


def test_a_large_body_is_whole_where_its_fingerprint_is_taken_anew(serve: Any) -> None:
    from semel import Policy

    natural = Policy(shared=True, key=lambda request: request.header("x-order"), fingerprint="key")
    client = serve({"routes": {"/raw": natural}}, DATA_UPLOAD_MAX_MEMORY_SIZE=None)
    large = bytes(2 * 1024 * 1024)
    assert [client.send("/raw", body=large).body for _ in range(2)] == [b"%d" % len(large)] * 2


def test_a_key_that_is_none_is_refused_before_the_body_is(serve: Any) -> None:
    client = serve({"policy": {"max_request_body": 4}})
    assert client.send("/charge", key="two words", body=b"too long").problem == "key-invalid"


def test_a_refusal_that_the_client_does_not_get_is_no_outcome(serve: Any) -> None:
    from semel.web.django.conf import configured

    client = serve({"authorize": "tests.django.test_callers.forbid"})
    seen: list[Any] = []
    configured().idempotency.outcomes.observers += (seen.append,)
    assert client.send("/needs_key", key=None).status == 403
    assert seen == []
    assert client.send("/needs_key", key=None, headers=[("X-Allowed", "yes")]).status == 400
    assert [named(passed) for passed in seen] == ["key-missing"]
