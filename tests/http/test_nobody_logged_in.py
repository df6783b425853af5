"""`caller=` that finds nobody: what credentials there are tell the requests apart."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask

import semel.web.fastapi
import semel.web.flask
from semel import Idempotency


def _fastapi(made: list[int]) -> Any:
    app = FastAPI()

    @app.post("/things", status_code=201)
    async def make() -> dict[str, int]:
        made.append(1)
        return {"thing": len(made)}

    def nobody() -> None:
        return None

    semel.web.fastapi.init_app(app, Idempotency("memory://"), caller=nobody)
    return TestClient(app)


def _flask(made: list[int]) -> Any:
    app = Flask("things")

    @app.post("/things")
    def make() -> Any:
        made.append(1)
        return {"thing": len(made)}, 201

    semel.web.flask.init_app(app, Idempotency("memory://"), caller=lambda: None)
    return app.test_client()


@pytest.mark.parametrize("make", [_fastapi, _flask], ids=["fastapi", "flask"])
@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_credentials_tell_those_apart_who_are_not_logged_in(make: Any, header: str) -> None:
    made: list[int] = []
    client = make(made)
    for who, runs in [("one", 1), ("one", 1), ("two", 2), (None, 3), (None, 3), ("one", 3)]:
        headers = {"Idempotency-Key": "k"} | ({header: who} if who else {})
        assert client.post("/things", headers=headers).status_code == 201
        assert len(made) == runs
