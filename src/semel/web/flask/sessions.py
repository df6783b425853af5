"""`join_flask_sqlalchemy`: Flask-SQLAlchemy's `db.session`, in the operation's transaction."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy.orm import Session, scoped_session

from semel.idempotency import Idempotency
from semel.sessions import join_sessionmaker

__all__ = ["FlaskSQLAlchemy", "join_flask_sqlalchemy"]


class FlaskSQLAlchemy(Protocol):
    """The extension of Flask-SQLAlchemy 3, `db = SQLAlchemy(app)`, as far as it is needed."""

    session: scoped_session[Session]


def join_flask_sqlalchemy(db: FlaskSQLAlchemy, idempotency: Idempotency) -> None:
    """Have `db.session` join the operation of a request with a key; views stay as they are.

        db = SQLAlchemy(app)
        with app.app_context():
            idempotency = Idempotency(SQLAlchemyStore(db.engine))
        join_flask_sqlalchemy(db, idempotency)

    In an operation `db.session.commit()` releases a savepoint and `db.session.rollback()` goes back
    to it; both become real with the record, which is written after the teardown functions. A
    session that a `before_request` function has begun goes on in the operation's transaction; what
    it flushed before is committed by itself. Models of another database (`__bind_key__`) can be
    read in an operation; a write to one raises `StoreSetupError`.

    Raises `TypeError` for what is no `SQLAlchemy` of Flask-SQLAlchemy 3.
    """
    if not isinstance(getattr(db, "session", None), scoped_session):
        raise TypeError(f"join_flask_sqlalchemy: give db = SQLAlchemy(app), not {db!r}")
    join_sessionmaker(db.session, idempotency)
