"""Flask with Flask-SQLAlchemy: a login in the session, orders, `abort` for what is refused.

DATABASE_URL=postgresql+psycopg://user@host/shop gunicorn app:app
"""

import os
from typing import Any

from flask import Flask, abort, g, redirect, request, session
from flask_sqlalchemy import SQLAlchemy

from semel import Idempotency
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.flask import init_app, join_flask_sqlalchemy

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY", "not for production")
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
db = SQLAlchemy(app)


class User(db.Model):  # type: ignore[name-defined,misc]
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String(40), unique=True, nullable=False)
    password = db.Column(db.String(80), nullable=False)
    credit = db.Column(db.Integer, nullable=False)


class Order(db.Model):  # type: ignore[name-defined,misc]
    __tablename__ = "orders"
    id = db.Column(db.Integer, primary_key=True)
    user_id = db.Column(db.ForeignKey("user.id"), nullable=False)
    item = db.Column(db.String(80), nullable=False)
    price = db.Column(db.Integer, nullable=False)


@app.before_request
def load_user() -> None:
    number = session.get("user_id")
    g.user = db.session.get(User, number) if number is not None else None


def current_user() -> Any:
    return g.user or abort(401)


# --- Semel: `db.session` in a request with a key is in the transaction of the key ---
with app.app_context():
    store = SQLAlchemyStore(db.engine)
idempotency = Idempotency(store, routes={"POST /login": None})
join_flask_sqlalchemy(db, idempotency)
init_app(app, idempotency, caller=current_user)
# --- that was it ---


@app.post("/login")
def login() -> Any:
    user = db.session.scalar(db.select(User).filter_by(name=request.form["username"]))
    if user is None or user.password != request.form["password"]:
        abort(401)
    session["user_id"] = user.id
    return redirect("/orders")


@app.get("/orders")
def orders() -> Any:
    user = current_user()
    found = db.session.scalars(db.select(Order).filter_by(user_id=user.id).order_by(Order.id))
    return [{"id": each.id, "item": each.item, "price": each.price} for each in found]


@app.post("/orders")
def order() -> Any:
    user = current_user()
    wanted = request.get_json()
    if not wanted.get("item"):
        return {"error": "item: say what you want"}, 422
    made = Order(user_id=user.id, item=wanted["item"], price=wanted["price"])
    db.session.add(made)
    db.session.flush()
    user.credit -= made.price
    if user.credit < 0:
        abort(400, "your credit does not last")
    db.session.commit()
    session["last_order"] = made.id  # the cookie changes with each order
    return {"id": made.id, "credit": user.credit}, 201


with app.app_context():
    db.create_all()
    if db.session.scalar(db.select(User)) is None:
        for name in ("alice", "bob"):
            db.session.add(User(name=name, password="secret", credit=100))
        db.session.commit()
