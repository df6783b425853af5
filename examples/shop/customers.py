"""Who a request comes from. The shop has no login: a random cookie stands for the account.

In a service of your own this is the verified caller, and what this file does is done by your
authentication.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import cookie_parser

COOKIE = "customer"
NOBODY = "anonymous"
"""Who comes without the cookie, such as a program. All of them are one customer."""

_OURS = re.compile(r"[A-Za-z0-9_-]{22}")


def cookies(field: str | None) -> dict[str, str]:
    """Return what a `Cookie` header says."""
    return cookie_parser(field) if field else {}


def customer_of(field: str | None) -> str:
    """Return whom a `Cookie` header names.

    The 128 random bits are all that proves it, as with any session cookie: who knows them is that
    customer.
    """
    name = cookies(field).get(COOKIE, "")
    return name if _OURS.fullmatch(name) else NOBODY


def new_customer() -> str:
    return secrets.token_urlsafe(16)


def _customer(request: Request) -> str:
    return customer_of(request.headers.get("cookie"))


Customer = Annotated[str, Depends(_customer)]
"""A handler's parameter: who asks."""
