"""Names of callers: nobody's is another's."""

from __future__ import annotations

import pytest
from django.utils.functional import SimpleLazyObject
from werkzeug.local import LocalProxy

from semel.web.http.callers import named_caller, session_user


class Admin:
    id = 1


class Customer:
    id = 1


@pytest.mark.parametrize("proxy", [LocalProxy, SimpleLazyObject])
def test_a_proxy_has_the_name_of_what_it_stands_for(proxy: type) -> None:
    """Of both kinds the class is the proxy's: two users with one number had one name."""
    for kind in (Admin, Customer):
        assert named_caller(proxy(kind)) == named_caller(kind())
    assert named_caller(proxy(Admin)) != named_caller(proxy(Customer))


def test_a_name_in_a_session_is_not_that_under_another_key() -> None:
    """An email address or a profile that a visitor chooses may look like another's number."""
    sessions = [
        {"user_id": 5},
        {"_user_id": "5"},
        {"user": {"id": 5}},
        {"username": "5"},
        {"profile": "5"},
        {"email": "5"},
        {"account_id": 5},
    ]
    assert len({session_user(each) for each in sessions}) == len(sessions)


@pytest.mark.parametrize("session", [{}, {"user": None}, {"user": ""}, {"csrf": "5"}])
def test_a_session_that_names_nobody(session: dict[str, object]) -> None:
    assert session_user(session) is None
