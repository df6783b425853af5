"""What statements are judged to do to their session, by their text."""

from __future__ import annotations

import pytest

from semel.stores.effects import SessionEffect, effect_of

HARMLESS = [
    "",
    " ; ",
    "-- nothing but a comment",
    "(select 1)",
    "/* who */ select * from orders",
    "insert into orders (id) values ($1) returning id",
    "select set_config('app.tenant', 'a', true)",
    "set local statement_timeout = 5",
]
NOT_KNOWN = [
    "# MySQL's comment\nset session sql_mode = ''",
    "# MySQL's comment\nselect get_lock('a', 1)",
    "/* /* nested */ ' */ set role 'nobody'",
    "select \"set_config\"('app.tenant', 'a', false)",
    "select of_mine(1)",
]


@pytest.mark.parametrize("statement", HARMLESS)
def test_an_ordinary_statement_leaves_nothing(statement: str) -> None:
    assert effect_of(statement) is SessionEffect.NONE
    assert effect_of(statement.encode()) is SessionEffect.NONE


@pytest.mark.parametrize("statement", NOT_KNOWN)
def test_what_cannot_be_read_may_leave_something(statement: str) -> None:
    assert effect_of(statement) >= SessionEffect.PERHAPS
