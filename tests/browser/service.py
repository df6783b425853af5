"""A service with pages: FastAPI, Semel on SQLite, a strict Content-Security-Policy."""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import secrets
import sqlite3
import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from semel import Idempotency, Policy
from semel.web.browser import semel_js
from semel.web.fastapi import AsyncOp, init_app

CSP = (
    "default-src 'none'; img-src data:; script-src 'self' 'nonce-{}'; style-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

PAGE_JS = """
for (const name of ["send", "wait", "offline", "answer", "unknown"])
  document.addEventListener("semel:" + name, (event) => {
    const { key, attempt, problem, delay, text, answer } = event.detail;
    const line = document.createElement("li");
    const status = answer?.status;
    line.textContent = JSON.stringify({ name, key, attempt, problem, delay, status });
    document.querySelector("#log").append(line);
    if (name == "answer" && text[0] == "{") document.querySelector("#answer").textContent = text;
    if (document.querySelector("[data-mine]")) event.preventDefault();
  });
document.addEventListener("securitypolicyviolation", (event) => {
  document.querySelector("#log").textContent += "CSP " + event.violatedDirective;
});
"""

STYLE = """
body { font: 16px/1.5 sans-serif; margin: 2rem; max-width: 40rem }
label, button { display: block; margin: .5rem 0 }
.state { display: none; padding: .5rem; border: 1px solid }
[data-semel-state=send] ~ .sending, [data-semel-state=wait] ~ .waiting,
[data-semel-state=offline] ~ .offline, [data-semel-state=unknown] ~ .unknown { display: block }
#log { color: #666; font: 12px monospace }
"""

STATES = """
<p class="state sending" role="status">Sending …</p>
<p class="state waiting" role="status">The network is bad. Trying again …</p>
<p class="state offline" role="status">You are offline. This is sent when you are back.</p>
<p class="state unknown" role="alert">We do not know whether this was done. Look it up.</p>
"""


@dataclass
class Service:
    """The application, and what a test may steer and ask."""

    database: Path
    gate: threading.Event = field(default_factory=threading.Event)
    """Closed: orders wait. Open at the start."""
    refusals: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    """Answers given to coming orders in place of Semel's."""
    running: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released by each order that has begun."""
    content_types: list[str] = field(default_factory=list)
    """Of each order that arrived."""
    refills: list[Any] = field(default_factory=list)
    """What `POST /idempotency-keys` was asked."""
    keys_left: int | None = None
    """How often keys are still handed out; None: always."""
    thanked: int = 0
    """How often the page after an order was asked for."""
    elsewhere: str = ""
    """Another origin."""
    html_headers: dict[str, str] = field(default_factory=dict)
    """Headers of the answer to an order on `/orders/html`."""

    def __post_init__(self) -> None:
        self.gate.set()
        self._numbers = itertools.count(1)
        with sqlite3.connect(self.database) as database:
            database.execute(
                "create table orders (id integer primary key, key text, item text, size integer)"
            )
        policy = Policy(guarantee="atomic", required=True, wait=timedelta(milliseconds=100))
        self.idempotency = Idempotency(f"sqlite:///{self.database}", policy=policy)
        app = FastAPI()
        self._pages(app)
        self._orders(app)
        init_app(app, self.idempotency)
        self.app = self._around(app)

    def orders(self) -> list[tuple[str, str]]:
        """Return key and item of every order."""
        with sqlite3.connect(self.database) as database:
            return database.execute("select key, item from orders order by id").fetchall()

    def new_keys(self, count: int, lasts: float = 3600) -> dict[str, Any]:
        """Return keys as they are handed out."""
        end = datetime.now(UTC) + timedelta(seconds=lasts)
        keys = [f"issued-{next(self._numbers)}-{secrets.token_hex(8)}" for _ in range(count)]
        return {"keys": keys, "not_after": end.isoformat().replace("+00:00", "Z")}

    # --- pages ---------------------------------------------------------------------------------

    def page(self, body: str, pool: str = "") -> HTMLResponse:
        script = semel_js()
        return HTMLResponse(
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Shop</title>'
            '<link rel="icon" href="data:,"><link rel="stylesheet" href="/style.css">'
            f'<script src="/semel.{script.version}.js" integrity="{script.integrity}" defer>'
            f'</script>{pool}<script src="/page.js" defer></script></head><body>{body}'
            '<p id="answer"></p><ol id="log"></ol></body></html>'
        )

    def form(self, asked: dict[str, str], error: str = "") -> HTMLResponse:
        """Return the order form; what is in the query says which."""
        pool = ""
        if "pool" in asked:
            keys = self.new_keys(int(asked["pool"]), float(asked.get("lasts", "3600")))
            pool = (
                '<script type="application/json" data-semel-keys="/idempotency-keys">'
                f"{json.dumps(keys)}</script>"
            )
        hidden = ""
        if "field" in asked:
            value = asked["field"] or f"field-{secrets.token_hex(8)}"
            hidden = f'<input type="hidden" name="idempotency_key" value="{value}">'
        if "csrf" in asked:
            hidden += (
                f'<input type="hidden" name="csrf" value="{secrets.token_hex(8)}"'
                ' data-semel-header="X-CSRF-Token">'
            )
        file = '<label>File <input type="file" name="file"></label>' if "file" in asked else ""
        enctype = "multipart/form-data" if file else "application/x-www-form-urlencoded"
        action = html.escape(f"/orders/{asked.get('answer', 'redirect')}")
        attributes = "data-mine" if "mine" in asked else ""
        return self.page(
            f"<main><h1>Order</h1><p>{error}</p>"
            f'<form id="order" method="post" action="{action}" enctype="{enctype}" data-semel'
            f" {attributes}>{hidden}"
            '<label>Item <input name="item"></label>'
            '<label>PIN <input type="password" name="pin"></label>'
            '<label>Note <textarea name="note"></textarea></label>'
            f'{file}<button>Order</button><button type="reset">Start over</button></form>'
            f"{STATES}</main>",
            pool,
        )

    def _pages(self, app: FastAPI) -> None:
        @app.get("/form")
        async def form(request: Request) -> Response:
            return self.form(dict(request.query_params))

        @app.get("/thanks/{number}")
        async def thanks(number: int) -> Response:
            self.thanked += 1
            return self.page(f'<h1>Order {number}</h1><a href="/form">Order again</a>')

        @app.get("/semel.{version}.js")
        async def script() -> Response:
            served = semel_js()
            headers = {"cache-control": "public, max-age=31536000, immutable"}
            return Response(served.body, media_type=served.media_type, headers=headers)

        @app.get("/page.js")
        async def page_js() -> Response:
            return Response(PAGE_JS, media_type="text/javascript")

        @app.get("/style.css")
        async def style() -> Response:
            return Response(STYLE, media_type="text/css")

        @app.post("/idempotency-keys", status_code=201)
        @self.idempotency.route(required=False, guarantee="at-least-once")
        async def keys(request: Request) -> Response:
            asked = await request.json()
            self.refills.append(asked)
            if self.keys_left is not None and (left := self.keys_left) <= 0:
                return JSONResponse({"left": left}, status_code=500)
            return JSONResponse(self.new_keys(asked["count"]), status_code=201)

    # --- orders --------------------------------------------------------------------------------

    def _orders(self, app: FastAPI) -> None:
        async def order(answer: str, request: Request, op: AsyncOp) -> Response:
            if request.headers["content-type"] == "application/json":
                fields = await request.json()
            else:
                fields = dict(await request.form())
            self.running.release()
            await asyncio.to_thread(self.gate.wait, 20)
            if answer == "parked":
                await op.park("the bank does not answer")
            database = await op.connection()
            if fields["item"] == "nonsense":
                return self.form({"answer": answer}, "No such item")
            size = getattr(fields.get("file"), "size", None)
            row = await database.execute(
                "insert into orders (key, item, size) values (?, ?, ?)",
                (request.headers["idempotency-key"], fields["item"], size),
            )
            number = row.lastrowid
            if answer == "html":
                shown = self.page(f"<h1>Order {number}</h1>")
                shown.headers.update(self.html_headers)
                return shown
            if answer in ("json", "short"):
                return JSONResponse({"order": number}, status_code=201)
            away = self.elsewhere if answer == "elsewhere" else ""
            return RedirectResponse(f"{away}/thanks/{number}#below", 303)

        app.post("/orders/short")(
            self.idempotency.route(expires=timedelta(microseconds=1))(_named("short", order))
        )
        app.post("/orders/parked")(
            self.idempotency.route(guarantee="at-most-once")(_named("parked", order))
        )
        app.post("/orders/{answer}")(order)

    def _around(self, app: Any) -> Any:
        """What stands before Semel: the field read as the key, refusals, headers of every page."""

        async def outer(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return

            asked = scope["query_string"]
            trusted = "; require-trusted-types-for 'script'" if b"trusted" in asked else ""

            async def sending(message: Any) -> None:
                if message["type"] == "http.response.start":
                    nonced = CSP.format(secrets.token_hex(8)) + trusted
                    # `close`: Chromium by itself repeats a POST that was cut on a used connection.
                    has = {name for name, _ in message["headers"]}
                    usual = (
                        (b"content-security-policy", nonced.encode()),
                        (b"cache-control", b"no-cache"),
                    )
                    message["headers"] = [
                        *message["headers"],
                        (b"connection", b"close"),
                        *((name, value) for name, value in usual if name not in has),
                    ]
                await send(message)

            if scope["path"].startswith("/orders/"):
                body, more = b"", True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":  # cut in mid-upload
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                headers = dict(scope["headers"])
                self.content_types.append(headers[b"content-type"].decode())
                if self.refusals:
                    status, fields = self.refusals.popleft()
                    await Response(status_code=status, headers=fields)(scope, receive, sending)
                    return
                if b"idempotency-key" not in headers:
                    given = dict(parse_qsl(body.decode())).get("idempotency_key", "")
                    scope["headers"] = [*scope["headers"], (b"idempotency-key", given.encode())]
                parts = iter([{"type": "http.request", "body": body, "more_body": False}])
                upstream = receive

                async def receive() -> Any:  # type: ignore[misc]
                    return next(parts, None) or await upstream()

            await app(scope, receive, sending)

        return outer


def _named(answer: str, order: Any) -> Any:
    async def handler(request: Request, op: AsyncOp) -> Response:
        response: Response = await order(answer, request, op)
        return response

    return handler
