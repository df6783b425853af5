"""What a handler gets when the shop runs without Semel: a plain connection, and no protection."""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import Any

from shop.books import connect


class PlainOperation:
    """Has the one method that the handlers use; each statement commits by itself, at once."""

    async def connection(self) -> PlainOperation:
        return self

    async def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        return _connection().execute(statement, parameters)


async def operation() -> PlainOperation:
    """Stands in for `semel.web.fastapi.operation`; whatever key the client sends is ignored."""
    return PlainOperation()


@cache
def _connection() -> sqlite3.Connection:
    return connect()
