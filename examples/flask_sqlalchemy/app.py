"""Flask with SQLAlchemy: the booking and the answer to its key commit together.

SHOP=postgresql+psycopg://user@host/shop gunicorn app:app
"""

import os
from typing import Any

from flask import Flask, request
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from semel import Idempotency, Policy
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.flask import init_app, operation


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]


engine = create_engine(os.environ["SHOP"], pool_pre_ping=True)
sessions = sessionmaker(engine)
Base.metadata.create_all(engine)
idempotency = Idempotency(
    SQLAlchemyStore(engine, sessions=sessions),
    policy=Policy(required=True, guarantee="atomic"),
)
app = Flask(__name__)


@app.post("/orders")
def order() -> tuple[dict[str, Any], int]:
    wanted = request.get_json()
    session = operation().session()  # a Session in the transaction of the key
    placed = Order(item=wanted["item"], quantity=wanted.get("quantity", 1))
    session.add(placed)
    session.commit()  # a savepoint here: the real commit comes with the answer
    return {"order": placed.id, "item": placed.item, "quantity": placed.quantity}, 201


@app.get("/orders/count")
def count() -> str:
    with sessions() as session:
        return str(session.scalar(select(func.count()).select_from(Order)))


init_app(app, idempotency)
