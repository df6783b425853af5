"""Sessions that several tasks of one handler use: their first statements take turns.

SQLAlchemy refuses a statement while another task's has the session begin its savepoint. After that
the driver's own lock has statements wait for each other.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only


def take_turns(session: AsyncSession) -> AsyncSession:
    """Have one task at a time begin what the session's statements run in."""
    sync: Any = session.sync_session
    begin = sync._connection_for_bind
    lock = asyncio.Lock()

    def begin_alone(*args: Any, **kwargs: Any) -> Any:
        await_only(lock.acquire())
        try:
            return begin(*args, **kwargs)
        finally:
            lock.release()

    sync._connection_for_bind = begin_alone
    return session
