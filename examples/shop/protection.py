"""How the shop uses Semel: one object for the service, and what its handlers need of it."""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from typing import Any

from semel import Idempotency, Issuer, Policy
from shop.customers import customer_of
from shop.database import DATABASE

PROTECTED = os.environ.get("SHOP_SEMEL", "on") != "off"

# Signs the keys that the payments' page hands out. One that is drawn at each start is enough to try
# the shop: keys from before the start are refused then. A real one comes from the environment, the
# same for all servers.
issuer = Issuer(os.environ.get("SHOP_SECRET") or secrets.token_hex(32))

idempotency = Idempotency(
    DATABASE.url,
    issuer=issuer,
    # Keys are stored under the customer, and issued keys are bound to it: one customer's key is
    # of no use to another. Without a login it is the cookie that says who it is.
    scope=lambda request: customer_of(request.header("cookie")),
    policy=Policy(
        required=True,  # a request without a key gets 400 instead of a chance to happen twice
        guarantee="atomic",  # a handler that forgets op.connection() is an error, not a surprise
        # How long a retry waits for a process that was killed in mid-request. The demo kills one
        # every second; a service of yours is well served by the default of 30 s. (On PostgreSQL an
        # atomic operation needs no lease: a crash frees its key at once.)
        lease=timedelta(seconds=2),
    ),
    # Uploads can be sent again by themselves; the switch says what is to be, not what to change.
    routes={"/uploads/{rest:path}": None, "POST /network": None},
)


SEE_OTHER: dict[int | str, dict[str, Any]] = {
    303: {
        "description": "Done: see the page that Location names",
        "headers": {"Location": {"required": True, "schema": {"type": "string"}}},
    }
}
"""What a form's handler answers, for the OpenAPI document."""


def refusal(description: str) -> dict[str, Any]:
    """What an `HTTPException` looks like, for the OpenAPI document."""
    detail = {"type": "object", "required": ["detail"], "properties": {"detail": {}}}
    return {"description": description, "content": {"application/json": {"schema": detail}}}
