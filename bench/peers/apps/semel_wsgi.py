"""Semel on Flask, as its README says: the charge commits with the key."""

import time
from datetime import timedelta

from flask import Flask, request

from bench.peers.apps import books
from bench.peers.apps.wsgi import authenticated
from semel import Idempotency, Issuer, Policy
from semel.web.flask import init_app, operation

books.open_tables()
idempotency = Idempotency(
    f"sqlite:///{books.FOLDER / 'shop.db'}",
    policy=Policy(required=True, lease=timedelta(seconds=books.LEASE)),
    scope=lambda request: books.ACCOUNTS[request.header("Authorization")],
    issuer=Issuer(b"a secret of more than 32 bytes, for a bench"),
)
flask = Flask(__name__)


@flask.get("/charges/count")
def count():
    return {"charges": books.count()}


@flask.post("/charges")
@flask.post("/refunds")
def charge():
    wanted = request.json
    if wanted["amount"] < 0:
        return {"error": "declined"}, 402
    time.sleep(books.BEFORE)
    row = operation().connection().execute(books.CHARGE, ("", wanted["amount"]))
    time.sleep(books.AFTER)
    status, body, headers = books.answer(row.lastrowid)
    return body, status, headers


init_app(flask, idempotency)
app = authenticated(flask)
