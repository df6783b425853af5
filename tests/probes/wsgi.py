"""The probed WSGI application: Flask behind gunicorn's threads, set up as the README says."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Flask, Response, request

from semel.web.flask import init_app, operation
from tests.probes import shop

shop.open_tables()
app = Flask(__name__)


@app.route("/charge", methods=["POST", "PATCH"])
@app.post("/other")
@app.post("/impatient")
@app.post("/brief")
def charge() -> Response:
    op = operation()
    wanted = request.get_json()
    fate = shop.Fate(wanted, op.key_hash)
    fate.before_the_charge()
    if fate.what == "wait":
        shop.wait_for("go")
    time.sleep(wanted.get("sleep", 0))
    db = op.connection()
    who = request.headers.get("Authorization", "")
    row = db.execute(shop.CHARGE, (who, wanted["amount"]))
    fate.after_the_charge()
    status, headers, body = shop.answer(wanted, row.lastrowid)
    return Response(body, fate.status or status, headers)


@app.post("/upload")
def upload() -> Response:
    size = 0
    while chunk := request.stream.read(65536):
        size += len(chunk)
    operation().connection().execute(shop.CHARGE, ("upload", size))
    return Response(str(size))


@app.post("/stream")
def stream() -> Response:
    def chunks() -> Iterator[bytes]:
        yield b"first "
        shop.wait_for("go")
        yield b"second"

    return Response(chunks())


@app.post("/atomic-stream")
def atomic_stream() -> Response:
    op = operation()
    op.connection().execute(shop.CHARGE, ("stream", 1))
    op.commit()
    return stream()


init_app(app, shop.idempotency)
