"""Flask with a `scoped_session` that is removed in the teardown: tokens, blueprints, domain errors.

DATABASE_URL=postgresql+psycopg://user@host/library gunicorn app:app
"""

import os
from typing import Any

from flask import Blueprint, Flask, abort, request
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from semel import Idempotency
from semel.sessions import join_sessionmaker
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.flask import init_app

engine = create_engine(os.environ["DATABASE_URL"])
Session = scoped_session(sessionmaker(engine))

# --- Semel: the session of a request with a key is in the transaction of the key ---
idempotency = Idempotency(SQLAlchemyStore(engine))
join_sessionmaker(Session, idempotency)
# --- that was it, with init_app below ---


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True)


class Reader(Base):
    __tablename__ = "readers"
    name: Mapped[str]
    token: Mapped[str] = mapped_column(unique=True)


class Book(Base):
    __tablename__ = "books"
    title: Mapped[str] = mapped_column(unique=True)
    copies: Mapped[int]


class Loan(Base):
    __tablename__ = "loans"
    reader_id: Mapped[int] = mapped_column(ForeignKey("readers.id"))
    title: Mapped[str]


class AllLentError(Exception):
    """No copy is left."""


def reader() -> int:
    token = request.headers.get("Authorization", "").removeprefix("Token ")
    found = Session.scalar(select(Reader).where(Reader.token == token))
    return found.id if found is not None else abort(401)


api = Blueprint("api", __name__)


@api.get("/loans")
def loans() -> Any:
    found = Session.scalars(select(Loan).where(Loan.reader_id == reader()).order_by(Loan.id))
    return [each.title for each in found]


@api.post("/loans")
def lend() -> Any:
    loan = Loan(reader_id=reader(), title=request.get_json()["title"])
    Session.add(loan)
    Session.flush()
    book = Session.scalar(select(Book).where(Book.title == loan.title))
    if book is None or not book.copies:
        raise AllLentError(loan.title)
    book.copies -= 1
    Session.commit()
    return {"loan": loan.id, "left": book.copies}, 201


app = Flask(__name__)
app.register_blueprint(api)


@app.teardown_appcontext
def remove_session(error: BaseException | None) -> None:
    Session.remove()


@app.errorhandler(AllLentError)
def all_lent(error: AllLentError) -> Any:
    return {"error": f"{error}: all copies are lent"}, 410


@app.errorhandler(KeyError)
def incomplete(error: KeyError) -> Any:
    return {"error": f"{error.args[0]}: is missing"}, 422


init_app(app, idempotency, caller=reader)  # Semel

Base.metadata.create_all(engine)
if Session.scalar(select(Reader)) is None:
    Session.add_all(Reader(name=name, token=f"token-of-{name}") for name in ("alice", "bob"))
    Session.add_all([Book(title="Solaris", copies=9), Book(title="Ubik", copies=0)])
    Session.commit()
Session.remove()
