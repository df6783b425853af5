"""The pages on which a person can try the shop: one for each use, and the start."""

from __future__ import annotations

import json
from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from semel.web.browser import semel_js
from shop import network, page
from shop.books import Books, Read
from shop.orders import draw_number
from shop.page import ROWS, table
from shop.protection import PROTECTED, issuer

router = APIRouter(include_in_schema=False)
LOST_ON_A_PLAIN_FORM = (
    "Simulate a bad network: the response is lost. Chromium sends a plain form again by itself,"
    " look at the wire; where the browser shows an error, go back and press again."
)
KEYS = 5
"""That a page brings along; `semel.js` fetches more."""
ALL = 1000

_START = page.template("start.html")
_PAYMENTS = page.template("payments.html")
_ORDERS = page.template("orders.html")
_SUBSCRIPTIONS = page.template("subscriptions.html")
_PLAN = page.template("plan.html")
_CANCEL = page.template("cancel.html")
_SIGN_UP = page.template("sign-up.html").substitute()
_UPLOADS = page.template("uploads.html").substitute()
PLANS = {"tea": "Tea, weekly", "coffee": "Coffee, monthly"}


@router.get("/try/payments")
def payments(request: Request, books: Read, made: int | None = None) -> HTMLResponse:
    customer = page.visitor(request)
    issued = issuer.issue(customer, KEYS + 1)
    pool = {"keys": issued.keys[1:], "not_after": issued.not_after_text}
    main = page.use(
        heading="Payments: the same key is the same payment",
        same="The same form with the same content, sent again from the same visit of this page, is"
        " the same payment; a change makes another one. The shop hands the keys out, signed for"
        " you, and takes no others.",
        form=_PAYMENTS.substitute(pool=json.dumps(pool), key=issued.keys[0]),
        ideas=(
            "Press twice. Pay, go back, and pay again without a change: one payment.",
            "Go back, change the amount, and pay: another payment, on purpose.",
            "Simulate a bad network and pay: the response is lost, <code>semel.js</code> retries.",
            "Send the last one again with a change: refused (422), for the key is taken.",
        ),
        note=f"Payment {made} is made." if made else "",
        happened=("Payments made", books.count_of(customer, "payments")),
        rows=table(
            (row["id"], escape(row["purpose"]), page.money(row["amount"]), page.time(row))
            for row in books.of(customer, "payments", ROWS)
        ),
        wire=_wire(books, customer, "/payments"),
        edit=("euros", "999.99"),
    )
    return page.framed(request, customer, main, "try.js")


@router.get("/try/orders")
def orders(request: Request, books: Read) -> HTMLResponse:
    customer = page.visitor(request)
    main = page.use(
        heading="Orders: the same number is the same order",
        same="The page generates the order’s number and PUTs the order there, so there is one under"
        " that number, however often it is sent. <code>If-None-Match: *</code> only creates,"
        " <code>If-Match</code> only changes what you have seen.",
        form=_ORDERS.substitute(number=draw_number()),
        ideas=(
            "Press twice: one is created (201), the other told that it is there (412).",
            "Change the quantity, then “Change it”: 200, if nobody else has changed it.",
            "Delete it, twice: 204 both times. Order again: it is a new one, under its number.",
            "Simulate a bad network: a retry of your own order gets its 201, not 412.",
        ),
        note="",
        happened=("Orders there", books.count_of(customer, "orders")),
        rows=table(
            (
                escape(row["number"]),
                escape(row["item"]),
                f"× {row['quantity']}, version {row['version']}",
                page.time(row),
            )
            for row in books.of(customer, "orders", ROWS)
        ),
        wire=_wire(books, customer, "/orders"),
    )
    return page.framed(request, customer, main, "try.js", "orders.js")


@router.get("/try/subscriptions")
def subscriptions(request: Request, books: Read, made: int | None = None) -> HTMLResponse:
    customer = page.visitor(request)
    main = page.use(
        heading="Subscriptions: the same customer and plan is the same subscription",
        same="You have a plan or you have it not: to subscribe again is the same subscription,"
        " until it is cancelled. So the form says which ended one it follows, and no key is sent.",
        form=_SUBSCRIPTIONS.substitute(
            plans="\n".join(_plan(books, customer, plan) for plan in PLANS)
        ),
        ideas=(
            "Subscribe twice, or in two tabs: one subscription, and one letter of welcome.",
            "Cancel and subscribe again: a new one. Cancel twice: cancelled once.",
            LOST_ON_A_PLAIN_FORM,
        ),
        note=f"You have subscription {made}." if made else "",
        happened=("Letters of welcome", books.count_of(customer, "mails")),
        rows=table(
            (
                row["id"],
                escape(PLANS[row["plan"]]),
                f"ended {page.time(row, 'ended_at')}" if row["ended_at"] else "running",
                page.time(row),
            )
            for row in books.of(customer, "subscriptions", ROWS)
        ),
        wire=_wire(books, customer, "/subscriptions"),
    )
    return page.framed(request, customer, main)


