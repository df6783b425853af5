"""What a handler gets when the shop runs without Semel: a plain connection, and no protection."""

from __future__ import annotations

from typing import Any

from shop.database import DATABASE


class PlainOperation:
    """Has the one method that the handlers use; each statement commits by itself, at once."""

    async def connection(self) -> Any:
        return await DATABASE.unprotected()


async def operation() -> PlainOperation:
    """Stands in for `semel.web.fastapi.operation`; whatever key the client sends is ignored."""
    return PlainOperation()
