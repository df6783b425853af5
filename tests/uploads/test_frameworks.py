"""Uploads mounted in FastAPI and Flask, behind the idempotency middleware."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from semel import ASGIMiddleware, Idempotency, WSGIMiddleware
from semel.uploads import DiskStorage, Uploads
from tests.http.harness import asgi_server, wsgi_server
from tests.uploads.harness import PIECE, TUS, Service

DATA = os.urandom(2_000_000)


@pytest.fixture(params=["fastapi", "flask"])
def tus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    uploads = Uploads(DiskStorage(tmp_path / "objects"), tmp_path / "uploads", sweep_every=None)
    idempotency = Idempotency(f"sqlite:///{tmp_path}/keys.db")
    app: Any
    if request.param == "fastapi":
        app = FastAPI()
        app.mount("/uploads", uploads.asgi)
        app.add_middleware(ASGIMiddleware, idempotency=idempotency)
        server = asgi_server(app)
    else:
        app = Flask(__name__)
        app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/uploads": uploads.wsgi})
        app.wsgi_app = WSGIMiddleware(app.wsgi_app, idempotency)
        server = wsgi_server(app)
    with server as port:
        yield Service(port, uploads)


def test_a_keyed_plain_upload_is_replayed_and_another_file_under_its_key_is_refused(
    tus: Service,
) -> None:
    first, again = (tus.send("/uploads/", "k", DATA) for _ in range(2))
    assert (first.status, first.replayed) == (201, False)
    assert (again.status, again.replayed) == (201, True)
    assert again.header("Location") == first.header("Location")
    assert again.header("ETag") == first.header("ETag")
    assert tus.send("/uploads/", "k", DATA[1:]).problem == "key-reused"
    assert tus.content(first.header("Location") or "") == DATA


def test_a_keyed_creation_is_replayed_and_the_upload_goes_on(tus: Service) -> None:
    fields = [TUS, ("Upload-Length", str(len(DATA)))]
    first, again = (tus.send("/uploads/", "k", b"", headers=fields) for _ in range(2))
    assert (first.status, again.status, again.replayed) == (201, 201, True)
    url = again.header("Location") or ""
    assert url.startswith("/uploads/")
    half = [TUS, PIECE, ("Upload-Offset", "0")]
    assert tus.ask("PATCH", url, half, DATA[:1_000_000]).status == 204
    tus.persist(url, DATA)
    assert tus.content(url) == DATA