def _plan(books: Books, customer: str, plan: str) -> str:
    last = books.last_subscription(customer, plan)
    running = last is not None and last["ended_at"] is None
    number = last["id"] if last else 0
    return _PLAN.substitute(
        plan=plan,
        name=PLANS[plan],
        state=f"running, number {number}" if running else "not subscribed",
        # What the running one said, so that to press again is to say the same again.
        follows=last["follows"] if last and running else number,
        subscribe="Subscribe again" if running else "Subscribe",
        cancel=_CANCEL.substitute(number=number, name=PLANS[plan]) if running else "",
    )


@router.get("/try/sign-up")
def sign_up(request: Request, books: Read, made: int | None = None) -> HTMLResponse:
    customer = page.visitor(request)
    main = page.use(
        heading="Sign-up: the same e-mail is the same account",
        same="The e-mail is the key, in whatever case it is written, so a second sign-up with it is"
        " the first one and gets its response. Somebody else’s sign-up with your e-mail is refused,"
        " today and for ever: it is unique in the table.",
        form=_SIGN_UP,
        ideas=(
            "Sign up twice, the second time with another name: the first response, replayed.",
            "Sign up from a private window with the same e-mail: 409, it is taken.",
            LOST_ON_A_PLAIN_FORM,
        ),
        note=f"You have account {made}." if made else "",
        happened=("Accounts made", books.count_of(customer, "accounts")),
        rows=table(
            (row["id"], escape(row["email"]), "", page.time(row))
            for row in books.of(customer, "accounts", ROWS)
        ),
        wire=_wire(books, customer, "/sign-up"),
    )
    return page.framed(request, customer, main)


@router.get("/try/uploads")
def uploads(request: Request, books: Read) -> HTMLResponse:
    customer = page.visitor(request)
    main = page.use(
        heading="Uploads: the same bytes are the same file",
        same="A file is known by its SHA-256: the same bytes are stored once, under whatever name"
        " and however often they come. A cut upload goes on where it stopped.",
        form=_UPLOADS,
        ideas=(
            "Upload a file twice, or a copy under another name: one row, and one file on disk.",
            "Cut the connection in the middle of a large file, and upload it again: it goes on.",
            "Simulate a bad network: after a lost response the page asks how far it came.",
        ),
        note="",
        happened=("Files stored", books.count_of(customer, "files")),
        rows=table(
            (
                row["id"],
                f"{escape(row['name'])}<br><code>SHA-256 {escape(row['digest'][:16])}…</code>",
                f"{row['size']:,} bytes",
                page.time(row),
            )
            for row in books.of(customer, "files", ROWS)
        ),
        wire=_wire(books, customer, "/uploads/", "/files"),
    )
    return page.framed(request, customer, main, "try.js", "uploads.js")


def _wire(books: Books, customer: str, *paths: str) -> list[dict[str, Any]]:
    lines = network.lines(books, customer, ALL)
    return [line for line in lines if line["path"].startswith(paths)]


@router.get("/")
def start(request: Request, books: Read) -> HTMLResponse:
    charges = books.latest("charges", ROWS)
    again = books.again([row["order_id"] for row in charges])
    doubled = books.charged_again()
    mark = " " + page.badge("bad", "more than once")
    main = _START.substitute(
        explanation=(
            "Send anything again with the same key: it happens once, and the repeat gets the first"
            " response."
            if PROTECTED
            else "Nobody looks at the key: whatever is sent again happens again."
        ),
        charges=page.number(books.count("charges")),
        taken=page.money(books.taken()),
        orders=page.number(books.count("orders")),
        accounts=page.number(books.count("accounts")),
        doubled=page.number(doubled),
        alarm="alarm" if doubled else "",
        charge_rows=table(
            (
                row["id"],
                escape(row["order_id"]) + (mark if row["order_id"] in again else ""),
                page.money(row["amount"]),
                page.time(row),
            )
            for row in charges
        ),
        order_rows=table(
            (row["id"], escape(row["item"]), f"× {row['quantity']}", page.time(row))
            for row in books.latest("orders", ROWS)
        ),
        account_rows=table(
            (row["id"], escape(row["email"]), "", page.time(row))
            for row in books.latest("accounts", ROWS)
        ),
    )
    return page.framed(request, page.visitor(request), main, "shop.js")


@router.post("/network")
def switch(
    network_is: Annotated[str, Form(alias="network")], back: Annotated[str, Form()]
) -> Response:
    answer = RedirectResponse(back if back in page.USES else "/", 303)
    if network_is == network.BAD:
        answer.set_cookie(network.COOKIE, network.BAD, httponly=True, samesite="lax")
    else:
        answer.delete_cookie(network.COOKIE)
    return answer


@router.get("/static/semel.{version}.js")
def script(version: str) -> Response:
    served = semel_js()
    forever = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(served.body, media_type=served.media_type, headers=forever)
