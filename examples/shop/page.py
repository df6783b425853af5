"""The shop's pages: plain HTML made on the server, from the templates in `pages/`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.responses import HTMLResponse

from semel.web.browser import semel_js
from shop import network
from shop.customers import COOKIE, NOBODY, cookies, customer_of, new_customer
from shop.protection import PROTECTED

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'",
    # Not no-store, which would take the browser's way back from it.
    "cache-control": "no-cache",
}
ROWS = 8
YEAR = 365 * 24 * 3600
USES = {
    "/": "Start",
    "/try/payments": "Payments",
    "/try/orders": "Orders",
    "/try/subscriptions": "Subscriptions",
    "/try/sign-up": "Sign-up",
    "/try/uploads": "Uploads",
}


def template(name: str) -> Template:
    """Return one of the templates. `$name` stands for HTML."""
    return Template((Path(__file__).parent / "pages" / name).read_text(encoding="utf-8"))


_FRAME = template("frame.html")
_USE = template("use.html")
_RESEND = template("resend.html")


def visitor(request: Request) -> str:
    """Return the customer who looks at a page: the one of the cookie, or a new one."""
    known = customer_of(request.headers.get("cookie"))
    return new_customer() if known == NOBODY else known


def framed(request: Request, customer: str, main: str, *scripts: str) -> HTMLResponse:
    """Return a whole page around `main`, with these scripts of `static/`."""
    script = semel_js()
    path = request.url.path
    bad = cookies(request.headers.get("cookie")).get(network.COOKIE) == network.BAD
    answer = HTMLResponse(
        _FRAME.substitute(
            title=f"{USES[path]} · The shop",
            semel_version=script.version,
            semel_integrity=script.integrity,
            scripts="\n".join(f'<script src="/static/{name}" defer></script>' for name in scripts),
            semel="on" if PROTECTED else "off",
            state="Semel is on" if PROTECTED else "Semel is off",
            path=path,
            network="off" if bad else "on",
            network_state="Bad network: every second response is lost" if bad else "Good network",
            other_network="good" if bad else network.BAD,
            switch="Restore" if bad else "Simulate a bad network",
            links="\n".join(
                f'<a href="{at}"{" aria-current=page" if at == path else ""}>{name}</a>'
                for at, name in USES.items()
            ),
            main=main,
        ),
        headers=HEADERS,
    )
    answer.set_cookie(COOKIE, customer, max_age=YEAR, httponly=True, samesite="lax")
    return answer


def use(
    *,
    heading: str,
    same: str,
    form: str,
    ideas: Iterable[str],
    note: str,
    happened: tuple[str, int],
    rows: str,
    wire: list[dict[str, Any]],
    edit: tuple[str, str] | None = None,
) -> str:
    """Return what one use's page says.

    `same`: in two sentences, what the same means here; `happened`: what is counted, and how often
    it happened; `wire`: the lines of this use. With `edit`, the name and value of a changed field,
    the last request under a key can be sent again by hand.
    """
    again = next((line for line in wire if line["key"] and line["form"]), None)
    return _USE.substitute(
        heading=heading,
        same=same,
        form=form,
        ideas="\n".join(f"    <li>{idea}</li>" for idea in ideas),
        note=f'<p class="note" role="status">{escape(note)}</p>' if note else "",
        sent=number(len(wire)),
        lost=number(sum(line["lost"] for line in wire)),
        happened_name=happened[0],
        happened=number(happened[1]),
        rows=rows,
        resend=_resend(again, *edit) if again and edit else "",
        wire="\n".join(_line(line) for line in wire[:ROWS])
        or '<tr class="none"><td>nothing yet</td></tr>',
    )


def table(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return table rows of four cells; the cells are HTML already."""
    made = [
        f'<tr><td class="id">{number}</td><td>{what}</td><td class="amount">{much}</td>'
        f'<td class="time">{when}</td></tr>'
        for number, what, much, when in rows
    ]
    return "\n".join(made) or '<tr class="none"><td colspan="4">none yet</td></tr>'


def money(cents: int) -> str:
    return f"€ {cents / 100:,.2f}"


def number(count: int) -> str:
    return f"{count:,}"


def time(row: dict[str, Any], name: str = "made_at") -> str:
    return escape(row[name][11:19])


def badge(kind: str, text: str) -> str:
    return f'<span class="badge {kind}">{text}</span>'


def _line(line: dict[str, Any]) -> str:
    marks = badge("warm", "replayed") if line["replayed"] else ""
    if line["lost"]:
        marks += badge("bad", "response lost")
    key = f"<br><code>key {escape(_short(line['key']))}</code>" if line["key"] else ""
    what = f"{line['method']} {escape(_short(line['path']))}{key}"
    return (
        f'<tr><td class="id">{line["status"]}</td><td>{what}</td>'
        f'<td class="marks">{marks}</td><td class="time">{time(line)}</td></tr>'
    )


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:9]}…{text[-12:]}"


def _resend(line: dict[str, Any], edited: str, edit: str) -> str:
    pairs = parse_qsl(line["form"], keep_blank_values=True)
    return _RESEND.substitute(
        path=escape(line["path"]),
        fields="\n".join(
            f'  <input type="hidden" name="{escape(name)}" value="{escape(value)}">'
            for name, value in pairs
        ),
        edited=edited,
        edit=edit,
    )
