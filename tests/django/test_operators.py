"""What operators have: the admin, `manage.py semel`, and the checks."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import Client as Browser
from django.test import override_settings

from semel.core.commands import Claim, Lookup, Park, RecordStep
from semel.core.keys import hash_key, reference
from semel.core.record import State
from semel.stores.django import DjangoStore
from semel.web.django.checks import MIDDLEWARE, check_middleware, check_settings
from semel.web.django.conf import configured

pytestmark = [
    pytest.mark.parametrize("vendor", ["sqlite"]),
    pytest.mark.usefixtures("database"),
]
KEY = hash_key("user:42", "k-1")
PAGE = "/admin/semel/storedrecord/"


@pytest.fixture
def store() -> Any:
    configured.cache_clear()
    made = configured().idempotency
    made.store.start()
    yield made.store
    made.stop()
    made.store.stop()


@pytest.fixture
def token(store: DjangoStore) -> int:
    return store.execute(Claim(KEY, b"\x01print", 30.0, b"owner")).token


def browser(*permissions: str) -> Browser:
    user = User.objects.create_user("olga", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    made = Browser()
    made.force_login(user)
    return made


def state(store: DjangoStore) -> State | None:
    found = store.execute(Lookup(KEY))
    return found.record.state if found is not None else None


def act(page: Browser, action: str, token: int, **more: str) -> str:
    fields = {"action": action, "_selected_action": str(token), **more}
    return page.post(PAGE, fields, follow=True).content.decode()


def test_a_record_is_found_by_reference_hash_and_raw_key(store: DjangoStore, token: int) -> None:
    page = browser("view_storedrecord")
    for wanted in (reference(KEY), KEY.hex(), "user:42 k-1"):
        assert reference(KEY) in page.get(PAGE, {"q": wanted}).content.decode()
    for other in ("user:43 k-1", "0" * 12, "k-1"):
        assert "0 records" in page.get(PAGE, {"q": other}).content.decode()
    assert reference(KEY) in page.get(PAGE, {"state__exact": "1"}).content.decode()
    assert reference(KEY) not in page.get(PAGE, {"state__exact": "3"}).content.decode()


def test_acting_asks_first_and_is_logged(store: DjangoStore, token: int) -> None:
    page = browser("view_storedrecord", "settle_record")
    assert "Are you sure" in act(page, "park", token)
    assert state(store) is State.IN_FLIGHT
    act(page, "park", token, confirmed="yes")
    assert state(store) is State.PARKED
    assert "left as it was" in act(page, "park", token, confirmed="yes")
    assert "Status" in act(page, "settle_as_done", token)
    assert "give 200 to 599" in act(page, "settle_as_done", token, confirmed="yes", status="9")
    act(page, "settle_as_done", token, confirmed="yes", status="201", body='{"id": 7}')
    record = store.execute(Lookup(KEY)).record
    assert (record.state, record.response.status, record.response.body) == (
        State.COMPLETED,
        201,
        b'{"id": 7}',
    )
    said = [entry.change_message for entry in LogEntry.objects.order_by("pk")]
    assert said == ["parked (was in flight)", "settled with an answer (was parked)"]


def test_a_parked_key_is_freed(store: DjangoStore, token: int) -> None:
    page = browser("view_storedrecord", "settle_record")
    act(page, "settle_as_not_done", token, confirmed="yes")
    assert state(store) is State.IN_FLIGHT  # it is not parked
    store.execute(Park(KEY, token, "lost", lapsed=False))
    act(page, "settle_as_not_done", token, confirmed="yes")
    assert state(store) is None


def test_whoever_may_only_look_cannot_act(store: DjangoStore, token: int) -> None:
    page = browser("view_storedrecord")
    assert "Park: stop" not in page.get(PAGE).content.decode()
    act(page, "park", token, confirmed="yes")
    assert state(store) is State.IN_FLIGHT
    assert page.post(f"{PAGE}{token}/delete/", {"post": "yes"}).status_code == 403
    assert page.get(f"{PAGE}add/").status_code == 403
    page.logout()
    assert page.get(PAGE).status_code == 302


def test_a_body_is_shown_only_where_it_is_asked_for(store: DjangoStore, token: int) -> None:
    page = browser("view_storedrecord", "settle_record")
    store.execute(Park(KEY, token, "lost", lapsed=False))
    act(page, "settle_as_done", token, confirmed="yes", body='{"secret": "<tea>"}')
    shown = page.get(f"{PAGE}{token}/change/").content.decode()
    assert "secret" not in shown
    assert "19 bytes" in shown
    asked = page.get(f"{PAGE}{token}/change/?body=1").content.decode()
    assert "secret" in asked
    assert "<tea>" not in asked


def manage(*arguments: str) -> str:
    out = io.StringIO()
    call_command("semel", *arguments, stdout=out)
    return out.getvalue()


def test_manage_py_finds_parks_and_settles(store: DjangoStore, token: int) -> None:
    store.execute(RecordStep(KEY, token, "charge", b"1", 60.0))
    shown = json.loads(manage("show", "k-1", "--scope", "user:42"))
    assert (shown["state"], shown["steps"]) == ("in flight", {"charge": "done"})
    with pytest.raises(CommandError, match="not parked"):
        manage("release", reference(KEY))
    assert manage("park", reference(KEY)).startswith("parked")
    manage("settle", KEY.hex(), "--status", "201", "--body", "{}")
    assert json.loads(manage("show", KEY.hex()))["status"] == 201
    with pytest.raises(CommandError, match="there is no record"):
        manage("show", "0" * 12)
    assert manage("sweep") == "cleared away: 0\n"


def test_manage_py_releases_what_was_parked(store: DjangoStore, token: int) -> None:
    manage("park", reference(KEY))
    assert manage("release", reference(KEY)).startswith("released")
    assert state(store) is None


def test_manage_py_check_says_what_is_promised(store: DjangoStore) -> None:
    assert "atomic where the handler" in manage("check")


@pytest.mark.parametrize(
    ("semel", "named"),
    [
        ({"polcy": {}}, "unknown polcy"),
        ({"policy": {"expire": 1}}, "Policy has no expire"),
        ({"policy": {"lease": 30}}, "lease: give a timedelta"),
        ({"routes": {"POST charges": {}}}, "give a path"),
        ({"store": "memory://", "policy": {"guarantee": "atomic"}}, "atomic"),
        ({"store": "memory://", "alias": "default"}, "not both"),
        ({"alias": "elsewhere"}, "elsewhere"),
        ({"scope": "no.such.function"}, "no"),
        ({"policy": {"remember_request": True}}, "remember_request"),
        ([], "give a dict"),
    ],
)
def test_settings_that_make_no_sense_are_named(semel: Any, named: str) -> None:
    with override_settings(SEMEL=semel):
        [error] = check_settings()
        assert named in error.msg


def test_the_middleware_has_its_place() -> None:
    from django.conf import settings

    others = [name for name in settings.MIDDLEWARE if name != MIDDLEWARE]
    assert check_middleware() == []
    for placed, code in (
        (others, "semel.E003"),
        ([MIDDLEWARE, *others], "semel.E004"),
        ([*others, MIDDLEWARE, MIDDLEWARE], "semel.E003"),
    ):
        with override_settings(MIDDLEWARE=placed):
            assert {error.id for error in check_middleware()} == {code}


def test_the_models_have_their_migrations() -> None:
    call_command("makemigrations", "semel", check=True, dry_run=True, verbosity=0)
